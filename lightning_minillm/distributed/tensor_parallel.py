"""Tensor parallelism: dividing the matrices of a model over ranks, in the way transformers defines for its family."""

from __future__ import annotations

import re

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from lightning_minillm._reach import head_parallel_styles

_HEAD_STYLES = ("colwise_gather_output", "colwise_rep")


def divide_matrices(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Divide the projections of a model over the ranks of ``mesh``, in place; its weights have to be loaded.

    Embeddings, norms, and a head that shares its weights with the embedding stay whole on every rank. Inputs, and so
    sampling noise, must be equal on all ranks of the mesh.

    Args:
        model: of a family that transformers can divide (llama, mistral, qwen2, ...).
        mesh: one dimension.

    Raises:
        ValueError: transformers does not define how to divide the family, it does so in an unsupported way, or the
            number of heads is not a multiple of the number of ranks.
    """
    names = _style_names(model)
    _check_heads(model, mesh.size())
    styles: dict[str, ParallelStyle] = {}
    for name, module in model.named_modules():
        style = next((style for pattern, style in names.items() if re.fullmatch(pattern, name)), None)
        if style is None or (style in _HEAD_STYLES and module.weight is model.get_input_embeddings().weight):
            continue
        styles[name] = _style(style, name, model)
    parallelize_module(model, mesh, styles)


def _style_names(model: PreTrainedModel) -> dict[str, str]:
    """Return the name of the style of each module to divide, by a pattern of its full name."""
    base = getattr(model.config.get_text_config(), "base_model_tp_plan", None)
    if not base:
        raise ValueError(
            f"transformers does not define tensor parallelism for {type(model).__name__}: use strategy=fsdp, or a model"
            " of a family that has it (llama, mistral, qwen2)"
        )
    prefix = model.base_model_prefix
    styles = {**{f"{prefix}.{name}": style for name, style in base.items()}, **head_parallel_styles(model)}
    return {re.escape(name).replace(r"\*", r"\d+"): style for name, style in styles.items()}


def _style(style: str, name: str, model: nn.Module) -> ParallelStyle:
    if style == "colwise":
        return ColwiseParallel()
    if style == "rowwise":
        return RowwiseParallel()
    if style in _HEAD_STYLES:
        return ColwiseParallel(output_layouts=Replicate())
    raise ValueError(
        f"transformers divides {name} of {type(model).__name__} in a way that is not supported here ({style}):"
        " use strategy=fsdp"
    )


def _check_heads(model: PreTrainedModel, size: int) -> None:
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if heads % size or groups % size:
        possible = [n for n in range(1, groups + 1) if heads % n == 0 and groups % n == 0]
        raise ValueError(
            f"tensor_parallel_size={size} does not divide the {heads} attention heads and {groups} key-value heads of"
            f" {type(model).__name__}; it can be {', '.join(map(str, possible))}"
        )
