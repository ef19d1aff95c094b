"""``minillm-evaluate``: metrics of one or more models over several sampling seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from lightning_minillm.cli import report, runs
from lightning_minillm.cli.build import build_datamodule, build_trainer, prepare_data
from lightning_minillm.cli.config import Config, build, run_command, to_plain
from lightning_minillm.models import check_tokenizers, load_causal_lm, load_tokenizer
from lightning_minillm.modules import CausalLMModule

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

KEYS = (
    "batch_size cache_dir data dtype eval_batch_size evaluation max_length max_prompt_length micro_batch_size model"
    " models name output_dir seed seeds split teacher trainer trust_remote_code"
).split()


def evaluate(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure models: Rouge-L, exact match, reverse KL to the teacher, response length, loss.

    Writes ``results.json`` and ``results.csv``, and for every model and seed the responses, to ``output_dir``.

    Args:
        cfg: as composed from ``conf/evaluate.yaml``.

    Returns:
        ``{model: {metric: {"mean", "std", "values"}}}`` over the seeds, and objects: ``config``, ``trainer``,
        ``module`` (of the last model).

    Raises:
        ValueError: a configuration that cannot work, before any model is loaded.
    """
    config = to_plain(cfg, KEYS)
    models = _models(config)
    if not config["seeds"]:
        raise ValueError("seeds is empty; give at least one sampling seed, e.g. seeds=[10]")
    folder = Path(config["output_dir"])
    trainer, _ = build_trainer(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    prepare_data(config["data"])
    tokenizers = {name: load_tokenizer(path, trust_remote_code=config["trust_remote_code"]) for name, path in models}
    teacher = _teacher(config, tokenizers)
    runs.start_run(folder, config)
    values: dict[str, list[dict[str, float]]] = {}
    module = None
    for name, path in models:
        module = _module(config, path, tokenizers[name], teacher)
        datamodule = build_datamodule(_of_split(config), tokenizers[name])
        values[name] = [_run(trainer, module, datamodule, seed, folder, name) for seed in config["seeds"]]
    results = {name: report.summarise(rows) for name, rows in values.items()}
    rank_zero_only(report.write_results)(folder, results, {"seeds": config["seeds"], "split": config["split"]})
    rank_zero_only(report.print_table)(results, title=f"{config['name']}: {config['split']} split")
    return results, {"config": config, "trainer": trainer, "module": module}


def _models(config: Config) -> list[tuple[str, str]]:
    """Return names and paths of the models.

    Raises:
        ValueError: none or both forms given.
    """
    if bool(config["model"]) == bool(config["models"]):
        raise ValueError("give either model=FOLDER_OR_HUB_NAME or 'models={name: FOLDER, ...}'")
    return list(config["models"].items()) if config["models"] else [("model", config["model"])]


def _teacher(config: Config, tokenizers: Mapping[str, Any]) -> Any:
    """Return how to make the teacher, or ``None``, after comparing its tokenizer with every model's."""
    if not config["teacher"]["model"]:
        return None
    tokenizer = build(config["teacher"]["tokenizer"])
    for own in tokenizers.values():
        check_tokenizers(own, tokenizer)
    return build(config["teacher"]["model"])


def _module(config: Config, path: str, tokenizer: Any, teacher: Any) -> CausalLMModule:
    student = partial(load_causal_lm, path, dtype=config["dtype"], trust_remote_code=config["trust_remote_code"])
    sampling = build(config["evaluation"]["sampling"])
    return CausalLMModule(student, tokenizer, teacher=teacher, evaluation_sampling=sampling)


def _of_split(config: Config) -> dict[str, Any]:
    """Return the data's configuration with the chosen split in the place of the test split, and nothing else."""
    if config["split"] not in ("train", "validation", "test"):
        raise ValueError(f"split must be train, validation or test, got {config['split']!r}")
    node = config["data"]["datamodule"]
    nothing_else = {"train": None, "validation": None, "lm_corpus": None}
    return {**config["data"], "datamodule": {**node, **nothing_else, "test": node[config["split"]]}}


def _run(
    trainer: Trainer, module: CausalLMModule, datamodule: Any, seed: int, folder: Path, name: str
) -> dict[str, float]:
    """Run the test once, keep the responses, and return its metrics without their ``test/``."""
    module.evaluation_seed = seed
    (metrics,) = trainer.test(module, datamodule=datamodule, verbose=False)
    rank_zero_only(_write_responses)(folder / "responses" / f"{name}_seed_{seed}.jsonl", module.samples)
    return {key.removeprefix("test/"): float(value) for key, value in metrics.items()}


def _write_responses(file: Path, samples: list[dict[str, Any]]) -> None:
    runs.write_text(file, "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))


def main() -> None:
    """Run ``evaluate`` from the command line."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
