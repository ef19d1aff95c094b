"""``minillm-train``: one training run of any module."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from omegaconf import DictConfig

from lightning_minillm.callbacks import BestCheckpoint
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
from lightning_minillm.cli.resume import STUDENT_FOLDER, find_checkpoint
from lightning_minillm.cli.start import RunStart, finishing
from lightning_minillm.cli.sweeps import run_job
from lightning_minillm.files import write_json
from lightning_minillm.modules import CausalLMModule
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports.model_card import write_model_card

KEYS = schema.KEYS["train"].split()


def train(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, choose the best weights by validation, and export them as a Hugging Face folder.

    Args:
        cfg: as composed from ``conf/train.yaml``.

    Returns:
        The content of ``metrics.json``, and the objects: ``config``, ``datamodule``, ``module``,
        ``trainer``, ``callbacks``.

    Raises:
        ValueError: a configuration that cannot work, or a folder that is in use or contains something else, before any
            work starts.
    """
    config = to_plain(cfg, KEYS)
    with runs.claimed(Path(config["output_dir"])):
        return _train(config)


def _train(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = batch_sizes(config)
    checkpoint = find_checkpoint(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    trainer, callbacks = build_trainer(config, sizes)
    check_models(config["student"], config["teacher"])
    prepare_data(config["data"])
    models = build_models(config["student"], config["teacher"], _longest_sequence(config))
    module = build_module(config, models)
    datamodule = build_datamodule(config["data"], models, config["teacher"])
    start = RunStart(config)
    trainer.callbacks.append(start)  # type: ignore[attr-defined]  # Lightning sets it outside of the class
    announce(config, sizes, trainer.strategy.root_device.type)

    with finishing(trainer.loggers, start):
        started = time.perf_counter()
        if config["eval_first"] and checkpoint is None:
            trainer.validate(module, datamodule=datamodule, verbose=False)
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint)
        metrics = _finish(config, trainer, module, callbacks)
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        rank_zero_only(write_json)(Path(config["output_dir"]) / runs.METRICS_FILE, metrics)
    objects = {"config": config, "datamodule": datamodule, "module": module, "trainer": trainer, "callbacks": callbacks}
    return metrics, objects


def _longest_sequence(config: Config) -> int:
    """Return the tokens of the longest sequence that the student reads."""
    lengths = config["data"]["datamodule"]["lengths"]
    return int(max(lengths["max_length"], lengths["lm_max_length"] or 0))


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
