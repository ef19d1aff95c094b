import pytest
import torch

from lightning_minillm.functional import adaptive_kl, alpha_beta_divergence, divergences
from lightning_minillm.losses import (
    AdaptiveKL,
    AlphaBetaDivergence,
    ForwardKL,
    GeneralizedJSD,
    Jeffreys,
    LanguageModelingLoss,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    TeacherCrossEntropy,
    TotalVariation,
)

CASES = [
    (ForwardKL(), divergences.forward_kl),
    (ReverseKL(), divergences.reverse_kl),
    (GeneralizedJSD(0.2), lambda s, t: divergences.generalized_jsd(s, t, 0.2)),
    (SkewedForwardKL(0.2), lambda s, t: divergences.skewed_forward_kl(s, t, 0.2)),
    (SkewedReverseKL(0.2), lambda s, t: divergences.skewed_reverse_kl(s, t, 0.2)),
    (TotalVariation(), divergences.total_variation),
    (Jeffreys(), divergences.jeffreys),
    (AlphaBetaDivergence(0.3, 0.4), lambda s, t: alpha_beta_divergence(s, t, 0.3, 0.4)),
    (AdaptiveKL(0.4), lambda s, t: adaptive_kl(s, t, 0.4)),
    (TeacherCrossEntropy(), divergences.cross_entropy),
]


@pytest.mark.parametrize(("loss", "function"), CASES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_losses_are_means_of_the_functions_at_the_temperature(loss, function, temperature, make_tokens):
    tokens = make_tokens()
    student, teacher = tokens.student.logits() / temperature, tokens.teacher.logits() / temperature
    given = tokens.apply(loss, temperature=temperature)
    torch.testing.assert_close(given.loss, function(student, teacher).mean())
    for part in given.parts.values():
        torch.testing.assert_close(part, given.loss.detach())


@pytest.mark.parametrize(("loss", "_"), CASES[:-1])
def test_a_divergence_has_no_parts_beside_the_loss(loss, _, make_tokens):
    assert loss.is_divergence
    assert make_tokens().apply(loss).parts == {}


def test_kl_names_give_the_direction(make_tokens):
    tokens = make_tokens()
    q, p = tokens.student.logits().softmax(-1), tokens.teacher.logits().softmax(-1)
    torch.testing.assert_close(tokens.apply(ReverseKL()).loss, (q * (q / p).log()).sum(-1).mean())
    torch.testing.assert_close(tokens.apply(ForwardKL()).loss, (p * (p / q).log()).sum(-1).mean())


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_the_ends_of_beta_are_losses_of_their_own(beta):
    with pytest.raises(ValueError, match="use ForwardKL or ReverseKL"):
        GeneralizedJSD(beta)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SkewedForwardKL(1.0),
        lambda: SkewedReverseKL(-0.1),
        lambda: AlphaBetaDivergence(-1.0, 1.0),
        lambda: AlphaBetaDivergence(0.0, 0.0),
        lambda: AdaptiveKL(0.0),
    ],
)
def test_options_are_checked_when_the_loss_is_made(make):
    with pytest.raises(ValueError, match="must"):
        make()


def test_language_modeling_is_torchs_cross_entropy(make_tokens):
    tokens = make_tokens()
    expected = torch.nn.functional.cross_entropy(tokens.student.logits(), tokens.target_ids)
    given = tokens.apply(LanguageModelingLoss())
    torch.testing.assert_close(given.loss, expected)
    torch.testing.assert_close(given.parts["lm_loss"], expected.detach())
