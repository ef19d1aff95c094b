import math

import pytest
import torch

from lightning_minillm.functional.policy_gradient import clipped_surrogate, importance_weights

NAN = float("nan")

# ratio, advantage, loss, clipped, gradient of the loss with respect to the ratio; eps = 0.2
TABLE = [
    (1.0, 2.0, -2.0, False, -2.0),
    (1.0, -2.0, 2.0, False, 2.0),
    (1.5, 2.0, -2.4, True, 0.0),  # better already: no further reward
    (0.5, 2.0, -1.0, False, -2.0),  # worse: the plain branch pulls it back
    (1.5, -2.0, 3.0, False, 2.0),
    (0.5, -2.0, 1.6, True, 0.0),
    (1.1, 2.0, -2.2, False, -2.0),
    (0.9, -2.0, 1.8, False, 2.0),
    (0.0, 1.0, 0.0, False, -1.0),
    (3.0, 0.0, 0.0, False, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "clipped", "gradient"), TABLE)
def test_clipped_surrogate_by_hand(ratio, advantage, loss, clipped, gradient):
    ratio = torch.tensor([ratio], requires_grad=True)
    value, was_clipped = clipped_surrogate(ratio, torch.tensor([advantage]), 0.2)
    value.sum().backward()
    assert value.item() == pytest.approx(loss, abs=1e-6)
    assert was_clipped.item() is clipped
    assert ratio.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_the_surrogate_is_the_larger_of_two_losses():
    generator = torch.Generator().manual_seed(0)
    ratio, advantage = torch.rand(500, generator=generator) * 2, torch.randn(500, generator=generator)
    value, _ = clipped_surrogate(ratio, advantage, 0.3)
    for r, a, v in zip(ratio.tolist(), advantage.tolist(), value.tolist(), strict=True):
        assert v == pytest.approx(max(-a * r, -a * min(max(r, 0.7), 1.3)), abs=1e-6)


def test_advantages_get_no_gradient():
    ratio = torch.ones(2, requires_grad=True)
    advantages = torch.ones(2, requires_grad=True)
    clipped_surrogate(ratio, advantages, 0.2)[0].sum().backward()
    assert advantages.grad is None


@pytest.mark.parametrize("clip_range", [0.0, -0.2])
def test_clip_range_must_be_positive(clip_range):
    with pytest.raises(ValueError, match="clip_range must be positive"):
        clipped_surrogate(torch.ones(1), torch.ones(1), clip_range)


def test_importance_weights_by_hand():
    log_q = torch.tensor([[0.5, 0.2, 0.9]]).log()
    log_mu = torch.tensor([[0.25, 0.4, 0.9]]).log()
    weights = importance_weights(log_q, log_mu, torch.ones(1, 3, dtype=torch.bool))
    assert weights.tolist()[0] == pytest.approx([2.0, 0.5, 1.0])


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_importance_weights_are_bounded_by_the_mixture(alpha):
    generator = torch.Generator().manual_seed(0)
    q, p = torch.rand(2, 4, 50, generator=generator)
    mu = (1 - alpha) * q + alpha * p
    weights = importance_weights(q.log(), mu.log(), torch.ones(4, 50, dtype=torch.bool))
    assert weights.min() > 0
    assert weights.max() <= 1 / (1 - alpha) + 1e-5


def test_masked_weights_are_one_and_without_gradient():
    log_q = torch.tensor([[-1.0, NAN, -math.inf]], requires_grad=True)
    weights = importance_weights(log_q, torch.tensor([[-2.0, 0.0, NAN]]), torch.tensor([[True, False, False]]))
    assert weights.tolist()[0] == pytest.approx([math.e, 1.0, 1.0])
    assert not weights.requires_grad
