"""Write a trained student, sharded or not, as a Hugging Face folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.distributed.sharding import full_state_dict, is_sharded
from lightning_minillm.files import read_json, write_json
from lightning_minillm.models.folders import CONFIG_FILE
from lightning_minillm.models.loading import base_dtype, dtype_of, load_tokenizer
from lightning_minillm.models.lora import has_lora, merged_state_dict
from lightning_minillm.models.portable import rename_rotary_fields, savable_generation_config, save_tokenizer

ADAPTER_FOLDER = "adapter"


def save_pretrained(
    model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase, *, dtype: str | None = None
) -> None:
    """Write model and tokenizer; adapters are merged into the weights and also written alone to ``folder/adapter``.

    The folder can be read by transformers 4.56 and newer. A tokenizer that is the same as the one it was loaded from
    keeps its files.

    Args:
        model: all ranks call this together; the first one writes.
        folder: created if it does not exist.
        tokenizer: of the model.
        dtype: of the weights, ``"float32"``, ``"bfloat16"`` or ``"float16"``; ``None`` for the dtype of the folder that
            the model was loaded from. A model that was not loaded keeps its own.

    Raises:
        ValueError: unknown dtype.
    """
    written = base_dtype(model) if dtype is None else dtype_of(dtype)
    several = dist.is_available() and dist.is_initialized()
    adapted = has_lora(model)
    whole = adapted or is_sharded(model)
    state: Mapping[str, Tensor] = full_state_dict(model) if whole else model.state_dict()
    if not several or dist.get_rank() == 0:
        folder = Path(folder)
        if adapted:
            model.save_pretrained(folder / ADAPTER_FOLDER, state_dict=dict(state))
            state = merged_state_dict(model, state)
        _write(model, state, folder, written or model.dtype)
        save_tokenizer(tokenizer, folder, _original(tokenizer))
    if several:
        dist.barrier()


def _write(model: PreTrainedModel, state: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write the weights through a model without any, which has neither adapters nor shards."""
    with torch.device("meta"):
        shell = type(model)(deepcopy(model.config))
        shell.to(dtype)  # type: ignore[arg-type]  # transformers' wrapper hides the argument
    if model.generation_config is not None:
        shell.generation_config, dropped = savable_generation_config(model.generation_config)
        if dropped:
            warnings.warn(
                f"the student's generation_config.json is written without {', '.join(dropped)}, which have no effect"
                " there or are out of range",
                stacklevel=2,
            )
    converted: dict[int, Tensor] = {}  # by address: tied weights stay one tensor
    for value in state.values():
        if value.data_ptr() not in converted:
            converted[value.data_ptr()] = value.to(dtype) if value.is_floating_point() else value
    shell.save_pretrained(folder, state_dict={name: converted[value.data_ptr()] for name, value in state.items()})
    write_json(folder / CONFIG_FILE, rename_rotary_fields(read_json(folder / CONFIG_FILE)))


def _original(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | None:
    """Return a tokenizer as it is stored where it was loaded from; ``None`` if it is no longer there."""
    try:
        return load_tokenizer(tokenizer.name_or_path)
    except Exception:  # transformers raises exceptions of many kinds
        return None
