"""Records as rows of token ids, by the template that each of them takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.chat import ChatEncoder, EncodedRow, Targets, about, tokenize
from lightning_minillm.data.records import RESPONSE_IDS, InstructionRecord
from lightning_minillm.data.templates import AutoTemplate, ChatTemplate, PromptTemplate, prompt_text, template_of
from lightning_minillm.tokens import AddBos, begin_ids, with_begin


class RowEncoder:
    """Turns records into rows of token ids.

    Args:
        template: with a tokenizer where it needs one.
        tokenizer: of the model.
        targets: which turns of the assistant are learned from.
        add_bos: what prompts begin with; see :func:`~lightning_minillm.tokens.begin_ids`.
    """

    def __init__(
        self,
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        targets: Targets,
        add_bos: AddBos = "auto",
    ) -> None:
        self.begin = begin_ids(tokenizer, add_bos)
        self.template = template
        self.tokenizer = tokenizer
        self.targets: Targets = targets
        chat = template.chat if isinstance(template, AutoTemplate) else template
        self.chat = ChatEncoder(chat, tokenizer, targets) if isinstance(chat, ChatTemplate) else None

    @property
    def end_of_turn(self) -> int | None:
        """Id of the token that ends a turn of the chat template; ``None`` for none."""
        return None if self.chat is None else self.chat.end_of_turn

    def fixed_date(self, records: Sequence[InstructionRecord]) -> str | None:
        """Return the day that the chat template is told in these records' prompts; ``None`` if it writes no date."""
        for record in records if self.chat is not None else ():
            chosen = template_of(self.template, record)
            if isinstance(chosen, ChatTemplate):
                prompt_text(chosen, record)  # the template says whether it was asked for the date
                return chosen.date.date().isoformat() if chosen.depends_on_date else None
        return None

    def identity(self) -> dict[str, Any]:
        """Return what rows depend on besides the texts, as JSON; nothing for templates of text."""
        begin = {"begin": list(self.begin)} if self.begin else {}
        return begin if self.chat is None else {**begin, "targets": self.targets, "chat": self.chat.template.identity()}

    def texts(self, records: Sequence[InstructionRecord]) -> Iterator[str]:
        """Yield texts that differ where the rows of two lists of records differ."""
        for number, record in enumerate(records, start=1):
            with about(number):
                chosen = template_of(self.template, record)
            if isinstance(chosen, ChatTemplate):
                yield chosen.conversation(record).key()
            else:
                yield from (prompt_text(chosen, record), record.responses[0])
            if record.response_ids is not None:
                yield str(record.response_ids)

    def encode(self, records: Sequence[InstructionRecord]) -> Iterator[EncodedRow]:
        """Yield a row per record.

        Raises:
            ValueError: a record that its template cannot write; the message says which.
        """
        texts, talks = [], []
        is_chat = []
        for number, record in enumerate(records, start=1):
            with about(number):
                chosen = template_of(self.template, record)
            is_chat.append(isinstance(chosen, ChatTemplate))
            if isinstance(chosen, ChatTemplate):
                talks.append((number, chosen.conversation(record)))
            else:
                texts.append((prompt_text(chosen, record), record.responses[0]))
        of_texts = iter(self._encode_texts(texts))
        of_talks = self.chat.encode(talks) if self.chat is not None else iter(())
        for number, (record, chat) in enumerate(zip(records, is_chat, strict=True), start=1):
            row = next(of_talks) if chat else next(of_texts)
            if record.response_ids is not None:
                with about(number):
                    row = row.answered(self._known_ids(record.responses[0], record.response_ids))
            yield row.after(self.begin)

    def prompts(self, records: Sequence[InstructionRecord]) -> Iterator[list[int]]:
        """Yield the token ids of each record's prompt; those of the rows, if the last turn alone is a target.

        Raises:
            ValueError: a record that its template cannot write; the message says which.
        """
        texts = []
        for number, record in enumerate(records, start=1):
            with about(number):
                texts.append(prompt_text(self.template, record))
        for prompt in tokenize(self.tokenizer, texts):
            yield with_begin(self.begin, prompt)

    def _known_ids(self, text: str, ids: Sequence[int]) -> Sequence[int]:
        """Return the ids of a response if they give its text with this tokenizer."""
        kept = (ids, ids[:-1])  # the last one may be the end, which the text leaves out
        texts = {self.tokenizer.decode(list(some), skip_special_tokens=skip) for some in kept for skip in (True, False)}
        if text.strip() not in {str(found).strip() for found in texts}:
            raise ValueError(
                f"the token ids in {RESPONSE_IDS!r} do not give the response's text, and come from a different"
                " tokenizer: use that one, or remove the field"
            )
        return ids

    def _encode_texts(self, texts: Sequence[tuple[str, str]]) -> Iterator[EncodedRow]:
        """Yield a row per prompt and response."""
        prompt_ids = tokenize(self.tokenizer, [prompt for prompt, _ in texts])
        # Tokenised together, because a generated response continues its prompt (sentencepiece would otherwise begin it
        # with a space); tokenised apart if a token spans the end of the prompt.
        pair_ids = tokenize(self.tokenizer, [prompt + response for prompt, response in texts])
        for (_, text), prompt, pair in zip(texts, prompt_ids, pair_ids, strict=True):
            joined = pair[: len(prompt)] == prompt
            response = [*(pair[len(prompt) :] if joined else tokenize(self.tokenizer, [text])[0]), self._eos]
            yield EncodedRow(prompt, response, ((len(prompt), len(prompt) + len(response)),))

    @property
    def _eos(self) -> int:
        assert isinstance(self.tokenizer.eos_token_id, int)  # special_ids has checked it
        return self.tokenizer.eos_token_id
