"""Methods as presets of :class:`~lightning_minillm.modules.rollouts.RolloutModule`."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from lightning_minillm.losses import KDLoss, LanguageModelingLoss, MiniLLMLoss, ReverseKL, TokenLoss
from lightning_minillm.models import ModelFactory
from lightning_minillm.modules.options import PretrainingOptions, TrainingOptions, ValidationOptions
from lightning_minillm.modules.rollouts import RolloutModule
from lightning_minillm.rollout import AdvantageEstimator, RolloutOptions, SamplingConfig, TeacherOptions


def minillm(
    student: ModelFactory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: ModelFactory,
    loss: TokenLoss | None = None,
    advantages: AdvantageEstimator | None = None,
    rollouts: RolloutOptions | None = None,
    pretraining: PretrainingOptions | None = None,
    teacher_use: TeacherOptions | None = None,
    training: TrainingOptions | None = None,
    validation: ValidationOptions | None = None,
) -> RolloutModule:
    """Return MiniLLM as the official code runs it (Gu et al., arXiv 2306.08543).

    The clipped policy gradient of the reverse KL with its exact single-step term, on rollouts from the mixture of
    student and teacher, beside ``KDLoss(0.5)`` on pretraining text.

    The arguments are those of :class:`~lightning_minillm.modules.RolloutModule`; each one that is given replaces the
    official choice. A loss that reads no advantages is minimised on the same rollouts, without the policy gradient.
    """
    loss = loss or MiniLLMLoss()
    if advantages is None and "advantages" in loss.token_inputs:
        advantages = AdvantageEstimator()
    return RolloutModule(
        student,
        tokenizer,
        teacher=teacher,
        loss=loss,
        advantages=advantages,
        rollouts=rollouts or RolloutOptions(),
        pretraining=pretraining or PretrainingOptions(KDLoss(0.5)),
        teacher_use=teacher_use or TeacherOptions(),
        training=training,
        validation=validation,
    )


def on_policy_kd(
    student: ModelFactory,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: ModelFactory,
    loss: TokenLoss | None = None,
    rollouts: RolloutOptions | None = None,
    pretraining: PretrainingOptions | None = None,
    teacher_use: TeacherOptions | None = None,
    training: TrainingOptions | None = None,
    validation: ValidationOptions | None = None,
) -> RolloutModule:
    """Return the minimisation of a divergence on text of any source; by default the reverse KL on the student's text.

    mean over response tokens of d(p(. | x, y_<t), q(. | x, y_<t)), y from ``rollouts.source``. With 64 rollouts, one
    pass and a batch size of 64, every step is on text of the student that it updates.

    The arguments are those of :class:`~lightning_minillm.modules.RolloutModule`.
    """
    return RolloutModule(
        student,
        tokenizer,
        teacher=teacher,
        loss=loss or ReverseKL(),
        rollouts=rollouts
        or RolloutOptions(SamplingConfig(teacher_mix_alpha=0.0), num_rollouts=64, ppo_epochs=1, loss_temperature=1.0),
        pretraining=pretraining or PretrainingOptions(LanguageModelingLoss()),
        teacher_use=teacher_use or TeacherOptions(cache="none"),
        training=training,
        validation=validation,
    )
