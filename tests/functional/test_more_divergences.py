"""Skewed KLs, total variation, alpha-beta divergence, adaptive KL and Jeffreys: properties, hand-made values, loops."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from lightning_minillm.functional import (
    adaptive_kl,
    alpha_beta_divergence,
    forward_kl,
    jeffreys,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)

EXPONENTS = [(0.2, 0.7), (0.5, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.4, 0.0), (0.0, 0.4), (1e-3, 0.9)]
DIVERGENCES = {
    **{f"skewed_forward_{alpha}": partial(skewed_forward_kl, alpha=alpha) for alpha in (0.1, 0.9)},
    **{f"skewed_reverse_{alpha}": partial(skewed_reverse_kl, alpha=alpha) for alpha in (0.1, 0.9)},
    "total_variation": total_variation,
    "jeffreys": jeffreys,
    "adaptive_kl": adaptive_kl,
    **{f"alpha_beta_{a}_{b}": partial(alpha_beta_divergence, alpha=a, beta=b) for a, b in EXPONENTS},
}
each_divergence = pytest.mark.parametrize("name", DIVERGENCES)


def random_logits(tokens=6, vocabulary=13, scale=3.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, tokens, vocabulary, generator=generator, dtype=dtype)


def probabilities(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0)


def alpha_beta(p, q, a, b):
    """Cichocki's definition with its two limits, term by term."""
    if b == 0:
        return sum(x**a * math.log(x**a / y**a) - x**a + y**a for x, y in zip(p, q, strict=True)) / a**2
    if a == 0:
        return alpha_beta(q, p, b, 0)
    s = a + b
    return -sum(x**a * y**b - a / s * x**s - b / s * y**s for x, y in zip(p, q, strict=True)) / (a * b)


def adaptive(p, q, head=0.5):
    """Walk through the tokens, the teacher's most probable first, until they hold more than ``head``."""
    total, gaps = 0.0, [0.0, 0.0]
    for place, token in enumerate(sorted(range(len(p)), key=lambda i: -p[i])):
        total += p[token]
        gaps[0 if place == 0 or total <= head else 1] += abs(p[token] - q[token])
    weight = gaps[0] / sum(gaps)
    return weight * kl(p, q) + (1 - weight) * kl(q, p)


def naive(name, student, teacher):
    q, p = probabilities(student), probabilities(teacher)
    family, _, options = name.partition("_0.") if name.startswith("skewed") else (name, "", "")
    if name.startswith("skewed"):
        alpha = float(f"0.{options}")
        a, b = (p, q) if family == "skewed_forward" else (q, p)
        return kl(a, [alpha * x + (1 - alpha) * y for x, y in zip(a, b, strict=True)])
    if name == "total_variation":
        return sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
    if name == "jeffreys":
        return kl(p, q) + kl(q, p)
    if name == "adaptive_kl":
        return adaptive(p, q)
    return alpha_beta(p, q, *map(float, name.removeprefix("alpha_beta_").split("_")))


@each_divergence
def test_a_distribution_is_at_distance_zero_from_itself_and_gets_no_gradient(name):
    logits = random_logits(scale=10)[0].requires_grad_(True)
    value = DIVERGENCES[name](logits, logits.detach().clone())
    assert value.abs().max() < 1e-5
    value.sum().backward()
    assert logits.grad.abs().max() < 1e-5


@each_divergence
def test_other_distributions_are_at_positive_distance(name):
    values = DIVERGENCES[name](*random_logits(tokens=200, seed=1))
    assert values.shape == (200,)
    assert values.min() > 0


@each_divergence
@pytest.mark.parametrize("scale", [0.3, 3.0, 20.0])
def test_values_against_a_float64_loop(name, scale):
    student, teacher = random_logits(scale=scale, seed=2, dtype=torch.float64)
    expected = torch.tensor(
        [naive(name, s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(DIVERGENCES[name](student, teacher), expected, rtol=1e-7, atol=1e-9)
    single = DIVERGENCES[name](student.float(), teacher.float())
    torch.testing.assert_close(single, expected.float(), rtol=1e-3, atol=2e-4 if "0.001" in name else 1e-5)


@pytest.mark.parametrize("name", [name for name in DIVERGENCES if name != "adaptive_kl"])
def test_gradients(name):
    student, teacher = random_logits(tokens=3, vocabulary=5, scale=1.5, dtype=torch.float64)
    assert gradcheck(DIVERGENCES[name], (student.requires_grad_(True), teacher.requires_grad_(True)))


def test_adaptive_kl_holds_its_weights_fixed():
    """The gradient is that of the two KLs, weighted; the weights have none."""
    student, teacher = random_logits(tokens=4, dtype=torch.float64, scale=1.5)
    student.requires_grad_(True)
    (given,) = torch.autograd.grad(adaptive_kl(student, teacher).sum(), student)
    forward, reverse = forward_kl(student, teacher), reverse_kl(student, teacher)
    weight = ((adaptive_kl(student, teacher) - reverse) / (forward - reverse)).detach()
    (expected,) = torch.autograd.grad((weight * forward + (1 - weight) * reverse).sum(), student)
    torch.testing.assert_close(given, expected)
    assert ((weight > 0) & (weight < 1)).all()


@each_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [50.0, 200.0])
def test_probabilities_that_underflow_give_finite_values_and_gradients(name, gap, dtype):
    student = torch.tensor([[0.0, gap, -gap, 0.0], [gap, 0.0, 0.0, -gap]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[gap, 0.0, -gap, 0.0], [gap, 0.0, 0.0, -gap]], dtype=dtype)
    values = DIVERGENCES[name](student, teacher)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()
    assert values[0].item() > 0.1
    assert abs(values[1].item()) < (1e-6 if dtype == torch.float32 else 1e-2)


@each_divergence
def test_ids_that_neither_model_allows_count_nothing(name):
    student, teacher = random_logits()
    expected = DIVERGENCES[name](student, teacher)
    barred = torch.full((6, 2), -math.inf)
    given = DIVERGENCES[name](torch.cat([student, barred], -1), torch.cat([teacher, barred], -1))
    torch.testing.assert_close(given, expected)


def test_by_hand():
    q, p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    assert total_variation(q, p).item() == pytest.approx(0.25)
    assert jeffreys(q, p).item() == pytest.approx(0.25 * math.log(3))
    # alpha = beta = 1 is half the squared distance, alpha = beta = 1/2 four times the squared Hellinger distance
    assert alpha_beta_divergence(q, p, 1, 1).item() == pytest.approx(0.5 * 2 * 0.25**2)
    hellinger = 1 - math.sqrt(0.5 * 0.25) - math.sqrt(0.5 * 0.75)
    assert alpha_beta_divergence(q, p, 0.5, 0.5).item() == pytest.approx(4 * hellinger, rel=1e-5)


def test_the_ends_of_alpha_beta_are_the_kls():
    student, teacher = random_logits()
    torch.testing.assert_close(alpha_beta_divergence(student, teacher, 1, 0), forward_kl(student, teacher))
    torch.testing.assert_close(alpha_beta_divergence(student, teacher, 0, 1), reverse_kl(student, teacher))


def test_skew_bounds_the_kls():
    """KL(a || alpha a + (1 - alpha) b) is at most -log alpha, where the KL itself grows with the gap."""
    student, teacher = torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]])
    for function in (skewed_forward_kl, skewed_reverse_kl):
        assert function(student, teacher, 0.1).item() == pytest.approx(-math.log(0.1), rel=1e-6)
    # alpha = 0 is the KL itself
    torch.testing.assert_close(skewed_forward_kl(student, teacher, 0.0), forward_kl(student, teacher))
    torch.testing.assert_close(skewed_reverse_kl(student, teacher, 0.0), reverse_kl(student, teacher))


@pytest.mark.parametrize("function", [skewed_forward_kl, skewed_reverse_kl])
@pytest.mark.parametrize("alpha", [-0.1, 1.0, 2.0])
def test_alpha_of_the_skew_out_of_range(function, alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\)"):
        function(torch.zeros(1, 2), torch.zeros(1, 2), alpha)


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.5), (0.5, -0.1), (0.0, 0.0)])
def test_exponents_out_of_range(alpha, beta):
    with pytest.raises(ValueError, match="alpha and beta must be at least 0"):
        alpha_beta_divergence(torch.zeros(1, 2), torch.zeros(1, 2), alpha, beta)


@pytest.mark.parametrize("head_mass", [0.0, 1.0])
def test_head_mass_out_of_range(head_mass):
    with pytest.raises(ValueError, match=r"head_mass must be inside \(0, 1\)"):
        adaptive_kl(torch.zeros(1, 2), torch.zeros(1, 2), head_mass)
