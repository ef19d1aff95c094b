"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) through peft, the extra ``lightning-minillm[peft]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_minillm.models.loading import load_causal_lm

_ADAPTER = "default"


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Freeze a model and put trainable adapters beside its projections, in place.

    Args:
        model: any transformers causal LM.
        rank: of the two factors, at least 1.
        alpha: the factors' product is multiplied by alpha / rank.
        dropout: on what enters the factors, in [0, 1).
        target_modules: names of the projections; ``None`` for peft's choice for the family, ``"all-linear"`` for all.
        seed: of the first factor (the second starts at zero). The global random state is left as it was.

    Returns:
        The same model.

    Raises:
        ImportError: peft is not installed.
        ValueError: rank below 1, or peft's own complaints.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'lightning-minillm[peft]'") from error
    if rank < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, got {rank}")
    targets = list(target_modules) if isinstance(target_modules, (list, tuple)) else target_modules
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config, adapter_name=_ADAPTER)
    return model.eval()


def load_lora_causal_lm(
    path: str | Path,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout_lora: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model with :func:`load_causal_lm` (``kwargs``) and :func:`add_lora`."""
    model = load_causal_lm(path, **kwargs)
    return add_lora(model, rank=rank, alpha=alpha, dropout=dropout_lora, target_modules=target_modules, seed=seed)


def has_lora(model: nn.Module) -> bool:
    """Whether :func:`add_lora` was here."""
    return any(_is_adapted(module) for module in model.modules())


def merged_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the model without adapters, with their products added to the weights.

    W' = W + (alpha / rank) B A

    Args:
        model: with adapters; only its structure is used, so that it may be sharded.
        state: its whole state dict.
    """
    merged = {name: value for name, value in state.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if not _is_adapted(module):
            continue
        first, second = (state[f"{name}.lora_{factor}.{_ADAPTER}.weight"] for factor in "AB")
        product = (second.float() @ first.float()) * module.scaling[_ADAPTER]
        key = f"{name}.base_layer.weight"
        weight = merged[key]
        merged[key] = (weight.float() + (product.T if module.fan_in_fan_out else product)).to(weight.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in merged.items()}


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and _ADAPTER in getattr(module, "lora_A", {})
