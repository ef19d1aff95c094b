from dataclasses import replace

import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.rollout import AdvantageEstimator
from lightning_minillm.types import RolloutBatch

NAN = float("nan")


def make_rollouts(lengths=(4, 1, 3), width=5, seed=0, junk=0.0):
    """Rollouts with random log-probabilities; ``junk`` is where the mask is False."""
    mask = lengths_to_mask(torch.tensor(lengths), width)
    generator = torch.Generator().manual_seed(seed)
    student, teacher, mixture, reward = (
        -torch.rand(len(lengths), width, generator=generator).mul(4).masked_fill(~mask, junk) for _ in range(4)
    )
    ids = torch.randint(9, (len(lengths), width), generator=generator)
    ones = torch.ones(len(lengths), 2, dtype=torch.int64)
    return RolloutBatch(ones, ones.bool(), ids, mask, torch.arange(3), student, teacher, mixture, reward)


def test_rewards_use_the_teacher_at_the_rewards_temperature():
    rollouts = make_rollouts()
    given = AdvantageEstimator(reward_scaling=0.5, reward_clip=3.0).rewards(rollouts)
    for row, column in rollouts.response_mask.nonzero().tolist():
        difference = (rollouts.reward_logprobs - rollouts.student_logprobs)[row, column].item()
        assert given[row, column].item() == pytest.approx(max(-3.0, min(3.0, difference / 0.5)), abs=1e-6)
    assert given[~rollouts.response_mask].eq(0).all()


@pytest.mark.parametrize("options", [{}, {"return_start": "next", "gamma": 1.0}, {"length_normalize": False}])
def test_what_is_masked_has_no_effect_on_returns(options):
    estimator = AdvantageEstimator(**options)
    clean, dirty = estimator.returns(make_rollouts()), estimator.returns(make_rollouts(junk=NAN))
    assert torch.equal(clean, dirty)
    wide = estimator.returns(make_rollouts(lengths=(4, 1, 3), width=5))
    assert torch.equal(clean, wide)


def test_returns_carry_no_gradient():
    rollouts = make_rollouts()
    rollouts = replace(rollouts, student_logprobs=rollouts.student_logprobs.requires_grad_(True))
    assert not AdvantageEstimator().returns(rollouts).requires_grad


def test_rollouts_without_a_teacher_have_no_reward():
    with pytest.raises(ValueError, match="sample them with a teacher"):
        AdvantageEstimator().rewards(replace(make_rollouts(), reward_logprobs=None))


@pytest.mark.parametrize(
    "options",
    [{"gamma": 1.5}, {"reward_scaling": 0.0}, {"reward_clip": -1.0}, {"return_start": "previous"}, {"whiten": "batch"}],
)
def test_options_out_of_range_are_refused_when_made(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdvantageEstimator(**options)


def test_the_default_is_the_official_preset():
    estimator = AdvantageEstimator()
    assert (estimator.gamma, estimator.reward_scaling, estimator.reward_clip) == (0.95, 0.5, 100)
    assert (estimator.return_start, estimator.whiten, estimator.length_normalize) == ("current", "all", True)
