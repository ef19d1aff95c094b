"""LightningModules."""

from lightning_minillm.modules.base import CausalLMModule
from lightning_minillm.modules.minillm import MiniLLMModule
from lightning_minillm.modules.on_policy import OnPolicyKDModule
from lightning_minillm.modules.phases import PhaseModule
from lightning_minillm.modules.supervised import KDModule, SFTModule

__all__ = ["CausalLMModule", "KDModule", "MiniLLMModule", "OnPolicyKDModule", "PhaseModule", "SFTModule"]
