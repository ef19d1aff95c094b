"""Comparison of a student with its teacher, token by token.

Legend: B rows, n and N target tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lightning_minillm.functional.logprobs import TokenStates, chunk_bounds
from lightning_minillm.losses.chunking import tokens_per_chunk
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig, sampler_for
from lightning_minillm.rollout.scoring import rollout_sequences
from lightning_minillm.rollout.writing import Writer
from lightning_minillm.types import PromptBatch, TokenBatch

LogitDivergence = Callable[[Tensor, Tensor], Tensor]
"""Maps student and teacher logits ``[n, V]`` to ``[n]``."""


def write_responses(
    pair: ModelPair, prompts: PromptBatch, sampling: SamplingConfig, seed: int, writer: Writer
) -> TokenBatch:
    """Return prompts on the pair's device with responses of one of the models; the responses are the targets.

    Student and teacher are sampled with the same random numbers, so that a student that equals its teacher writes the
    same text, and chance adds less noise to their difference.
    """
    return rollout_sequences(sampler_for(pair, sampling, writer=writer).sample(prompts, seed=seed))


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
