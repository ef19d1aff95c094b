"""The public API is the recorded one: a changed name or parameter has to be recorded on purpose."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMAND = "python tools/public_api.py > tests/public_api.txt"


def load_tool():
    spec = importlib.util.spec_from_file_location("public_api", ROOT / "tools" / "public_api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_api_is_the_recorded_one():
    recorded = set((ROOT / "tests" / "public_api.txt").read_text(encoding="utf-8").splitlines())
    now = set(load_tool().public_api())
    gone, new = sorted(recorded - now), sorted(now - recorded)
    assert (gone, new) == ([], []), (
        f"gone or changed: {gone}; new: {new}. If that is meant: {COMMAND}, and CHANGELOG.md"
    )


def test_a_signature_is_written_with_its_kinds_and_defaults():
    def function(a, b=1, *, c, d=2, **rest): ...

    tool = load_tool()
    assert tool._parameters(function) == "(a, b=, *, c, d=, **rest)"
    assert tool._parameters(lambda *args: args) == "(*args)"
    assert tool._parameters(3) == ""
