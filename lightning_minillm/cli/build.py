"""From a plain configuration to the objects of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.cli.config import Config, build, build_all
from lightning_minillm.models import check_tokenizers

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule, Trainer
    from lightning.pytorch.callbacks import Callback
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lightning_minillm.modules import CausalLMModule


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is dealt over devices and time."""

    batch_size: int
    """Rows of one optimiser step, over all devices."""
    micro_batch_size: int
    """Rows that one device holds at once."""
    world_size: int
    """Devices that have rows of their own."""
    accumulation: int
    """Micro-batches of one device in an optimiser step."""


def plan_batches(batch_size: int, micro_batch_size: int | None, world_size: int) -> BatchPlan:
    """Divide the global batch; ``micro_batch_size=None`` gives every device its whole share at once.

    Raises:
        ValueError: when it does not divide; names the nearest sizes that do.
    """
    sizes = BatchSizes.of(batch_size, micro_batch_size, world_size)
    return BatchPlan(batch_size, sizes.micro_batch_size, world_size, sizes.accumulation)


def world_size(trainer: Mapping[str, Any]) -> int:
    """Devices over all nodes that a trainer's configuration asks for."""
    return _devices_of_a_node(trainer) * int(trainer.get("num_nodes", 1))


def data_world_size(trainer: Mapping[str, Any]) -> int:
    """Devices that have rows of their own: those that hold pieces of the same matrices share them.

    Raises:
        ValueError: ``tensor_parallel_size`` does not divide the devices.
    """
    devices, strategy = world_size(trainer), trainer.get("strategy")
    pieces = strategy.get("tensor_parallel_size", 1) if isinstance(strategy, Mapping) else 1
    if devices % pieces:
        above = (devices // pieces + 1) * pieces
        nearest = f"{above - pieces} or {above}" if devices > pieces else str(above)
        raise ValueError(
            f"{devices} device(s) do not divide by tensor_parallel_size={pieces}; the nearest is {nearest}"
        )
    return devices // pieces


def _devices_of_a_node(trainer: Mapping[str, Any]) -> int:
    devices = trainer.get("devices", 1)
    if isinstance(devices, str) and devices != "auto":
        devices = [part for part in devices.split(",") if part]
    if devices in ("auto", -1):
        on_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        count = torch.cuda.device_count() if on_gpu else 1
    else:
        count = len(devices) if isinstance(devices, list) else int(devices)
    return count


@dataclass(frozen=True)
class Models:
    """Tokenizer, and how to make student and teacher when they are needed."""

    tokenizer: PreTrainedTokenizerBase
    student: Callable[[], PreTrainedModel]
    teacher: Callable[[], PreTrainedModel] | None


def build_models(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> Models:
    """Load the tokenizers, which is cheap, and prepare the models, which are loaded later.

    Raises:
        ValueError: student and teacher have different tokenizers.
    """
    tokenizer = build(student["tokenizer"])
    teacher_model = None
    if teacher and teacher.get("model"):
        check_tokenizers(tokenizer, build(teacher["tokenizer"]))
        teacher_model = build(teacher["model"])
    return Models(tokenizer, build(student["model"]), teacher_model)


def build_datamodule(data: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> LightningDataModule:
    """Make the data module; what it reads is checked when it is set up."""
    make = build(data["datamodule"])
    return make(tokenizer=tokenizer)  # type: ignore[no-any-return]


def prepare_data(data: Mapping[str, Any]) -> None:
    """Write the data set, where the configuration says how; what is already written stays."""
    if data.get("prepare"):
        build(data["prepare"])


def build_module(config: Config, models: Models) -> CausalLMModule:
    """Make the module of a training run; the models themselves are made when the trainer asks for them."""
    make = build(config["module"])
    teacher = {"teacher": models.teacher} if models.teacher is not None else {}
    if not teacher and _requires(make, "teacher"):
        raise ValueError(
            f"{config['module']['_target_']} needs a teacher: teacher=pretrained teacher.path=FOLDER_OR_HUB_NAME"
        )
    return make(  # type: ignore[no-any-return]
        student=models.student,
        tokenizer=models.tokenizer,
        optimizer=build(config["optimizer"]),
        scheduler=build(config["scheduler"]) if config["scheduler"] else None,
        evaluation_sampling=build(config["validation"]["sampling"]),
        evaluation_seed=config["validation"]["seed"],
        **teacher,
    )


def _requires(make: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of this name without a default."""
    parameter = inspect.signature(make).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def build_trainer(
    config: Config, plan: BatchPlan | None = None, extra_callbacks: tuple[Callback, ...] = ()
) -> tuple[Trainer, dict[str, Callback]]:
    """Make the trainer with its callbacks and loggers.

    Args:
        config: with ``trainer``, and where present ``callbacks``, ``logger``, ``eval_every`` and ``max_steps``.
        plan: gives the micro-batches of a step, in which the trainer counts; ``None`` when nothing is trained.
        extra_callbacks: more of them.

    Returns:
        The trainer, and the callbacks by their name in the configuration.
    """
    node = dict(config["trainer"])
    if plan is not None:
        node["accumulate_grad_batches"] = plan.accumulation
        node["val_check_interval"] = min(config["eval_every"], config["max_steps"]) * plan.accumulation
        node["check_val_every_n_epoch"] = None
    loggers = list(build_all(config.get("logger") or {}).values())
    nodes = dict(config.get("callbacks") or {})
    if not loggers:
        nodes.pop("learning_rate", None)  # it refuses to be without a logger
    callbacks: dict[str, Callback] = build_all(nodes)
    node |= {
        "callbacks": [*callbacks.values(), *extra_callbacks],
        "logger": loggers or False,
        "default_root_dir": config["output_dir"],
        "enable_progress_bar": "progress" in callbacks,
        "enable_checkpointing": "best" in callbacks or "last" in callbacks,
    }
    target = node.pop("_target_")
    return _call(target, node), callbacks


def _call(target: str, kwargs: dict[str, Any]) -> Any:
    """Make an object from plain and nested nodes, with ready objects among its arguments."""
    ready = {name: kwargs.pop(name) for name in ("callbacks", "logger")}
    return build({"_target_": target, "_partial_": True, **kwargs})(**ready)


def announce(config: Config, plan: BatchPlan) -> None:
    """Print what is planned, so that a mistake shows before hours are spent."""
    parts = [
        f"{config['max_steps']} optimiser steps of {plan.batch_size} rows",
        f"({plan.accumulation} x {plan.micro_batch_size} on each of {plan.world_size} device(s))",
    ]
    rollouts = config["module"].get("num_rollouts")
    if rollouts:
        steps = max(1, rollouts // plan.batch_size) * config["module"]["ppo_epochs"]
        parts.append(f"= {-(-config['max_steps'] // steps)} phases of {rollouts} rollouts, {steps} steps each")
    rank_zero_info(f"{config['name']}: planned {' '.join(parts)}; results go to {config['output_dir']}")
