"""``minillm-export``: a Hugging Face folder from a checkpoint in either format, offline and in one process."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from lightning_minillm.cli.console import quiet_libraries
from lightning_minillm.cli.errors import short_errors

_DTYPES = ("float32", "bfloat16", "float16")


def export(
    checkpoint: str | Path, output: str | Path, *, run_dir: str | Path | None = None, dtype: str | None = None
) -> dict[str, int]:
    """Write the student of a checkpoint as a Hugging Face folder; adapters are merged.

    Args:
        checkpoint: ``last.ckpt`` or ``best.ckpt`` in a run's folder: a file, or a folder to which several ranks wrote.
        output: the folder to write; new or empty.
        run_dir: the folder with the run's ``config.yaml``; by default two folders above the checkpoint.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``; by default that of the model that the run
            began with.

    Returns:
        ``optimizer_steps`` and ``parameters``.

    Raises:
        ValueError: no checkpoint, one that cannot be read, no ``config.yaml`` of the run that wrote it, or an output
            that contains files.
    """
    from lightning_minillm.cli.models import CheckpointOfRun
    from lightning_minillm.models.export import save_pretrained

    checkpoint, output = Path(checkpoint).expanduser(), Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{str(output)!r} is a file or contains files, which would be overwritten: give a new folder")
    run = CheckpointOfRun(checkpoint, run_dir)
    metadata = run.metadata()
    student = run.student()
    save_pretrained(student, output, run.models.tokenizer, dtype=dtype)
    metrics = {
        "optimizer_steps": int(metadata["global_step"]),
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    print(f"wrote {output}: {metrics['parameters']:,} parameters, step {metrics['optimizer_steps']}")
    return metrics


def make_parser() -> ArgumentParser:
    """Return the parser of the command line, whose names are the arguments of :func:`export`."""
    parser = ArgumentParser(
        "minillm-export", description="Write the student of a checkpoint as a Hugging Face folder; adapters are merged."
    )
    add = parser.add_argument
    add("checkpoint", help="last.ckpt or best.ckpt in a run's folder: a file, or a folder to which several ranks wrote")
    add("output", help="the folder to write")
    add("--run-dir", metavar="FOLDER", help="folder with the run's config.yaml (default: two above the checkpoint)")
    add("--dtype", choices=_DTYPES, help="dtype of the weights (default: that of the model that the run began with)")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run ``export`` from the command line."""
    arguments = make_parser().parse_args(words)
    with short_errors():
        quiet_libraries()
        export(**vars(arguments))


if __name__ == "__main__":
    main()
