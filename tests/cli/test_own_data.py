"""Paths in configurations are found, and data of one's own are not confused with the built-in data set."""

import json
import subprocess
import sys

import pytest

from lightning_minillm.cli.config import build, compose_config, to_plain
from lightning_minillm.cli.own_data import check_own_data, expand_home, expand_overrides
from lightning_minillm.cli.train import KEYS, train


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_home_is_put_in_wherever_a_path_begins(home):
    overrides = ["data.path=~/a", "x=[~/a,'~/b']", "+s={a: {path: ~/c}}", "~logger", "a=b~/c", "x=a~"]
    assert expand_overrides(overrides) == [
        f"data.path={home}/a", f"x=[{home}/a,'{home}/b']", f"+s={{a: {{path: {home}/c}}}}", *overrides[3:]
    ]  # fmt: skip
    plain = {"path": "~/a", "many": ["~/b", "~", 3], "marker": "~ x", "none": None}
    assert expand_home(plain) == {"path": f"{home}/a", "many": [f"{home}/b", "~", 3], "marker": "~ x", "none": None}


def test_home_is_found_in_overrides_and_in_files(home):
    cfg = compose_config("train", ["data=instructions", "data.path=~/mine", "student=pretrained", "student.path=z"])
    cfg.cache_dir = "~/cache"  # as from a file
    config = to_plain(cfg, KEYS)
    assert config["data"]["datamodule"]["train"]["path"] == f"{home}/mine"
    assert config["data"]["datamodule"]["lengths"]["cache_dir"] == f"{home}/cache/tokens"


@pytest.mark.parametrize("value", ["name=main", "revision=v1"])
def test_configuration_and_revision_of_hub_data_sets(value):
    chosen = ["data=instructions", "corpus=text", "data.path=x/y", "data.datamodule.lm_corpus.path=x/z"]
    key, word = value.split("=")
    cfg = compose_config("train", [*chosen, f"data.{value}", f"data.datamodule.lm_corpus.{value}"])
    assert {cfg.data.datamodule[part][key] for part in ("train", "validation", "test", "lm_corpus")} == {word}
    cfg = compose_config("train", [*chosen, f"data.datamodule.validation.{value}"])
    assert (cfg.data.datamodule.train[key], cfg.data.datamodule.validation[key]) == (None, word)


def test_single_places_and_sources_need_no_path_of_the_whole():
    for override in ("data.train=a.jsonl", "data.train=[a.jsonl,b.jsonl]", "data.sources={a: {path: a.jsonl}}"):
        cfg = compose_config("train", ["data=instructions", override, "student=pretrained", "student.path=z"])
        assert build(to_plain(cfg, KEYS)["data"]["datamodule"]["train"]).split == "train"
    with pytest.raises(ValueError, match=r"no value was given for data.path"):
        to_plain(compose_config("train", ["data=instructions", "student=pretrained", "student.path=z"]), KEYS)


@pytest.mark.parametrize("choice", [["experiment=sft"], ["experiment=smoke"], []])
def test_data_of_ones_own_are_not_replaced_by_the_built_in_data_set(choice, tmp_path):
    (tmp_path / "mine").mkdir()
    cache = f"cache_dir={tmp_path}/cache"
    for override, message in (
        (f"data.path={tmp_path}/mine", r"mine would not be read: add data=instructions .*, or data=synthetic to write"),
        ("data.train=a.jsonl", r"data.train=a.jsonl would not be read: add data=instructions to read .* your own$"),
        ("data.sources={a: {path: b}}", r"data.sources={a: {path: b}} would not be read: add data=instructions"),
    ):
        overrides = [*choice, cache, override]
        config = to_plain(compose_config("train", overrides), KEYS)
        with pytest.raises(ValueError, match=message):
            check_own_data(config, overrides)
        check_own_data(config, [*overrides, "data=synthetic"])
        check_own_data(config, choice)
    own = ["data=instructions", f"data.path={tmp_path}", "student=pretrained", "student.path=z"]
    check_own_data(to_plain(compose_config("train", own), KEYS), own)


def test_a_built_in_data_set_that_exists_is_used(tmp_path):
    sizes = "data.prepare.sizes={train: 60, validation: 6, test: 6, corpus: 40, references: 2, vocab_size: 300}"
    overrides = ["experiment=smoke", f"data.path={tmp_path}/mine", sizes]
    config = to_plain(compose_config("train", overrides), KEYS)
    build(config["data"]["prepare"])
    check_own_data(config, overrides)


def test_the_command_says_that_data_of_ones_own_would_not_be_read(tmp_path):
    command = [sys.executable, "-m", "lightning_minillm.cli.train", "experiment=smoke", f"data.path={tmp_path}/mine"]
    done = subprocess.run([*command, f"output_dir={tmp_path}/run"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert "mine would not be read: add data=instructions" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_from_one_file(train_overrides, folders, caplog):
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        metrics, objects = train(compose_config("train", ["experiment=sft", *train_overrides, "data.test=null",
            f"data.path={folders}/train.jsonl", "max_steps=3"]))  # fmt: skip
    assert metrics["optimizer_steps"] == 3
    assert [len(getattr(objects["datamodule"], f"{split}_set")) for split in ("train", "validation", "test")] == [
        36,
        2,
        2,
    ]
    assert "train: 36 of 40 training records; 2 for validation, 2 for test are taken from them" in caplog.text


def test_a_run_on_a_mixture_resumes_as_if_it_had_not_stopped(train_overrides, folders, tmp_path, caplog, stop_at):
    rows = [{"instruction": f"w{n}", "output": f"w{n + 1}"} for n in range(1, 6)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = (
        f"data.sources={{a: {{path: {folders}/train.jsonl, weight: 1}}, b: {{path: {tmp_path}/b.jsonl, weight: 1}}}}"
    )
    overrides = ["experiment=sft", *train_overrides, sources]
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        whole, _ = train(compose_config("train", [*overrides, f"output_dir={tmp_path}/whole"]))
    assert "40 records of a are 51.1% of an epoch (0.57 times each); 5 records of b are 48.9%" in caplog.text
    stop_at(4)
    with pytest.raises(RuntimeError, match="stopped"):
        train(compose_config("train", overrides))
    stop_at(None)
    resumed, _ = train(compose_config("train", overrides))
    ends = [{name: value for name, value in run["last"].items() if "perf/" not in name} for run in (resumed, whole)]
    assert ends[0] == ends[1]


def test_a_run_is_not_resumed_on_data_that_have_changed(train_overrides, folders, tmp_path, stop_at):
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes((folders / f"{split}.jsonl").read_bytes())
    overrides = ["experiment=sft", *train_overrides, f"data.path={tmp_path}"]
    stop_at(3)
    with pytest.raises(RuntimeError, match="stopped"):
        train(compose_config("train", overrides))
    stop_at(None)
    with open(tmp_path / "train.jsonl", "a") as more:
        more.write('{"instruction": "w1", "output": "w2"}\n')
    with pytest.raises(
        ValueError, match=r"train: 40 records then, 41 now\): resume with the data that it was made with"
    ):
        train(compose_config("train", overrides))
    (tmp_path / "train.jsonl").write_bytes((folders / "train.jsonl").read_bytes())
    assert train(compose_config("train", overrides))[0]["optimizer_steps"] == 6
