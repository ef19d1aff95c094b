"""Letting the student or the teacher of a pair write text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from lightning_minillm.models.pair import ModelPair
from lightning_minillm.rollout.sampler import MixtureSampler
from lightning_minillm.rollout.sampling import SamplingConfig
from lightning_minillm.types import RolloutBatch

Writer = Literal["student", "teacher"]


def sampler_for(
    pair: ModelPair,
    config: SamplingConfig,
    *,
    writer: Writer = "student",
    with_teacher: bool = False,
    keep_teacher_hidden: bool = False,
) -> MixtureSampler:
    """Return a sampler of one model of a pair.

    Args:
        pair: the models, their tokenizer, and how processes wait for each other while sampling.
        config: sampling options. With ``teacher_mix_alpha`` above 0 the teacher has its share in the student's text.
        writer: who writes. The teacher writes alone, whatever ``teacher_mix_alpha``.
        with_teacher: let the teacher read along although it has no share, for its log-probabilities.
        keep_teacher_hidden: also return the teacher's last hidden states on the response; implies ``with_teacher``.

    Raises:
        ValueError: there is no teacher.
    """
    if writer == "teacher":
        author, reader, config = pair.require_teacher(), None, replace(config, teacher_mix_alpha=0.0)
    else:
        author = pair.student_split
        reads = with_teacher or keep_teacher_hidden or config.teacher_mix_alpha > 0
        reader = pair.require_teacher() if reads else None
    assert pair.tokenizer.pad_token_id is not None  # the pair has checked it
    return MixtureSampler(
        author,
        reader,
        eos_token_ids=pair.end_ids(config.eos_token_ids),
        pad_token_id=pair.tokenizer.pad_token_id,
        config=config,
        keep_teacher_hidden=keep_teacher_hidden,
        finish_together=pair.placement.finish_together,
    )


def decode_responses(tokenizer: PreTrainedTokenizerBase, rollouts: RolloutBatch) -> list[str]:
    """Return the text of every response, without special tokens and surrounding white space."""
    ids = [row[mask] for row, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)]
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def are_finished(pair: ModelPair, config: SamplingConfig, rollouts: RolloutBatch) -> list[bool]:
    """Return whether each response ended by itself, and not at ``max_new_tokens``."""
    last = rollouts.response_ids.gather(1, rollouts.lengths[:, None] - 1)
    ends = torch.tensor(pair.end_ids(config.eos_token_ids), device=last.device)
    finished: list[bool] = torch.isin(last, ends).squeeze(1).tolist()
    return finished


def check_lengths(
    pair: ModelPair, longest: Mapping[str, tuple[int, int]], samplings: Mapping[str, SamplingConfig]
) -> None:
    """Check, before any work, that all that is read and sampled fits into the models' tables of positions.

    Args:
        pair: the models.
        longest: tokens of the longest prompt and of the longest pair, by split.
        samplings: how responses to the prompts of a split are sampled; a split that is missing is only read.

    Raises:
        ValueError: a table is too short; the message has its size and the number of tokens.
    """
    for split, (prompt, sequence) in longest.items():
        pair.check_positions(sequence)
        if split in samplings:
            with_teacher = pair.teacher is not None
            sampler_for(pair, samplings[split], with_teacher=with_teacher).check_positions(prompt)
