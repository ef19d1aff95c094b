"""Records as rows of token ids, by the template that each of them takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_minillm.data.chat import ChatEncoder, EncodedRow, Targets, about, tokenize
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.templates import AutoTemplate, ChatTemplate, PromptTemplate, prompt_text, template_of


class RowEncoder:
    """Turns records into rows of token ids.

    Args:
        template: with a tokenizer where it needs one.
        tokenizer: of the model.
        targets: which turns of the assistant are learned from.
    """

    def __init__(self, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, targets: Targets) -> None:
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
        return {} if self.chat is None else {"targets": self.targets, "chat": self.chat.template.identity()}

    def texts(self, records: Sequence[InstructionRecord]) -> Iterator[str]:
        """Yield texts that differ where the rows of two lists of records differ."""
        for number, record in enumerate(records, start=1):
            with about(number):
                chosen = template_of(self.template, record)
            if isinstance(chosen, ChatTemplate):
                yield chosen.conversation(record).key()
            else:
                yield from (prompt_text(chosen, record), record.responses[0])

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
        for chat in is_chat:
            yield next(of_talks) if chat else next(of_texts)

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
