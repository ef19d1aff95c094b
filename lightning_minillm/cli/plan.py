"""``minillm-plan``: memory of a run on each device, before anything is loaded."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.cli.config import run_command, to_plain
from lightning_minillm.distributed.memory_plan import ModelSize, Workload, model_size, plan_memory

KEYS = (
    "batch_size device_memory max_length micro_batch_size num_devices output_dir param_dtype rollout_batch_size"
    " student_path teacher_dtype teacher_path"
).split()
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SHORT = {"student=": "student_path=", "teacher=": "teacher_path=", "devices=": "num_devices="}
_USABLE = 0.9  # the rest goes to fragmentation, kernels and communication buffers


def plan(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Print parameters, gradients, optimiser, caches and activations on each device, and what fits.

    Args:
        cfg: as composed from ``conf/plan.yaml``.

    Returns:
        ``{strategy: {"update": GiB, "rollout": GiB, "fits": bool}}`` and objects (``student``, ``teacher``, ``parts``).

    Raises:
        ValueError: batch sizes that do not divide, an unknown dtype, or a model whose configuration cannot be read.
    """
    config = to_plain(cfg, KEYS)
    for key in ("param_dtype", "teacher_dtype"):
        if config[key] not in _BYTES:
            raise ValueError(f"{key} must be one of {', '.join(_BYTES)}, got {config[key]!r}")
    devices = int(config["num_devices"])
    BatchSizes(config["batch_size"], config["micro_batch_size"], devices)  # raises where they do not divide
    student, teacher = (_size(config[f"{name}_path"]) for name in ("student", "teacher"))
    value = _BYTES[config["param_dtype"]]
    work = Workload(config["rollout_batch_size"], config["micro_batch_size"], config["max_length"], value)
    parts = {
        name: plan_memory(
            student,
            teacher,
            work,
            ranks=devices,
            sharded=name == "fsdp",
            teacher_bytes=_BYTES[config["teacher_dtype"]],
        )
        for name in ("ddp", "fsdp")
    }
    verdict: dict[str, Any] = {}
    for name, moments in parts.items():
        totals = {moment: sum(numbers.values()) for moment, numbers in moments.items()}
        verdict[name] = {**totals, "fits": max(totals.values()) <= _USABLE * config["device_memory"]}
    _show(config, student, teacher, parts, verdict)
    return verdict, {"student": student, "teacher": teacher, "parts": parts}


def _size(path: str) -> ModelSize:
    try:
        return model_size(AutoConfig.from_pretrained(path))
    except OSError as error:
        raise ValueError(
            f"no configuration of a model can be read from {path!r}: give a folder or a hub name"
        ) from error


def _show(
    config: Mapping[str, Any], student: ModelSize, teacher: ModelSize, parts: Mapping[str, Any], verdict: dict[str, Any]
) -> None:
    console = Console()
    console.print(
        f"student {student.parameters / 1e6:,.0f} M, teacher {teacher.parameters / 1e6:,.0f} M parameters;"
        f" {config['num_devices']} device(s) of {config['device_memory']} GiB"
    )
    table = Table("GiB on each device", *(f"{name}, {moment}" for name in parts for moment in parts[name]))
    names = list(dict.fromkeys(part for moments in parts.values() for numbers in moments.values() for part in numbers))
    for part in names:
        cells = [numbers.get(part) for moments in parts.values() for numbers in moments.values()]
        table.add_row(part, *("" if cell is None else f"{cell:.2f}" for cell in cells), end_section=part == names[-1])
    table.add_row("all", *(f"{verdict[name][moment]:.2f}" for name in parts for moment in parts[name]))
    console.print(table)
    for name in parts:
        console.print(f"{name}: {'fits' if verdict[name]['fits'] else 'does not fit'}")


def main() -> None:
    """Run ``plan`` from the command line."""
    for short, key in _SHORT.items():
        sys.argv[1:] = [key + word.removeprefix(short) if word.startswith(short) else word for word in sys.argv[1:]]
    run_command(plan, "plan")


if __name__ == "__main__":
    main()
