"""Methods as presets of :class:`~lightning_minillm.modules.rollouts.RolloutModule`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from transformers import PreTrainedTokenizerBase

from lightning_minillm.losses import KDLoss, LanguageModelingLoss, MiniLLMLoss, ReverseKL, TokenLoss
from lightning_minillm.models import ModelFactory
from lightning_minillm.modules.options import PretrainingOptions, TrainingOptions, ValidationOptions
from lightning_minillm.modules.rollouts import RolloutModule
from lightning_minillm.rollout import AdvantageEstimator, RolloutOptions, SamplingConfig, TeacherOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RolloutParts(TypedDict, total=False):
    """What may replace a part of a preset; see :class:`~lightning_minillm.modules.RolloutModule`."""

    advantages: AdvantageEstimator
    rollouts: RolloutOptions
    pretraining: PretrainingOptions
    teacher_use: TeacherOptions
    training: TrainingOptions
    validation: ValidationOptions


def minillm(
    student: ModelFactory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: ModelFactory,
    loss: TokenLoss | None = None,
    **parts: Unpack[RolloutParts],
) -> RolloutModule:
    """Return MiniLLM as the official code runs it (Gu et al., arXiv 2306.08543).

    The clipped policy gradient of the reverse KL with its exact single-step term, on rollouts from the mixture of
    student and teacher, beside ``KDLoss(0.5)`` on pretraining text. Every part that is given replaces the official one;
    a loss that reads no advantages is minimised on the same rollouts, without the policy gradient.
    """
    loss = loss or MiniLLMLoss()
    official: RolloutParts = {"pretraining": PretrainingOptions(KDLoss(0.5))}
    if "advantages" in loss.token_inputs:
        official["advantages"] = AdvantageEstimator()
    chosen: RolloutParts = {**official, **parts}
    return RolloutModule(student, tokenizer, teacher=teacher, loss=loss, **chosen)


def on_policy_kd(
    student: ModelFactory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: ModelFactory,
    loss: TokenLoss | None = None,
    **parts: Unpack[RolloutParts],
) -> RolloutModule:
    """Return the minimisation of a divergence on text of any source; by default the reverse KL on the student's text.

    mean over response tokens of d(p(. | x, y_<t), q(. | x, y_<t)), y from ``rollouts.source``. With 64 rollouts, one
    pass and a batch size of 64, every step is on text of the student that it updates. A part that is given replaces the
    whole usual part: ``RolloutOptions(source=...)`` alone has the official MiniLLM's phases and mixes in the teacher.
    """
    sampling = SamplingConfig(teacher_mix_alpha=0.0)
    usual: RolloutParts = {
        "rollouts": RolloutOptions(sampling, num_rollouts=64, ppo_epochs=1, loss_temperature=1.0),
        "pretraining": PretrainingOptions(LanguageModelingLoss()),
        "teacher_use": TeacherOptions(cache="none"),
    }
    chosen: RolloutParts = {**usual, **parts}
    return RolloutModule(student, tokenizer, teacher=teacher, loss=loss or ReverseKL(), **chosen)
