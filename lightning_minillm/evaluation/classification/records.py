"""Classification records: a question with a few possible answers, one of them right.

A language model answers with label words; a mapping says which word stands for which value of the file.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from lightning_minillm.data.rows import iterate_rows

Names = str | Sequence[str]


@dataclass(frozen=True)
class ClassificationRecord:
    """One example."""

    instruction: str
    input: str
    """The text that the instruction refers to; ``""`` for none."""
    label: int
    """Place of the right answer among the label words."""


@dataclass(frozen=True)
class ClassificationSource:
    """The location of examples, the wording of their prompts, and the words that answer them.

    Any file (JSONL, JSON and CSV, also gzipped, TSV, Parquet), folder or hub data set with named columns will do.

    Args:
        path: a file, a folder, or the name of a hub data set; ``None`` if there is none, which :meth:`load` refuses.
        instruction: the task; columns in braces (``"{question}"``) are filled in from the row.
        input: the text that the task refers to, with columns in braces as in ``instruction``; ``""`` for none.
        words: the label word for every value of the label column, e.g. ``{"0": "negative", "1": "positive"}``. Values
            are compared as lower-case text, so that ``true``, ``True`` and ``"true"`` are the same; several values may
            have the same word.
        label: name of the label column, or several in order of preference.
        columns: for a column in braces, its name in the files, or several in order of preference; by default, the name
            in braces.
        split: of a folder or hub data set.
        limit: maximum number of examples, at least 1; ``None`` for all.
        name: configuration of a hub data set with several.

    Raises:
        ValueError: there are fewer than two words, a word is empty, or the limit is below 1.
    """

    path: str | None
    instruction: str
    input: str
    words: Mapping[str, str]
    label: Names = "label"
    columns: Mapping[str, Names] | None = None
    split: str | None = None
    limit: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        words = self.label_words
        if len(words) < 2 or not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(
                "words must have at least two different, non-empty label words, such as"
                f" {{'0': 'negative', '1': 'positive'}} (quote yes and no in YAML); got {dict(self.words)}"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 or null, got {self.limit}")

    @property
    def label_words(self) -> tuple[str, ...]:
        """The different label words, in the given order."""
        return tuple(dict.fromkeys(self.words.values()))

    def load(self) -> list[ClassificationRecord]:
        """Return the examples, in the order of the data, at least one.

        Raises:
            FileNotFoundError: the path does not exist.
            ValueError: there is no path; the file is broken or has no rows; or a row lacks a column or has a label
                without a word (the message names file and line).
        """
        if self.path is None:
            raise ValueError("the data set has no path: give a file, a folder or the name of a hub data set")
        rows = iterate_rows(self.path, self.split, name=self.name, streaming=self.limit is not None)
        records = [self._record(row, where) for where, row in islice(rows, self.limit)]
        if not records:
            raise ValueError(f"{self.path!r} has no examples: give a file with at least one row")
        return records

    def _record(self, row: Mapping[str, Any], where: str) -> ClassificationRecord:
        words = {str(value).lower(): word for value, word in self.words.items()}
        value = str(_column(row, "label", self.label, where)).strip().lower()
        if value not in words:
            raise ValueError(
                f"{where}: the label {value!r} has no label word; there are words for {', '.join(map(repr, words))}:"
                " add it to words, or remove the row (test sets of benchmarks have no labels)"
            )
        return ClassificationRecord(
            instruction=self._filled(self.instruction, row, where),
            input=self._filled(self.input, row, where),
            label=self.label_words.index(words[value]),
        )

    def _filled(self, text: str, row: Mapping[str, Any], where: str) -> str:
        parts = {part for _, part, _, _ in string.Formatter().parse(text) if part}
        columns = self.columns or {}
        return text.format(**{part: str(_column(row, part, columns.get(part, part), where)).strip() for part in parts})


def _column(row: Mapping[str, Any], part: str, names: Names, where: str) -> Any:
    """Return a row's value, which must not be empty, in the first column of ``names`` that it has."""
    names = (names,) if isinstance(names, str) else tuple(names)
    found = next((name for name in names if name in row), None)
    if found is None:
        wanted = " or ".join(map(repr, names))
        raise ValueError(
            f"{where}: no column {wanted} for the {part}; the row has {', '.join(map(repr, row))}:"
            " name the right one in columns (or in label)"
        )
    if row[found] is None or row[found] == "":
        raise ValueError(f"{where}: the column {found!r} is empty: fill it, or remove the row")
    return row[found]


def sst2_source(path: str | None, split: str | None = None, limit: int | None = None) -> ClassificationSource:
    """Return SST-2: sentences from film reviews, negative or positive (Socher et al. 2013; GLUE).

    The path is a table with the columns ``text`` or ``sentence``, and ``label`` (0 or 1, or the words); or a hub name
    such as ``stanfordnlp/sst2``, with ``split="validation"`` (the test set has no labels).
    """
    return ClassificationSource(
        path,
        instruction="Read the sentence from a film review and say whether its sentiment is negative or positive.",
        input="{text}",
        words={"0": "negative", "1": "positive", "negative": "negative", "positive": "positive"},
        columns={"text": ("text", "sentence")},
        split=split,
        limit=limit,
    )


def boolq_source(path: str | None, split: str | None = None, limit: int | None = None) -> ClassificationSource:
    """Return BoolQ: yes-or-no questions, each with a passage that answers it (Clark et al. 2019; SuperGLUE).

    The path is a file with ``question``, ``passage``, and ``answer`` or ``label`` (true or false, 1 or 0); or a hub
    name such as ``google/boolq``.
    """
    return ClassificationSource(
        path,
        instruction="Read the passage and answer the question with yes or no.",
        input="Passage: {passage}\nQuestion: {question}?",
        words={"false": "no", "true": "yes", "0": "no", "1": "yes", "no": "no", "yes": "yes"},
        label=("answer", "label"),
        split=split,
        limit=limit,
    )
