"""How likely a model finds given responses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from lightning_minillm.functional.logprobs import target_logprobs

if TYPE_CHECKING:
    from lightning_minillm.models import ModelPair
    from lightning_minillm.types import TokenBatch


def response_scores(pair: ModelPair, batch: TokenBatch) -> list[float]:
    """Return log q(response | prompt) of each row, summed over the response's tokens.

    The eos that ends every response does not count: a response need not be all that is said.

    Args:
        pair: the model is its student.
        batch: B rows, their responses as targets, on any device.
    """
    places = torch.arange(batch.target_mask.shape[1])
    last = batch.attention_mask.sum(-1, keepdim=True) - 1
    batch = replace(batch, target_mask=batch.target_mask & (places != last)).to(pair.device)
    states, target_ids = pair.token_states(batch)
    logprobs = target_logprobs(states, target_ids).double().cpu()
    of_row = batch.target_mask.cpu().nonzero()[:, 0]
    sums: list[float] = torch.zeros(len(last), dtype=torch.float64).index_add_(0, of_row, logprobs).tolist()
    return sums
