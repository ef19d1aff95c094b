"""Where texts begin and end for a tokenizer and its models, and which tokens two tokenizers share.

Every part of the package reads these answers here: data, sampling, training and evaluation cannot disagree on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from jinja2.exceptions import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

AddBos = Literal["auto"] | bool
_EXAMPLES = 5


def begin_ids(tokenizer: PreTrainedTokenizerBase, add_bos: AddBos = "auto") -> tuple[int, ...]:
    """Return the ids that come before a text.

    Args:
        tokenizer: of the text.
        add_bos: ``"auto"``: what the tokenizer itself puts before a text, which is nothing for many; ``True``: its
            begin token also where it does not; ``False``: nothing.

    Raises:
        ValueError: ``add_bos`` is something else, or ``True`` for a tokenizer without a begin token.
    """
    if add_bos not in ("auto", True, False):
        raise ValueError(f"add_bos must be auto, true or false, got {add_bos!r}")
    if not add_bos:
        return ()
    plain: list[int] = tokenizer("x", add_special_tokens=False).input_ids
    full: list[int] = tokenizer("x").input_ids
    starts = (start for start in range(len(full)) if full[start : start + len(plain)] == plain)
    found = tuple(full[: next(starts, 0)])
    if found or add_bos == "auto":
        return found
    if tokenizer.bos_token_id is None:
        raise ValueError("add_bos=true, and the tokenizer has no begin token: set add_bos=auto")
    return (tokenizer.bos_token_id,)


def with_begin(begin: Sequence[int], token_ids: Sequence[int]) -> list[int]:
    """Return ``token_ids`` with ``begin`` before them, unless they begin with it already, as chat formats may.

    Example:
        >>> with_begin([1], [5, 6]), with_begin([1], [1, 5, 6])
        ([1, 5, 6], [1, 5, 6])
    """
    has_begin = list(token_ids[: len(begin)]) == list(begin)
    return list(token_ids) if has_begin else [*begin, *token_ids]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Return the ids of eos, without which ``ValueError`` is raised, and of the padding (eos without a pad token)."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(
            "the tokenizer has no eos token, without which a model cannot learn to stop: set tokenizer.eos_token"
        )
    pad_id = tokenizer.pad_token_id
    return int(eos), int(eos if pad_id is None else pad_id)


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the first special token after an assistant's turn in the tokenizer's chat format.

    Returns:
        ``None`` without a chat template, or if its turns end with no special token.
    """
    if not getattr(tokenizer, "chat_template", None):
        return None
    turns = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": text}] for text in ("yes", "no")]
    try:
        texts = [str(tokenizer.apply_chat_template(turn, tokenize=False)) for turn in turns]
    except (TemplateError, TypeError, ValueError):  # a template for other roles or fields
        return None
    pairs = zip(*(reversed(text) for text in texts), strict=False)
    after = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))[::-1]
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids: list[int] = tokenizer(after, add_special_tokens=False).input_ids
    return next((token for token in ids if token in special), None)


def end_ids(
    tokenizer: PreTrainedTokenizerBase, models: Iterable[PreTrainedModel] = (), named: Iterable[int | str] = ()
) -> tuple[int, ...]:
    """Return every id that ends a response, without repetition.

    Args:
        tokenizer: gives its eos token and, with a chat template, the end of a turn.
        models: give the ``eos_token_id`` of their generation configs: one id or several.
        named: further ends, as ids or tokens.

    Raises:
        ValueError: the tokenizer has no token of that name.
    """
    found = _as_ids(tokenizer.eos_token_id) + _as_ids(end_of_turn_id(tokenizer))
    found += [index for model in models for index in own_end_ids(model)]
    for name in named:
        index = tokenizer.get_vocab().get(name) if isinstance(name, str) else name
        if index is None or index < 0:
            raise ValueError(
                f"eos_token_ids names {name!r}, which is no token of the tokenizer: give a token or its id"
            )
        found.append(index)
    return tuple(dict.fromkeys(found))


def own_end_ids(model: PreTrainedModel) -> list[int]:
    """Return the ids that a model's generation config, or without one its config, names as ends of a text."""
    config = getattr(model, "generation_config", None) or model.config.get_text_config()
    return _as_ids(getattr(config, "eos_token_id", None))


def name_ends(model: PreTrainedModel, ends: Sequence[int]) -> None:
    """Let a model's generation config name every one of these ends."""
    config = model.generation_config
    if config is not None and not set(ends) <= set(own_end_ids(model)):
        config.eos_token_id = list(ends)


def _as_ids(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)


@dataclass(frozen=True)
class TokenDifferences:
    """How two tokenizers that agree on all tokens they share differ."""

    student_only: dict[str, int] = field(default_factory=dict)
    """Tokens, with their ids, that only the student's tokenizer has."""
    teacher_only: dict[str, int] = field(default_factory=dict)
    """Tokens, with their ids, that only the teacher's tokenizer has."""
    ends: tuple[str, ...] = ()
    """The eos tokens of student and teacher, if they differ."""

    @property
    def ids(self) -> list[int]:
        """Ids of the tokens that only one tokenizer has, in order."""
        return sorted({*self.student_only.values(), *self.teacher_only.values()})

    def __str__(self) -> str:
        parts = [
            f"only the {name} has {len(tokens)} tokens ({_examples(tokens)}), which are left out of both distributions"
            for name, tokens in (("student", self.student_only), ("teacher", self.teacher_only))
            if tokens
        ]
        if self.ends:
            parts.append(
                "the student's text ends with {!r} and the teacher's with {!r}: either ends".format(*self.ends)
            )
        return "; ".join(parts)


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> TokenDifferences:
    """Check that student and teacher can be compared token by token, and return in what they differ.

    Every id that both have must be the same token for both. One of them may have more added tokens, such as those of a
    chat format, and another eos token.

    Raises:
        ValueError: the tokenizers differ in more than that.
    """
    own, theirs = student.get_vocab(), teacher.get_vocab()
    added = student.get_added_vocab() | teacher.get_added_vocab()
    extra = {token for token in own.keys() ^ theirs.keys() if token in added}
    tokens = {index: token for token, index in own.items()}
    different = (own.keys() ^ theirs.keys()) - extra
    different |= {token for token, index in theirs.items() if tokens.get(index, token) != token}
    different |= {token for token in own.keys() & theirs.keys() if own[token] != theirs[token]}
    if different:
        raise ValueError(
            f"student and teacher have different tokenizers ({len(different)} tokens differ, e.g."
            f" {_examples(sorted(different), 3)}), so their distributions cannot be compared token by token. Either use"
            " SeqKD, which needs only the teacher's text (minillm-generate model=TEACHER ..., then minillm-train"
            " experiment=sft on the responses), or choose a student and a teacher with one tokenizer"
        )
    ends = (str(student.eos_token), str(teacher.eos_token))
    return TokenDifferences(
        {token: own[token] for token in sorted(extra & own.keys(), key=own.__getitem__)},
        {token: theirs[token] for token in sorted(extra & theirs.keys(), key=theirs.__getitem__)},
        ends if ends[0] != ends[1] else (),
    )


def _examples(tokens: Iterable[str], most: int = _EXAMPLES) -> str:
    named = list(tokens)
    return ", ".join(map(repr, named[:most])) + (", ..." if len(named) > most else "")
