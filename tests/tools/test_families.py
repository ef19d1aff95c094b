"""The table of families says what is measured: all families with `make test-all`, one of each kind otherwise."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "families.md"
ROW = re.compile(r"^\| `([\w-]+)` \| (\S+) \| (\S+) \| (.+) \| (.+) \| (.+) \|$")

spec = importlib.util.spec_from_file_location("families", ROOT / "tools" / "families.py")
sys.modules["families"] = families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)

KINDS = ["llama", "gemma3_text", "gpt_bigcode", "mixtral", "deepseek_v3", "lfm2", "qwen3_next", "falcon_h1", "mamba2"]
WITHOUT_A_CACHE = ["openai-gpt", "recurrent_gemma"]


def rows():
    return {match[1]: match for match in map(ROW.match, PAGE.read_text().splitlines()) if match}


def check(family):
    """Measure a family again, and compare with its row."""
    measured, row = families.measure(family), rows()[family]
    assert measured.verdict == row[6]
    for number, written in ((measured.student, row[2]), (measured.teacher, row[3])):
        assert number <= max(10 * float(written), 1e-4)  # rounding differs between processors


def test_the_page_has_a_row_for_every_family():
    assert list(rows()) == list(families.FAMILIES)


def test_the_page_is_as_the_tool_writes_it():
    measurements = [
        families.Measurement(
            family=row[1],
            student=float(row[2]),
            teacher=float(row[3]),
            has_cache="without a cache" not in row[6],
            is_split="full logits" not in row[6],
            gradients=row[4] == "finite",
            export=row[5] == "loads",
        )
        for row in rows().values()
    ]
    version = re.search(r"with\s+transformers (\S+)\. ", PAGE.read_text())[1]
    assert families.page(measurements).replace(transformers.__version__, version) == PAGE.read_text()


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "yes"),
        ({"has_cache": False, "is_split": False}, "yes; samples without a cache, full logits"),
        ({"teacher": 0.01}, "no"),
        ({"student": float("nan")}, "no"),
        ({"gradients": False}, "no"),
        ({"export": False}, "no"),
    ],
)
def test_the_verdict_asks_for_everything(change, verdict):
    good = {"student": 1e-6, "teacher": 1e-6, "has_cache": True, "is_split": True, "gradients": True, "export": True}
    assert families.Measurement("llama", **{**good, **change}).verdict == verdict


@pytest.mark.skipif(transformers.__version__ < "5", reason="the page is of transformers 5")
@pytest.mark.parametrize("family", KINDS + WITHOUT_A_CACHE)
def test_a_family_of_each_kind_does_what_the_page_says(family):
    check(family)


@pytest.mark.slow
@pytest.mark.skipif(transformers.__version__ < "5", reason="the page is of transformers 5")
@pytest.mark.parametrize("family", [name for name in families.FAMILIES if name not in KINDS + WITHOUT_A_CACHE])
def test_every_family_does_what_the_page_says(family):
    check(family)
