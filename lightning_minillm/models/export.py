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
        model: if it is sharded, all ranks have to call this together; the first one writes.
        folder: is made.
        tokenizer: goes beside the model.
    """
    if not is_sharded(model):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    state: dict[str, Any] = full_state_dict(model)
    if dist.get_rank() == 0:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    dist.barrier()
