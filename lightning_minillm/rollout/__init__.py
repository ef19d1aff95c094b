"""Rollouts: sampling from student and teacher, collecting a phase, serving it."""

from lightning_minillm.rollout.buffer import RolloutBuffer
from lightning_minillm.rollout.collect import collect_rollouts
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
from lightning_minillm.rollout.writing import decode_responses, sampler_for

__all__ = [
    "AdaptiveReplay",
    "MixedText",
    "MixtureSampler",
    "ReferenceText",
    "RolloutBuffer",
    "SamplingConfig",
    "StudentText",
    "TeacherText",
    "TextRequest",
    "TextSource",
    "collect_rollouts",
    "decode_responses",
    "sampler_for",
    "score_responses",
]
