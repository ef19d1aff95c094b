"""Rollouts: sampling from student and teacher, collecting a phase, serving it."""

from lightning_minillm.rollout.advantages import AdvantageEstimator
from lightning_minillm.rollout.buffer import RolloutBuffer
from lightning_minillm.rollout.collect import PhaseShare, TextCollector, collect_rollouts
from lightning_minillm.rollout.options import RolloutOptions, TeacherOptions
from lightning_minillm.rollout.replay import AdaptiveReplay
from lightning_minillm.rollout.sampler import MixtureSampler
from lightning_minillm.rollout.sampling import SamplingConfig
from lightning_minillm.rollout.scoring import score_responses
from lightning_minillm.rollout.sources import (
    MixedText,
    ReferenceText,
    StudentText,
    TeacherText,
    TextRequest,
    TextSource,
)
from lightning_minillm.rollout.writing import are_finished, check_lengths, decode_responses, sampler_for

__all__ = [
    "AdaptiveReplay",
    "AdvantageEstimator",
    "MixedText",
    "MixtureSampler",
    "PhaseShare",
    "ReferenceText",
    "RolloutBuffer",
    "RolloutOptions",
    "SamplingConfig",
    "StudentText",
    "TeacherOptions",
    "TeacherText",
    "TextCollector",
    "TextRequest",
    "TextSource",
    "are_finished",
    "check_lengths",
    "collect_rollouts",
    "decode_responses",
    "sampler_for",
    "score_responses",
]
