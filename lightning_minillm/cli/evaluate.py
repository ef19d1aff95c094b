"""``minillm-evaluate``: everything that is measured of one or more models, and a report of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_minillm.cli.build import build_trainer, prepare_data
from lightning_minillm.cli.config import Config, build, run_command, to_plain
from lightning_minillm.cli.models import NamedModel, digest_of, open_model
from lightning_minillm.cli.tracking import tracked
from lightning_minillm.data.cache import tokenizer_fingerprint
from lightning_minillm.evaluation import Evaluation, EvaluationModule, record_files, run_evaluation
from lightning_minillm.files import write_text
from lightning_minillm.models import check_tokenizers
from lightning_minillm.reports import evaluation as evaluation_report
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports import summary as report
from lightning_minillm.reports.results import Results

KEYS = (
    "cache_dir callbacks data data_sets dtype eval_batch_size evaluation logger max_length"
    " max_prompt_length model models name output_dir sampling seed seeds split teacher trainer"
    " trust_remote_code"
).split()
RECORDS_FOLDER = "records"
TEXTS_FOLDER = "responses"

Texts = dict[str, dict[str, Path]]
"""By evaluation file name such as ``seed_10``, then by model."""


def evaluate(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure models by the evaluations that ``evaluation=[...]`` names.

    Writes ``results.json``, ``results.csv``, ``report.md`` with its pictures, and the responses of every model and
    seed to ``output_dir``. A run that was stopped goes on from the records in it.

    Args:
        cfg: as composed from ``conf/evaluate.yaml``.

    Returns:
        ``{model: {metric: {"mean", "std", "values"}}}``, and objects: ``config``, ``trainer``, ``module`` (of the
        last model), ``results`` (with curves and how each metric is shown).

    Raises:
        ValueError: a configuration that cannot work, before any model is loaded.
    """
    _check_split(cfg)
    config = to_plain(_without_tokenizer(cfg), KEYS)
    _check(config)
    folder = Path(config["output_dir"])
    trainer, _ = build_trainer(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    prepare_data(config["data"])
    models = [
        open_model(name, path, config["dtype"], config["trust_remote_code"]) for name, path in _paths(config).items()
    ]
    teacher = _teacher(config, models)
    evaluations = _prepare(config, models)
    modules = [_module(config, model, teacher) for model in models]
    for model, module in zip(models, modules, strict=True):
        for evaluation in evaluations[model.name]:
            record_files(_records(folder, model), evaluation).check(module.identity(evaluation))
    runs.start_run(folder, config)
    results, texts = Results(), Texts()
    module = None
    with tracked(trainer.loggers, folder, config):
        while modules:
            model, module = models[-len(modules)], modules.pop(0)  # a model that is done leaves the memory
            for evaluation in evaluations[model.name]:
                results.add(
                    model.name, evaluation, run_evaluation(trainer, module, evaluation, _records(folder, model))
                )
                rank_zero_only(_write_texts)(folder, model, evaluation, texts)
        rank_zero_only(_report)(config, trainer.loggers, results, texts)
    return results.models, {"config": config, "trainer": trainer, "module": module, "results": results}


# --- before any model is loaded -------------------------------------------------------------------------------------


def _check_split(cfg: DictConfig | Mapping[str, Any]) -> None:
    """Before anything is resolved: other values refer to the split by its name."""
    if cfg.get("split") not in ("train", "validation", "test"):
        raise ValueError(f"split must be train, validation or test, got {cfg.get('split')!r}")


def _without_tokenizer(cfg: DictConfig | Mapping[str, Any]) -> DictConfig | Mapping[str, Any]:
    """Models bring their tokenizers: the data's need not be named."""
    if isinstance(cfg, DictConfig) and OmegaConf.is_missing(cfg.data, "tokenizer"):
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.data.tokenizer = None
    return cfg


def _check(config: Config) -> None:
    if not config["seeds"]:
        raise ValueError("seeds is empty; give at least one sampling seed, e.g. seeds=[10]")
    if not any(config["evaluation"].values()):
        raise ValueError("nothing is to be measured: name evaluations, e.g. evaluation=[responses]")


def _paths(config: Config) -> dict[str, str]:
    """Return the models' paths by name.

    Raises:
        ValueError: none or both forms given, or a name that can be no file's.
    """
    if bool(config["model"]) == bool(config["models"]):
        raise ValueError("give either model=FOLDER_OR_HUB_NAME or 'models={name: FOLDER, ...}'")
    for name in config["models"] or ():
        if Path(name).name != name:
            raise ValueError(f"models names {name!r}, after which files are called: leave out '/'")
    return dict(config["models"] or {"model": config["model"]})


def _teacher(config: Config, models: list[NamedModel]) -> Any:
    """Return how to make the teacher, or ``None``, after comparing its tokenizer with every model's."""
    if not config["teacher"]["model"]:
        return None
    tokenizer = build(config["teacher"]["tokenizer"])
    for model in models:
        check_tokenizers(model.tokenizer, tokenizer)
    return build(config["teacher"]["model"])


def _prepare(config: Config, models: list[NamedModel]) -> dict[str, list[Evaluation]]:
    """Return the evaluations of every model, prepared; models with the same tokenizer share them.

    Raises:
        ValueError: what an evaluation says of its data, or one that needs a teacher where there is none.
    """
    by_tokenizer: dict[str, list[Evaluation]] = {}
    by_model = {}
    for model in models:
        key = tokenizer_fingerprint(model.tokenizer)
        if key not in by_tokenizer:
            by_tokenizer[key] = [build(node) for node in config["evaluation"].values() if node]
            for evaluation in by_tokenizer[key]:
                if evaluation.needs_teacher and not config["teacher"]["model"]:
                    raise ValueError(
                        f"evaluation={evaluation.name} compares with a teacher: teacher=pretrained teacher.path=FOLDER"
                    )
                evaluation.prepare(model.tokenizer)
        by_model[model.name] = by_tokenizer[key]
    return by_model


def _module(config: Config, model: NamedModel, teacher: Any) -> EvaluationModule:
    """Make the module, which loads its models when the trainer asks for them."""
    teacher_path = config["teacher"].get("path")
    about = {
        "name": model.name,
        "model": digest_of(model.path),
        "dtype": config["dtype"],
        "precision": config["trainer"]["precision"],
        "teacher": digest_of(teacher_path) if teacher_path else config["teacher"]["model"],
    }
    return EvaluationModule(model.load, model.tokenizer, teacher=teacher, about=about)


def _records(folder: Path, model: NamedModel) -> Path:
    return folder / RECORDS_FOLDER / model.name


# --- afterwards -----------------------------------------------------------------------------------------------------


def _write_texts(folder: Path, model: NamedModel, evaluation: Evaluation, texts: Texts) -> None:
    records = record_files(_records(folder, model), evaluation).read()
    for name, rows in evaluation.texts(records).items():
        file = folder / TEXTS_FOLDER / f"{model.name}_{name}.jsonl"
        write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        texts.setdefault(name, {})[model.name] = file


def _report(config: Config, loggers: list[Any], results: Results, texts: Texts) -> None:
    """Write and print everything."""
    folder = Path(config["output_dir"])
    about = {
        "seeds": config["seeds"],
        "split": config["split"],
        "data_sets": config["data_sets"] or {},
        "sampling": {key: value for key, value in config["sampling"].items() if key != "_target_"},
        "paths": _paths(config),
        "teacher": config["teacher"].get("path"),
        **results.to_json(),
    }
    report.write_results(folder, results.models, about)
    pictures = evaluation_report.draw_pictures(results, folder)
    data = ", ".join(f"{name} ({path})" for name, path in (config["data_sets"] or {}).items())
    facts = {
        "models": ", ".join(f"{name} (`{path}`)" for name, path in about["paths"].items()),
        "teacher": f"`{about['teacher']}`" if about["teacher"] else "none",
        "data": data or f"the {config['split']} split of `{config['data'].get('path')}`",
        "sampling": ", ".join(f"{key} {value}" for key, value in about["sampling"].items()),
        "seeds": ", ".join(map(str, config["seeds"])),
    }
    samples = next(iter(texts.values()), {})
    evaluation_report.write_report(folder, config["name"], facts, results, pictures, samples)
    evaluation_report.print_tables(results, config["name"])
    evaluation_report.log_report(loggers, results, pictures)


def main() -> None:
    """Run ``evaluate`` from the command line."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
