"""Prompt templates: how an instruction and its input become the text before the response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date as date_type
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lightning_minillm._reach import clock_of_chat_templates
from lightning_minillm.data.conversations import Conversation, Turn
from lightning_minillm.data.records import InstructionRecord

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@runtime_checkable
class PromptTemplate(Protocol):
    """Turns an instruction into the text that a model continues."""

    def format(self, instruction: str, input: str) -> str:
        """Return the prompt; ``input`` is ``""`` if the instruction needs none."""


@dataclass(frozen=True)
class AlpacaTemplate:
    """The paper's template, character by character that of Stanford Alpaca.

    Example:
        >>> AlpacaTemplate().format("Say hello.", "").endswith("### Instruction:\\nSay hello.\\n\\n### Response:\\n")
        True

    Source: LMOps ``minillm/tools/process_data_dolly.py``.
    """

    with_input: str = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    )
    without_input: str = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{instruction}\n\n### Response:\n"
    )

    def format(self, instruction: str, input: str) -> str:
        """Return the prompt; without ``input``, its section is left out."""
        template = self.with_input if input else self.without_input
        return template.format(instruction=instruction, input=input)


@dataclass(frozen=True)
class PlainTemplate:
    """Instruction, input and a one-token cue on separate lines: few tokens, for tiny models.

    The prompt ends with a newline, which byte-level tokenizers do not merge with the response.

    Example:
        >>> PlainTemplate().format("Sort these words.", "fig, bat")
        'Sort these words.\\nfig, bat\\n>\\n'
    """

    cue: str = ">\n"

    def format(self, instruction: str, input: str) -> str:
        """Return ``instruction``, ``input`` (if any) and the cue, one per line."""
        return "\n".join([instruction, input, self.cue] if input else [instruction, self.cue])


@dataclass(frozen=True)
class RawTemplate:
    """The text as it is: the instruction, followed by the input (if any) on a new line.

    Example:
        >>> RawTemplate().format("Once upon a time", "")
        'Once upon a time'
    """

    def format(self, instruction: str, input: str) -> str:
        """Return ``instruction``, and ``input`` on a new line if there is any."""
        return f"{instruction}\n{input}" if input else instruction


class ChatTemplate:
    """The tokenizer's chat format.

    Instructions become one user turn, the input after a blank line. Conversations keep their turns.

    Args:
        tokenizer: a tokenizer with a ``chat_template``; ``None`` for the tokenizer of the data.
        system: text of a system turn for conversations without one; ``None`` adds none (the chat template may add its
            own).
        kwargs: handed to ``apply_chat_template``, such as ``{"enable_thinking": False}`` or ``{"date_string": "..."}``.
        date: the day (``YYYY-MM-DD``) that a chat template is told if it asks, so that prompts do not change from day
            to day.

    Raises:
        ValueError: the tokenizer has no chat template, or ``date`` is none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        system: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        date: str = "2025-01-01",
    ) -> None:
        if tokenizer is not None and not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer {_name(tokenizer)!r} has no chat template: use data/template=alpaca, plain or raw, or"
                " save a tokenizer with a chat_template"
            )
        self.tokenizer = tokenizer
        self.system = system
        self.kwargs = dict(kwargs or {})
        try:
            self.date = datetime.combine(date_type.fromisoformat(str(date)), datetime.min.time())
        except ValueError as error:
            raise ValueError(f"date must be a day such as 2025-01-31, got {date!r}") from error
        self.depends_on_date = False
        """Whether a text that was rendered asked for the date."""

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """Return the template with ``tokenizer``, if it has none of its own."""
        if self.tokenizer is not None:
            return self
        return ChatTemplate(tokenizer, self.system, self.kwargs, self.date.date().isoformat())

    def conversation(self, record: InstructionRecord) -> Conversation:
        """Return the turns of a record, those of an instruction included."""
        found = record.conversation
        if found is None:
            content = f"{record.instruction}\n\n{record.input}" if record.input else record.instruction
            found = Conversation((Turn("user", content), Turn("assistant", record.responses[0])))
        if self.system is not None and found.turns[0].role != "system":
            found = Conversation((Turn("system", self.system), *found.turns), found.tools)
        return found

    def format(self, instruction: str, input: str) -> str:
        """Return an instruction as text, up to the beginning of the assistant's turn."""
        record = InstructionRecord(instruction, input, ("",))
        talk = self.conversation(record)
        return self.render(talk.turns[:-1], talk.tools, add_generation_prompt=True)

    def render(
        self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = (), *, add_generation_prompt: bool = False
    ) -> str:
        """Return turns as text.

        Args:
            turns: at least one.
            tools: that the assistant may call.
            add_generation_prompt: end with the beginning of an assistant turn.

        Raises:
            ValueError: the chat template refuses the turns, such as a system turn that it does not know.
        """
        return str(self._apply(turns, tools, tokenize=False, add_generation_prompt=add_generation_prompt))

    def mark(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]] = ()) -> tuple[list[int], list[int]]:
        """Return the token ids of turns, and 1 for each that the template marks as generated, else 0."""
        found = self._apply(turns, tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        return list(found["input_ids"]), list(found["assistant_masks"])

    @property
    def has_marks(self) -> bool:
        """Whether the chat template marks what the assistant generates, and the tokenizer can place the marks."""
        source = self._tokenizer.get_chat_template()
        return bool(_MARK.search(source)) and bool(self._tokenizer.is_fast)

    def identity(self) -> dict[str, Any]:
        """Return what its texts depend on besides the turns, as JSON."""
        source, special = self._tokenizer.chat_template, self._tokenizer.special_tokens_map
        return {"source": source, "special": special, "kwargs": self.kwargs, "date": str(self.date)}

    @property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError("the chat template has no tokenizer yet: pass one, or use for_tokenizer(tokenizer)")
        return self.tokenizer

    def _apply(self, turns: Sequence[Turn], tools: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        messages = [turn.message() for turn in turns]
        try:
            with clock_of_chat_templates(self.date) as asked:
                rendered = self._tokenizer.apply_chat_template(
                    messages, tools=[dict(tool) for tool in tools] or None, **{**self.kwargs, **options}
                )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(turn.role for turn in turns)
            raise ValueError(f"the chat template of {_name(self._tokenizer)!r} refuses {roles}: {error}") from error
        self.depends_on_date = self.depends_on_date or asked()
        return rendered


class AutoTemplate:
    """The chat format for conversations where the tokenizer has one, and the paper's template for everything else."""

    def __init__(self) -> None:
        self.text = AlpacaTemplate()
        self.chat: ChatTemplate | None = None

    def for_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> AutoTemplate:
        """Return the template for a tokenizer."""
        bound = AutoTemplate()
        bound.chat = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        return bound

    def format(self, instruction: str, input: str) -> str:
        """Return the paper's prompt."""
        return self.text.format(instruction, input)

    def choose(self, record: InstructionRecord) -> PromptTemplate:
        """Return the template of a record."""
        return self.text if record.conversation is None or self.chat is None else self.chat


TEMPLATES: dict[str, type[PromptTemplate]] = {
    "alpaca": AlpacaTemplate,
    "auto": AutoTemplate,
    "chat": ChatTemplate,
    "plain": PlainTemplate,
    "raw": RawTemplate,
}
"""Templates by name."""


def as_template(template: PromptTemplate | str | None) -> PromptTemplate:
    """Return a template, given as such, by name (``"chat"`` or ``"ChatTemplate"``), or by default (``None``: auto).

    Raises:
        ValueError: there is no template of that name, or the object is none.

    Example:
        >>> as_template("raw")
        RawTemplate()
    """
    if template is None:
        return AutoTemplate()
    if isinstance(template, str):
        name = template.lower().removesuffix("template")
        if name not in TEMPLATES:
            raise ValueError(f"there is no template {template!r}: use one of {', '.join(TEMPLATES)}")
        return TEMPLATES[name]()
    if not isinstance(template, PromptTemplate):
        raise ValueError(f"the template must have a method format(instruction, input), got {template!r}")
    return template


def bind_template(template: PromptTemplate | str | None, tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """Return :func:`as_template` with the tokenizer, where the template needs one."""
    found = as_template(template)
    return found.for_tokenizer(tokenizer) if isinstance(found, ChatTemplate | AutoTemplate) else found


def template_of(template: PromptTemplate, record: InstructionRecord) -> PromptTemplate:
    """Return the template that a bound one uses for a record.

    Raises:
        ValueError: the record has turns that no chat template is there to write.
    """
    chosen = template.choose(record) if isinstance(template, AutoTemplate) else template
    talk = record.conversation
    if talk is None or talk.is_single or isinstance(chosen, ChatTemplate):
        return chosen
    roles = ", ".join(turn.role for turn in talk.turns)
    remedy = (
        "the tokenizer has no chat template: use one that has"
        if isinstance(template, AutoTemplate)
        else "use data/template=chat with a tokenizer that has a chat template"
    )
    raise ValueError(
        f"a conversation of {len(talk.turns)} turns ({roles}) cannot be written by {type(chosen).__name__}, which knows"
        f" one instruction and its response: {remedy}"
    )


def prompt_text(template: PromptTemplate, record: InstructionRecord) -> str:
    """Return the prompt of a record, as a bound template writes it."""
    chosen = template_of(template, record)
    if not isinstance(chosen, ChatTemplate):
        return chosen.format(record.instruction, record.input)
    talk = chosen.conversation(record)
    return chosen.render(talk.turns[:-1], talk.tools, add_generation_prompt=True)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__
