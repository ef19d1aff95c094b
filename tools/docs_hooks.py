"""What ``mkdocs build`` does to a page: tables that are files of values become tables of the page."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

_TABLE = re.compile(r"<!-- table: (\S+\.csv) -->")


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Replace ``<!-- table: FILE.csv -->`` by the rows of FILE, a path in the folder of the documentation."""
    return _TABLE.sub(lambda found: markdown_table(Path(config["docs_dir"]) / found[1]), markdown)


def markdown_table(file: Path) -> str:
    """Return a CSV file as a Markdown table, its first line as the head."""
    with open(file, encoding="utf-8", newline="") as lines:
        head, *rows = csv.reader(lines)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>~?(?:[\w.]+\.)?(\w+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Show the names that docstrings refer to (``:class:`TokenLoss```) as code."""
    return _ROLE.sub(r"<code>\1</code>", html)
