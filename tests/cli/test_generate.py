import json

import pytest

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.generate import generate
from lightning_minillm.data import load_instructions


@pytest.fixture
def overrides(folders, data_overrides):
    common = [o for o in data_overrides if not o.startswith("eval_batch_size")]
    sampling = ["sampling.max_new_tokens=6", "batch_size=7", "device=cpu", "keep_unfinished=true"]
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


@pytest.mark.parametrize("kept_bytes", [0, 200, 1500])
def test_stopped_generation_goes_on(kept_bytes, overrides, tmp_path, monkeypatch):
    _, objects = generate(compose_config("generate", overrides))
    whole = objects["output"].read_bytes()
    # As a crash leaves it: the marker and the beginning of the file, cut anywhere.
    from lightning_minillm.cli import generate as module

    run = tmp_path / "run"
    (run / "responses.jsonl").unlink()
    config = module.to_plain(compose_config("generate", overrides), module.KEYS)
    module._open_partial(run / "responses.jsonl", config)
    (run / "responses.jsonl.partial").write_bytes(whole[:kept_bytes])
    sampled = []
    sample = module.MixtureSampler.sample
    monkeypatch.setattr(
        module.MixtureSampler,
        "sample",
        lambda self, batch, **kw: sampled.append(len(batch.indices)) or sample(self, batch, **kw),
    )
    generate(compose_config("generate", overrides))
    assert (run / "responses.jsonl").read_bytes() == whole
    assert sum(sampled) == 40 - whole[:kept_bytes].count(b"\n")
    assert not list(run.glob("*.partial*"))


def test_file_of_another_configuration_is_not_gone_on_with(overrides, tmp_path):
    from lightning_minillm.cli import generate as module

    config = module.to_plain(compose_config("generate", overrides), module.KEYS)
    partial = module._open_partial(tmp_path / "run/responses.jsonl", config)
    partial.write_text("")
    with pytest.raises(ValueError, match="another configuration; remove it"):
        generate(compose_config("generate", [*overrides, "seed=3"]))


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
        ("sampling.teacher_mix_alpha=0.5", "pass a teacher"),
    ],
)
def test_mistakes_are_named(override, message, overrides):
    with pytest.raises(ValueError, match=message):
        generate(compose_config("generate", [*overrides, override]))
