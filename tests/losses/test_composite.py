import pytest
import torch

from lightning_minillm.losses import (
    ForwardKL,
    KDLoss,
    LanguageModelingLoss,
    MiniLLMLoss,
    ReverseKL,
    TeacherCrossEntropy,
    WeightedLoss,
)

EQUAL = {"forward": 1.0, "reverse": 1.0}


def test_a_weighted_loss_is_the_weighted_sum(make_tokens):
    tokens = make_tokens()
    summands = {"forward": ForwardKL(), "lm": LanguageModelingLoss()}
    given = tokens.apply(WeightedLoss(summands, {"forward": 0.25, "lm": 3.0}, chunk_size=4))
    forward, lm = (tokens.apply(loss) for loss in summands.values())
    torch.testing.assert_close(given.loss, 0.25 * forward.loss + 3 * lm.loss)
    torch.testing.assert_close(dict(given.parts), {"forward": forward.loss.detach(), **lm.parts})


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_kd_mixes_targets_and_teacher(ratio, make_tokens):
    tokens = make_tokens()
    expected = (1 - ratio) * tokens.apply(LanguageModelingLoss()).loss + ratio * tokens.apply(
        TeacherCrossEntropy()
    ).loss
    torch.testing.assert_close(tokens.apply(KDLoss(ratio)).loss, expected)


def test_kd_takes_any_divergence(make_tokens):
    tokens = make_tokens()
    expected = 0.5 * tokens.apply(LanguageModelingLoss()).loss + 0.5 * tokens.apply(ReverseKL()).loss
    torch.testing.assert_close(tokens.apply(KDLoss(0.5, ReverseKL())).loss, expected)


def test_kd_of_the_teacher_itself_gives_no_gradient(make_tokens):
    tokens = make_tokens()
    output = KDLoss(1.0)(tokens.student, tokens.target_ids, tokens.student)
    for gradient in tokens.gradients(output):
        assert gradient.abs().max() < 1e-6


def test_a_summand_of_weight_zero_is_not_computed(make_tokens):
    tokens = make_tokens()
    loss = KDLoss(0.0)
    assert not loss.reads_teacher
    assert loss(tokens.student, tokens.target_ids).loss.isfinite()
    assert set(tokens.apply(loss).parts) == {"lm_loss"}


def test_inputs_of_the_summands_are_asked_for(make_tokens):
    tokens = make_tokens()
    loss = WeightedLoss({"pg": MiniLLMLoss(single_step=False), "lm": LanguageModelingLoss()}, {"pg": 1.0, "lm": 1.0})
    assert not loss.reads_teacher
    with pytest.raises(ValueError, match="old_logprobs"):
        loss(tokens.student, tokens.target_ids)


def test_parts_of_equal_summands_stay_apart(make_tokens):
    """Two summands that report the same name: neither may hide the other."""
    tokens = make_tokens()
    loss = WeightedLoss({"forward": KDLoss(0.5, ForwardKL()), "reverse": KDLoss(0.5, ReverseKL())}, EQUAL)
    parts = tokens.apply(loss).parts
    assert set(parts) == {"lm_loss", "divergence", "reverse_lm_loss", "reverse_divergence"}
    torch.testing.assert_close(parts["reverse_divergence"], tokens.apply(ReverseKL()).loss.detach())


@pytest.mark.parametrize(
    ("losses", "weights", "message"),
    [
        ({"a": ForwardKL()}, {"b": 1.0}, "must have the same names"),
        ({"a": ForwardKL()}, {"a": 0.0}, "all weights are 0"),
        ({}, {}, "all weights are 0"),
    ],
)
def test_weights_that_make_no_sense(losses, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedLoss(losses, weights)


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_kd_ratio_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"kd_ratio must be in \[0, 1\]"):
        KDLoss(ratio)
