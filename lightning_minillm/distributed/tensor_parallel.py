"""Splitting the matrices of a model over ranks, by the plan that transformers keeps for its family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from lightning_minillm._reach import head_parallel_styles

_HEAD_STYLES = ("colwise_gather_output", "colwise_rep")


def split_tensors(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Split a model's projections over the ranks of ``mesh``, in place; its weights have to be loaded.

    Embeddings, norms, and a head that shares its weights with the embedding stay whole on every rank. Inputs, and so
    sampling noise, must be equal on all ranks of the mesh.

    Args:
        model: of a family with a plan (llama, mistral, qwen2, ...).
        mesh: one dimension.

    Raises:
        ValueError: a family without a plan, or with a style that is not known here; heads that do not divide.
    """
    plan = _plan(model)
    _check_heads(model, mesh.size())
    styles: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        style = next((style for pattern, style in plan.items() if re.fullmatch(pattern, name)), None)
        if style is None or (style in _HEAD_STYLES and module.weight is model.get_input_embeddings().weight):
            continue
        styles[name] = _style(style, name, model)
    parallelize_module(model, mesh, styles)


def _plan(model: PreTrainedModel) -> dict[str, str]:
    """Return the plan with patterns of full module names."""
    base = getattr(model.config.get_text_config(), "base_model_tp_plan", None)
    if not base:
        raise ValueError(
            f"transformers has no tensor-parallel plan for {type(model).__name__}: use strategy=fsdp, or a family that"
            " has one (llama, mistral, qwen2)"
        )
    prefix = model.base_model_prefix
    plan: Mapping[str, Any] = {
        **{f"{prefix}.{name}": style for name, style in base.items()},
        **head_parallel_styles(model),
    }
    return {re.escape(name).replace(r"\*", r"\d+"): style for name, style in plan.items()}


def _style(style: str, name: str, model: nn.Module) -> ParallelStyle:
    if style == "colwise":
        return ColwiseParallel()
    if style == "rowwise":
        return RowwiseParallel()
    if style in _HEAD_STYLES:
        return ColwiseParallel(output_layouts=Replicate())
    raise ValueError(
        f"{type(model).__name__} splits {name} in a way that is not supported here ({style}): use strategy=fsdp"
    )


def _check_heads(model: PreTrainedModel, size: int) -> None:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if heads % size or groups % size:
        possible = [n for n in range(1, groups + 1) if heads % n == 0 and groups % n == 0]
        raise ValueError(
            f"{type(model).__name__} has {heads} attention heads and {groups} key-value heads, which"
            f" tensor_parallel_size={size} does not divide; possible are {', '.join(map(str, possible))}"
        )
