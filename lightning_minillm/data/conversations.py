"""Conversations: turns of a system, a user, an assistant and tools, and how they are read from records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "observation": "tool",
}
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool``."""
    content: str
    """The text; ``""`` in a turn that only calls tools."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Other keys of the message, such as ``tool_calls``; a chat template may read them."""

    def message(self) -> dict[str, Any]:
        """Return the turn as chat templates expect it."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True)
class Conversation:
    """Turns that end with the assistant's, which is the response.

    Example:
        >>> talk = Conversation((Turn("user", "Hi"), Turn("assistant", "Hello!")))
        >>> talk.is_single, talk.prompt_text(), talk.turns[-1].content
        (True, 'Hi', 'Hello!')
    """

    turns: tuple[Turn, ...]
    """At least one; the last is the assistant's."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the assistant may call."""

    @property
    def is_single(self) -> bool:
        """Whether it is nothing but one user turn and its response, so that any template can write it."""
        return len(self.turns) == 2 and self.turns[0].role == "user" and not self.tools and not self.turns[1].extra

    def messages(self) -> list[dict[str, Any]]:
        """Return the turns as chat templates expect them."""
        return [turn.message() for turn in self.turns]

    def prompt_text(self) -> str:
        """Return the turns before the response as a person would read them."""
        if self.is_single:
            return self.turns[0].content
        return "\n".join(f"{turn.role}: {turn.content}" for turn in self.turns[:-1])

    def response_text(self) -> str:
        """Return the text of the response, or the tool calls that stand for it."""
        response = self.turns[-1]
        return response.content or json.dumps(response.extra.get("tool_calls"), ensure_ascii=False)

    def key(self) -> str:
        """Return text that differs between different conversations."""
        return json.dumps([self.messages(), list(self.tools)], sort_keys=True, default=str)

    def without_oldest(self) -> Conversation | None:
        """Return the conversation without its first user turn and all that answers it; ``None`` if it is the only one.

        Example:
            >>> turns = (Turn("system", "Be brief."), Turn("user", "1"), Turn("assistant", "2"), Turn("user", "3"))
            >>> short = Conversation((*turns, Turn("assistant", "4"))).without_oldest()
            >>> [turn.content for turn in short.turns], short.without_oldest()
            (['Be brief.', '3', '4'], None)
        """
        users = [place for place, turn in enumerate(self.turns) if turn.role == "user"]
        if len(users) < 2:
            return None
        system = self.turns[:1] if self.turns[0].role == "system" else ()
        return Conversation((*system, *self.turns[users[1] :]), self.tools)


def read_messages(value: Any, where: str) -> tuple[Turn, ...]:
    """Return a list of messages (``role`` and ``content``, or ``from`` and ``value``) as turns.

    Args:
        value: what the field of a record holds.
        where: record and field, for messages.

    Raises:
        ValueError: not a list of messages, an unknown role, or content that is not text.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{where} must be a list of messages with role and content, got {_shown(value)}")
    return tuple(_read_message(message, f"{where}, message {place}") for place, message in enumerate(value, start=1))


def _read_message(message: Any, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise ValueError(f"{where} must be an object with role and content, got {_shown(message)}")
    given = {key: value for key, value in message.items() if value is not None}
    role_key = next((key for key in _ROLE_KEYS if key in given), "role")
    content_key = next((key for key in _CONTENT_KEYS if key in given), "content")
    role = given.pop(role_key, None)
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"{where}: {role_key!r} must be one of {', '.join(ROLES)}, got {_shown(role)}")
    if content_key not in given and role == "assistant" and given.get("tool_calls"):
        return Turn(role, "", given)
    return Turn(role, _read_text(given.pop(content_key, None), f"{where}: {content_key!r}"), given)


def _read_text(content: Any, where: str) -> str:
    """Return text, or the text of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple) and content:
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        written = [text for text in texts if isinstance(text, str)]
        if len(written) == len(texts):
            return "".join(written)
        content = next(part for part, text in zip(content, texts, strict=True) if not isinstance(text, str))
    raise ValueError(f"{where} must be text or a list of text parts, got {_shown(content)}")


def read_tools(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    """Return tools, given as a list of JSON schemas or as its JSON text; ``None`` and ``""`` are no tools.

    Raises:
        ValueError: anything else.
    """
    tools = value
    if isinstance(value, str) and value.strip():
        try:
            tools = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not valid JSON: {error}") from error
    tools = tools or ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"{where} must be a list of JSON schemas of tools, got {_shown(value)}")
    return tuple(tools)


def end_with_response(turns: Sequence[Turn], tools: tuple[Mapping[str, Any], ...], where: str) -> Conversation:
    """Return turns up to the assistant's last as a conversation; what follows has no response and is left out.

    Raises:
        ValueError: the assistant has no turn, nothing comes before its last one, or that is empty.
    """
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 1:
        roles = ", ".join(turn.role for turn in turns)
        raise ValueError(f"{where} has no assistant turn that answers another turn (the roles are {roles})")
    response = turns[last]
    if not response.content.strip() and not response.extra.get("tool_calls"):
        raise ValueError(f"{where}: the last assistant turn is empty: fill it or remove the record")
    return Conversation(tuple(turns[: last + 1]), tools)


def find_conversation(
    row: Mapping[str, Any],
    where: str,
    *,
    messages: Sequence[str],
    prompt: Sequence[str],
    completion: Sequence[str],
    tools: Sequence[str],
) -> Conversation | None:
    """Return the conversation that a row holds in ``messages``, or in ``prompt`` and ``completion``; ``None`` if none.

    Args:
        row: values by field name.
        where: the row, for messages.
        messages: field names of all turns, in order of preference.
        prompt: field names of the turns before the response, or of one user turn as text.
        completion: field names of the turns from there on, or of the response as text.
        tools: field names of the tools.

    Raises:
        ValueError: a field that does not hold what it has to; the message names row and field.
    """
    found = [
        next((name for name in names if row.get(name) is not None), "") for names in (messages, prompt, completion)
    ]
    whole, before, after = found
    if not whole and not (before and after):
        return None
    tool_field = next((name for name in tools if name in row), "")
    schemas = read_tools(row.get(tool_field), f"{where}: {tool_field!r}")
    if whole:
        return end_with_response(read_messages(row[whole], f"{where}: {whole!r}"), schemas, f"{where}: {whole!r}")
    if isinstance(row[before], str) and isinstance(row[after], str):
        return None
    turns: list[Turn] = []
    for name, role in ((before, "user"), (after, "assistant")):
        is_text = isinstance(row[name], str)
        turns += [Turn(role, row[name])] if is_text else read_messages(row[name], f"{where}: {name!r}")
    return end_with_response(turns, schemas, f"{where}: {after!r}")


def _shown(value: Any) -> str:
    text = "nothing" if value is None else f"{type(value).__name__} {value!r}"
    return text if len(text) <= 80 else f"{text[:77]}..."
