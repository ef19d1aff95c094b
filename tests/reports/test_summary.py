import json

import pytest
from rich.console import Console

from lightning_minillm.files import write_json_lines
from lightning_minillm.reports.summary import (
    format_value,
    markdown_table,
    over_training_seeds,
    print_table,
    side_by_side,
    summarise,
    write_results,
)

RESULTS = {
    "teacher": summarise([{"rougeL": 80.0}, {"rougeL": 82.0}]),
    "sft": summarise([{"rougeL": 60.0, "reverse_kl": 0.2}, {"rougeL": 64.0, "reverse_kl": 0.3}]),
    "minillm": summarise([{"rougeL": 66.0, "reverse_kl": 0.1}, {"rougeL": 66.0, "reverse_kl": 0.1}]),
}


def test_summary_has_the_sample_deviation():
    summary = RESULTS["sft"]["rougeL"]
    assert summary == {"mean": 62.0, "std": pytest.approx(8**0.5), "values": [60.0, 64.0]}
    assert summarise([{"a": 1.0}, {"b": 2.0}])["a"] == {"mean": 1.0, "std": 0.0, "values": [1.0]}


@pytest.mark.parametrize(
    ("values", "text"), [([1.0, 2.0], "1.50 ± 0.71"), ([1.0, 1.0], "1.00"), ([1.0], "1.00"), (None, "-")]
)
def test_values_are_shown_with_their_deviation(values, text):
    assert format_value(summarise([{"a": v} for v in values])["a"] if values else None, 2) == text


def test_results_files(tmp_path):
    write_results(tmp_path, RESULTS, {"seeds": [1, 2]})
    assert json.loads((tmp_path / "results.json").read_text()) == {"seeds": [1, 2], "models": RESULTS}
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "model,reverse_kl_mean,reverse_kl_std,rougeL_mean,rougeL_std"
    assert lines[1].startswith("teacher,,,81.0,1.41")


def test_training_seeds_of_the_same_settings_are_put_together(tmp_path):
    for name, settings, rouge in (("a", "x", 60.0), ("b", "x", 64.0), ("c", "y", 0.0)):
        results = {"sft": summarise([{"rougeL": rouge - 1}, {"rougeL": rouge + 1}])}
        write_results(tmp_path / name, results, {"settings": settings})
    (tmp_path / "unfinished").mkdir()
    together = over_training_seeds(sorted(tmp_path.iterdir()), "x")
    assert together == {"sft": summarise([{"rougeL": 60.0}, {"rougeL": 64.0}])}
    assert over_training_seeds([], "x") == {}


def test_best_of_those_that_compete_is_bold():
    console = Console(record=True, width=120, force_terminal=True)
    with console.capture() as capture:
        print_table(RESULTS, "title", console, not_ranked=["teacher"])
    lines = capture.get().splitlines()
    assert any("minillm" in line and "\x1b[1m66.00" in line and "\x1b[1m0.1000" in line for line in lines)
    assert not any("teacher" in line and "\x1b[1m81" in line for line in lines)


def test_markdown_table():
    lines = markdown_table(RESULTS).splitlines()
    assert lines[0] == "| model | Rouge-L | reverse KL / token |"
    assert lines[2] == "| teacher | 81.00 ± 1.41 | - |"


def test_samples_keep_line_separators_of_unicode(tmp_path):
    row = {"index": 0, "task": None, "prompt": "p", "references": ["r"], "response": "a bc"}
    write_json_lines(tmp_path / "a.jsonl", [row])
    assert "| A | a bc |" in side_by_side({"A": tmp_path / "a.jsonl"})


def test_samples_stand_side_by_side_spread_over_tasks(tmp_path):
    for model in ("a", "b"):
        rows = [
            {
                "index": i,
                "task": "x" if i < 8 else "y",
                "prompt": f"p{i}\nq",
                "references": ["r|s", "t"],
                "response": f"{model}{i}",
            }
            for i in range(10)
        ]
        (tmp_path / f"{model}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = side_by_side({"A": tmp_path / "a.jsonl", "B": tmp_path / "b.jsonl"}, limit=3)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## 0 (x)", "## 8 (y)", "## 1 (x)"]
    assert "> p8\n> q" in text
    assert "| A | a8 |\n| B | b8 |" in text
    assert "r\\|s / t" in text
