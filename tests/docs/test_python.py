"""The Python of the pages runs, and prints what the pages show."""

import contextlib
import io
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "chat.md"
EXAMPLES = re.findall(r"^```python\n((?s:.*?))^```\n\n```text\n((?s:.*?))^```", PAGE.read_text("utf-8"), re.MULTILINE)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize(("code", "shown"), EXAMPLES)
def test_example_prints_what_is_shown(code, shown):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    assert printed.getvalue() == shown
