"""Instruction records as token ids, and the batches made of them.

Legend: B rows, P prompt tokens, L prompt and response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_minillm.data.cache import Ragged, fingerprint, load_or_build, tokenizer_fingerprint
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.templates import PromptTemplate
from lightning_minillm.types import EvaluationBatch, PromptBatch, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Indices = Tensor | Sequence[int]


class EncodedInstructions:
    """Tokenised instruction records: prompts to respond to, and prompt-response pairs to learn from.

    A prompt of more than ``max_prompt_length`` tokens is dropped with its record. A response is cut where the pair
    reaches ``max_length``; one that is not cut ends with eos, which is a target. Masks are made from lengths, so the
    pad token may be the eos token. No special tokens are added but that eos: what a format needs is in the template.

    Args:
        records: at least one; the first response of each is what is learned.
        tokenizer: has an eos token, and a pad token (else eos pads).
        template: makes the prompt of instruction and input.
        max_length: tokens of prompt and response together, at most; more than ``max_prompt_length``.
        max_prompt_length: tokens of a prompt, at most; at least 1.
        cache_dir: folder for Arrow files; ``None`` tokenises every time. Another tokenizer, template, text or length
            makes another file.

    Attributes:
        records: those that were kept, one a row.
        num_dropped: prompts that were too long.
        num_truncated: responses that were cut.
        lengths: ``[rows]`` int64, tokens of prompt and response.
        target_counts: ``[rows]`` int64, tokens of the response with its eos, at least 1.

    Raises:
        ValueError: when there is no record, every prompt is too long, the lengths contradict each other, or the
            tokenizer has no eos token.
    """

    def __init__(
        self,
        records: Sequence[InstructionRecord],
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate,
        *,
        max_length: int,
        max_prompt_length: int,
        cache_dir: str | Path | None = None,
    ) -> None:
        _check_lengths(max_length, max_prompt_length)
        if not records:
            raise ValueError("There are no instruction records to encode: the split is empty.")
        self.eos_token_id, self.pad_token_id = special_ids(tokenizer)
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        prompts = [template.format(record.instruction, record.input) for record in records]
        responses = [record.responses[0] for record in records]
        key = fingerprint(
            "instructions",
            {
                "tokenizer": tokenizer_fingerprint(tokenizer),
                "eos_token_id": self.eos_token_id,
                "max_length": max_length,
                "max_prompt_length": max_prompt_length,
            },
            (text for pair in zip(prompts, responses, strict=True) for text in pair),
        )
        columns, self.from_cache = load_or_build(
            cache_dir, f"instructions-{key}", lambda: self._encode(tokenizer, prompts, responses)
        )
        self._prompts, self._responses = columns["prompt_ids"], columns["response_ids"]
        # Rows that were dropped are kept empty in the file, so that it says which ones they are.
        kept = np.flatnonzero(self._prompts.lengths)
        self.num_dropped = len(records) - len(kept)
        if not len(kept):
            shortest = min(len(tokenizer(prompt, add_special_tokens=False).input_ids) for prompt in prompts)
            raise ValueError(
                f"Every one of the {len(records)} prompts has more than max_prompt_length={max_prompt_length} tokens "
                f"(the shortest has {shortest}): raise max_prompt_length, or use a shorter template."
            )
        self._rows = kept
        self.records = tuple(records[int(row)] for row in kept)
        self.num_truncated = int(self._ends_without_eos().sum())
        self.target_counts = torch.from_numpy(self._responses.lengths[kept])
        self.lengths = torch.from_numpy(self._prompts.lengths[kept]) + self.target_counts

    def _encode(
        self, tokenizer: PreTrainedTokenizerBase, prompts: list[str], responses: list[str]
    ) -> dict[str, Ragged]:
        """Return token ids of prompts and responses; both empty where the prompt is too long."""
        prompt_ids = _tokenize(tokenizer, prompts)
        # Tokenised together, as at generation the response continues the prompt (sentencepiece would otherwise
        # begin it with a space); apart where the two merge at the seam.
        pair_ids = _tokenize(tokenizer, [a + b for a, b in zip(prompts, responses, strict=True)])
        kept_prompts: list[list[int]] = []
        kept_responses: list[list[int]] = []
        for prompt, pair, text in zip(prompt_ids, pair_ids, responses, strict=True):
            if len(prompt) > self.max_prompt_length or not prompt:
                kept_prompts.append([])
                kept_responses.append([])
                continue
            joined = pair[: len(prompt)] == prompt
            response = pair[len(prompt) :] if joined else _tokenize(tokenizer, [text])[0]
            kept_prompts.append(prompt)
            kept_responses.append([*response, self.eos_token_id][: self.max_length - len(prompt)])
        return {"prompt_ids": Ragged.from_rows(kept_prompts), "response_ids": Ragged.from_rows(kept_responses)}

    def _ends_without_eos(self) -> np.ndarray:
        last = np.cumsum(self._responses.lengths)[self._rows] - 1
        return np.asarray(self._responses.values[last] != self.eos_token_id)

    def __len__(self) -> int:
        return len(self._rows)

    def prompt_batch(self, indices: Indices) -> PromptBatch:
        """Return prompts, padded on the left to the longest.

        Args:
            indices: ``[B]`` rows in ``[0, len(self))``, at least one.

        Returns:
            A batch of ``[B, P]``.
        """
        rows = as_rows(indices, len(self))
        sequences = [self._prompts[self._rows[row]] for row in rows]
        input_ids, mask = pad(sequences, self.pad_token_id, left=True)
        return PromptBatch(input_ids=input_ids, attention_mask=mask, indices=torch.tensor(rows))

    def token_batch(self, indices: Indices, normalizer: float) -> TokenBatch:
        """Return prompts with their response, padded on the right to the longest; the response is the target.

        Args:
            indices: ``[B]`` rows in ``[0, len(self))``, at least one.
            normalizer: what the summed losses are to be divided by, see :class:`~lightning_minillm.types.TokenBatch`.

        Returns:
            A batch of ``[B, L]``.
        """
        rows = as_rows(indices, len(self))
        prompts = [self._prompts[self._rows[row]] for row in rows]
        pairs = [
            np.concatenate([prompt, self._responses[self._rows[row]]])
            for prompt, row in zip(prompts, rows, strict=True)
        ]
        input_ids, mask = pad(pairs, self.pad_token_id, left=False)
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompts])
        target_mask = mask & (torch.arange(input_ids.shape[1]) >= prompt_lengths[:, None])
        return TokenBatch(input_ids, mask, target_mask, indices=torch.tensor(rows), normalizer=float(normalizer))

    def evaluation_batch(self, indices: Indices) -> EvaluationBatch:
        """Return prompts, the same rows with their first reference, and all references.

        Args:
            indices: ``[B]`` rows in ``[0, len(self))``, at least one.

        Returns:
            A batch of B rows; the normaliser of its ``tokens`` is the number of their targets, so that a loss is the
            mean over the tokens of the batch.
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


def _check_lengths(max_length: int, max_prompt_length: int) -> None:
    if max_prompt_length < 1:
        raise ValueError(f"max_prompt_length must be at least 1, got {max_prompt_length}.")
    if max_length <= max_prompt_length:
        raise ValueError(
            f"max_length={max_length} leaves no room for a response after max_prompt_length={max_prompt_length}: "
            "max_length counts prompt and response together and must be greater."
        )


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of eos and of the padding (eos where the tokenizer has no pad token).

    Raises:
        ValueError: when the tokenizer has no eos token.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            "The tokenizer has no eos token, and a model could not learn to stop: set tokenizer.eos_token."
        )
    pad_id = tokenizer.pad_token_id
    return int(eos), int(eos if pad_id is None else pad_id)


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
    return ids


def as_rows(indices: Indices, num_rows: int) -> list[int]:
    """Return row numbers as a list.

    Raises:
        IndexError: when one is out of ``[0, num_rows)``.
        ValueError: when there is none.
    """
    rows = indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]
    if not rows:
        raise ValueError("A batch needs at least one row.")
    if min(rows) < 0 or max(rows) >= num_rows:
        raise IndexError(f"Rows must lie in [0, {num_rows}), got {min(rows)} to {max(rows)}.")
    return rows


def pad(sequences: Sequence[np.ndarray], pad_id: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """Return sequences as one matrix, and which of its places they fill.

    Args:
        sequences: B arrays of token ids, each of at least one.
        pad_id: fills the rest; may be a token that occurs in the sequences.
        left: whether the padding goes to the left.

    Returns:
        ``[B, L]`` int64 token ids and ``[B, L]`` bool mask, L the longest length.
    """
    width = max(len(sequence) for sequence in sequences)
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(sequences), width), dtype=bool)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        input_ids[row, place] = sequence
        mask[row, place] = True
    return torch.from_numpy(input_ids), torch.from_numpy(mask)
