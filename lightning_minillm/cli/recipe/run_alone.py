"""Runs one stage of a recipe as a command: ``python -m lightning_minillm.cli.recipe.run_alone COMMAND CONFIG``.

Lightning starts the other ranks of a run by repeating its command line. In the process of a recipe that would repeat
the whole recipe, whose stage waits for the first rank, which waits for the others.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from pkgutil import resolve_name

import yaml

from lightning_minillm.cli.errors import short_errors

_SECONDS = 1.0


def main() -> None:
    """Run the stage, and stop with the process that started it."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    command, config = sys.argv[1:]
    with short_errors():
        run = resolve_name(f"lightning_minillm.cli.{command}:{command}")
        run(yaml.safe_load(Path(config).read_text(encoding="utf-8")))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
