import math

import pytest
import torch

from lightning_minillm.losses import MiniLLMLoss

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
        {"pg_coef": -1.0},
        {"pg_coef": 0.0, "single_step": False},
    ],
)
def test_options_out_of_range_are_refused_when_made(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MiniLLMLoss(**options)


def test_the_default_is_the_official_preset():
    loss = MiniLLMLoss()
    assert (loss.clip_range, loss.single_step, loss.weight_single_step, loss.pg_coef) == (0.2, True, False, 1)
