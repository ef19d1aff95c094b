"""Retrieval sets: passages, questions, and which passages are evidence for which question."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_minillm.data.rows import iterate_rows

Unit = Literal["document", "sentence"]
Reader = Callable[..., "PassageSet"]


@dataclass(frozen=True)
class Question:
    """One question with its candidates."""

    text: str
    candidates: tuple[int, ...]
    """Indices of passages, at least two."""
    relevant: frozenset[int]
    """The candidates with evidence, at least one."""


@dataclass(frozen=True)
class PassageSet:
    """Passages, and the questions about them."""

    passages: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class PassageSource:
    """The location of a retrieval set, and the function that reads it.

    Args:
        path: a file or folder, as the reader expects it; ``None`` if there is none.
        reader: :func:`read_scifact`, :func:`read_peerqa`, or a function of your own that takes a path.
        options: further arguments of the reader.
    """

    path: str | None
    reader: Reader
    options: Mapping[str, Any] | None = None

    def load(self) -> PassageSet:
        """Return the set.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: there is no path, a field is missing, or no question has both relevant and irrelevant passages.
        """
        if self.path is None:
            raise ValueError("the retrieval set has no path: give a file or folder")
        found = self.reader(self.path, **(self.options or {}))
        if not found.questions:
            raise ValueError(
                f"{self.path!r} has no question with both relevant and irrelevant passages: give a different file"
            )
        return found


def scifact_source(path: str | None, unit: Unit = "document") -> PassageSource:
    """Return a source of SciFact claims, read by :func:`read_scifact`."""
    return PassageSource(path, read_scifact, {"unit": unit})


def peerqa_source(path: str | None) -> PassageSource:
    """Return a source of PeerQA questions, read by :func:`read_peerqa`."""
    return PassageSource(path, read_peerqa)


def read_scifact(path: str | Path, unit: Unit = "document") -> PassageSet:
    """Read SciFact claims (Wadden et al., arXiv 2004.14974) from a table.

    Args:
        path: rows with ``query`` (the claim), ``text`` (an abstract with spaces between its tokens) and ``rationale``
            (a list of 0 and 1, whether each token is evidence).
        unit: ``"document"``: the candidates are all abstracts of the file, and the claim's own abstracts are relevant;
            ``"sentence"``: the candidates are the sentences of the claim's abstract, and those with evidence are
            relevant.

    Returns:
        Passages and claims; a claim without relevant, or without irrelevant passages is left out.

    Raises:
        ValueError: the unit is unknown, a column is missing, or a rationale is longer than its abstract.
    """
    if unit not in ("document", "sentence"):
        raise ValueError(f"unit must be document or sentence, got {unit!r}")
    rows = [
        (where, *(_field(row, key, where) for key in ("query", "text", "rationale")))
        for where, row in iterate_rows(path)
    ]
    if unit == "sentence":
        return _sentences(rows)
    places = {text: place for place, text in enumerate(dict.fromkeys(text for _, _, text, _ in rows))}
    relevant: dict[str, set[int]] = {}
    for _, query, text, _ in rows:
        relevant.setdefault(query, set()).add(places[text])
    candidates = tuple(range(len(places)))
    questions = [Question(query, candidates, frozenset(found)) for query, found in relevant.items()]
    return PassageSet(tuple(places), tuple(_answerable(questions)))


def _sentences(rows: Sequence[tuple[str, str, str, Any]]) -> PassageSet:
    passages: list[str] = []
    questions = []
    for where, query, text, rationale in rows:
        tokens, flags = text.split(" "), _flags(rationale, where)
        if len(flags) > len(tokens):
            raise ValueError(f"{where}: the rationale marks {len(flags)} tokens and the text has {len(tokens)}")
        start, first, relevant = 0, len(passages), set()
        for place, token in enumerate(tokens, start=1):
            if token in (".", "?", "!") or place == len(tokens):
                sentence = " ".join(tokens[start:place]).strip()
                if sentence:
                    if any(flags[start:place]):
                        relevant.add(len(passages))
                    passages.append(sentence)
                start = place
        questions.append(Question(query, tuple(range(first, len(passages))), frozenset(relevant)))
    return PassageSet(tuple(passages), tuple(_answerable(questions)))


def _flags(rationale: Any, where: str) -> list[int]:
    try:
        flags = json.loads(rationale) if isinstance(rationale, str) else list(rationale)
        return [int(flag) for flag in flags]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: the rationale must be a list of 0 and 1, got {str(rationale)[:60]!r}") from error


def read_peerqa(path: str | Path) -> PassageSet:
    """Read PeerQA (Baumgärtner et al., arXiv 2502.13668): questions of reviewers about papers.

    Args:
        path: a folder with ``papers.jsonl`` (one sentence per line: ``paper_id``, ``idx``, ``pidx``, ``content``) and
            ``qa.jsonl`` (``paper_id``, ``question``, ``answer_evidence_mapped``: the ``idx`` of sentences, as one
            ``{"idx": [[...], ...]}`` or as a list of ``{"idx": [...]}``).

    Returns:
        The paragraphs of all papers (the sentences with the same ``pidx``), and the questions; candidates are the
        paragraphs of the question's paper. Questions without evidence are left out. Questions about missing papers
        (some licences do not permit redistribution) are left out with a warning.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: a field is missing.
    """
    folder = Path(path)
    paragraphs: dict[tuple[str, int], dict[int, str]] = {}
    place_of: dict[tuple[str, int], tuple[str, int]] = {}
    for where, row in iterate_rows(folder / "papers.jsonl"):
        paper, index = str(_field(row, "paper_id", where)), int(_field(row, "idx", where))
        paragraph = (paper, int(_field(row, "pidx", where)))
        place_of[paper, index] = paragraph
        paragraphs.setdefault(paragraph, {})[index] = str(_field(row, "content", where))
    places = {paragraph: place for place, paragraph in enumerate(paragraphs)}
    of_paper: dict[str, list[int]] = {}
    for (paper, _), place in places.items():
        of_paper.setdefault(paper, []).append(place)
    questions, num_missing = [], 0
    for where, row in iterate_rows(folder / "qa.jsonl"):
        paper = str(_field(row, "paper_id", where))
        if paper not in of_paper:
            num_missing += 1
            continue
        marked = _evidence(row.get("answer_evidence_mapped"))
        relevant = frozenset(places[place_of[paper, index]] for index in marked if (paper, index) in place_of)
        questions.append(Question(str(_field(row, "question", where)), tuple(of_paper[paper]), relevant))
    if num_missing:
        warnings.warn(
            f"{str(folder / 'qa.jsonl')!r}: {num_missing} questions about papers that are missing from papers.jsonl are"
            " left out",
            stacklevel=2,
        )
    texts = (" ".join(parts[index] for index in sorted(parts)) for parts in paragraphs.values())
    return PassageSet(tuple(texts), tuple(_answerable(questions)))


def _evidence(mapped: Any) -> list[int]:
    """Return the sentences with evidence, from either form of the field.

    Evidence that was not found in the text of the paper is ``None``.
    """
    groups = mapped["idx"] if isinstance(mapped, Mapping) else [evidence["idx"] for evidence in mapped or ()]
    return [int(index) for group in groups or () for index in group or () if index is not None]


def _answerable(questions: Sequence[Question]) -> list[Question]:
    return [
        question for question in questions if question.relevant and len(question.candidates) > len(question.relevant)
    ]


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if row.get(name) is None or row[name] == "":
        raise ValueError(f"{where}: no {name!r}; the row has {', '.join(map(repr, row))}")
    return row[name]
