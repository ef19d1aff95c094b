import json

import pytest

from lightning_minillm.data import (
    SyntheticSizes,
    generate_corpus,
    generate_records,
    load_instructions,
    write_synthetic,
)
from lightning_minillm.data.synthetic import write
from lightning_minillm.data.synthetic.tokenizer import EOS_TOKEN

SMALL = SyntheticSizes(train=60, validation=20, test=20, corpus=30, references=3, vocab_size=300)


def test_written_files_are_what_is_generated(tmp_path):
    from transformers import AutoTokenizer

    folder = write_synthetic(tmp_path / "a" / "set", seed=0, sizes=SMALL)
    assert load_instructions(folder, split="train") == generate_records("train", 60)
    assert load_instructions(folder / "test.jsonl") == generate_records("test", 20, references=3)
    assert (folder / "corpus.txt").read_text().splitlines() == generate_corpus(30)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids(EOS_TOKEN)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set"]


def test_writing_is_skipped_redone_or_refused(tmp_path):
    folder = write_synthetic(tmp_path / "set", sizes=SMALL)
    before = (folder / "train.jsonl").stat().st_mtime_ns
    write_synthetic(folder, sizes=SMALL)
    assert (folder / "train.jsonl").stat().st_mtime_ns == before
    write_synthetic(folder, seed=1, sizes=SMALL)
    assert json.loads((folder / "fingerprint.json").read_text())["seed"] == 1
    assert load_instructions(folder, split="train") == generate_records("train", 60, seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not empty and not a built-in data set"):
        write_synthetic(tmp_path / "mine", sizes=SMALL)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_process_that_was_slower_keeps_what_the_faster_one_wrote(tmp_path, monkeypatch):
    folder = tmp_path / "set"
    write_files = write._write_files

    def interrupted(scratch, seed, sizes):
        monkeypatch.setattr(write, "_write_files", write_files)
        write_synthetic(tmp_path / "faster", seed, sizes).rename(folder)
        raise OSError("the folder is not empty")

    monkeypatch.setattr(write, "_write_files", interrupted)
    assert write_synthetic(folder, sizes=SMALL) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_failure_to_write_is_raised(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(write, "_write_files", full)
    with pytest.raises(OSError, match="no space left"):
        write_synthetic(tmp_path / "set", sizes=SMALL)
    assert not list(tmp_path.iterdir())
