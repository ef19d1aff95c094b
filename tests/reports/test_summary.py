import json

import pytest
from rich.console import Console

from lightning_minillm.files import write_json_lines
from lightning_minillm.reports.summary import (
    over_seeds,
    side_by_side,
    summarise,
    summary_table,
    write_results,
)
from lightning_minillm.reports.tables import print_table

RESULTS = {
    "teacher": {"rougeL": summarise([80.0, 82.0])},
    "sft": {"rougeL": summarise([60.0, 64.0]), "reverse_kl": summarise([0.2, 0.3])},
    "minillm": {"rougeL": summarise([66.0, 66.0]), "reverse_kl": summarise([0.1, 0.1])},
}


def test_summary_has_the_sample_deviation():
    assert summarise([60.0, 64.0]) == {"mean": 62.0, "std": pytest.approx(8**0.5), "values": [60.0, 64.0]}
    assert summarise([1.0]) == {"mean": 1.0, "std": 0.0, "values": [1.0]}


def test_results_files(tmp_path):
    write_results(tmp_path, RESULTS, {"seeds": [1, 2]})
    assert json.loads((tmp_path / "results.json").read_text()) == {"seeds": [1, 2], "models": RESULTS}
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "model,reverse_kl_mean,reverse_kl_std,rougeL_mean,rougeL_std"
    assert lines[1].startswith("teacher,,,81.0,1.41")


def test_training_seeds_count_by_their_mean_over_sampling_seeds():
    runs = [{"rougeL": [59.0, 61.0], "loss": [1.0, 3.0]}, {"rougeL": [63.0, 65.0]}]
    together = over_seeds(runs)
    assert together["rougeL"] == summarise([60.0, 64.0])
    assert together["loss"] == summarise([1.0, 3.0])  # measured once: over sampling seeds
    assert over_seeds(runs, within_one_run=False)["loss"] == summarise([2.0])
    assert over_seeds([]) == {}


def test_best_of_those_that_compete_is_bold():
    console = Console(record=True, width=120, force_terminal=True)
    with console.capture() as capture:
        print_table(summary_table(RESULTS, title="title", notes=["a note"], not_ranked=["teacher"]), console)
    lines = capture.get().splitlines()
    assert any("minillm" in line and "\x1b[1m66.00" in line and "\x1b[1m0.1000" in line for line in lines)
    assert not any("teacher" in line and "\x1b[1m81" in line for line in lines)
    assert any("a note" in line for line in lines)


def test_a_table_has_the_columns_that_were_measured_as_the_evaluation_names_them():
    lines = summary_table(RESULTS, not_ranked=["teacher"]).to_markdown().splitlines()
    assert lines[0] == "| model | Rouge-L ↑ | reverse KL / token ↓ |"
    assert lines[2] == "| teacher | 81.00 ± 1.41 | - |"
    assert lines[4] == "| minillm | **66.00** | **0.1000** |"


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
