"""LightningModules: what is trained, and the options of training."""

from lightning_minillm.modules.base import CausalLMModule
from lightning_minillm.modules.options import PretrainingOptions, TrainingOptions, ValidationOptions
from lightning_minillm.modules.presets import minillm, on_policy_kd
from lightning_minillm.modules.rollouts import RolloutModule
from lightning_minillm.modules.supervised import KDModule, SFTModule

__all__ = [
    "CausalLMModule",
    "KDModule",
    "PretrainingOptions",
    "RolloutModule",
    "SFTModule",
    "TrainingOptions",
    "ValidationOptions",
    "minillm",
    "on_policy_kd",
]
