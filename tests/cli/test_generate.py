import json
import shutil

import pytest

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.generate import generate
from lightning_minillm.cli.train import train
from lightning_minillm.data import load_instructions
from lightning_minillm.evaluation import GenerationEvaluation
from lightning_minillm.reports import run_folder as runs


@pytest.fixture
def overrides(folders, data_overrides):
    common = [o for o in data_overrides if not o.startswith("eval_batch_size")]
    sampling = ["sampling.max_new_tokens=6", "batch_size=7", "trainer.accelerator=cpu", "keep_unfinished=true"]
    return [*common, f"model={folders}/teacher", *sampling]


def rows_of(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_responses_are_records_that_training_reads(overrides, folders):
    metrics, objects = generate(compose_config("generate", overrides))
    rows = rows_of(objects["output"])
    assert metrics["responses"] == len(rows) == 40
    assert metrics["unfinished"] == sum(not row["finished"] for row in rows)
    assert all(row["finished"] == (row["tokens"] < 6) for row in rows if row["tokens"] < 6)
    source = load_instructions(folders / "train.jsonl")
    generated = load_instructions(objects["output"])
    assert [record.instruction for record in generated] == [record.instruction for record in source]
    assert [record.exact for record in generated] == [record.exact for record in source]


def test_batch_size_changes_nothing(overrides, tmp_path):
    _, first = generate(compose_config("generate", overrides))
    _, second = generate(compose_config("generate", [*overrides, "batch_size=40", f"output={tmp_path}/other.jsonl"]))
    assert first["output"].read_text() == second["output"].read_text()


def test_samples_of_one_prompt_differ(overrides):
    _, objects = generate(compose_config("generate", [*overrides, "num_samples=2", "sampling.temperature=2"]))
    rows = rows_of(objects["output"])
    assert [row["sample"] for row in rows] == [0] * 40 + [1] * 40
    assert sum(a["output"] != b["output"] for a, b in zip(rows[:40], rows[40:], strict=True)) > 20


@pytest.fixture
def interrupt(monkeypatch):
    """``interrupt(overrides, batches)``: start the command and stop it before a batch; returns the sampled rows."""

    def run(overrides, batches):
        step, done = GenerationEvaluation.step, []

        def stopping(self, pair, items):
            if len(done) == batches:
                raise KeyboardInterrupt
            done.append(len(items))
            return step(self, pair, items)

        with monkeypatch.context() as patch:
            patch.setattr(GenerationEvaluation, "step", stopping)
            with pytest.raises(SystemExit):  # Lightning's answer to Ctrl-C
                generate(compose_config("generate", overrides))
        return sum(done)

    return run


@pytest.mark.parametrize("batches", [0, 1, 4])
def test_interrupted_generation_resumes(batches, overrides, tmp_path, interrupt, monkeypatch):
    _, objects = generate(compose_config("generate", [*overrides, f"output={tmp_path}/whole.jsonl"]))
    assert interrupt(overrides, batches) == 7 * batches
    output = tmp_path / "run/responses.jsonl"
    assert not output.exists()
    records = output.with_name("responses.jsonl.partial") / "generation/rank_0.jsonl"
    if batches:
        records.write_bytes(records.read_bytes()[:-20])  # as a crash leaves it: the last batch is sampled again
    sampled = []
    step = GenerationEvaluation.step
    monkeypatch.setattr(
        GenerationEvaluation, "step", lambda self, pair, items: sampled.append(len(items)) or step(self, pair, items)
    )
    generate(compose_config("generate", overrides))
    assert output.read_bytes() == objects["output"].read_bytes()
    assert sum(sampled) == 40 - 7 * max(0, batches - 1)
    assert not list(output.parent.glob("*.partial"))


def test_generation_that_ran_out_of_memory_resumes_with_smaller_batches(overrides, tmp_path, interrupt):
    _, objects = generate(compose_config("generate", [*overrides, f"output={tmp_path}/whole.jsonl"]))
    interrupt(overrides, 1)
    generate(compose_config("generate", [*overrides, "batch_size=3"]))
    assert (tmp_path / "run/responses.jsonl").read_bytes() == objects["output"].read_bytes()


def test_responses_of_weights_that_were_replaced_are_not_continued(overrides, folders, tmp_path, make_model, interrupt):
    """The path is the same, the weights are not."""
    shutil.copytree(folders / "teacher", tmp_path / "model")
    overrides = [*overrides, f"model={tmp_path}/model"]
    interrupt(overrides, 1)
    make_model("gpt2", seed=99).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"different settings \(model\) and cannot be resumed.*delete the folder"):
        generate(compose_config("generate", overrides))
    shutil.rmtree(tmp_path / "run/responses.jsonl.partial")
    generate(compose_config("generate", overrides))
    assert len(rows_of(tmp_path / "run/responses.jsonl")) == 40


def test_responses_of_the_same_weights_elsewhere_are_continued(overrides, folders, tmp_path, interrupt):
    interrupt(overrides, 2)
    shutil.copytree(folders / "teacher", tmp_path / "moved")
    metrics, _ = generate(compose_config("generate", [*overrides, f"model={tmp_path}/moved"]))
    assert metrics["responses"] == 40


def test_responses_made_with_different_settings_are_not_continued(overrides, interrupt):
    interrupt(overrides, 1)
    with pytest.raises(ValueError, match=r"different settings \(evaluation.seeds\)"):
        generate(compose_config("generate", [*overrides, "seed=3"]))


def test_checkpoints_write_the_responses_of_their_export(overrides, train_overrides, tmp_path):
    run = tmp_path / "trained"
    train(compose_config("train", [*train_overrides, f"output_dir={run}"]))
    texts = []
    for name, model in (("a", run / "checkpoints/best.ckpt"), ("b", run / "student")):
        generate(compose_config("generate", [*overrides, f"model={model}", f"output={tmp_path}/{name}.jsonl"]))
        texts.append((tmp_path / f"{name}.jsonl").read_text())
    assert texts[0] == texts[1]


def test_unfinished_responses_are_left_out_unless_asked_for(overrides):
    kept, _ = generate(compose_config("generate", [*overrides, "sampling.temperature=3"]))
    fewer, objects = generate(
        compose_config("generate", [*overrides, "sampling.temperature=3", "keep_unfinished=false"])
    )
    assert fewer["responses"] <= kept["responses"] - kept["unfinished"]
    assert all(row["finished"] and row["output"] for row in rows_of(objects["output"]))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("split=dev", "split must be"),
        ("num_samples=0", "at least 1"),
        ("model=./nowhere", "there is no folder"),
        ("sampling.teacher_mix_alpha=0.5", "teacher_mix_alpha=0, got 0.5"),
    ],
)
def test_mistakes_are_named(override, message, overrides):
    with pytest.raises(ValueError, match=message):
        generate(compose_config("generate", [*overrides, override]))


def test_responses_that_are_left_out_are_counted_with_the_reason(overrides):
    overrides = [*overrides, "sampling.temperature=2", "sampling.max_new_tokens=20"]
    kept, _ = generate(compose_config("generate", overrides))
    assert kept["responses"] == 40
    assert kept["empty"] == 0
    with pytest.warns(UserWarning, match=r"of 40 responses are left out.*keep_unfinished=true") as said:
        fewer, objects = generate(compose_config("generate", [*overrides, "keep_unfinished=false"]))
    (text,) = [str(each.message) for each in said if "left out" in str(each.message)]
    left_out = 40 - fewer["responses"]
    assert text.startswith(f"{left_out} of 40 responses are left out: {kept['unfinished']} did not end within")
    assert f"sampling.max_new_tokens=20 tokens, and {fewer['empty']} are empty" in text
    assert left_out == kept["unfinished"] + fewer["empty"]
    assert len(rows_of(objects["output"])) == fewer["responses"] > 0


def test_any_line_separator_may_be_in_a_response(overrides, folders, tmp_path, make_model):
    """The file is written, read again by every reader, and written again by a second run."""
    shutil.copytree(folders / "teacher", tmp_path / "model")
    for file in ("tokenizer.json", "vocab.json"):
        path = tmp_path / "model" / file
        if path.exists():
            path.write_text(path.read_text(encoding="utf-8").replace('"w7"', '"a\\u2028b\\u0085c"'), encoding="utf-8")
    overrides = [*overrides, f"model={tmp_path}/model", f"data.tokenizer={tmp_path}/model", "sampling.temperature=3"]
    metrics, objects = generate(compose_config("generate", overrides))
    assert "\u2028" in objects["output"].read_text(encoding="utf-8")
    assert len(load_instructions(objects["output"])) == metrics["responses"] == 40


def test_special_tokens_are_kept_by_an_option(overrides, folders, tmp_path, make_tokenizer):
    shutil.copytree(folders / "teacher", tmp_path / "model")
    tokenizer = make_tokenizer(words=36)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    tokenizer.save_pretrained(tmp_path / "model")
    overrides = [*overrides, f"model={tmp_path}/model", "sampling.max_new_tokens=16"]
    with pytest.warns(UserWarning, match=r"\d+ of 40 responses contain special tokens.*keep_special_tokens=true"):
        metrics, objects = generate(compose_config("generate", overrides))
    assert "<think>" not in objects["output"].read_text()
    _, objects = generate(compose_config("generate", [*overrides, "keep_special_tokens=true"]))  # the same file
    kept = [record.responses[0] for record in load_instructions(objects["output"])]
    assert sum("<think>" in text for text in kept) == metrics["with_special_tokens"] > 0


def test_output_that_exists_is_not_overwritten(overrides, folders, tmp_path):
    first = [*overrides, f"output={tmp_path}/a.jsonl"]
    metrics, _ = generate(compose_config("generate", first))
    before = (tmp_path / "a.jsonl").read_bytes()
    for added in (f"model={folders}/model", f"output_dir={tmp_path}/other", "seed=3"):
        with pytest.raises(ValueError, match=r"a.jsonl' exists: choose another output"):
            generate(compose_config("generate", [*first, added]))
    assert generate(compose_config("generate", first))[0] == metrics  # it is complete
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert not (tmp_path / "other").exists()


def test_data_are_not_overwritten_by_responses_to_them(overrides, folders):
    before = (folders / "train.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"train.jsonl' exists|train.jsonl is also data.*, which is read"):
        generate(compose_config("generate", [*overrides, f"output={folders}/train.jsonl"]))
    with pytest.raises(ValueError, match="is a folder: give the name of a file"):
        generate(compose_config("generate", [*overrides, f"output={folders}"]))
    assert (folders / "train.jsonl").read_bytes() == before
    assert not list(folders.glob("*.partial"))


def test_two_commands_on_one_output_are_refused(overrides, tmp_path):
    with runs.claimed(tmp_path / "a.jsonl.partial"), pytest.raises(ValueError, match="is in use by process"):
        generate(compose_config("generate", [*overrides, f"output={tmp_path}/a.jsonl"]))


def test_a_file_of_the_data_is_not_replaced_by_what_is_left_of_an_earlier_attempt(overrides, tmp_path, interrupt):
    output = tmp_path / "mine.jsonl"
    overrides = [*overrides, f"output={output}"]
    interrupt(overrides, 1)
    output.write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.jsonl' exists"):
        generate(compose_config("generate", overrides))
    assert output.read_text() == "mine"
