"""Conversations as token ids: the prompt, the response that answers it, and which tokens are targets.

The targets are what the assistant wrote, with the end-of-turn token after it. They come from the marks of the chat
template (``{% generation %}``) where it has them. Otherwise the conversation is rendered up to the beginning and up to
the end of each assistant turn, and the token ids of each rendering must begin the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.conversations import Conversation
from lightning_minillm.data.templates import ChatTemplate
from lightning_minillm.tokens import end_of_turn_id, with_begin

Targets = Literal["all", "last"]
_BATCH = 1000


@dataclass(frozen=True)
class EncodedRow:
    """One record as token ids."""

    prompt: list[int]
    """Tokens before the response."""
    response: list[int]
    """Tokens of the response, with the one that ends it."""
    spans: tuple[tuple[int, int], ...]
    """Targets as ``[start, stop)`` over prompt and response, in order."""

    def after(self, begin: Sequence[int]) -> EncodedRow:
        """Return the row with ``begin`` before its prompt, unless the prompt begins with it already."""
        prompt = with_begin(begin, self.prompt)
        shift = len(prompt) - len(self.prompt)
        spans = tuple((start + shift, stop + shift) for start, stop in self.spans)
        return EncodedRow(prompt, self.response, spans)

    def answered(self, response: Sequence[int]) -> EncodedRow:
        """Return the row with a different response, all of which is a target."""
        size = len(self.prompt)
        spans = tuple(span for span in self.spans if span[1] <= size)
        return EncodedRow(self.prompt, list(response), (*spans, (size, size + len(response))))

    def cut(self, max_length: int) -> EncodedRow:
        """Return the row with at most ``max_length`` tokens, at least one more than those of its prompt.

        If all targets are cut off, because the template writes something before them, what remains of the response is
        the target: a row needs one.
        """
        response = self.response[: max_length - len(self.prompt)]
        kept = tuple((start, min(stop, max_length)) for start, stop in self.spans if start < max_length)
        return EncodedRow(self.prompt, response, kept or ((len(self.prompt), len(self.prompt) + len(response)),))


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, without special tokens that the texts do not have."""
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
    return ids


class ChatEncoder:
    """Turns conversations into rows of token ids.

    Args:
        template: with a tokenizer.
        tokenizer: of the model.
        targets: which assistant turns are learned from: ``"all"`` or the ``"last"``.

    Raises:
        ValueError: ``targets`` is something else.
    """

    def __init__(self, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, targets: Targets = "all") -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.targets = check_targets(targets)
        self.marks = template.has_marks
        self.end_of_turn = end_of_turn_id(tokenizer)
        """Id of the token that ends a turn; ``None`` if the template ends turns with plain text."""

    def encode(self, conversations: Iterable[tuple[int, Conversation]]) -> Iterator[EncodedRow]:
        """Yield a row per conversation, each of which comes with its number, for messages.

        Raises:
            ValueError: a conversation that the template refuses, or whose turns cannot be told apart; the message says
                which and what to do.
        """
        remaining = iter(conversations)
        while batch := list(islice(remaining, _BATCH)):
            texts = []
            for number, talk in batch:
                with about(number):
                    texts.append(self._renderings(talk))
            ids = iter(tokenize(self.tokenizer, [text for rendered in texts for text in rendered]))
            for (number, talk), rendered in zip(batch, texts, strict=True):
                of_texts = [next(ids) for _ in rendered]
                with about(number):
                    row = self._from_marks(talk, of_texts[::2]) if self.marks else None
                    row = row or self._from_prefixes(rendered, of_texts)
                yield row

    def _renderings(self, talk: Conversation) -> list[str]:
        """Return the text up to the beginning, and up to the end, of each assistant turn that is a target."""
        turns = [place for place, turn in enumerate(talk.turns) if place and turn.role == "assistant"]
        texts = []
        for place in turns if self.targets == "all" else turns[-1:]:
            texts.append(self.template.render(talk.turns[:place], talk.tools, add_generation_prompt=True))
            texts.append(self.template.render(talk.turns[: place + 1], talk.tools))
        return texts

    # --- marks ------------------------------------------------------------------------------------------------------

    def _from_marks(self, talk: Conversation, begins: list[list[int]]) -> EncodedRow | None:
        """Return the row by the template's marks; ``None`` if a token crosses the beginning of a response."""
        ids, marks = self.template.mark(talk.turns, talk.tools)
        if any(ids[: len(begin)] != begin for begin in begins):
            return None
        prompt = begins[-1]
        edges = [place for place, (a, b) in enumerate(zip([0, *marks], [*marks, 0], strict=True)) if a != b]
        starts = [len(begin) for begin in begins]
        spans = []
        for turn, limit in zip(starts, [*starts[1:], len(ids)], strict=True):
            end = min(self._end(ids, turn), limit)
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                first, last = max(start, turn), min(stop, end)  # a mark may hold the role, or a line break at the end,
                if first < last:
                    is_short = last + 1 == end and ids[last] == self.end_of_turn  # and may leave out the end
                    spans.append((first, last + is_short))
        if not spans or spans[-1][0] < len(prompt):
            raise ValueError(
                "the chat template marks nothing of the last assistant turn as generated: check its {% generation %}"
            )
        return self._finish(ids[: spans[-1][1]], len(prompt), spans)

    # --- prefixes ---------------------------------------------------------------------------------------------------

    def _from_prefixes(self, texts: list[str], ids: list[list[int]]) -> EncodedRow:
        """Return the row by the renderings up to the beginning and the end of each turn."""
        whole, begins, ends = ids[-1], ids[::2], ids[1::2]
        starts = [len(begin) for begin in begins]
        if any(whole[: len(begin)] != begin for begin in begins):
            whole, starts, ends = self._apart(texts)
        spans = []
        for start, end, limit in zip(starts, ends, [*starts[1:], len(whole)], strict=True):
            stop = self._end(end, start)
            if stop > limit or whole[:stop] != end[:stop]:
                raise ValueError(_CHANGES)
            spans.append((start, stop))
        return self._finish(whole[: spans[-1][1]], starts[-1], spans)

    def _end(self, ids: list[int], start: int) -> int:
        """Return the place after the end-of-turn token of the turn that begins at ``start``."""
        return ids.index(self.end_of_turn, start) + 1 if self.end_of_turn in ids[start:] else len(ids)

    def _apart(self, texts: list[str]) -> tuple[list[int], list[int], list[list[int]]]:
        """Return ids, starts and ends where a token would cross the beginning of a response: it is tokenised apart."""
        whole, begins, ends = texts[-1], texts[::2], texts[1::2]
        if not all(end.startswith(begin) and whole.startswith(begin) for begin, end in zip(begins, ends, strict=True)):
            raise ValueError(_CHANGES)
        edges = [0, *map(len, begins), len(whole)]
        pieces = tokenize(self.tokenizer, [whole[start:stop] for start, stop in pairwise(edges)])
        turns = tokenize(self.tokenizer, [end[len(begin) :] for begin, end in zip(begins, ends, strict=True)])
        ids = [token for piece in pieces for token in piece]
        starts = list(accumulate(map(len, pieces[:-1])))
        return ids, starts, [ids[:start] + turn for start, turn in zip(starts, turns, strict=True)]

    def _finish(self, ids: list[int], start: int, spans: list[tuple[int, int]]) -> EncodedRow:
        """Return the row; a template without an end-of-turn token gets the tokenizer's eos at the end."""
        eos = self.tokenizer.eos_token_id
        if self.end_of_turn is None and ids[-1] != eos:
            ids, spans = [*ids, eos], [*spans[:-1], (spans[-1][0], len(ids) + 1)]
        return EncodedRow(ids[:start], ids[start:], tuple(spans))


_CHANGES = (
    "the chat template writes a turn differently once others follow it, as those do that drop earlier reasoning, so"
    " that the tokens of each assistant turn cannot be told: set data.datamodule.targets=last, or mark what the"
    " assistant writes with {% generation %} in the chat template"
)


def check_targets(targets: str) -> Targets:
    """Return ``targets``, or raise ``ValueError`` if it is neither ``"all"`` nor ``"last"``."""
    if targets not in ("all", "last"):
        raise ValueError(f"targets must be all or last, got {targets!r}")
    return "all" if targets == "all" else "last"


@contextmanager
def about(number: int) -> Iterator[None]:
    """Name the record in errors."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"record {number}: {error}") from error
