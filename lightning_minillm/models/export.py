"""Write a trained student, sharded or not, as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.distributed.sharding import full_state_dict, is_sharded
from lightning_minillm.models.lora import has_lora, merged_state_dict

ADAPTER_FOLDER = "adapter"


def save_pretrained(model: PreTrainedModel, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write model and tokenizer; adapters are merged into the weights and also written alone to ``folder/adapter``.

    All ranks call this together; the first one writes, and creates the folder if it does not exist.
    """
    several = dist.is_available() and dist.is_initialized()
    adapted = has_lora(model)
    state: dict[str, Any] | None = full_state_dict(model) if adapted or is_sharded(model) else None
    if not several or dist.get_rank() == 0:
        if adapted:
            assert state is not None
            model.save_pretrained(Path(folder) / ADAPTER_FOLDER, state_dict=dict(state))
            with torch.device("meta"):
                shell = type(model)(model.config)
            shell.generation_config = model.generation_config
            shell.save_pretrained(folder, state_dict=merged_state_dict(model, state))
        else:
            model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)
    if several:
        dist.barrier()
