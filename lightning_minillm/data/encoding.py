"""Instruction records as token ids, and the batches made of them.

Legend: B rows, P prompt tokens, L prompt and response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.cache import Ragged, load_or_build, tokenizer_fingerprint
from lightning_minillm.data.chat import EncodedRow, Targets, check_targets
from lightning_minillm.data.mixing import Mixture
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.teacher_prompts import after_prompts, check_single_targets
from lightning_minillm.data.templates import PromptTemplate, bind_template, prompt_text
from lightning_minillm.data.token_rows import RowEncoder
from lightning_minillm.tokens import AddBos, special_ids
from lightning_minillm.types import EvaluationBatch, PromptBatch, TokenBatch

Indices = Tensor | Sequence[int]


@dataclass(frozen=True)
class Lengths:
    """Limits on numbers of tokens, and where token ids are kept.

    Raises:
        ValueError: a limit is too small, or ``max_length`` leaves no room for a response.
    """

    max_length: int = 512
    """Tokens of prompt and response together; greater than ``max_prompt_length``. Longer responses are truncated."""
    max_prompt_length: int = 256
    """Tokens of a prompt, at least 1. Longer prompts are dropped with their records."""
    lm_max_length: int | None = None
    """Tokens of a block of plain text; ``None`` for ``max_length``."""
    shorten_conversations: bool = False
    """Whether a conversation whose prompt is too long loses its oldest turns (a system turn stays) until it fits,
    instead of being dropped; it is dropped if its last question alone is too long."""
    cache_dir: str | Path | None = None
    """Folder for token ids; ``None`` tokenises every time. The name of a file depends on tokenizer, template, texts and
    limits."""

    def __post_init__(self) -> None:
        if self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length must be at least 1, got {self.max_prompt_length}")
        if self.max_length <= self.max_prompt_length:
            raise ValueError(
                f"max_length={self.max_length} must be greater than max_prompt_length={self.max_prompt_length}: it "
                "counts prompt and response together"
            )


class EncodedInstructions:
    """Tokenised records: prompts to respond to, and prompt-response pairs to learn from.

    The response of a conversation is the assistant's last turn, and its prompt is everything before. A prompt that is
    too long is dropped with its record, or shortened, and a pair is truncated. A response that is not truncated ends
    with eos, or with the end-of-turn token of the chat template, which is a target. Masks are made from places, so the
    pad token may be the eos token. Other special tokens are those of the template, and a begin token (``add_bos``).

    Args:
        records: at least one; training uses the first response of each.
        tokenizer: has an eos token, and a pad token (otherwise eos pads).
        template: writes prompts and conversations; as for :func:`~lightning_minillm.data.as_template`.
        lengths: limits on prompts and pairs.
        targets: which turns of the assistant in a conversation are learned from: ``"all"``, or the ``"last"`` alone.
        add_bos: what prompts begin with, if they do not already; see :func:`~lightning_minillm.tokens.begin_ids`.
        teacher: writes the prompts that the teacher is shown, if these differ; the limits hold for them as well.

    Attributes:
        records: the kept records, one per row.
        template: the template, with the tokenizer.
        fixed_date: the day that the chat template is told; ``None`` if it writes no date.
        num_dropped: number of records whose prompt was too long, for the student or for the teacher.
        num_dropped_by_teacher: number of those of them whose prompt was too long for the teacher alone.
        num_shortened: number of conversations that lost turns.
        is_truncated: ``[rows]`` bool, whether the response was truncated.
        num_truncated: number of responses that were truncated.
        lengths: ``[rows]`` int64, tokens of prompt and response.
        prompt_lengths: ``[rows]`` int64, tokens of the prompt.
        teacher_lengths: ``[rows]`` int64, tokens of the prompt that the teacher is shown.
        last_ids: ``[rows]`` int64, the last token of the response.
        target_counts: ``[rows]`` int64, targets, at least 1.
        mixture: the sources of the rows, if they have weights.

    Raises:
        ValueError: no records, no prompt that is short enough, no eos token, or a record that cannot be written.
    """

    def __init__(
        self,
        records: Sequence[InstructionRecord],
        tokenizer: PreTrainedTokenizerBase,
        template: PromptTemplate | str | None,
        lengths: Lengths,
        *,
        targets: Targets = "all",
        add_bos: AddBos = "auto",
        teacher: RowEncoder | None = None,
    ) -> None:
        if not records:
            raise ValueError("there are no instruction records: the split is empty")
        self.mixture: Mixture | None = None
        self.eos_token_id, self.pad_token_id = special_ids(tokenizer)
        self.template = bind_template(template, tokenizer)
        encoder = RowEncoder(self.template, tokenizer, check_targets(targets), add_bos)
        settings = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "eos_token_id": self.eos_token_id,
            "max_length": lengths.max_length,
            "max_prompt_length": lengths.max_prompt_length,
            "shorten_conversations": lengths.shorten_conversations,
            **encoder.identity(),
        }
        texts = [encoder.texts(records)]
        if teacher is not None:
            settings["teacher"] = [tokenizer_fingerprint(teacher.tokenizer), teacher.identity()]
            texts.append(teacher.texts(records))
        columns, self.from_cache = load_or_build(
            lengths.cache_dir,
            "instructions",
            settings,
            chain.from_iterable(texts),
            lambda: _encode(encoder, teacher, records, lengths),
        )
        # The file holds an empty row for each dropped prompt, so that it tells which ones they are.
        self._teacher_prompts = columns["prompt_ids" if teacher is None else "teacher_ids"]
        kept = np.flatnonzero(columns["prompt_ids"].lengths * self._teacher_prompts.lengths)
        self._has_teacher_prompts = teacher is not None
        self.num_dropped = len(records) - len(kept)
        self.num_dropped_by_teacher = int(np.count_nonzero(columns["prompt_ids"].lengths)) - len(kept)
        if not len(kept):
            lists = [map(len, some.prompts(records)) for some in (encoder, teacher) if some is not None]
            shortest = min(max(sizes) for sizes in zip(*lists, strict=True))
            raise ValueError(
                f"each of the {len(records)} prompts has more than max_prompt_length={lengths.max_prompt_length} tokens"
                f" (the shortest has {shortest}): raise max_prompt_length, or use a shorter template"
            )
        self._columns, self._kept = columns, kept
        lost = [int(columns["lost_turns"][row][0]) for row in kept.tolist()]
        self.num_shortened = sum(map(bool, lost))
        self.records = tuple(
            reduce(lambda record, _: _without_oldest(record) or record, range(count), records[row])
            for row, count in zip(kept.tolist(), lost, strict=True)
        )
        self.fixed_date = encoder.fixed_date(self.records)
        self.prompt_lengths = torch.from_numpy(columns["prompt_ids"].lengths[kept])
        self.teacher_lengths = torch.from_numpy(self._teacher_prompts.lengths[kept])
        self.lengths = self.prompt_lengths + torch.from_numpy(columns["response_ids"].lengths[kept])
        ends = (self.eos_token_id, encoder.end_of_turn)
        self.last_ids = torch.tensor([int(columns["response_ids"][row][-1]) for row in kept.tolist()])
        is_full = self.longest >= lengths.max_length
        is_ended = torch.isin(self.last_ids, torch.tensor([end for end in ends if end is not None]))
        self.is_truncated = is_full & ~is_ended
        self.num_truncated = int(self.is_truncated.sum())
        spans = [columns["target_spans"][row] for row in kept.tolist()]
        self.target_counts = torch.tensor([int((edges[1::2] - edges[::2]).sum()) for edges in spans])

    @property
    def longest(self) -> Tensor:
        """``[rows]`` int64, tokens of prompt and response as the student or the teacher reads them, the more."""
        return self.lengths + (self.teacher_lengths - self.prompt_lengths).clamp(min=0)

    def prompt_text(self, row: int) -> str:
        """Return the prompt of a row as text."""
        return prompt_text(self.template, self.records[row])

    def __len__(self) -> int:
        return len(self.records)

    def rows_with(self, token_ids: Sequence[int]) -> list[int]:
        """Return the rows that have any of these ids in prompt or response."""
        columns = (self._columns[name] for name in ("prompt_ids", "response_ids"))
        found = {row for column in columns for row in column.rows_with(token_ids)}
        return [place for place, row in enumerate(self._kept.tolist()) if row in found]

    def prompt_batch(self, indices: Indices) -> PromptBatch:
        """Return the prompts of the rows ``[B]`` in ``[0, len(self))``, padded on the left to the longest."""
        rows = as_rows(indices, len(self))

        def batch(prompts: Ragged, teacher: PromptBatch | None = None) -> PromptBatch:
            ids, mask = pad([prompts[self._kept[row]] for row in rows], self.pad_token_id, left=True)
            return PromptBatch(ids, mask, torch.tensor(rows), teacher)

        return batch(self._columns["prompt_ids"], batch(self._teacher_prompts) if self._has_teacher_prompts else None)

    def token_batch(self, indices: Indices, normalizer: float) -> TokenBatch:
        """Return prompts with their responses, padded on the right to the longest, with all targets.

        Args:
            indices: ``[B]`` rows in ``[0, len(self))``, at least one.
            normalizer: summed losses are divided by it; ``TokenBatch`` says by what number.
        """
        batch = self._pairs(indices, normalizer)
        target_mask = torch.zeros_like(batch.target_mask)
        for place, row in enumerate(batch.indices.tolist()):
            edges = self._columns["target_spans"][self._kept[row]].tolist()
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                target_mask[place, start:stop] = True
        return self._with_teacher(replace(batch, target_mask=target_mask))

    def response_batch(self, indices: Indices, normalizer: float) -> TokenBatch:
        """Return the same rows as :meth:`token_batch`, with the tokens of the response, and no others, as targets."""
        return self._with_teacher(self._pairs(indices, normalizer))

    def _pairs(self, indices: Indices, normalizer: float) -> TokenBatch:
        rows = as_rows(indices, len(self))
        names = ("prompt_ids", "response_ids")
        pairs = [np.concatenate([self._columns[name][self._kept[row]] for name in names]) for row in rows]
        input_ids, mask = pad(pairs, self.pad_token_id, left=False)
        target_mask = mask & (torch.arange(input_ids.shape[1]) >= self.prompt_lengths[rows][:, None])
        return TokenBatch(input_ids, mask, target_mask, indices=torch.tensor(rows), normalizer=float(normalizer))

    def _with_teacher(self, batch: TokenBatch) -> TokenBatch:
        """Return the batch with the same rows after the teacher's prompts, if it has prompts of its own."""
        if not self._has_teacher_prompts:
            return batch
        rows = batch.indices
        prompts = [self._teacher_prompts[self._kept[row]] for row in rows.tolist()]
        return replace(batch, teacher=after_prompts(batch, self.prompt_lengths[rows], prompts, self.pad_token_id))

    def evaluation_batch(self, indices: Indices) -> EvaluationBatch:
        """Return the prompts of the rows ``[B]``, the same rows with their first references, and all references.

        The normaliser of its ``tokens`` is the number of their targets, so a loss is the mean over the tokens of the
        batch.
        """
        rows = as_rows(indices, len(self))
        records = [self.records[row] for row in rows]
        num_targets = (self.lengths[rows] - self.prompt_lengths[rows]).sum()
        return EvaluationBatch(
            prompts=self.prompt_batch(rows),
            tokens=self.response_batch(rows, normalizer=float(num_targets)),
            references=tuple(record.responses for record in records),
            tasks=tuple(record.task for record in records),
            exact=tuple(record.exact for record in records),
            prompt_texts=tuple(f"{r.instruction}\n{r.input}" if r.input else r.instruction for r in records),
        )


def _encode(
    encoder: RowEncoder, teacher: RowEncoder | None, records: Sequence[InstructionRecord], lengths: Lengths
) -> dict[str, Ragged]:
    """Return the token ids of prompts and responses, both empty if the prompt is too long, and the targets.

    The teacher's prompts are in a column of their own, empty if too long.
    """
    rows, lost, limit = list(encoder.encode(records)), [0] * len(records), lengths.max_prompt_length
    theirs = [row.prompt for row in rows] if teacher is None else list(teacher.prompts(records))
    for number, record in enumerate(records):
        shorter = record if lengths.shorten_conversations else None
        while max(len(rows[number].prompt), len(theirs[number])) > limit and shorter is not None:
            shorter = _without_oldest(shorter)
            if shorter is not None:
                lost[number] += 1
                rows[number] = next(encoder.encode([shorter]))
                theirs[number] = rows[number].prompt if teacher is None else next(teacher.prompts([shorter]))
        row, own = rows[number], len(rows[number].prompt)
        if len(theirs[number]) > limit:
            theirs[number] = []
        # prompt and response are within max_length for student and teacher
        room = lengths.max_length - max(0, len(theirs[number]) - own)
        rows[number] = row.cut(room) if 0 < own <= limit else EncodedRow([], [], ())
        if teacher is not None and theirs[number]:
            check_single_targets(number, rows[number])
    columns = {} if teacher is None else {"teacher_ids": Ragged.from_rows(theirs)}
    return columns | {
        "prompt_ids": Ragged.from_rows(row.prompt for row in rows),
        "response_ids": Ragged.from_rows(row.response for row in rows),
        "target_spans": Ragged.from_rows([edge for span in row.spans for edge in span] for row in rows),
        "lost_turns": Ragged.from_rows([count] for count in lost),
    }


def _without_oldest(record: InstructionRecord) -> InstructionRecord | None:
    """Return a record without its oldest question and what answers it; ``None`` if it has only one."""
    shorter = None if record.conversation is None else record.conversation.without_oldest()
    return None if shorter is None else replace(record, conversation=shorter, instruction=shorter.prompt_text())


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
