"""The console of the commands: their own messages, without the tips and notices of the libraries below them."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

# Warnings about what this package decides, which a user can do nothing about.
_NOT_OURS = (
    r".*does not have many workers.*",
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*is a shell.*",
    r".*recommended.*",
    r".*litlogger.*|.*litmodels.*",
)
# Loggers that advise, advertise or announce at these levels.
_LEVELS = {
    "bitsandbytes": logging.ERROR,
    "datasets": logging.ERROR,
    "httpx": logging.WARNING,
    "transformers": logging.ERROR,
}
_VARIABLES = {
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_SILENT": "true",
}


def quiet_libraries() -> None:
    """Leave the console to this package: no tips, advertisements and notices of the libraries below it.

    Only the commands call this; whoever uses the library keeps all messages. A variable that the user has set stays.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    from lightning.fabric.utilities.warnings import PossibleUserWarning
    from transformers.utils import logging as transformers_logging

    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
    if os.environ["TRANSFORMERS_VERBOSITY"] == "error":
        transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for handler in logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_is_no_tip)
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, PossibleUserWarning):
        warnings.simplefilter("ignore", category)
    for message in _NOT_OURS:
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = _format


def _is_no_tip(record: logging.LogRecord) -> bool:
    """Whether a message is a warning, or comes from outside of Lightning, as this package's own do."""
    return record.levelno >= logging.WARNING or not {"lightning", "pytorch"} <= set(Path(record.pathname).parts)


def _format(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
    return f"warning: {message}\n"
