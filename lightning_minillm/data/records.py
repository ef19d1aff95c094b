"""Instruction records, and how a row becomes one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

from lightning_minillm.data.conversations import Conversation, find_conversation
from lightning_minillm.data.formats import Row
from lightning_minillm.files import nearest

GENERATED = frozenset({"output", "sample", "tokens", "finished"})
"""Fields of the rows that ``minillm-generate`` writes, whose responses may be blank: the model ended them at once."""

RESPONSE_IDS = "output_ids"
"""Field with the token ids of a generated response, among the fields above."""


@dataclass(frozen=True)
class InstructionRecord:
    """One instruction with its acceptable responses."""

    instruction: str
    input: str
    """Context that the instruction refers to; ``""`` if there is none."""
    responses: tuple[str, ...]
    """At least one; training uses the first, Rouge-L takes the best over all."""
    task: str = ""
    """Kind of instruction, ``""`` if unknown; metrics can be grouped by it."""
    exact: bool = False
    """Whether there is one right answer, so that exact match makes sense."""
    conversation: Conversation | None = None
    """The turns, if the record has turns; ``instruction`` is then those before the response, as text to show."""
    source: str = ""
    """Name of the source in a mixture of several."""
    response_ids: tuple[int, ...] | None = None
    """Token ids of the first response, with the id that ended it; ``None`` if only its text is known."""


@dataclass(frozen=True)
class FieldMap:
    """Field names of each part of a record: one name, or several in order of preference.

    Only ``instruction`` and ``response`` must exist; give ``()`` to leave an optional part out. A name that is found in
    no field as it is written may differ from the field's in upper and lower case.

    Raises:
        ValueError: a name that is not text.
    """

    instruction: str | Sequence[str] = ("instruction",)
    input: str | Sequence[str] = ("input", "context")
    response: str | Sequence[str] = ("output", "response", "responses")
    task: str | Sequence[str] = ("task", "topic", "category")
    exact: str | Sequence[str] = ("exact",)
    messages: str | Sequence[str] = ("messages", "conversations")
    """Turns of a conversation; read from records without instruction or response."""
    prompt: str | Sequence[str] = ("prompt",)
    """Text or turns before the response; with ``completion``, from records without any of the above."""
    completion: str | Sequence[str] = ("completion",)
    """The response, as text or turns."""
    tools: str | Sequence[str] = ("tools",)
    """Tools that the assistant of a conversation may call."""

    def __post_init__(self) -> None:
        for part, names in vars(self).items():
            names = (names,) if isinstance(names, str) else tuple(names or ())
            if not all(isinstance(name, str) for name in names):
                raise ValueError(f"fields.{part} must be a field name or a list of names, got {names!r}")
            object.__setattr__(self, part, names)


def to_record(row: Row, fields: FieldMap, where: str, numbers: Counter[str]) -> InstructionRecord:
    """Return a row as a record.

    Args:
        row: values by field name.
        fields: field names of each part.
        where: the row, for messages.
        numbers: counts the numbers that were read as text, by field.

    Raises:
        ValueError: a missing field, or a value that is not text, as :meth:`InstructionSource.load` says.
    """
    if not all(any(name in row for name in names) for names in (fields.instruction, fields.response)):
        parts = {"messages": fields.messages, "prompt": fields.prompt, "completion": fields.completion}
        talk = find_conversation(row, where, **parts, tools=fields.tools)
        if talk is not None:
            task, exact = (next((name for name in names if name in row), "") for names in (fields.task, fields.exact))
            return InstructionRecord(
                instruction=talk.prompt_text(),
                input="",
                responses=(talk.response_text(),),
                task=as_text(row.get(task), task, where),
                exact=_as_flag(row.get(exact), exact, where),
                conversation=talk,
                response_ids=_token_ids(row, where),
            )
        if all(any(name in row for name in names) for names in (fields.prompt, fields.completion)):
            fields = replace(fields, instruction=fields.prompt, response=fields.completion)
    try:
        found = dict(_found_fields(tuple(row), fields))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    value = {part: row[name] if name is not None else None for part, name in found.items()}
    text = {
        part: as_text(value[part], str(found[part]), where, numbers if part != "task" else None)
        for part in ("instruction", "input", "task")
    }
    if not text["instruction"].strip():
        raise ValueError(f"{where}: the field {found['instruction']!r} is {_empty(value['instruction'])}")
    response = str(found["response"])
    several = value["response"] if isinstance(value["response"], list | tuple) else [value["response"]]
    responses = tuple(as_text(item, response, where, numbers) for item in several)
    if not responses:
        raise ValueError(f"{where}: the field {response!r} contains no response: fill it or remove the row")
    for item, written in zip(several, responses, strict=True):
        if not written.strip() and not row.keys() >= GENERATED:
            raise ValueError(f"{where}: the field {response!r} contains no response, it is {_empty(item)}")
    return InstructionRecord(
        text["instruction"],
        text["input"] if text["input"].strip() else "",
        responses,
        text["task"],
        _as_flag(value["exact"], str(found["exact"]), where),
        response_ids=_token_ids(row, where),
    )


def _as_flag(value: Any, name: str, where: str) -> bool:
    flag = as_text(value if not isinstance(value, bool) else int(value), name, where).lower()
    if flag not in ("true", "false", "1", "0", ""):
        raise ValueError(f"{where}: the field {name!r} must be true or false, got {value!r}")
    return flag in ("true", "1")


def _token_ids(row: Row, where: str) -> tuple[int, ...] | None:
    ids = row.get(RESPONSE_IDS)
    if ids is None or not row.keys() >= GENERATED - {"output"}:  # conversations have their output in messages
        return None
    if not isinstance(ids, list) or not ids or not all(type(index) is int and index >= 0 for index in ids):
        raise ValueError(f"{where}: the field {RESPONSE_IDS!r} must be a list of token ids, got {ids!r}")
    return tuple(ids)


def _empty(value: Any) -> str:
    kind = "null" if value is None else "NaN" if isinstance(value, float) else "blank"
    return f"{kind}: fill it or remove the row"


@lru_cache(maxsize=64)
def _found_fields(row: tuple[str, ...], fields: FieldMap) -> tuple[tuple[str, str | None], ...]:
    """Return the field of each part in rows with these fields, ``None`` for an optional part without one.

    Raises:
        ValueError: a required part has no field, or none is found for the input and one has almost its name.
    """
    folded = {name.strip().casefold(): name for name in reversed(row)} | {name: name for name in row}
    found = {}
    for part, names in vars(fields).items():
        found[part] = next((folded[name] for name in (*names, *map(str.casefold, names)) if name in folded), None)
        if found[part] is None and part in ("instruction", "input", "response"):
            unread = [name for name in row if name not in found.values()]
            near = next(filter(None, (nearest(name, unread, cutoff=0.75) for name in names)), "")
            if near or part != "input":
                wanted, present = " or ".join(map(repr, names)), ", ".join(map(repr, row))
                raise ValueError(
                    f"no field {wanted} for the {part}; the row has {present}: give the right name in fields.{part}"
                    f"{near}"
                )
    return tuple(found.items())


def as_text(value: Any, name: str, where: str, numbers: Counter[str] | None = None) -> str:
    """Return the value of a field as text: ``""`` for null and NaN, and the digits of a number.

    Args:
        value: of the field.
        name: of the field, for messages.
        where: the row, for messages.
        numbers: counts the numbers that were turned into text, by field.

    Raises:
        ValueError: it is a list, an object, a truth value, infinite, or text that cannot be written in UTF-8.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        if numbers is not None:
            numbers[name] += 1
        return str(value)
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: the field {name!r} holds {_kind(value)}, not text: convert it, or name a different field"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: the field {name!r} has half of a surrogate pair at {error.start}") from error
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", tuple: "a list", dict: "an object", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), type(value).__name__)
