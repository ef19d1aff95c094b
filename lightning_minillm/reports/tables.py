"""One table of results in every form: terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from lightning_minillm.evaluation import Measure


class Value(TypedDict):
    """A metric over repetitions."""

    mean: float
    std: float
    """Sample deviation; 0 for one value."""
    values: list[float]


Summary = dict[str, Value]
"""The metrics of one model by their keys."""

_COLUMNS_OF_A_SCREEN = 6
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
    """``None``: no value is marked as best."""

    @classmethod
    def of(cls, key: str, measure: Measure, group: str = "") -> Column:
        """Return the column of an evaluation's measure; ``group``, such as a data set, is put before the title."""
        title = f"{group}: {measure.title}" if group else measure.title
        return cls(key, title, measure.decimals, measure.higher_is_better)

    @property
    def head(self) -> str:
        """The title, with an arrow in the direction of better values."""
        return self.title + _ARROWS[self.higher_is_better]


@dataclass(frozen=True)
class Row:
    """A model."""

    name: str
    values: Mapping[str, Value]
    """By the key of a column; columns that were not measured are absent."""
    marks: Mapping[str, str] = field(default_factory=dict)
    """Text after a value, such as a star, by the key of a column."""
    section: str = ""
    """Rows of one section are shown together, and the best value is chosen among them."""
    ranked: bool = True
    """Whether it can have the best value; ``False`` for a teacher."""


class Table:
    """Models against metrics: mean ± deviation, the best values of each section in bold, a dash for a missing value.

    Args:
        columns: the metrics.
        rows: the models; sections appear in the order of their first row.
        title: shown above the table.
        notes: shown below it, one per line.

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
        self.columns, self.title, self.notes = tuple(columns), title, tuple(notes)
        sections: dict[str, list[Row]] = {}
        for row in rows:
            sections.setdefault(row.section, []).append(row)
        self.sections = tuple(map(tuple, sections.values()))
        self.rows = tuple(row for section in self.sections for row in section)

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
        """Return the table in Markdown, without the title, with the notes below."""
        lines = ["| model | " + " | ".join(column.head for column in self.columns) + " |"]
        lines.append("|---" * (len(self.columns) + 1) + "|")
        for row in self.rows:
            # a bare * would begin an emphasis
            cells = [(markdown_cell(text).replace("*", r"\*"), best) for text, best in self._cells(row)]
            texts = [f"**{text}**" if best else text for text, best in cells]
            lines.append(f"| {markdown_cell(row.name)} | " + " | ".join(texts) + " |")
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
        """Return the mean and deviation of every column in full precision, empty where nothing was measured.

        Sections have a column of their own if any row names one.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        keys = [column.key for column in self.columns]
        with_sections = any(row.section for row in self.rows)
        heads = [f"{key}_{part}" for key in keys for part in ("mean", "std")]
        writer.writerow(["model", *(["section"] if with_sections else ()), *heads])
        for row in self.rows:
            cells: list[str | float] = [row.name, *([row.section] if with_sections else ())]
            for key in keys:
                value = row.values.get(key)
                cells += ["", ""] if value is None else [value["mean"], value["std"]]
            writer.writerow(cells)
        return text.getvalue()

    def _cells(self, row: Row) -> list[tuple[str, bool]]:
        """Return for every column the text and whether it is the best value of its section."""
        texts = [
            format_value(row.values.get(column.key), column.decimals) + row.marks.get(column.key, "")
            for column in self.columns
        ]
        return [(text, self._is_best(row, column)) for text, column in zip(texts, self.columns, strict=True)]

    def _is_best(self, row: Row, column: Column) -> bool:
        if column.higher_is_better is None or not row.ranked or column.key not in row.values:
            return False
        section = next(section for section in self.sections if any(other is row for other in section))
        means = [other.values[column.key]["mean"] for other in section if other.ranked and column.key in other.values]
        best = (max if column.higher_is_better else min)(means)
        return len(set(means)) > 1 and row.values[column.key]["mean"] == best


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table, as several below each other if it has many columns, and its notes; by default to stdout."""
    console = console or make_console()
    for start in range(0, len(table.columns), _COLUMNS_OF_A_SCREEN):
        part = Table(table.columns[start : start + _COLUMNS_OF_A_SCREEN], table.rows, table.title)
        console.print(part.to_rich())
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)


def make_console() -> Console:
    """Return a console on standard output, wide enough for tables if that is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def markdown_cell(text: str) -> str:
    """Return text that can stand in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", "<br>")


def format_value(value: Value | None, decimals: int) -> str:
    """Return ``mean ± deviation``, the mean alone if all values are equal, or a dash for a missing value.

    Example:
        >>> format_value({"mean": 2.0, "std": 1.0, "values": [1.0, 3.0]}, 1)
        '2.0 ± 1.0'
    """
    if value is None:
        return "-"
    deviation = f" ± {value['std']:.{decimals}f}" if len(set(value["values"])) > 1 else ""
    return f"{value['mean']:.{decimals}f}{deviation}"


def _latex(text: str) -> str:
    """Escape characters that LaTeX reads as commands."""
    return "--" if text == "-" else _LATEX_SIGNS.sub(lambda found: _LATEX[found[0]], text)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
