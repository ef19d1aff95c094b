import math
from dataclasses import replace

import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.losses import MiniLLMLoss
from lightning_minillm.types import RolloutBatch

NAN = float("nan")


def make_rollouts(lengths=(4, 1, 3), width=5, seed=0, junk=0.0):
    """Rollouts with random log-probabilities; ``junk`` lies where the mask is False."""
    mask = lengths_to_mask(torch.tensor(lengths), width)
    generator = torch.Generator().manual_seed(seed)
    student, teacher, mixture, reward = (
        -torch.rand(len(lengths), width, generator=generator).mul(4).masked_fill(~mask, junk) for _ in range(4)
    )
    ids = torch.randint(9, (len(lengths), width), generator=generator)
    ones = torch.ones(len(lengths), 2, dtype=torch.int64)
    return RolloutBatch(ones, ones.bool(), ids, mask, torch.arange(3), student, teacher, mixture, reward)


# --- rewards and returns ----------------------------------------------------------------------------------------------


def test_rewards_use_the_teacher_at_the_rewards_temperature():
    rollouts = make_rollouts()
    given = MiniLLMLoss(reward_scaling=0.5, reward_clip=3.0).rewards(rollouts)
    for row, column in rollouts.response_mask.nonzero().tolist():
        difference = (rollouts.reward_logprobs - rollouts.student_logprobs)[row, column].item()
        assert given[row, column].item() == pytest.approx(max(-3.0, min(3.0, difference / 0.5)), abs=1e-6)
    assert given[~rollouts.response_mask].eq(0).all()


@pytest.mark.parametrize("options", [{}, {"return_start": "next", "gamma": 1.0}, {"length_normalize": False}])
def test_what_is_masked_has_no_effect_on_returns(options):
    loss = MiniLLMLoss(**options)
    clean, dirty = loss.returns(make_rollouts()), loss.returns(make_rollouts(junk=NAN))
    assert torch.equal(clean, dirty)
    wide = loss.returns(make_rollouts(lengths=(4, 1, 3), width=5))
    assert torch.equal(clean, wide)


def test_returns_carry_no_gradient():
    rollouts = make_rollouts()
    rollouts = replace(rollouts, student_logprobs=rollouts.student_logprobs.requires_grad_(True))
    assert not MiniLLMLoss().returns(rollouts).requires_grad


def test_rollouts_without_a_teacher_have_no_reward():
    with pytest.raises(ValueError, match="sample them with a teacher"):
        MiniLLMLoss().rewards(replace(make_rollouts(), reward_logprobs=None))


# --- the loss ---------------------------------------------------------------------------------------------------------


def naive(loss, tokens):
    """The loss by loops over tokens and vocabulary in float64; returns policy gradient, single step, total."""
    student, teacher = tokens.student.logits().tolist(), tokens.teacher.logits().tolist()
    policy, single = 0.0, 0.0
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        log_q = [x - math.log(math.fsum(map(math.exp, s))) for x in s]
        log_p = [x - math.log(math.fsum(map(math.exp, t))) for x in t]
        advantage, weight = tokens.inputs["advantages"][i].item(), tokens.inputs["importance_weights"][i].item()
        ratio = math.exp(log_q[tokens.target_ids[i]] - tokens.inputs["old_logprobs"][i].item()) * weight
        clipped = min(max(ratio, 1 - loss.clip_range), 1 + loss.clip_range)
        policy += max(-advantage * ratio, -advantage * clipped) / len(student)
        kl = math.fsum(math.exp(q) * (q - p) for q, p in zip(log_q, log_p, strict=True))
        single += (weight if loss.weight_single_step else 1) * kl / len(student)
    return policy, single, loss.pg_coef * policy + (single if loss.single_step else 0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clip_range": 0.05},
        {"weight_single_step": True},
        {"single_step": False},
        {"pg_coef": 0.1},
        {"pg_coef": 0.0},
    ],
)
def test_values_against_a_float64_loop(options, make_tokens):
    loss, tokens = MiniLLMLoss(**options, chunk_size=4), make_tokens(count=40)
    policy, single, total = naive(loss, tokens)
    given = tokens.apply(loss)
    assert given.loss.item() == pytest.approx(total, abs=1e-5)
    assert given.parts["pg_loss"].item() == pytest.approx(policy, abs=1e-5)
    if loss.single_step:
        assert given.parts["single_step_loss"].item() == pytest.approx(single, abs=1e-5)
    assert loss.reads_teacher is loss.single_step


def test_the_first_pass_has_the_policy_gradient_of_reinforce(make_tokens):
    """Where ratio = 1 and nothing is clipped, the gradient is that of -A w log q."""
    tokens = make_tokens()
    log_q = tokens.student.logits().log_softmax(-1)[torch.arange(11), tokens.target_ids]
    tokens.inputs |= {"old_logprobs": log_q.detach(), "importance_weights": torch.ones(11)}
    given = tokens.gradients(tokens.apply(MiniLLMLoss(single_step=False)))
    loss = -(tokens.inputs["advantages"] * log_q).mean()
    torch.testing.assert_close(given, torch.autograd.grad(loss, [tokens.student_hidden, tokens.student_head]))


def test_a_clipped_token_gives_no_gradient(make_tokens):
    tokens = make_tokens(count=1)
    log_q = tokens.student.logits().log_softmax(-1)[0, tokens.target_ids].detach()
    tokens.inputs = {
        "old_logprobs": log_q - 1,
        "advantages": torch.ones(1),
        "importance_weights": torch.ones(1),
    }
    output = tokens.apply(MiniLLMLoss(single_step=False))
    assert output.parts["clip_fraction"].item() == 1
    assert output.loss.item() == pytest.approx(-1.2, abs=1e-6)
    assert all(gradient.eq(0).all() for gradient in tokens.gradients(output))


def test_parts_that_are_only_logged(make_tokens):
    tokens = make_tokens()
    parts = tokens.apply(MiniLLMLoss()).parts
    log_q = tokens.student.logits().log_softmax(-1).detach()
    logprobs = log_q[torch.arange(11), tokens.target_ids]
    drift = logprobs - tokens.inputs["old_logprobs"]
    assert parts["entropy"].item() == pytest.approx(-(log_q.exp() * log_q).sum(-1).mean().item(), abs=1e-5)
    assert parts["importance_weight"].item() == pytest.approx(tokens.inputs["importance_weights"].mean().item())
    k3 = tokens.inputs["importance_weights"] * (drift.exp() - 1 - drift)
    assert parts["policy_drift"].item() == pytest.approx(k3.mean().item(), abs=1e-5)
    assert 0 <= parts["clip_fraction"].item() <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"clip_range": 0.0},
        {"gamma": 1.5},
        {"reward_scaling": 0.0},
        {"reward_clip": -1.0},
        {"return_start": "previous"},
        {"whiten": "batch"},
        {"pg_coef": -1.0},
        {"pg_coef": 0.0, "single_step": False},
    ],
)
def test_options_out_of_range_are_refused_when_made(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MiniLLMLoss(**options)


def test_the_default_is_the_official_preset():
    loss = MiniLLMLoss()
    assert (loss.clip_range, loss.gamma, loss.reward_scaling, loss.reward_clip) == (0.2, 0.95, 0.5, 100)
    assert (loss.return_start, loss.whiten, loss.length_normalize) == ("current", "all", True)
    assert (loss.single_step, loss.weight_single_step, loss.pg_coef) == (True, False, 1)
