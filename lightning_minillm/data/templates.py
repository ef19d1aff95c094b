"""Prompt templates: how an instruction and its input become the text before the response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase


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


class ChatTemplate:
    """One user turn in the tokenizer's chat format, up to the beginning of the assistant's turn.

    Args:
        tokenizer: a tokenizer with a ``chat_template``.
        system: text of a system turn; ``None`` adds none (the chat template may add its own).

    Raises:
        ValueError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ValueError(
                f"the tokenizer {name!r} has no chat template: use AlpacaTemplate or PlainTemplate, or set "
                "tokenizer.chat_template"
            )
        self.tokenizer = tokenizer
        self.system = system

    def format(self, instruction: str, input: str) -> str:
        """Return the chat as text; ``input`` follows the instruction after a blank line."""
        content = f"{instruction}\n\n{input}" if input else instruction
        messages = [{"role": "user", "content": content}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
