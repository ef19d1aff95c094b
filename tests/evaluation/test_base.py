"""The examples of the documentation work as they are written."""

import re
from pathlib import Path

import pytest

from lightning_minillm.evaluation.base import Measure, Picture, join_sets, pictures_of_sets

DOCS = Path(__file__).resolve().parents[2] / "docs"


def run_example(page):
    """Run the Python of a page and return its names."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names = {"__name__": "example"}
    exec(code, names)
    return names


def test_the_guides_evaluation_measures_a_model(make_model, make_pair, make_evaluation, run_all, words):
    evaluation = make_evaluation(run_example("evaluation.md")["LengthInWords"], {"test": words()}, seeds=(1, 2))
    records = run_all(evaluation, make_pair(make_model("gpt2")))
    assert [record["item"] for record in records] == list(range(24))
    values = evaluation.findings(records).values
    assert values["words"] == [pytest.approx(sum(record["words"] for record in records) / 24)]
    assert set(values) == set(evaluation.measures)


def test_the_example_of_the_metrics_runs(capsys):
    run_example("metrics.md")
    assert capsys.readouterr().out == "100.0 66.66666666666667\n"


def test_names_carry_the_data_set_if_there_are_several():
    measure, picture = Measure("ECE"), Picture("Reliability", "x", "y")
    assert join_sets({"a": {"ece": measure}}) == {"ece": measure}
    assert join_sets({"a": {"ece": measure}, "b": {"ece": measure}}) == {"a/ece": measure, "b/ece": measure}
    assert pictures_of_sets({"ece": picture}, ["a"]) == {"ece": picture}
    assert pictures_of_sets({"ece": picture}, ["a", "b"])["b/ece"].title == "b: Reliability"
