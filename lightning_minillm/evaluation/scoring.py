"""Given text under a student: its likelihood, and the comparison with the teacher token by token.

Legend: B rows, L tokens, n and N target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_minillm.functional.logprobs import TokenStates, chunk_bounds, target_logprobs
from lightning_minillm.losses.chunking import tokens_per_chunk
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig, sampler_for
from lightning_minillm.rollout.scoring import rollout_sequences
from lightning_minillm.rollout.writing import Writer
from lightning_minillm.types import PromptBatch, TokenBatch

LogitDivergence = Callable[[Tensor, Tensor], Tensor]
"""Maps student and teacher logits ``[n, V]`` to ``[n]``."""


def row_sums(values: Tensor, mask: Tensor) -> list[float]:
    """Sum token values over the rows that they come from, in float64.

    Args:
        values: ``[N]``, one per ``True`` of the mask, row by row.
        mask: ``[B, L]`` bool.

    Returns:
        B sums.

    Example:
        >>> row_sums(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[True, True], [False, True]]))
        [3.0, 3.0]
    """
    rows = mask.cpu().nonzero()[:, 0]
    sums: list[float] = torch.zeros(len(mask), dtype=torch.float64).index_add_(0, rows, values.cpu().double()).tolist()
    return sums


def target_scores(pair: ModelPair, batch: TokenBatch) -> list[float]:
    """Return the student's log q of each row of a batch on the pair's device, summed over its target tokens."""
    states, target_ids = pair.token_states(batch)
    return row_sums(target_logprobs(states, target_ids), batch.target_mask)


def response_scores(pair: ModelPair, batch: TokenBatch) -> list[float]:
    """Return the student's log q(response | prompt) of each row of a batch on any device; responses are the targets.

    The eos at the end of every response does not count: the response may be the beginning of a longer text.
    """
    places = torch.arange(batch.target_mask.shape[1])
    last = batch.attention_mask.sum(-1, keepdim=True) - 1
    return target_scores(pair, replace(batch, target_mask=batch.target_mask & (places != last)).to(pair.device))


def write_responses(
    pair: ModelPair, prompts: PromptBatch, sampling: SamplingConfig, seed: int, writer: Writer
) -> TokenBatch:
    """Return prompts on the pair's device with responses of one of the models; the responses are the targets.

    Student and teacher are sampled with the same random numbers, so that a student that equals its teacher writes the
    same text, and chance adds less noise to their difference.
    """
    read = prompts.of_teacher if writer == "teacher" else prompts
    return rollout_sequences(sampler_for(pair, sampling, writer=writer).sample(read, seed=seed).for_prompts(prompts))


def pair_divergences(
    pair: ModelPair, batch: TokenBatch, functions: Mapping[str, LogitDivergence], sampling: SamplingConfig
) -> dict[str, Tensor]:
    """Compare student and teacher on text on the pair's device, at the temperature of sampling without its filters.

    Returns:
        By the name of the function, ``[N]`` float32, row by row; a temperature of 0 counts as 1.
    """
    student, _ = pair.token_states(batch)
    return token_divergences(student, pair.teacher_token_states(batch), functions, sampling.temperature or 1.0)


@torch.no_grad()
def token_divergences(
    student: TokenStates, teacher: TokenStates, functions: Mapping[str, LogitDivergence], temperature: float = 1.0
) -> dict[str, Tensor]:
    """Return divergences of every token, exact over the ids that both models have, one chunk of tokens at a time.

    Args:
        student: N states.
        teacher: states of the same tokens.
        functions: by name.
        temperature: divides the logits of both; positive.

    Returns:
        By name, ``[N]`` float32.
    """
    pieces: dict[str, list[Tensor]] = {name: [] for name in functions}
    for start, stop in chunk_bounds(len(student), tokens_per_chunk("auto", student)):
        logits = [states.logits(start, stop, temperature) for states in (student, teacher)]
        shared = min(value.shape[-1] for value in logits)
        for name, function in functions.items():
            pieces[name].append(function(*(value[:, :shared] for value in logits)))
    return {name: torch.cat(values) for name, values in pieces.items()}
