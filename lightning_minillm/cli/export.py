"""``minillm-export``: a Hugging Face folder from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig

from lightning_minillm.cli.config import run_command, to_plain
from lightning_minillm.cli.models import CheckpointOfRun
from lightning_minillm.models.export import save_pretrained

KEYS = "checkpoint output output_dir run_dir".split()


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
    run = CheckpointOfRun(Path(config["checkpoint"]), config["run_dir"])
    metadata = run.metadata()
    student = run.student()
    save_pretrained(student, config["output"], run.models.tokenizer)
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
