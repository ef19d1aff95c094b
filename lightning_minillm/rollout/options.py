"""Options of a rollout phase, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightning_minillm.checks import check_choice, check_range
from lightning_minillm.rollout.sampling import SamplingConfig
from lightning_minillm.rollout.sources import StudentText, TextSource

TeacherCache = Literal["hidden", "none"]
TeacherReading = Literal["auto", "lockstep", "after"]

OWN_PROMPTS = (
    "the teacher is shown prompts of its own (teacher.template), and cannot advance with the student while it samples:"
    " set module.rollouts.sampling.teacher_mix_alpha=0 and module.teacher_use.reading=after (or auto), or"
    " teacher.template=null"
)
"""Why a teacher with a template of its own cannot read or write along."""


@dataclass(frozen=True)
class RolloutOptions:
    """The text of a rollout phase: how much, whose, and how it is sampled.

    Attributes:
        sampling: how student and teacher are sampled.
        num_rollouts: responses per phase over all ranks (official 256); a multiple of the data module's batch size.
        ppo_epochs: passes over each phase (official 4).
        batch_size: rows that are sampled together on one rank; changes speed and memory only.
        source: whose text a phase consists of; the student's by default.
        loss_temperature: of student and teacher in the loss, positive; ``None`` for that of sampling. The loss is not
            multiplied by its square.
        recompute_logprobs: replace the sampler's student log-probabilities by those of one full pass, for half
            precision, where cached decoding and a full pass differ.
        seed: of sampling, shuffling and the source.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_rollouts: int = 256
    ppo_epochs: int = 4
    batch_size: int = 64
    source: TextSource = field(default_factory=StudentText)
    loss_temperature: float | None = None
    recompute_logprobs: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_rollouts", "ppo_epochs", "batch_size"):
            check_range(getattr(self, name) >= 1, f"rollouts.{name}", "at least 1", getattr(self, name))
        if self.sampling.temperature == 0:
            raise ValueError("rollouts need a positive sampling temperature, got 0")
        temperature = self.loss_temperature
        check_range(temperature is None or temperature > 0, "loss_temperature", "positive or null", temperature)


@dataclass(frozen=True)
class TeacherOptions:
    """When the teacher reads the text of a phase, what is kept of it, and where it is in between.

    Attributes:
        reading: ``"lockstep"``: the teacher advances with the student while sampling; ``"after"``: it reads the
            finished text in full passes without a key-value cache, for tight memory (``teacher_mix_alpha`` must be 0);
            ``"auto"``: in lockstep if its log-probabilities are needed or it has a share in the text, else after; and
            always after if it is shown prompts of its own.
        cache: ``"hidden"`` keeps the teacher's last hidden states of the text, so that updates need no teacher pass
            over it; ``"none"`` runs the teacher in every update.
        offload: keep the teacher in CPU memory except while text is collected; its head stays on the device for the
            cached hidden states. A sharded teacher keeps its shards there and may be read in every step.
    """

    reading: TeacherReading = "auto"
    cache: TeacherCache = "hidden"
    offload: bool = False

    def __post_init__(self) -> None:
        check_choice("the teacher's reading", self.reading, TeacherReading)
        check_choice("the teacher's cache", self.cache, TeacherCache)


def check_own_prompts(sampling: SamplingConfig, reading: TeacherReading = "auto") -> None:
    """Check that a teacher with prompts of its own need not advance with the student.

    Raises:
        ValueError: it has a share in the text, or is to read it while it is sampled.
    """
    if sampling.teacher_mix_alpha > 0 or reading == "lockstep":
        given = f"teacher_mix_alpha={sampling.teacher_mix_alpha} and reading={reading}"
        raise ValueError(f"{OWN_PROMPTS}; got {given}")
