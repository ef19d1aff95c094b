"""Makes the objects of a run from a plain configuration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.batch_sizes import BatchSizes, divide
from lightning_minillm.cli.config import Config, build, build_all
from lightning_minillm.data import DistillationDataModule
from lightning_minillm.models import ModelWithTokenizer
from lightning_minillm.models.factories import Factory, check_factory, check_factory_fit
from lightning_minillm.modules import CausalLMModule, RolloutModule
from lightning_minillm.rollout.options import check_own_prompts
from lightning_minillm.tokens import check_tokenizers


def batch_sizes(config: Config) -> BatchSizes:
    """Return how a run's global batch is divided over devices and accumulation steps.

    Raises:
        ValueError: it does not divide; the message names the nearest sizes that do.
    """
    return BatchSizes.of(config["batch_size"], config["micro_batch_size"], data_world_size(config["trainer"]))


def world_size(trainer: Mapping[str, Any]) -> int:
    """Return the number of devices over all nodes that a trainer's configuration asks for."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, str) and devices != "auto":
        devices = [part for part in devices.split(",") if part]
    if devices in ("auto", -1):
        on_gpu = trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        devices = torch.cuda.device_count() if on_gpu else 1
    return (len(devices) if isinstance(devices, list) else int(devices)) * int(trainer.get("num_nodes", 1))


def data_world_size(trainer: Mapping[str, Any]) -> int:
    """Return the number of devices that have rows of their own; the devices of a tensor-parallel group share theirs.

    Raises:
        ValueError: ``tensor_parallel_size`` does not divide the devices.
    """
    devices, strategy = world_size(trainer), trainer.get("strategy")
    pieces = strategy.get("tensor_parallel_size", 1) if isinstance(strategy, Mapping) else 1
    return divide(devices, pieces, "devices", "tensor_parallel_size")


@dataclass(frozen=True)
class Models:
    """Tokenizer, and how to make student and teacher when they are needed."""

    tokenizer: PreTrainedTokenizerBase
    student: Callable[[], PreTrainedModel]
    teacher: Callable[[], PreTrainedModel] | None


def check_models(student: Mapping[str, Any], teacher: Mapping[str, Any] | None) -> None:
    """Check the models' folders, before anything is read or written.

    Raises:
        ValueError: a folder that contains no complete causal language model, or a student that cannot be trained.
    """
    check_factory(build(student["model"]), trained=True)
    if teacher and teacher.get("model"):
        check_factory(build(teacher["model"]))


def build_models(student: Mapping[str, Any], teacher: Mapping[str, Any] | None, length: int | None = None) -> Models:
    """Load the tokenizers, which is cheap, and prepare the models, which are checked here and loaded later.

    Args:
        student: its node of the configuration.
        teacher: its node of the configuration; ``None`` for none.
        length: tokens of the longest sequence of the run, if it is known.

    Raises:
        ValueError: the tokenizers cannot be compared, or a model cannot be loaded or is too small.
    """
    check_models(student, teacher)
    student_model, tokenizer = _model_and_tokenizer(student, length)
    teacher_model = None
    if teacher and teacher.get("model"):
        factory, own = _model_and_tokenizer(teacher, length)
        check_tokenizers(tokenizer, own)
        teacher_model = ModelWithTokenizer(factory, own)
    return Models(tokenizer, student_model, teacher_model)


def _model_and_tokenizer(node: Mapping[str, Any], length: int | None) -> tuple[Factory, PreTrainedTokenizerBase]:
    factory, tokenizer = build(node["model"]), build(node["tokenizer"])
    check_factory_fit(factory, tokenizer, length)
    return factory, tokenizer


def build_datamodule(
    data: Mapping[str, Any], models: Models, teacher: Mapping[str, Any] | None = None
) -> LightningDataModule:
    """Make the data module; its data are read and checked when it is set up.

    Args:
        data: its node of the configuration.
        models: give the tokenizers.
        teacher: the teacher's node of the configuration, which may have a ``template``; ``None`` for none.

    Raises:
        ValueError: the teacher has a template, and the data module knows none for it.
    """
    datamodule: LightningDataModule = build(data["datamodule"])(tokenizer=models.tokenizer)
    template = (teacher or {}).get("template")
    if template and isinstance(models.teacher, ModelWithTokenizer):
        if not isinstance(datamodule, DistillationDataModule):
            raise ValueError(
                f"teacher.template needs a DistillationDataModule, and data.datamodule is a"
                f" {type(datamodule).__name__}: set teacher.template=null"
            )
        made = build(template) if isinstance(template, Mapping) else template
        datamodule.use_teacher_template(made, models.teacher.tokenizer)
    return datamodule


def prepare_data(data: Mapping[str, Any]) -> None:
    """Write the data set if the configuration has a ``prepare`` node; a data set that exists is kept."""
    if data.get("prepare"):
        build(data["prepare"])


def build_module(config: Config, models: Models) -> CausalLMModule:
    """Make the module of a training run, which loads its models when the trainer asks for them.

    Raises:
        ValueError: the module needs a teacher and the configuration has none.
    """
    make = build(config["module"])
    teacher = {"teacher": models.teacher} if models.teacher is not None else {}
    parameter = inspect.signature(make).parameters.get("teacher")
    if not teacher and parameter is not None and parameter.default is parameter.empty:
        raise ValueError(
            f"{config['module']['_target_']} needs a teacher: teacher=pretrained teacher.path=FOLDER_OR_HUB_NAME"
        )
    module: CausalLMModule = make(student=models.student, tokenizer=models.tokenizer, **teacher)
    if isinstance(module, RolloutModule) and (config["teacher"] or {}).get("template"):
        check_own_prompts(module.rollouts.sampling, module.teacher_use.reading)
    return module


def build_trainer(
    config: Config, sizes: BatchSizes | None = None, extra_callbacks: tuple[Callback, ...] = ()
) -> tuple[Trainer, dict[str, Callback]]:
    """Make the trainer with its callbacks and loggers.

    Args:
        config: with ``trainer``, and where present ``callbacks``, ``logger``, ``eval_every`` and ``max_steps``.
        sizes: gives the number of micro-batches per step, in which the trainer counts; ``None`` when nothing is
            trained.
        extra_callbacks: callbacks besides those of the configuration.

    Returns:
        The trainer, and the callbacks by their name in the configuration.

    Raises:
        ValueError: Lightning cannot make it on this machine.
    """
    node = dict(config["trainer"])
    if sizes is not None:
        node["accumulate_grad_batches"] = sizes.accumulation
        node["val_check_interval"] = min(config["eval_every"], config["max_steps"]) * sizes.accumulation
        node["check_val_every_n_epoch"] = None
    loggers = list(build_all(config.get("logger") or {}).values())
    callbacks: dict[str, Callback] = build_all(config.get("callbacks") or {})
    if not loggers:
        callbacks.pop("learning_rate", None)  # it refuses to be without a logger
    node |= {
        "default_root_dir": config["output_dir"],
        "enable_progress_bar": "progress" in callbacks,
        "enable_checkpointing": "best" in callbacks or "last" in callbacks,
    }
    make = build({**node, "_partial_": True})
    try:
        trainer = make(callbacks=[*callbacks.values(), *extra_callbacks], logger=loggers or False)
    except MisconfigurationException as error:  # such as a GPU that is not there
        raise ValueError(f"the trainer cannot be made as configured: {error}") from error
    return trainer, callbacks


def announce(config: Config, sizes: BatchSizes, device: str = "cpu") -> None:
    """Print the steps, batches and phases of a run before it starts, and warn of what is probably not meant.

    Args:
        config: the run's.
        sizes: of its batches.
        device: type of the devices, such as ``cuda``.
    """
    if device == "mps":
        rank_zero_info("MPS has no float64: sums over tokens and rows are computed on the CPU")
    warmup = (config["scheduler"] or {}).get("num_warmup_steps", 0)
    if warmup > config["max_steps"]:
        rank_zero_warn(
            f"scheduler.num_warmup_steps={warmup} is more than max_steps={config['max_steps']}: the learning rate never"
            " reaches optimizer.lr"
        )
    parts = [
        f"{config['max_steps']} optimiser steps of {sizes.batch_size} rows",
        f"({sizes.accumulation} x {sizes.micro_batch_size} on each of {sizes.world_size} device(s))",
    ]
    if "rollouts" in config["module"]:
        rollouts = config["module"]["rollouts"]["num_rollouts"]
        steps = max(1, rollouts // sizes.batch_size) * config["module"]["rollouts"]["ppo_epochs"]
        parts.append(f"= {-(-config['max_steps'] // steps)} phases of {rollouts} rollouts, {steps} steps each")
    rank_zero_info(f"{config['name']}: {' '.join(parts)}; results are written to {config['output_dir']}")
