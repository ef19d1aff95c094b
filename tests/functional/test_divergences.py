import math

import pytest
import torch
from torch.autograd import gradcheck

from lightning_minillm.functional.divergences import (
    cross_entropy,
    entropy,
    forward_kl,
    generalized_jsd,
    reverse_kl,
)

BETAS = (0.05, 0.3, 0.5, 0.9)
DIVERGENCES = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    **{f"jsd_{beta}": lambda s, t, beta=beta: generalized_jsd(s, t, beta) for beta in BETAS},
}
each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())


def random_logits(tokens=6, vocabulary=13, scale=3.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, tokens, vocabulary, generator=generator, dtype=dtype)


def naive_probabilities(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    return [w / sum(weights) for w in weights]


def naive_kl(a, b):
    return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0)


def naive(name, student, teacher):
    """Each divergence of one token by plain Python loops in float64."""
    q, p = naive_probabilities(student), naive_probabilities(teacher)
    if name == "forward_kl":
        return naive_kl(p, q)
    if name == "reverse_kl":
        return naive_kl(q, p)
    beta = float(name.removeprefix("jsd_"))
    m = [beta * x + (1 - beta) * y for x, y in zip(p, q, strict=True)]
    return beta * naive_kl(p, m) + (1 - beta) * naive_kl(q, m)


@each_divergence
def test_a_distribution_is_at_distance_zero_from_itself(divergence):
    logits, _ = random_logits(scale=10)
    assert divergence(logits, logits).abs().max() < 1e-6
    # a constant added to all logits is the same distribution
    assert divergence(logits, logits + 3).abs().max() < 1e-5


@each_divergence
def test_other_distributions_are_at_positive_distance(divergence):
    student, teacher = random_logits(tokens=200, seed=1)
    values = divergence(student, teacher)
    assert values.shape == (200,)
    assert values.min() > 0


@each_divergence
def test_a_student_equal_to_the_teacher_gets_no_gradient(divergence):
    logits = random_logits()[0].requires_grad_(True)
    divergence(logits, logits.detach().clone()).sum().backward()
    assert logits.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_values_against_a_float64_loop(name, scale):
    student, teacher = random_logits(scale=scale, seed=2)
    expected = [naive(name, s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    torch.testing.assert_close(DIVERGENCES[name](student, teacher), torch.tensor(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("function", "student", "teacher", "expected"),
    [
        (forward_kl, [0.5, 0.5], [0.25, 0.75], 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        (reverse_kl, [0.5, 0.5], [0.25, 0.75], 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        (cross_entropy, [0.5, 0.5], [0.25, 0.75], math.log(2)),
        (cross_entropy, [0.25, 0.75], [0.5, 0.5], -0.5 * math.log(0.25 * 0.75)),
    ],
)
def test_by_hand(function, student, teacher, expected):
    value = function(torch.tensor([student]).log(), torch.tensor([teacher]).log())
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy", "entropy"])
def test_gradients(name):
    student, teacher = random_logits(tokens=3, vocabulary=5, scale=1.5, dtype=torch.float64)
    functions = {**DIVERGENCES, "cross_entropy": cross_entropy, "entropy": lambda s, t: entropy(s) + 0 * t.sum()}
    assert gradcheck(functions[name], (student.requires_grad_(True), teacher.requires_grad_(True)))


def gap_logits(gap):
    """Student and teacher that are sure of different tokens; with a large gap, probabilities underflow to 0."""
    student = torch.tensor([[0.0, gap, -gap, 0.0], [gap, 0.0, 0.0, -gap]])
    teacher = torch.tensor([[gap, 0.0, -gap, 0.0], [gap, 0.0, 0.0, -gap]])
    return student, teacher


@pytest.mark.parametrize("gap", [50.0, 200.0, 5000.0])
@pytest.mark.parametrize("name", [*DIVERGENCES, "cross_entropy"])
def test_probabilities_that_underflow_give_finite_values_and_gradients(name, gap):
    function = {**DIVERGENCES, "cross_entropy": cross_entropy}[name]
    student, teacher = gap_logits(gap)
    student.requires_grad_(True)
    values = function(student, teacher)
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(student.grad).all()
    if name in ("forward_kl", "reverse_kl", "cross_entropy"):
        assert values[0].item() == pytest.approx(gap, rel=1e-6)
    assert values[1].item() == pytest.approx(0, abs=1e-6)


def test_teacher_entries_of_probability_zero_count_nothing():
    teacher = torch.tensor([[0.0, 0.0, -math.inf]])
    student = torch.zeros(1, 3, requires_grad=True)
    value = forward_kl(student, teacher)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(1.5), abs=1e-6)
    torch.testing.assert_close(student.grad, torch.tensor([[1 / 3 - 0.5, 1 / 3 - 0.5, 1 / 3]]))


@pytest.mark.parametrize("beta", BETAS)
def test_generalized_jsd_is_bounded_by_the_entropy_of_beta(beta):
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    values = generalized_jsd(*random_logits(tokens=300, scale=15, seed=3), beta)
    assert values.min() >= -1e-6
    assert values.max() <= bound + 1e-6 <= math.log(2) + 2e-6
    # distributions without a common token reach it
    assert generalized_jsd(*gap_logits(200.0), beta)[0].item() == pytest.approx(bound, abs=1e-6)


def test_generalized_jsd_is_symmetric_under_exchange():
    student, teacher = random_logits(seed=4)
    torch.testing.assert_close(generalized_jsd(student, teacher, 0.3), generalized_jsd(teacher, student, 0.7))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5])
def test_generalized_jsd_names_the_ends(beta):
    with pytest.raises(ValueError, match="use forward_kl or reverse_kl"):
        generalized_jsd(torch.zeros(1, 2), torch.zeros(1, 2), beta)


@pytest.mark.parametrize(("beta", "limit"), [(1e-4, "forward_kl"), (1 - 1e-4, "reverse_kl")])
def test_generalized_jsd_over_its_beta_tends_to_a_kl(beta, limit):
    student, teacher = random_logits(scale=1.0, seed=5, dtype=torch.float64)
    scaled = generalized_jsd(student, teacher, beta) / min(beta, 1 - beta)
    torch.testing.assert_close(scaled, DIVERGENCES[limit](student, teacher), rtol=1e-2, atol=1e-3)


def test_cross_entropy_is_forward_kl_plus_the_teachers_entropy_with_the_same_gradient():
    student, teacher = random_logits(seed=6, dtype=torch.float64)
    student.requires_grad_(True)
    (ce_gradient,) = torch.autograd.grad(cross_entropy(student, teacher).sum(), student)
    (kl_gradient,) = torch.autograd.grad(forward_kl(student, teacher).sum(), student)
    torch.testing.assert_close(ce_gradient, kl_gradient)
    torch.testing.assert_close(cross_entropy(student, teacher), forward_kl(student, teacher) + entropy(teacher))


def test_entropy_lies_between_certainty_and_uniform():
    logits = torch.tensor([[0.0] * 8, [200.0] + [0.0] * 7])
    assert entropy(logits).tolist() == pytest.approx([math.log(8), 0], abs=1e-6)
