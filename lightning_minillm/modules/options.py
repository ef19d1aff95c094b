"""Options of the modules, as small frozen dataclasses that are checked when they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from lightning_minillm.checks import check_range
from lightning_minillm.losses import TokenLoss
from lightning_minillm.metrics.words import Words, check_words
from lightning_minillm.rollout import SamplingConfig

OptimizerFactory = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]
SchedulerFactory = Callable[..., torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True)
class TrainingOptions:
    """How the student is trained.

    Attributes:
        optimizer: called with the student's trainable parameters; ``None`` where nothing is trained.
        scheduler: called with the optimiser, and with ``num_training_steps`` if it takes that; stepped once per
            optimiser step. ``None`` for a constant rate.
        dropout: keep the student's dropout in training. ``None``: as is usual for the method, on for given text and off
            for rollouts, whose log-probabilities were sampled without it.
        gradient_checkpointing: compute the student's layers again in the backward pass instead of keeping their
            activations: less memory, about a third more time.
        activation_offload: keep the activations of the student's layers in CPU memory until the backward pass.
        compile_backend: backend of ``torch.compile`` for the student's training passes, such as ``"inductor"``;
            ``None`` runs them uncompiled.
    """

    optimizer: OptimizerFactory | None = None
    scheduler: SchedulerFactory | None = None
    dropout: bool | None = None
    gradient_checkpointing: bool = False
    activation_offload: bool = False
    compile_backend: str | None = None


@dataclass(frozen=True)
class ValidationOptions:
    """How the student is sampled in validation and test.

    Attributes:
        sampling: of the student alone (``teacher_mix_alpha`` must be 0).
        seed: of the sampling noise.
        words: what Rouge-L and exact match compare; see :data:`~lightning_minillm.metrics.Words`.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(teacher_mix_alpha=0.0))
    seed: int = 10
    words: Words = "auto"

    def __post_init__(self) -> None:
        check_words(self.words)
        if self.sampling.teacher_mix_alpha != 0:
            raise ValueError("validation samples the student alone: set teacher_mix_alpha=0 in validation.sampling")


@dataclass(frozen=True)
class PretrainingOptions:
    """The pretraining loss: on the data module's stream of plain text (or of its training pairs), beside the rollouts.

    Attributes:
        loss: on the target tokens of the stream.
        coef: weight of that loss, at least 0; used if the data module has such a stream.
    """

    loss: TokenLoss
    coef: float = 1.0

    def __post_init__(self) -> None:
        check_range(self.coef >= 0, "the weight of the pretraining loss", "at least 0", self.coef)
