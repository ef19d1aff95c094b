"""``minillm-export``: a Hugging Face folder from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig

from lightning_minillm.cli import runs
from lightning_minillm.cli.build import build_models
from lightning_minillm.cli.config import run_command, to_plain
from lightning_minillm.models.checkpoints import check_architecture, read_metadata, read_weights
from lightning_minillm.models.export import save_pretrained
from lightning_minillm.strategies.checkpoints import read_checkpoint, recover

KEYS = "checkpoint output output_dir run_dir".split()
_PREFIX = "student."


def export(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the student of a checkpoint as a Hugging Face folder; adapters are merged.

    Args:
        cfg: as composed from ``conf/export.yaml``.

    Returns:
        Metrics (``optimizer_steps``, ``parameters``) and objects (``student``, ``output``).

    Raises:
        ValueError: no checkpoint, one that cannot be read, or no ``config.yaml`` of the run that wrote it.
    """
    config = to_plain(cfg, KEYS)
    checkpoint = Path(config["checkpoint"])
    if not recover(checkpoint):
        raise ValueError(f"there is no checkpoint {str(checkpoint)!r}: give a run's checkpoints/last.ckpt or best.ckpt")
    folder = Path(config["run_dir"]) if config["run_dir"] else checkpoint.absolute().parent.parent
    run = runs.read_config(folder)
    if run is None:
        raise ValueError(f"{str(folder)!r} holds no {runs.CONFIG_FILE} of a run: say where it lies with run_dir=FOLDER")
    metadata = read_checkpoint(checkpoint, lambda: read_metadata(checkpoint))
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in read_weights(checkpoint).items()
        if name.startswith(_PREFIX)
    }
    models = build_models(run["student"], None)
    student = models.student()
    own, theirs = ({name: tuple(v.shape) for name, v in state.items()} for state in (student.state_dict(), weights))
    check_architecture(own, theirs)
    student.load_state_dict(weights)
    save_pretrained(student, config["output"], models.tokenizer)
    metrics = {
        "optimizer_steps": int(metadata["global_step"]),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    rank_zero_info(f"wrote {config['output']}: {metrics['parameters']:,} parameters, step {metrics['optimizer_steps']}")
    return metrics, {"student": student, "output": config["output"]}


def main() -> None:
    """Run ``export`` from the command line."""
    run_command(export, "export")


if __name__ == "__main__":
    main()
