"""The comparison of two versions finds differences, however small, and none where there is none."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

TOOL = Path(__file__).parents[2] / "tools" / "compare_losses.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("compare_losses", TOOL)
    sys.modules["compare_losses"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare_losses"]


def write_run(folder, losses, *, extra="rollout/seconds", weight=1.0, first_step=0):
    """Write what a run leaves behind: metrics with a validation after each step, and the exported weights."""
    lines = [f"epoch,step,train/loss,{extra},val/loss"]
    for step, loss in enumerate(losses, first_step):
        lines += [f"0,{step},{loss!r},,", f"0,{step},,{step}.5,{loss!r}"]
    metrics = folder / "metrics" / "version_0"
    metrics.mkdir(parents=True)
    (metrics / "metrics.csv").write_text("\n".join(lines) + "\n")
    (folder / "student").mkdir()
    save_file({"head": torch.tensor([weight, 4.0])}, folder / "student" / "model.safetensors")
    return folder


def test_equal_runs_do_not_differ(tool, tmp_path):
    runs = [write_run(tmp_path / name, [2.0, 1.5]) for name in "ab"]
    found = tool.compare_runs(*runs, "kd", 1)
    assert found.passed
    assert (found.steps, found.values) == (2, 2)
    assert found.losses == found.weights == found.validation == tool.Difference()


def test_one_bit_of_a_loss_is_a_difference_on_one_rank_alone(tool, tmp_path):
    changed = math.nextafter(1.5, 2)
    runs = [write_run(tmp_path / name, [2.0, loss]) for name, loss in (("a", 1.5), ("b", changed))]
    found = tool.compare_runs(*runs, "kd", 1)
    assert not found.passed
    assert found.losses.absolute == changed - 1.5
    assert found.losses.relative == (changed - 1.5) / 2
    assert found.losses.where == "train/loss, first at step 1"
    assert tool.compare_runs(*runs, "kd", 2).passed


def test_weights_are_relative_to_the_largest_of_their_tensor(tool, tmp_path):
    runs = [write_run(tmp_path / name, [2.0], weight=weight) for name, weight in (("a", 1.0), ("b", 1.5))]
    found = tool.compare_runs(*runs, "kd", 2)
    assert not found.passed
    assert found.losses.relative == 0
    assert (found.weights.absolute, found.weights.relative, found.weights.where) == (0.5, 0.125, "head")


def test_times_and_columns_of_one_run_alone_do_not_count_but_the_latter_are_named(tool, tmp_path):
    runs = [
        write_run(tmp_path / name, [2.0], extra=extra) for name, extra in (("a", "rollout/seconds"), ("b", "train/x"))
    ]
    found = tool.compare_runs(*runs, "kd", 1)
    assert found.passed
    assert found.unpaired == ("train/x",)
    assert "only one version logs train/x" in tool.table([found])


@pytest.mark.parametrize(
    ("first", "second", "relative"),
    [
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.nan], [1.0, 1.0], math.inf),
        ([1.0, math.inf], [1.0, math.inf], 0.0),
        ([1.0, 0.0], [1.0], math.inf),
        ([0.0, 0.0], [0.0, 1e-30], 1.0),
    ],
)
def test_what_is_no_number_or_not_there_is_far_apart(tool, first, second, relative):
    first, second = (torch.tensor(values, dtype=torch.float64) for values in (first, second))
    assert tool.Difference.of(first, second, "x").relative == relative


def test_other_steps_are_far_apart(tool):
    assert tool.compare_column([(0, 1.0)], [(1, 1.0)], "x").relative == math.inf


def test_other_tensors_are_far_apart(tool):
    assert tool.compare_weights({"a": torch.ones(1)}, {"b": torch.ones(1)}).relative == math.inf


def test_a_run_that_skips_steps_cannot_be_compared(tool, tmp_path):
    with pytest.raises(ValueError, match="logged at every step"):
        tool.read_run(write_run(tmp_path / "a", [1.0], first_step=1))


def test_renamed_options_are_set_by_the_name_that_a_version_has(tool, tmp_path, monkeypatch):
    package = tmp_path / tool.PACKAGE
    package.mkdir()
    (package / "conf").symlink_to(TOOL.parents[1] / "conf", target_is_directory=True)
    version = tool.Version("now", tmp_path)
    monkeypatch.setitem(tool.METHODS["kd"], "rows_of_a_step", "8")
    with pytest.raises(ValueError, match="no option 'rows_of_a_step'"):
        tool.overrides(version, "kd", 1, steps=4)
    monkeypatch.setitem(tool.RENAMED, "rows_of_a_step", "batch_size")
    words = tool.overrides(version, "kd", 1, steps=4)
    assert "batch_size=8" in words
    assert "max_steps=4" in words


def test_either_a_commit_or_self(tool):
    for argv in ([], ["main", "--self"]):
        with pytest.raises(SystemExit):
            tool.parse(argv)


@pytest.mark.slow
def test_the_working_tree_equals_itself(tool, capsys):
    assert tool.main(["--self", "--steps", "2", "--methods", "smoke", "--ranks", "1", "2"]) == 0
    assert capsys.readouterr().out.count(" ok\n") == 4
