"""Rollouts: sampling from student and teacher, collecting a phase, serving it."""

from lightning_minillm.rollout.buffer import RolloutBuffer
from lightning_minillm.rollout.collector import collect_rollouts
from lightning_minillm.rollout.config import SamplingConfig
from lightning_minillm.rollout.sampler import MixtureSampler
from lightning_minillm.rollout.scoring import score_responses

__all__ = ["MixtureSampler", "RolloutBuffer", "SamplingConfig", "collect_rollouts", "score_responses"]
