"""``minillm-plan``: memory of a run on each device, from the models' configurations alone (no weights are loaded)."""

from __future__ import annotations

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.cli.console import quiet_libraries
from lightning_minillm.cli.errors import short_errors

if TYPE_CHECKING:  # the imports of what does the work wait until the arguments are right
    from lightning_minillm.distributed.memory_plan import ModelSize

Parts = Mapping[str, Mapping[str, Mapping[str, float]]]
"""GiB by strategy, by moment of the run (``update`` or ``rollout``), and by what takes them."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_USABLE = 0.9  # the rest goes to fragmentation, kernels and communication buffers


def plan(
    student: str,
    teacher: str,
    *,
    devices: int = 1,
    device_memory: float = 80,
    param_dtype: str = "bfloat16",
    teacher_dtype: str = "bfloat16",
    batch_size: int = 64,
    micro_batch_size: int = 8,
    rollout_batch_size: int = 64,
    max_length: int = 512,
) -> dict[str, dict[str, Any]]:
    """Print the memory of parameters, gradients, optimiser, caches and activations on each device, and what fits.

    Args:
        student: a Hugging Face folder or hub name, of which only ``config.json`` is read.
        teacher: a Hugging Face folder or hub name, of which only ``config.json`` is read.
        devices: number of devices.
        device_memory: memory of a device in GiB.
        param_dtype: dtype of compute: ``float32``, ``bfloat16`` or ``float16``.
        teacher_dtype: dtype of the teacher's weights.
        batch_size: rows of an optimiser step over all devices.
        micro_batch_size: rows of one forward pass on one device.
        rollout_batch_size: rows that are sampled together on one device.
        max_length: tokens of prompt and response.

    Returns:
        ``{strategy: {"update": GiB, "rollout": GiB, "fits": bool}}``.

    Raises:
        ValueError: batch sizes that do not divide, an unknown dtype, or a model whose configuration cannot be read.
    """
    for name, dtype in (("param_dtype", param_dtype), ("teacher_dtype", teacher_dtype)):
        if dtype not in _BYTES:
            raise ValueError(f"{name} must be one of {', '.join(_BYTES)}, got {dtype!r}")
    BatchSizes(batch_size, micro_batch_size, devices)  # raises if they do not divide
    sizes = {"rollout_batch_size": rollout_batch_size, "max_length": max_length, "device_memory": device_memory}
    for name, value in sizes.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")
    from lightning_minillm.distributed.memory_plan import Workload, plan_memory

    models = _size(student, max_length), _size(teacher, max_length)
    work = Workload(rollout_batch_size, micro_batch_size, max_length, _BYTES[param_dtype])
    of_models = partial(plan_memory, *models, work, ranks=devices, teacher_bytes=_BYTES[teacher_dtype])
    parts: Parts = {strategy: of_models(sharded=strategy == "fsdp") for strategy in ("ddp", "fsdp")}
    verdict: dict[str, dict[str, Any]] = {}
    for strategy, moments in parts.items():
        totals = {moment: sum(numbers.values()) for moment, numbers in moments.items()}
        verdict[strategy] = {**totals, "fits": max(totals.values()) <= _USABLE * device_memory}
    parameters = "student {:,.0f} M, teacher {:,.0f} M".format(*(model.parameters / 1e6 for model in models))
    host = devices * (4 * models[0].parameters + _BYTES[teacher_dtype] * models[1].parameters) / 2**30
    _show(
        f"{parameters} parameters; {devices} device(s) of {device_memory:g} GiB\n"
        f"host memory: {host:.1f} GiB while models are loaded, which every process does by itself",
        parts,
        verdict,
    )
    return verdict


def _size(path: str, length: int) -> ModelSize:
    from lightning_minillm.distributed.memory_plan import model_size
    from lightning_minillm.models.checks import check_model, check_positions

    config = check_model(path, weights=False)
    check_positions(path, config, length)
    return model_size(config)


def _show(head: str, parts: Parts, verdict: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    from lightning_minillm.reports.tables import make_console

    console = make_console()
    console.print(head)
    columns = [(strategy, moment) for strategy, moments in parts.items() for moment in moments]
    table = Table("GiB on each device", *(f"{strategy}, {moment}" for strategy, moment in columns))
    names = list(dict.fromkeys(name for strategy, moment in columns for name in parts[strategy][moment]))
    for name in names:
        numbers = (parts[strategy][moment] for strategy, moment in columns)
        cells = [f"{gib[name]:.2f}" if name in gib else "" for gib in numbers]
        table.add_row(name, *cells, end_section=name == names[-1])
    table.add_row("all", *(f"{verdict[strategy][moment]:.2f}" for strategy, moment in columns))
    console.print(table)
    for strategy in parts:
        console.print(f"{strategy}: {'fits' if verdict[strategy]['fits'] else 'does not fit'}")


def make_parser() -> ArgumentParser:
    """Return the parser of the command line, whose names are the arguments of :func:`plan`."""
    parser = ArgumentParser(
        "minillm-plan",
        description="Print the memory that MiniLLM takes on each device, from the models' config.json alone.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("student", help="Hugging Face folder or hub name")
    add("teacher", help="Hugging Face folder or hub name")
    add("--devices", type=int, default=1, help="number of devices")
    add("--device-memory", type=float, default=80, help="memory of a device in GiB")
    add("--param-dtype", choices=_BYTES, default="bfloat16", help="dtype of compute")
    add("--teacher-dtype", choices=_BYTES, default="bfloat16", help="dtype of the teacher's weights")
    add("--batch-size", type=int, default=64, help="rows of an optimiser step over all devices")
    add("--micro-batch-size", type=int, default=8, help="rows of one forward pass on one device")
    add("--rollout-batch-size", type=int, default=64, help="rows that are sampled together on one device")
    add("--max-length", type=int, default=512, help="tokens of prompt and response")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run ``plan`` from the command line."""
    arguments = make_parser().parse_args(words)
    with short_errors():
        quiet_libraries()
        plan(**vars(arguments))


if __name__ == "__main__":
    main()
