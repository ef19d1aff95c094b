"""Whether a run may start or resume in its folder: its checkpoint, and the settings that it was started with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_minillm.checkpoints.files import backup_of, read_checkpoint, recover
from lightning_minillm.checkpoints.weights import read_metadata
from lightning_minillm.cli.config import Config
from lightning_minillm.files import changed_keys, digest_of_files, read_json, replace_in_strings
from lightning_minillm.reports import run_folder as runs

IDENTITY_FILE = "identity.json"
"""The settings that decide the weights of a run, with digests of the models that they name."""
STUDENT_FOLDER = "student"
LAST = Path("checkpoints") / "last.ckpt"
# What must not change between the start of a run and its resumption ...
_IDENTITY = (
    "advantages batch_size data loss max_length max_prompt_length module optimizer rollout scheduler seed student"
    " teacher"
).split()
# ... except for copies of the above in the module, and for what changes speed, memory or measurements only.
_NOT_IDENTITY = (
    "module.loss module.advantages module.training.optimizer module.training.scheduler module.rollouts.source"
    " module.validation module.rollouts.batch_size module.teacher_use module.training.gradient_checkpointing"
    " module.training.activation_offload module.training.compile_backend data.datamodule.lengths.cache_dir"
    " data.datamodule.batches.micro_batch_size data.datamodule.batches.eval_batch_size"
).split()
_PATH_KEYS = ("path", "train", "validation", "test", "tokenizer", "folder")


def find_checkpoint(config: Config) -> str | None:
    """Check that a training run may write to its folder, and return the checkpoint to resume from.

    Returns:
        The checkpoint, or ``None`` to start from the beginning.

    Raises:
        ValueError: the folder contains something that would be overwritten, or a run that cannot be resumed with this
            configuration; or ``ckpt_path`` is not a checkpoint to resume from.
    """
    if config["resume"] not in ("auto", "never"):
        raise ValueError(f"resume must be auto or never, got {config['resume']!r}")
    folder = Path(config["output_dir"])
    runs.check_inputs(folder, "train", input_paths(config))
    chosen = Path(config["ckpt_path"]).expanduser() if config["ckpt_path"] else None
    is_own = chosen is not None and chosen.resolve().is_relative_to(folder.resolve())
    if is_own and runs.read_config(folder) is None:  # config.yaml is gone, and the user vouches for the settings
        return _usable(Path(str(chosen)))
    earlier = runs.check_folder(folder, "train")
    last = _last_checkpoint(config) if earlier is not None and not is_own else None
    return _usable(chosen) if last is None and chosen is not None else last


def _last_checkpoint(config: Config) -> str | None:
    """Return the checkpoint from which the run in ``output_dir`` resumes, or ``None`` to start from the beginning.

    Raises:
        ValueError: the folder contains a run with different settings.
    """
    folder = Path(config["output_dir"])
    last, student = folder / LAST, folder / STUDENT_FOLDER
    if config["resume"] == "never":
        return None
    changed = _changed(folder, config)
    if not (last.exists() or backup_of(last).exists()):
        if student.exists() and changed:  # the same settings would give the same student
            raise ValueError(
                f"{str(folder)!r} contains a student trained with a different {', '.join(changed)}, and no {LAST}: use"
                " another output_dir, or set resume=never to train again and overwrite it"
            )
        return None
    if changed:
        values = "; ".join(f"{key}: {before!r} in that run, {now!r} here" for key, (before, now) in changed.items())
        raise ValueError(
            f"{str(last)!r} belongs to a run with a different {', '.join(changed)}: use another output_dir, repeat the"
            " configuration of that run to resume it, or set resume=never to start from scratch and overwrite it"
            f" ({values})"
        )
    return _usable(last)


def input_paths(config: Config) -> dict[str, str]:
    """Return the existing files and folders that a command reads, by their dotted names in its configuration."""
    return _paths(dict(_leaves({key: config.get(key) for key in ("student", "teacher", "data")})))


def identity(config: Config) -> dict[str, Any]:
    """Return the values that decide the weights, by their dotted names; models and tokenizers by their content.

    A run may therefore be resumed with its data and models in a different place, but not with different content. (The
    content of the data is in the checkpoint; the data module compares it.)
    """
    values = dict(_leaves({key: config.get(key) for key in _IDENTITY}))
    prepared = config["data"].get("prepare")
    if prepared:  # the data set is made from these settings, perhaps later
        values = replace_in_strings(values, {str(prepared.get("folder")): "<data>"})
    paths = _paths(values)
    is_data = {key: key.startswith("data.") and not key.endswith("tokenizer") for key in paths}
    digests = {path: digest_of_files(path)[:16] for path in {paths[key] for key in paths if not is_data[key]}}
    read = {key: "<data>" if is_data[key] else f"content {digests[path]}" for key, path in paths.items()}
    return values | read


def _changed(folder: Path, config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which the run in a folder differs from this one, with both values."""
    before, now = read_json(folder / IDENTITY_FILE), identity(config)
    if before is None:  # a run of a version that did not write the file
        earlier = runs.read_config(folder) or {}
        before, now = (dict(_leaves({key: node.get(key) for key in _IDENTITY})) for node in (earlier, config))
    return {key: (before.get(key), now.get(key)) for key in changed_keys(before, now)}


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if name in _NOT_IDENTITY:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _paths(values: Mapping[str, Any]) -> dict[str, str]:
    """Return those of the values by dotted names that are existing files or folders."""
    return {key: value for key, value in values.items() if isinstance(value, str) and _is_path(key, value)}


def _is_path(key: str, value: str) -> bool:
    named = key.rpartition(".")[2] in _PATH_KEYS or "/" in value or "\\" in value
    return named and 0 < len(value) < 1000 and Path(value).expanduser().exists()


def _usable(path: Path) -> str:
    """Return the path of a checkpoint if a run can resume from it.

    Raises:
        ValueError: there is none, it is cut off, or it has weights only.
    """
    if not recover(path):
        raise ValueError(f"there is no checkpoint {str(path)!r}; set ckpt_path to an existing one, or to null")
    if "callbacks" not in read_checkpoint(path, lambda: read_metadata(path)):
        raise ValueError(
            f"{str(path)!r} contains weights only, as best.ckpt does: resume from last.ckpt, or start from these"
            " weights with student.path=RUN/student"
        )
    return str(path)
