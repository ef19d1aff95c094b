import csv
import json
import statistics

import pytest

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.evaluate import evaluate
from lightning_minillm.cli.train import train


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
    assert objects["module"].pair.teacher is not None
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


def test_other_splits_are_measured_by_the_same_code(overrides, folders, tmp_path):
    base = [*overrides, f"model={folders}/model", "seeds=[7]"]
    validation, _ = evaluate(compose_config("evaluate", [*base, "split=validation"]))
    given_as_test = [f"data.test={folders}/validation.jsonl", f"output_dir={tmp_path}/other"]
    as_test, _ = evaluate(compose_config("evaluate", [*base, *given_as_test]))
    assert validation == as_test


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ([], "give either model="),
        (["model=x", "models={a: x}"], "give either model="),
        (["model=MODEL", "seeds=[]"], r"seeds must be a list of one or more whole numbers, got \[\]"),
        (["models={a: null}"], "models: a must be a folder, a hub name or a checkpoint, got None"),
        (["model=[MODEL]"], "^model must be a folder, a hub name or a checkpoint, got"),
        (["models=MODEL"], r"models must name a folder, .*, e.g. 'models=\{a: FOLDER, b: FOLDER\}', got"),
        (["models={..: MODEL}"], "models has the name '..', which becomes part of file names"),
        (["models={a/b: MODEL}"], "models has the name 'a/b'"),
        (["models={a: MODEL, A: MODEL}"], "models has the names a and A, which are the same file name on some"),
        (["model=MODEL", "data_sets=FILE"], "data_sets must name a file, a folder or a hub name each"),
        (["model=MODEL", "data_sets={a/b: FILE}"], "data_sets has the name 'a/b'"),
        (["model=MODEL", "data_sets={a: [FILE]}"], "data_sets: a must be a file, a folder or a hub name"),
        (["model=MODEL", "evaluation=[]"], "there is nothing to measure: name evaluations"),
        (["model=MODEL", "evaluation.responses.words=chinese"], "words must be auto or latin or"),
        (["model=./nowhere"], "there is no folder"),
        (["model=MODEL", "split=dev"], "split must be"),
    ],
)
def test_mistakes_are_named(added, message, overrides, folders):
    added = [override.replace("MODEL", f"{folders}/model") for override in added]
    with pytest.raises(ValueError, match=message):
        evaluate(compose_config("evaluate", [*overrides, *added]))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_model_without_tokenizer_is_refused(family, overrides, tmp_path, make_model):
    make_model(family).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no tokenizer"):
        evaluate(compose_config("evaluate", [*overrides, f"model={tmp_path}/bare"]))


def test_data_are_checked_before_any_model_is_loaded(overrides, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_minillm.cli.models.load_causal_lm", lambda *_, **__: pytest.fail("a model was loaded")
    )
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other.jsonl").write_text('{"question": "w1", "output": "w2"}\n')
    for name, message in (
        ("empty", "contains no records"),
        ("other", "no field 'instruction'"),
        ("none", "there is no data file"),
    ):
        sets = f"data_sets={{x: {tmp_path}/{name}.jsonl}}"
        with pytest.raises(ValueError, match=message):
            evaluate(compose_config("evaluate", [*overrides, f"model={folders}/model", sets]))
    with pytest.raises(ValueError, match="evaluation=exposure_bias compares with a teacher"):
        evaluate(compose_config("evaluate", [*overrides, f"model={folders}/model", "evaluation=[exposure_bias]"]))
    assert not (tmp_path / "run").exists()


def test_several_data_sets_and_evaluations(overrides, folders, tmp_path):
    sets = f"data_sets={{a: {folders}/test.jsonl, b: {folders}/validation.jsonl}}"
    teacher = ["teacher=pretrained", f"teacher.path={folders}/teacher", "evaluation=[responses,exposure_bias]"]
    base = [*overrides, sets, *teacher, "data.tokenizer=???"]
    results, objects = evaluate(compose_config("evaluate", [*base, f"model={folders}/model"]))
    assert {"a/rougeL", "b/loss", "exposure_bias/a/excess_error"} <= set(results["model"])
    assert {"a", "b", "exposure_bias/a"} <= set(objects["results"].groups)
    pictures = {file.name for file in (tmp_path / "run/pictures").iterdir()}
    assert {"a_rougeL_by_length.png", "exposure_bias_b_excess_error.png"} <= pictures
    assert (tmp_path / "run/responses/model_b_seed_1.jsonl").exists()
    with pytest.raises(ValueError, match="records made with different settings"):
        evaluate(compose_config("evaluate", [*base, f"model={folders}/teacher"]))


def test_results_of_an_evaluation_are_not_lost(overrides, folders, tmp_path):
    base = [*overrides, f"model={folders}/model", "seeds=[1]", "teacher=pretrained", f"teacher.path={folders}/teacher"]
    evaluate(compose_config("evaluate", base))
    before = (tmp_path / "run/results.json").read_bytes()
    with pytest.raises(ValueError, match=r"contains results of responses.*evaluation=\[responses,divergence\]"):
        evaluate(compose_config("evaluate", [*base, "evaluation=[divergence]"]))
    assert (tmp_path / "run/results.json").read_bytes() == before
    evaluate(compose_config("evaluate", [*base, "evaluation=[responses,divergence]"]))
    assert "divergence" in (tmp_path / "run/report.md").read_text()


def test_checkpoints_are_models(train_overrides, overrides, tmp_path):
    run = tmp_path / "trained"
    train(compose_config("train", [*train_overrides, f"output_dir={run}"]))
    models = f"models={{best: {run}/checkpoints/best.ckpt, exported: {run}/student}}"
    results, _ = evaluate(compose_config("evaluate", [*overrides, models]))
    assert results["best"] == results["exported"]


def test_report_goes_to_wandb(overrides, folders, tmp_path, monkeypatch):
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    logged = []
    for name in ("log_table", "log_image"):
        monkeypatch.setattr(WandbLogger, name, lambda self, key, name=name, **content: logged.append((name, key)))
    monkeypatch.setattr(
        WandbLogger, "log_metrics", lambda self, metrics, step=None: logged.append(("metrics", *metrics))
    )
    evaluate(compose_config("evaluate", [*overrides, f"model={folders}/model", "logger=wandb"]))
    assert ("log_table", "evaluation/responses") in logged
    assert ("log_image", "pictures/rougeL_by_length") in logged
    assert any(entry[0] == "metrics" and "model/rougeL" in entry for entry in logged)
    assert wandb.run is None  # or the next run of this process would become part of it


def test_teacher_with_another_tokenizer_is_refused(overrides, folders, tmp_path, make_model, make_tokenizer):
    make_model("gpt2", vocab_size=40).save_pretrained(tmp_path / "other")
    make_tokenizer(words=40).save_pretrained(tmp_path / "other")
    teacher = ["teacher=pretrained", f"teacher.path={tmp_path}/other"]
    with pytest.raises(ValueError, match="different tokenizers"):
        evaluate(compose_config("evaluate", [*overrides, f"model={folders}/model", *teacher]))


def test_text_of_any_script_is_measured_and_the_choice_is_written(overrides, folders, tmp_path):
    references = ["今天天气很好", "Привет мир", "w1 w2"]
    rows = [{"instruction": "w1", "output": text, "exact": True} for text in references]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    base = [*overrides, f"model={folders}/model", f"data.test={tmp_path}/test.jsonl", "seeds=[1]"]
    evaluate(compose_config("evaluate", base))
    stored = json.loads((tmp_path / "run/results.json").read_text())
    assert stored["words"] == "auto"
    assert "auto" in (tmp_path / "run/report.md").read_text()
    written = (tmp_path / "run/responses/model_seed_1.jsonl").read_text(encoding="utf-8").splitlines()
    by_reference = {row["references"][0]: row["words"] for row in map(json.loads, written)}
    assert by_reference == dict(zip(references, ["unicode", "unicode", "latin"], strict=True))
    with pytest.raises(ValueError, match=r"different settings \(evaluation.words\)"):
        evaluate(compose_config("evaluate", [*base, "evaluation.responses.words=characters"]))
    with pytest.warns(UserWarning, match="rougeL sees no token in 2 of 3 references"):
        evaluate(
            compose_config("evaluate", [*base, "evaluation.responses.words=latin", f"output_dir={tmp_path}/other"])
        )


def test_results_of_other_models_are_not_overwritten(overrides, folders, tmp_path):
    base = [*overrides, "seeds=[7]"]
    evaluate(compose_config("evaluate", [*base, f"models={{a: {folders}/model}}"]))
    before = (tmp_path / "run/results.json").read_bytes()
    with pytest.raises(ValueError, match="contains the results of a, which are not measured now"):
        evaluate(compose_config("evaluate", [*base, f"models={{b: {folders}/teacher}}"]))
    assert (tmp_path / "run/results.json").read_bytes() == before
    both = f"models={{a: {folders}/model, b: {folders}/teacher}}"
    assert set(evaluate(compose_config("evaluate", [*base, both]))[0]) == {"a", "b"}
