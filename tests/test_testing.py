"""``check_loss`` passes every loss of the package, and finds each kind of mistake."""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_minillm import losses
from lightning_minillm.losses import AdaptiveKL, ForwardKL, LanguageModelingLoss, ReverseKL, TokenLoss, WeightedLoss
from lightning_minillm.testing import check_loss
from lightning_minillm.types import TokenValues

OPTIONS = {"WeightedLoss": lambda: WeightedLoss({"a": ForwardKL(), "b": ReverseKL()}, {"a": 0.5, "b": 0.5})}
NAMES = [name for name in losses.__all__ if name != "TokenLoss"]


def old_logprobs(count, generator):
    return -2 - torch.rand(count, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_passes(name):
    loss = OPTIONS.get(name, getattr(losses, name))()
    inputs = {"old_logprobs": old_logprobs} if "old_logprobs" in loss.token_inputs else {}
    before = loss.chunk_size
    check_loss(loss, inputs, exact_gradient=not isinstance(loss, AdaptiveKL))
    assert loss.chunk_size == before


def test_every_loss_of_the_command_line_is_among_them():
    files = sorted((Path(__file__).resolve().parents[1] / "conf" / "loss").glob("*.yaml"))
    targets = {yaml.safe_load(file.read_text(encoding="utf-8")).get("_target_") for file in files} - {None}
    assert len(targets) > 10
    assert targets <= {f"lightning_minillm.losses.{name}" for name in NAMES}


class Mistake(TokenLoss):
    def token_values(self, signals):
        p, q = signals.teacher_logits.softmax(-1), signals.student_logits.softmax(-1)
        return TokenValues(self.values(p, q), {})


class SeesOthers(Mistake):
    def values(self, p, q):
        return (p - q).square().sum(-1) * q.square().mean()


class Underflows(Mistake):
    def values(self, p, q):
        return (p * (p.log() - q.log())).sum(-1)


class NoDivergence(Mistake):
    is_divergence = True

    def values(self, p, q):
        return -(p * q).sum(-1)


class WrongGradient(Mistake):
    def values(self, p, q):
        return 10 * ((p - q).square() * q.detach()).sum(-1)


class NoGradient(Mistake):
    def values(self, p, q):
        return (p - q.detach()).square().sum(-1) + 0 * q.sum(-1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (SeesOthers, "chunks of 1 tokens change the value"),
        (Underflows, "apart in"),
        (NoDivergence, r"d\(p, p\)"),
        (WrongGradient, "the value's slope"),
        (NoGradient, "no gradient"),
    ],
)
def test_mistakes_are_found(loss, message):
    with pytest.raises(AssertionError, match=message):
        check_loss(loss())


def test_a_loss_without_teacher_passes():
    check_loss(LanguageModelingLoss())
