import csv
import io

import pytest
from rich.console import Console

from lightning_minillm.evaluation import Measure
from lightning_minillm.reports.summary import summarise
from lightning_minillm.reports.tables import Column, Row, Table, format_value, print_table

COLUMNS = [Column("rougeL", "Rouge-L", 1, True), Column("kl", "KL_1", 2, False), Column("length", "tokens", 0)]


def value(*values):
    mean = sum(values) / len(values)
    return {"mean": mean, "std": 0.5 if len(values) > 1 else 0.0, "values": list(values)}


@pytest.fixture
def table():
    rows = [
        Row("teacher", {"rougeL": value(99)}, section="teacher", ranked=False),
        Row("a|b", {"rougeL": value(1, 3), "kl": value(0.5), "length": value(9)}, {"rougeL": "*"}, "test"),
        Row("50% [x]", {"rougeL": value(1), "kl": value(0.25), "length": value(7)}, section="test"),
    ]
    return Table(COLUMNS, rows, title="T & U", notes=["a note"])


def test_markdown(table):
    assert table.to_markdown().splitlines() == [
        "| model | Rouge-L ↑ | KL_1 ↓ | tokens |",
        "|---|---|---|---|",
        "| teacher | 99.0 | - | - |",
        r"| a\|b | **2.0 ± 0.5\*** | 0.50 | 9 |",
        "| 50% [x] | 1.0 | **0.25** | 7 |",
        "",
        "a note",
    ]


def test_latex_escapes_and_rules(table):
    text = table.to_latex()
    lines = text.splitlines()
    assert r"a|b & \textbf{2.0 $\pm$ 0.5*} & 0.50 & 9 \\" in lines
    assert r"50\% [x] & 1.0 & \textbf{0.25} & 7 \\" in lines
    assert r"model & Rouge-L $\uparrow$ & KL\_1 $\downarrow$ & tokens \\" in lines
    assert lines.count(r"\midrule") == 2
    assert r"\caption{T \& U. a note.}" in lines
    assert r"teacher & 99.0 & -- & -- \\" in lines


def test_csv_holds_full_numbers(table):
    rows = {row["model"]: row for row in csv.DictReader(io.StringIO(table.to_csv()))}
    assert float(rows["50% [x]"]["kl_mean"]) == 0.25
    assert rows["teacher"]["kl_mean"] == ""
    assert rows["a|b"]["section"] == "test"


def test_terminal_shows_names_as_they_are(table):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table.to_rich())
    assert "50% [x]" in console.export_text()


def test_equal_values_have_no_best():
    rows = [Row("a", {"rougeL": value(1)}), Row("b", {"rougeL": value(1)})]
    assert "**" not in Table(COLUMNS, rows).to_markdown()


def test_best_is_chosen_within_a_section():
    scores = {"a": (1, "x"), "b": (2, "x"), "c": (9, "y"), "d": (8, "y")}
    rows = [Row(name, {"rougeL": value(score)}, section=section) for name, (score, section) in scores.items()]
    lines = Table(COLUMNS[:1], rows).to_markdown().splitlines()[2:]
    assert lines == ["| a | 1.0 |", "| b | **2.0** |", "| c | **9.0** |", "| d | 8.0 |"]


def test_all_of_several_best_values_are_bold():
    rows = [Row(name, {"rougeL": value(score)}) for name, score in (("a", 2), ("b", 1), ("c", 2))]
    lines = Table(COLUMNS[:1], rows).to_markdown().splitlines()[2:]
    assert lines == ["| a | **2.0** |", "| b | 1.0 |", "| c | **2.0** |"]


def test_rows_without_sections_have_no_column_for_them():
    assert Table(COLUMNS[:1], [Row("a", {"rougeL": value(2)})]).to_csv() == "model,rougeL_mean,rougeL_std\na,2.0,0.0\n"


def test_a_column_says_what_its_measure_does():
    measure = Measure("Rouge-L", 1, True)
    assert Column.of("x/rougeL", measure, group="x") == Column("x/rougeL", "x: Rouge-L", 1, True)
    assert Column.of("rougeL", measure).head == "Rouge-L ↑"


def test_many_columns_are_printed_below_each_other():
    columns = [Column(f"c{number}", f"c{number}") for number in range(8)]
    console = Console(width=100, file=io.StringIO())
    print_table(Table(columns, [Row("a", {})]), console)
    heads = [line for line in console.file.getvalue().splitlines() if "model" in line]
    assert ["c5" in line for line in heads] == [True, False]
    assert ["c7" in line for line in heads] == [False, True]


@pytest.mark.parametrize(
    ("values", "text"), [([1.0, 2.0], "1.50 ± 0.71"), ([1.0, 1.0], "1.00"), ([1.0], "1.00"), (None, "-")]
)
def test_values_are_shown_with_their_deviation(values, text):
    assert format_value(summarise(values) if values else None, 2) == text
