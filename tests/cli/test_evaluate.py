import csv
import json
import statistics

import pytest

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate


@pytest.fixture
def overrides(data_overrides):
    return [*data_overrides, "sampling.max_new_tokens=4", "trainer.accelerator=cpu", "seeds=[1,2,3]"]


def test_models_are_compared_over_seeds(overrides, folders, tmp_path, capsys):
    models = f"models={{student: {folders}/model, teacher: {folders}/teacher}}"
    teacher = ["teacher=pretrained", f"teacher.path={folders}/teacher"]
    results, objects = evaluate(compose_config("evaluate", [*overrides, models, *teacher]))
    run = tmp_path / "run"
    assert set(results) == {"student", "teacher"}
    expected = {"rougeL", "exact_match", "reverse_kl", "response_length", "loss", "repetition", "dist4"}
    assert set(results["student"]) == expected | {"rougeL_0-5"}  # every reference has two tokens
    for summary in results.values():
        for name, value in summary.items():
            assert len(value["values"]) == 3 or name in ("repetition", "dist4")  # no response may have four words
            assert value["mean"] == pytest.approx(statistics.fmean(value["values"]))
            assert value["std"] == pytest.approx(statistics.stdev(value["values"]))
    assert results["teacher"]["reverse_kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert results["student"]["reverse_kl"]["mean"] > 0.01
    assert results["student"]["loss"]["std"] == pytest.approx(0, abs=1e-6)  # the references do not depend on the seed
    stored = json.loads((run / "results.json").read_text())
    assert stored["models"] == results
    assert stored["seeds"] == [1, 2, 3]
    with open(run / "results.csv", newline="") as rows:
        table = {row["model"]: row for row in csv.DictReader(rows)}
    assert float(table["student"]["rougeL_mean"]) == results["student"]["rougeL"]["mean"]
    printed = capsys.readouterr().out
    assert "Rouge-L" in printed
    assert "student" in printed
    assert len((run / "responses/student_seed_2.jsonl").read_text().splitlines()) == 6
    assert objects["module"].teacher is not None
    text = (run / "report.md").read_text()
    assert "| student |" in text
    assert "pictures/rougeL_by_length.png" in text
    assert "## Responses side by side" in text
    assert (run / "pictures/rougeL_by_length.png").read_bytes().startswith(b"\x89PNG")


def test_one_model_without_teacher(overrides, folders):
    results, _ = evaluate(compose_config("evaluate", [*overrides, f"model={folders}/model", "seeds=[7]"]))
    assert list(results) == ["model"]
    assert "reverse_kl" not in results["model"]
    assert results["model"]["rougeL"]["std"] == 0


def test_other_splits_are_measured_by_the_same_code(overrides, folders):
    base = [*overrides, f"model={folders}/model", "seeds=[7]"]
    validation, _ = evaluate(compose_config("evaluate", [*base, "split=validation"]))
    as_test, _ = evaluate(compose_config("evaluate", [*base, f"data.test={folders}/validation.jsonl"]))
    assert validation == as_test


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([], "give either model="),
        (["model=x", "models={a: x}"], "give either model="),
        (["model=MODEL", "seeds=[]"], "seeds is empty"),
        (["model=./nowhere"], "there is no folder"),
        (["model=MODEL", "split=dev"], "split must be"),
    ],
)
def test_mistakes_are_named(added, message, overrides, folders):
    added = [override.replace("MODEL", f"{folders}/model") for override in added]
    with pytest.raises(ValueError, match=message):
        evaluate(compose_config("evaluate", [*overrides, *added]))


def test_teacher_with_another_tokenizer_is_refused(overrides, folders, tmp_path, make_model, make_tokenizer):
    make_model("gpt2", vocab_size=40).save_pretrained(tmp_path / "other")
    make_tokenizer(words=40).save_pretrained(tmp_path / "other")
    teacher = ["teacher=pretrained", f"teacher.path={tmp_path}/other"]
    with pytest.raises(ValueError, match="different tokenizers"):
        evaluate(compose_config("evaluate", [*overrides, f"model={folders}/model", *teacher]))
