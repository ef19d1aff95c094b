"""Models by name: Hugging Face folders, hub names, and checkpoints of training runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.checkpoints.files import read_checkpoint, recover
from lightning_minillm.checkpoints.weights import ENDS_KEY, completed, read_metadata, read_weights
from lightning_minillm.cli.build import build_models
from lightning_minillm.models import load_causal_lm, load_tokenizer
from lightning_minillm.models.factories import check_factory, check_factory_fit
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.tokens import name_ends

_PREFIX = "student."


@dataclass(frozen=True)
class NamedModel:
    """A model that is loaded on demand."""

    name: str
    """Used in tables and files."""
    path: str
    tokenizer: PreTrainedTokenizerBase
    load: Callable[[], PreTrainedModel]


def open_model(
    name: str, path: str, dtype: str = "float32", trust_remote_code: bool = False, length: int | None = None
) -> NamedModel:
    """Check a model, load its tokenizer, and return it with a function that loads the model.

    Args:
        name: used in tables and files.
        path: a Hugging Face folder, a hub name, or a checkpoint in either format.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
        length: tokens of the longest sequence of the run, if it is known.

    Raises:
        ValueError: there is no such model, it is not complete or too small, or it has no tokenizer.
    """
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if Path(path).suffix == ".ckpt" or (Path(path) / ".metadata").is_file():  # a file, or written by several ranks
        run = CheckpointOfRun(Path(path), length=length)
        return NamedModel(name, path, run.models.tokenizer, partial(_load_checkpoint, run, dtype))
    load = partial(load_causal_lm, path=path, dtype=dtype, trust_remote_code=trust_remote_code)
    check_factory(load)
    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    check_factory_fit(load, tokenizer, length)
    return NamedModel(name, path, tokenizer, load)


class CheckpointOfRun:
    """A checkpoint, and the configuration of the run that wrote it.

    Args:
        checkpoint: ``last.ckpt`` or ``best.ckpt`` in a run's folder.
        run_dir: folder with the run's ``config.yaml``; ``None`` for the folder two levels above the checkpoint.
        length: tokens of the longest sequence of the run that uses it, if it is known.

    Raises:
        ValueError: there is no checkpoint, or no configuration.
    """

    def __init__(self, checkpoint: Path, run_dir: str | Path | None = None, length: int | None = None) -> None:
        if not recover(checkpoint):
            raise ValueError(
                f"there is no checkpoint {str(checkpoint)!r}: give a run's checkpoints/last.ckpt or best.ckpt"
            )
        folder = Path(run_dir).expanduser() if run_dir else checkpoint.absolute().parent.parent
        config = runs.read_config(folder)
        if config is None:
            raise ValueError(f"{str(folder)!r} has no {runs.CONFIG_FILE} of a run: give its folder with run_dir=FOLDER")
        self.checkpoint = checkpoint
        self.models = build_models(config["student"], None, length)

    def metadata(self) -> Mapping[str, Any]:
        """Return the content of the checkpoint besides weights, such as ``global_step``.

        Raises:
            ValueError: it cannot be read.
        """
        return read_checkpoint(self.checkpoint, lambda: read_metadata(self.checkpoint))

    def student(self) -> PreTrainedModel:
        """Return the student with the checkpoint's weights, and the ends of responses that it was trained with.

        Raises:
            ValueError: the checkpoint has a different architecture, or belongs to other frozen weights.
        """
        weights = {
            name.removeprefix(_PREFIX): value
            for name, value in read_weights(self.checkpoint).items()
            if name.startswith(_PREFIX)
        }
        student = self.models.student()
        metadata = self.metadata()
        student.load_state_dict(completed(student, weights, metadata))
        name_ends(student, metadata.get(ENDS_KEY, ()))
        return student


def _load_checkpoint(run: CheckpointOfRun, dtype: str) -> PreTrainedModel:
    run.metadata()  # its errors are clearer than those of reading weights
    student: PreTrainedModel = run.student().to(getattr(torch, dtype)).eval()
    return student
