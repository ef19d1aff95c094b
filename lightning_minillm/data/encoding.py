"""Instruction records as token ids, and the batches made of them.

Legend: B rows, P prompt tokens, L prompt and response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.cache import Ragged, load_or_build, tokenizer_fingerprint
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.sources import RecordSource
from lightning_minillm.data.templates import PromptTemplate
from lightning_minillm.types import EvaluationBatch, PromptBatch, TokenBatch

Indices = Tensor | Sequence[int]


@dataclass(frozen=True)
class Lengths:
    """Limits on numbers of tokens.

    Raises:
        ValueError: a limit is too small, or ``max_length`` leaves no room for a response.
    """

    max_length: int = 512
    """Tokens of prompt and response together; greater than ``max_prompt_length``. Longer responses are truncated."""
    max_prompt_length: int = 256
    """Tokens of a prompt, at least 1. Longer prompts are dropped with their records."""
    lm_max_length: int | None = None
    """Tokens of a block of plain text; ``None`` for ``max_length``."""

    def __post_init__(self) -> None:
        if self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length must be at least 1, got {self.max_prompt_length}")
        if self.max_length <= self.max_prompt_length:
            raise ValueError(
                f"max_length={self.max_length} must be greater than max_prompt_length={self.max_prompt_length}: it "
                "counts prompt and response together"
            )


class EncodedInstructions:
    """Tokenised instruction records: prompts to respond to, and prompt-response pairs to learn from.

    A prompt that is too long is dropped with its record, and a pair is truncated. A response that is not truncated ends
    with eos, which is a target. Masks are made from lengths, so the pad token may be the eos token. No other special
    tokens are added: a format that needs them has them in its template.

    Args:
        records: at least one; training uses the first response of each.
        tokenizer: has an eos token, and a pad token (otherwise eos pads).
        template: makes the prompt from instruction and input.
        lengths: limits on prompts and pairs.
        cache_dir: folder for Arrow files; ``None`` tokenises every time. The name of a file depends on tokenizer,
            template, texts and lengths.

    Attributes:
        records: the kept records, one per row.
        num_dropped: number of prompts that were too long.
        num_truncated: number of responses that were truncated.
        lengths: ``[rows]`` int64, tokens of prompt and response.
        target_counts: ``[rows]`` int64, tokens of the response with its eos, at least 1.

    Raises:
        ValueError: there are no records, every prompt is too long, or the tokenizer has no eos token.
    """

    def __init__(
        self,
        records: Sequence[InstructionRecord],
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        lengths: Lengths,
        *,
        cache_dir: str | Path | None = None,
    ) -> None:
        if not records:
            raise ValueError("there are no instruction records: the split is empty")
        self.eos_token_id, self.pad_token_id = special_ids(tokenizer)
        prompts = [template.format(record.instruction, record.input) for record in records]
        responses = [record.responses[0] for record in records]
        settings = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "eos_token_id": self.eos_token_id,
            "max_length": lengths.max_length,
            "max_prompt_length": lengths.max_prompt_length,
        }
        columns, self.from_cache = load_or_build(
            cache_dir,
            "instructions",
            settings,
            (text for pair in zip(prompts, responses, strict=True) for text in pair),
            lambda: _encode(tokenizer, prompts, responses, self.eos_token_id, lengths),
        )
        # The file holds an empty row for each dropped prompt, so that it tells which ones they are.
        kept = np.flatnonzero(columns["prompt_ids"].lengths)
        self.num_dropped = len(records) - len(kept)
        if not len(kept):
            shortest = min(len(ids) for ids in _tokenize(tokenizer, prompts))
            raise ValueError(
                f"each of the {len(records)} prompts has more than max_prompt_length={lengths.max_prompt_length} tokens"
                f" (the shortest has {shortest}): raise max_prompt_length, or use a shorter template"
            )
        self.records = tuple(records[row] for row in kept.tolist())
        self._columns, self._kept = columns, kept
        self.num_truncated = sum(int(columns["response_ids"][row][-1] != self.eos_token_id) for row in kept.tolist())
        self.target_counts = torch.from_numpy(columns["response_ids"].lengths[kept])
        self.lengths = torch.from_numpy(columns["prompt_ids"].lengths[kept]) + self.target_counts

    def __len__(self) -> int:
        return len(self.records)

    def prompt_batch(self, indices: Indices) -> PromptBatch:
        """Return the prompts of the rows ``[B]`` in ``[0, len(self))``, padded on the left to the longest."""
        rows = as_rows(indices, len(self))
        input_ids, mask = pad(
            [self._columns["prompt_ids"][self._kept[row]] for row in rows], self.pad_token_id, left=True
        )
        return PromptBatch(input_ids=input_ids, attention_mask=mask, indices=torch.tensor(rows))

    def token_batch(self, indices: Indices, normalizer: float) -> TokenBatch:
        """Return prompts with their responses, padded on the right to the longest; the responses are the targets.

        Args:
            indices: ``[B]`` rows in ``[0, len(self))``, at least one.
            normalizer: summed losses are divided by it; ``TokenBatch`` says by what number.
        """
        rows = as_rows(indices, len(self))
        pairs = [np.concatenate([column[self._kept[row]] for column in self._columns.values()]) for row in rows]
        input_ids, mask = pad(pairs, self.pad_token_id, left=False)
        prompt_lengths = self.lengths[rows] - self.target_counts[rows]
        target_mask = mask & (torch.arange(input_ids.shape[1]) >= prompt_lengths[:, None])
        return TokenBatch(input_ids, mask, target_mask, indices=torch.tensor(rows), normalizer=float(normalizer))

    def evaluation_batch(self, indices: Indices) -> EvaluationBatch:
        """Return the prompts of the rows ``[B]``, the same rows with their first references, and all references.

        The normaliser of its ``tokens`` is the number of their targets, so a loss is the mean over the tokens of the
        batch.
        """
        rows = as_rows(indices, len(self))
        records = [self.records[row] for row in rows]
        return EvaluationBatch(
            prompts=self.prompt_batch(rows),
            tokens=self.token_batch(rows, normalizer=float(self.target_counts[rows].sum())),
            references=tuple(record.responses for record in records),
            tasks=tuple(record.task for record in records),
            exact=tuple(record.exact for record in records),
            prompt_texts=tuple(f"{r.instruction}\n{r.input}" if r.input else r.instruction for r in records),
        )


def encode_records(
    name: str,
    source: RecordSource | Sequence[InstructionRecord],
    tokenizer: PreTrainedTokenizerBase,
    template: PromptTemplate,
    lengths: Lengths,
    cache_dir: str | Path | None = None,
) -> EncodedInstructions:
    """Read and tokenise a data set, and tell how many prompts were dropped and how many responses were truncated.

    Args:
        name: of the data set, for messages.
        source: of the records, or the records.
        tokenizer: as the other arguments, for :class:`EncodedInstructions`.
        template: makes the prompts.
        lengths: limits on prompts and pairs.
        cache_dir: folder for Arrow files.

    Raises:
        ValueError: data that is missing, empty or lacks a field; the message begins with the name.
    """
    try:
        records = source if isinstance(source, Sequence) else source.load()
        encoded = EncodedInstructions(records, tokenizer, template, lengths, cache_dir=cache_dir)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error
    if encoded.num_dropped:
        rank_zero_warn(
            f"{name}: {encoded.num_dropped} of {len(encoded) + encoded.num_dropped} prompts have more than "
            f"max_prompt_length={lengths.max_prompt_length} tokens and are dropped"
        )
    rank_zero_info(
        f"{name}: {len(encoded)} records, {encoded.lengths.float().mean():.0f} tokens on average, "
        f"{encoded.num_truncated} responses truncated at max_length={lengths.max_length}"
    )
    return encoded


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of eos, without which ``ValueError`` is raised, and of the padding (eos without a pad token)."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            "the tokenizer has no eos token, without which a model cannot learn to stop: set tokenizer.eos_token"
        )
    pad_id = tokenizer.pad_token_id
    return int(eos), int(eos if pad_id is None else pad_id)


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str], eos_token_id: int, limits: Lengths
) -> dict[str, Ragged]:
    """Return the token ids of prompts and responses; both are empty if the prompt is too long."""
    prompt_ids = _tokenize(tokenizer, prompts)
    # Tokenised together, because a generated response continues its prompt (sentencepiece would otherwise begin it
    # with a space); tokenised apart if a token spans the end of the prompt.
    pair_ids = _tokenize(tokenizer, [a + b for a, b in zip(prompts, responses, strict=True)])
    encoded: list[tuple[list[int], list[int]]] = []
    for prompt, pair, text in zip(prompt_ids, pair_ids, responses, strict=True):
        if not 0 < len(prompt) <= limits.max_prompt_length:
            encoded.append(([], []))
            continue
        joined = pair[: len(prompt)] == prompt
        response = pair[len(prompt) :] if joined else _tokenize(tokenizer, [text])[0]
        encoded.append((prompt, [*response, eos_token_id][: limits.max_length - len(prompt)]))
    return {
        "prompt_ids": Ragged.from_rows(prompt for prompt, _ in encoded),
        "response_ids": Ragged.from_rows(response for _, response in encoded),
    }


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return ids


def as_rows(indices: Indices, num_rows: int) -> list[int]:
    """Return at least one row number in ``[0, num_rows)`` as a list, or raise ``IndexError`` or ``ValueError``."""
    rows = indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]
    if not rows:
        raise ValueError("a batch needs at least one row")
    if min(rows) < 0 or max(rows) >= num_rows:
        raise IndexError(f"rows must be in [0, {num_rows}), got {min(rows)} to {max(rows)}")
    return rows


def pad(sequences: Sequence[npt.NDArray[Any]], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return B sequences, none empty, as ``[B, L]`` int64 ids and the bool mask of their tokens."""
    width = max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=bool)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        input_ids[row, place] = sequence
        mask[row, place] = True
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
