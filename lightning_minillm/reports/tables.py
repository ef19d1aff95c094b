"""One table of results in every form in which it is read: terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table as RichTable

Value = Mapping[str, Any]
"""``{"mean": float, "std": float, "values": [float]}``"""

_ARROWS = {True: " ↑", False: " ↓", None: ""}
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
_LATEX_SIGNS = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True)
class Column:
    """A metric."""

    key: str
    title: str
    decimals: int = 2
    higher_is_better: bool | None = None
    """``None``: nothing is marked as best."""

    @property
    def head(self) -> str:
        """The title, with an arrow to where better is."""
        return self.title + _ARROWS[self.higher_is_better]


@dataclass(frozen=True)
class Row:
    """A model."""

    name: str
    values: Mapping[str, Value]
    """By key of a column; what was not measured is not there."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """What follows a value, such as a star, by key of a column."""
    section: str = ""
    """Rows of one section stand together, and only they compete for the best value."""
    ranked: bool = True
    """Whether it competes."""


class Table:
    """Models against metrics: mean ± deviation, the best of each section in bold, a dash for what was not measured.

    Args:
        columns: the metrics.
        rows: the models; sections appear in the order of their first row.
        title: above the table.
        notes: below it, a line each.

    Example:
        >>> one, two = ({"loss": {"mean": mean, "std": 0.0, "values": [mean]}} for mean in (2.0, 1.0))
        >>> table = Table([Column("loss", "loss", 1, False)], [Row("SFT", one), Row("MiniLLM", two)])
        >>> print(table.to_markdown(), end="")
        | model | loss ↓ |
        |---|---|
        | SFT | 2.0 |
        | MiniLLM | **1.0** |
    """

    def __init__(
        self, columns: Sequence[Column], rows: Sequence[Row], title: str = "", notes: Sequence[str] = ()
    ) -> None:
        self.columns = tuple(columns)
        self.title = title
        self.notes = tuple(notes)
        sections: dict[str, list[Row]] = {}
        for row in rows:
            sections.setdefault(row.section, []).append(row)
        self.sections = tuple(map(tuple, sections.values()))

    def to_rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(title=escape(self.title) or None)
        table.add_column("model", overflow="fold")
        for column in self.columns:
            table.add_column(column.head, justify="right")
        for section in self.sections:
            for row in section:
                texts = [f"[bold]{escape(text)}[/bold]" if best else escape(text) for text, best in self._cells(row)]
                table.add_row(escape(row.name), *texts, end_section=row is section[-1])
        return table

    def to_markdown(self) -> str:
        """Return the table in Markdown, without title, with the notes below."""
        lines = ["| model | " + " | ".join(column.head for column in self.columns) + " |"]
        lines.append("|---" * (len(self.columns) + 1) + "|")
        for row in self._rows():
            # a bare * would begin an emphasis
            texts = [text.replace("*", r"\*").replace("|", r"\|") for text, _ in self._cells(row)]
            cells = [f"**{text}**" if best else text for text, (_, best) in zip(texts, self._cells(row), strict=True)]
            lines.append(f"| {row.name.replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
        notes = "".join(f"\n{note}\n" for note in self.notes)
        return "\n".join(lines) + "\n" + notes

    def to_latex(self) -> str:
        """Return a ``table`` environment for LaTeX with the package booktabs."""
        lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering"]
        lines.append(rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}")
        lines += [r"\toprule", _latex_row(["model", *(_latex(column.head) for column in self.columns)])]
        for section in self.sections:
            lines.append(r"\midrule")
            for row in section:
                cells = [rf"\textbf{{{_latex(text)}}}" if best else _latex(text) for text, best in self._cells(row)]
                lines.append(_latex_row([_latex(row.name), *cells]))
        lines += [r"\bottomrule", r"\end{tabular}"]
        caption = " ".join(
            _latex(text if text.endswith(".") else f"{text}.") for text in (self.title, *self.notes) if text
        )
        return "\n".join([*lines, *([rf"\caption{{{caption}}}"] if caption else []), r"\end{table}"]) + "\n"

    def to_csv(self) -> str:
        """Return mean and deviation of every column in full precision; empty where nothing was measured."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        keys = [column.key for column in self.columns]
        writer.writerow(["model", "section", *(f"{key}_{part}" for key in keys for part in ("mean", "std"))])
        for row in self._rows():
            values = [row.values[key][part] if key in row.values else "" for key in keys for part in ("mean", "std")]
            writer.writerow([row.name, row.section, *values])
        return text.getvalue()

    def _rows(self) -> list[Row]:
        return [row for section in self.sections for row in section]

    def _cells(self, row: Row) -> list[tuple[str, bool]]:
        """Return text, and whether it is the best of its section, for every column."""
        return [
            (format_value(row.values.get(column.key), column.decimals) + row.marks.get(column.key, ""), best)
            for column in self.columns
            for best in (self._is_best(row, column),)
        ]

    def _is_best(self, row: Row, column: Column) -> bool:
        if column.higher_is_better is None or not row.ranked or column.key not in row.values:
            return False
        section = next(section for section in self.sections if any(other is row for other in section))
        means = [other.values[column.key]["mean"] for other in section if other.ranked and column.key in other.values]
        best = (max if column.higher_is_better else min)(means)
        return len(set(means)) > 1 and row.values[column.key]["mean"] == best


def format_value(value: Value | None, decimals: int) -> str:
    """Return ``mean ± deviation``, the mean alone where nothing varies, or a dash where nothing was measured.

    Example:
        >>> format_value({"mean": 2.0, "std": 1.0, "values": [1.0, 3.0]}, 1)
        '2.0 ± 1.0'
    """
    if value is None:
        return "-"
    deviation = f" ± {value['std']:.{decimals}f}" if len(set(value["values"])) > 1 else ""
    return f"{value['mean']:.{decimals}f}{deviation}"


def _latex(text: str) -> str:
    """Escape what LaTeX would read as a command."""
    return "--" if text == "-" else _LATEX_SIGNS.sub(lambda found: _LATEX[found[0]], text)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
