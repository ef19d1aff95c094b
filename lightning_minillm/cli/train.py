"""``minillm-train``: one training run of any module."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig

from lightning_minillm.callbacks import BestCheckpoint
from lightning_minillm.checkpoints.files import backup_of
from lightning_minillm.checkpoints.weights import load_weights, read_metadata
from lightning_minillm.cli import commands, schema
from lightning_minillm.cli.build import (
    announce,
    batch_sizes,
    build_datamodule,
    build_models,
    build_module,
    build_trainer,
    check_models,
    prepare_data,
)
from lightning_minillm.cli.config import Config, to_plain
from lightning_minillm.cli.sweeps import run_job
from lightning_minillm.cli.tracking import tracked
from lightning_minillm.files import changed_keys, write_json
from lightning_minillm.modules import CausalLMModule
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports.model_card import write_model_card

KEYS = schema.KEYS["train"].split()
STUDENT_FOLDER = "student"
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


def train(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, choose the best weights by validation, and export them as a Hugging Face folder.

    Args:
        cfg: as composed from ``conf/train.yaml``.

    Returns:
        The content of ``metrics.json``, and the objects: ``config``, ``datamodule``, ``module``,
        ``trainer``, ``callbacks``.

    Raises:
        ValueError: a configuration that cannot work, before any work starts.
    """
    config = to_plain(cfg, KEYS)
    folder = Path(config["output_dir"])
    sizes = batch_sizes(config)
    checkpoint = find_checkpoint(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    trainer, callbacks = build_trainer(config, sizes)
    check_models(config["student"], config["teacher"])
    prepare_data(config["data"])
    models = build_models(config["student"], config["teacher"], _longest_sequence(config))
    module = build_module(config, models)
    datamodule = build_datamodule(config["data"], models.tokenizer)
    runs.start_run(folder, config)
    announce(config, sizes, trainer.strategy.root_device.type)

    with tracked(trainer.loggers, folder, config):
        started = time.perf_counter()
        if config["eval_first"] and checkpoint is None:
            trainer.validate(module, datamodule=datamodule, verbose=False)
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
        metrics = _finish(config, trainer, module, callbacks)
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        rank_zero_only(write_json)(folder / runs.METRICS_FILE, metrics)
    objects = {"config": config, "datamodule": datamodule, "module": module, "trainer": trainer, "callbacks": callbacks}
    return metrics, objects


def _longest_sequence(config: Config) -> int:
    """Return the tokens of the longest sequence that the student reads."""
    lengths = config["data"]["datamodule"]["lengths"]
    return int(max(lengths["max_length"], lengths["lm_max_length"] or 0))


def find_checkpoint(config: Config) -> str | None:
    """Return the checkpoint to resume from, or ``None`` to start from scratch.

    Raises:
        ValueError: ``ckpt_path`` names no file, or the run directory contains a run with a different configuration.
    """
    if config["ckpt_path"]:
        path = Path(config["ckpt_path"])
        if not path.exists():
            raise ValueError(f"there is no checkpoint {str(path)!r}; set ckpt_path to an existing one, or to null")
        return str(path)
    folder = Path(config["output_dir"])
    last = folder / "checkpoints" / "last.ckpt"
    if config["resume"] == "never" or not (last.exists() or backup_of(last).exists()):
        return None
    earlier = runs.read_config(folder)
    changed = changed_keys(_identity(earlier), _identity(config)) if earlier else []
    if changed:
        raise ValueError(
            f"{str(last)!r} belongs to a run with a different {', '.join(changed)}: use another output_dir, repeat the"
            " configuration of that run to resume it, or set resume=never to start from scratch and overwrite it"
        )
    return str(last)


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that decide the weights, by their dotted names."""
    return dict(_leaves({key: config.get(key) for key in _IDENTITY}))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        name = f"{prefix}{key}"
        if name in _NOT_IDENTITY:
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _finish(config: Config, trainer: Trainer, module: CausalLMModule, callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Load the best weights, export them, and return the metrics of the run."""
    best, student = callbacks.get("best"), Path(config["output_dir"]) / STUDENT_FOLDER
    metrics: dict[str, Any] = {
        "optimizer_steps": trainer.global_step,
        "last": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        "best": None,
    }
    if best is not None and best.best_model_path:
        load_weights(module, best.best_model_path)
        metrics["best"] = {
            "metric": best.monitor,
            "value": float(best.best_model_score),
            "optimizer_steps": int(read_metadata(best.best_model_path)["global_step"]),
        }
        if isinstance(best, BestCheckpoint) and best.fallback_score is not None:
            metrics["best"]["fallback"] = {"metric": best.fallback, "value": best.fallback_score}
            rank_zero_info(
                f"{config['name']}: {best.monitor} was 0 at every validation; the exported weights are those with the"
                f" lowest {best.fallback}, {best.fallback_score:.4g}"
            )
    module.export(str(student), dtype=config["export"]["dtype"])
    write_model_card(student, config, metrics)
    trainer.strategy.barrier()
    return metrics


def run(cfg: DictConfig) -> float | None:
    """Run ``train`` for the command line, which may ask for many runs."""
    return run_job(train, "train", cfg)


if __name__ == "__main__":
    commands.train()
