"""What a run leaves in Weights & Biases, read back from the offline files."""

import json
import shutil
import struct
import time

import pytest
from wandb.proto.wandb_internal_pb2 import Record

from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.tracking import run_id
from lightning_minillm.cli.train import train
from lightning_minillm.files import write_json

BLOCK = 32768


def read_offline(folder, timeout=30):
    """Records of the newest offline run below a folder, whose file wandb's own process may still be writing."""
    file = max(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    end = time.monotonic() + timeout
    while not any(record.HasField("exit") for record in read_records(file)):
        assert time.monotonic() < end, f"{file} has no end"
        time.sleep(0.1)
    return read_records(file)


def read_records(file):
    """Records of an offline run.

    The file is a LevelDB log: after its own header of 7 bytes, blocks of 32 KiB; in them pieces of records, each with a
    checksum (4 bytes), its length (2) and its kind (1: whole, 2: first, 3: middle, 4: last).
    """
    content, place, pieces, records = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        left = BLOCK - place % BLOCK
        if left < 7:  # too little for another piece
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(pieces))
            pieces = b""
    return records


def started(records):
    return next(record.run for record in records if record.WhichOneof("record_type") == "run")


def config_of(records):
    """The configuration after all updates."""
    updates = [record.run.config if record.HasField("run") else record.config for record in records]
    return {item.key: json.loads(item.value_json) for update in updates for item in update.update if item.key}


@pytest.fixture
def overrides(train_overrides):
    return [*train_overrides, "logger=wandb", "max_steps=2", "eval_every=2"]


def test_offline_run_holds_configuration_code_versions_and_samples(overrides, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(compose_config("train", overrides))
    records = read_offline(tmp_path / "run")
    run, config = started(records), config_of(records)
    assert run.run_id == run_id(str(tmp_path / "run"), "auto")
    assert (run.display_name, run.project, list(run.tags)) == ("train", "lightning-minillm", ["train"])
    assert config["optimizer"]["lr"] == 1e-3
    assert config["max_steps"] == 2
    assert config["environment"]["packages"]["torch"]
    assert config["environment"] == json.loads((tmp_path / "run/environment.json").read_text())
    keys = {
        item.key or item.nested_key[0]
        for record in records
        if record.HasField("history")
        for item in record.history.item
    }
    assert {"val/rougeL", "train/loss", "val/samples"} <= keys
    (table,) = (tmp_path / "run").glob("wandb/offline-run-*/files/media/table/val/samples_*.json")
    stored = json.loads(table.read_text())
    assert stored["columns"] == ["task", "prompt", "references", "response"]
    assert len(stored["data"]) == 6
    assert not any(record.HasField("artifact") and record.artifact.type == "model" for record in records)

    train(compose_config("train", [*overrides, "max_steps=4"]))  # goes on
    again = read_offline(tmp_path / "run")
    assert started(again).run_id == run.run_id
    assert json.loads((tmp_path / "run/tracking.json").read_text())["id"] == run.run_id
    assert config_of(again)["max_steps"] == 4


def keep_id(folder, name="kept"):
    write_json(folder / "tracking.json", {"id": name, "folder": str(folder.resolve())})


def test_id_is_drawn_once_and_kept_in_the_folder(tmp_path):
    drawn = run_id(str(tmp_path / "a"), "auto")
    assert drawn != run_id(str(tmp_path / "a"), "auto")  # nothing is kept before the run starts
    keep_id(tmp_path / "a")
    assert run_id(str(tmp_path / "b/../a"), "auto") == "kept"
    assert run_id(str(tmp_path / "a"), "never") is None


def test_id_follows_a_moved_folder_and_not_a_copied_or_a_new_one(tmp_path):
    keep_id(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert run_id(str(tmp_path / "copy"), "auto") != "kept"
    assert run_id(str(tmp_path / "a"), "auto") == "kept"
    shutil.move(tmp_path / "a", tmp_path / "moved")
    assert run_id(str(tmp_path / "moved"), "auto") == "kept"
    assert run_id(str(tmp_path / "a"), "auto") != "kept"  # deleted and started again


def test_run_that_fails_before_it_starts_leaves_no_offline_run(overrides, tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        train(compose_config("train", [*overrides, "data.train=./nowhere.jsonl"]))
    assert not (tmp_path / "run").exists()
