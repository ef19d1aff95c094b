"""Fixtures of the data tests: records, a small tokenizer whose pad token is its eos token, and the real files."""

import os
from pathlib import Path

import pytest

from lightning_minillm.data import build_tokenizer, generate_records
from lightning_minillm.data.synthetic.tokenizer import tokenizer_texts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def records():
    """40 training records of the built-in set."""
    return generate_records("train", 40)


@pytest.fixture(scope="session")
def tokenizer(records):
    """A byte-level BPE of at most 400 tokens; pad == eos."""
    return build_tokenizer(tokenizer_texts(records), vocab_size=400)


@pytest.fixture(scope="session")
def real_data():
    """Folder of the public data sets; tests that need it skip without it."""
    folder = Path(os.environ.get("MINILLM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "dolly").is_dir():
        pytest.skip(f"no real data at '{folder}': set MINILLM_TEST_DATA to a folder that has dolly/ and tokenizers/")
    return folder
