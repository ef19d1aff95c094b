"""From a trained student, sharded or not, to a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.models.sharding import full_state_dict, is_sharded


def save_pretrained(model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write model and tokenizer.

    Args:
        model: all ranks, where there are several, call this together; the first one writes.
        folder: is made.
        tokenizer: goes beside the model.
    """
    several = dist.is_available() and dist.is_initialized()
    first = not several or dist.get_rank() == 0
    state: dict[str, Any] | None = full_state_dict(model) if is_sharded(model) else None
    if first:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    if several:
        dist.barrier()
