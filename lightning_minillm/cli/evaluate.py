"""``minillm-evaluate``: evaluate one or more models and write a report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf, open_dict

from lightning_minillm.cli import commands, schema
from lightning_minillm.cli.build import build_trainer, prepare_data
from lightning_minillm.cli.config import Config, build, to_plain
from lightning_minillm.cli.models import NamedModel, open_model
from lightning_minillm.cli.start import RunStart, finishing
from lightning_minillm.data.cache import tokenizer_fingerprint
from lightning_minillm.evaluation import Evaluation, EvaluationModule, record_files, run_evaluation
from lightning_minillm.files import digest_of_files, read_json, write_json_lines
from lightning_minillm.models import ModelFactory, ModelWithTokenizer
from lightning_minillm.models.factories import Factory, check_factory, check_factory_fit
from lightning_minillm.reports import evaluation as evaluation_report
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports import summary as report
from lightning_minillm.reports.results import Results
from lightning_minillm.tokens import check_tokenizers

KEYS = schema.KEYS["evaluate"].split()
RECORDS_FOLDER = "records"
TEXTS_FOLDER = "responses"

_NAME = re.compile(r"""[^\s./\\:*?"<>|][^/\\:*?"<>|\x00-\x1f]*""")

Texts = dict[str, dict[str, Path]]
"""By the name of a file such as ``seed_10``, then by model."""


def evaluate(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure models by the evaluations that ``evaluation=[...]`` names.

    Writes ``results.json``, ``results.csv``, ``report.md`` with its pictures, and the responses of every model and
    seed to ``output_dir``. An interrupted run resumes from the records in it.

    Args:
        cfg: as composed from ``conf/evaluate.yaml``.

    Returns:
        ``{model: {metric: {"mean", "std", "values"}}}``, and objects: ``config``, ``trainer``, ``module`` (of the
        last model), ``results`` (with curves, and how each metric is shown).

    Raises:
        ValueError: the configuration is wrong, or the folder is in use or contains something else; raised before any
            model is loaded.
    """
    config = to_plain(without_tokenizer(cfg), KEYS)
    _check(config)
    with runs.claimed(Path(config["output_dir"])):
        return _evaluate(config)


def _evaluate(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = Path(config["output_dir"])
    _check_folder(folder, config)
    trainer, _ = build_trainer(config)
    seed_everything(config["seed"], workers=True, verbose=False)
    models = [
        open_model(name, path, config["dtype"], config["trust_remote_code"], length=config["max_length"])
        for name, path in _paths(config).items()
    ]
    prepare_data(config["data"])
    teacher = _teacher(config, models)
    evaluations = _prepare(config, models)
    modules = [make_module(config, model, teacher) for model in models]
    for model, module in zip(models, modules, strict=True):
        for evaluation in evaluations[model.name]:
            record_files(_records(folder, model), evaluation).check(module.identity(evaluation))
    results, texts = Results(), Texts()
    start = RunStart(config)
    with finishing(trainer.loggers, start):
        start.begin(trainer.loggers)
        while modules:
            model, module = models[-len(modules)], modules.pop(0)  # releases the memory of finished models
            for evaluation in evaluations[model.name]:
                results.add(
                    model.name, evaluation, run_evaluation(trainer, module, evaluation, _records(folder, model))
                )
                rank_zero_only(_write_texts)(folder, model, evaluation, texts)
        rank_zero_only(_report)(config, trainer.loggers, results, texts)
    return results.models, {"config": config, "trainer": trainer, "module": module, "results": results}


# --- before any model is loaded -------------------------------------------------------------------------------------


def without_tokenizer(cfg: DictConfig | Mapping[str, Any]) -> DictConfig | Mapping[str, Any]:
    """Return the configuration with no tokenizer for the data if none is given: models have their own."""
    if isinstance(cfg, DictConfig) and OmegaConf.is_missing(cfg.data, "tokenizer"):
        cfg = cfg.copy()
        with open_dict(cfg):
            cfg.data.tokenizer = None
    return cfg


def _check(config: Config) -> None:
    if not any((config.get("evaluation") or {}).values()):  # evaluation=[] leaves no such key
        raise ValueError("there is nothing to measure: name evaluations, e.g. evaluation=[responses]")
    if config["data_sets"]:
        _check_names("data_sets", config["data_sets"], "a file, a folder or a hub name")
    _check_evaluations(Path(config["output_dir"]), config["evaluation"])


def _check_evaluations(folder: Path, evaluations: Mapping[str, Any]) -> None:
    """Check that a report in the folder has no evaluation that is not measured now.

    Raises:
        ValueError: the new report would lose one.
    """
    earlier = runs.read_config(folder)
    known = earlier.get("evaluation") if isinstance(earlier, Mapping) else None
    if not (folder / report.RESULTS_JSON).is_file() or not isinstance(known, Mapping):
        return
    lost = [name for name, node in known.items() if node and not evaluations.get(name)]
    if lost:
        together = ",".join([*lost, *(name for name, node in evaluations.items() if node)])
        raise ValueError(
            f"output_dir={str(folder)!r} contains results of {', '.join(lost)}, which are not measured now and would be"
            f" missing in the new report: set evaluation=[{together}], or give a different output_dir"
        )


def _check_folder(folder: Path, config: Config) -> None:
    """Check that no results in the folder get lost.

    Raises:
        ValueError: it contains something else, or results of models that are not measured now.
    """
    runs.check_folder(folder, "evaluate")
    stored = (read_json(folder / report.RESULTS_JSON) or {}).get("models", {})
    lost = sorted(stored.keys() - _paths(config).keys())
    if lost:
        raise ValueError(
            f"output_dir {str(folder)!r} contains the results of {', '.join(lost)}, which are not measured now and"
            " would be overwritten: use another output_dir, or name these models as well"
        )


def _paths(config: Config) -> dict[str, str]:
    """Return the models' paths by name."""
    if bool(config["model"]) == bool(config["models"]):
        raise ValueError("give either model=FOLDER_OR_HUB_NAME or 'models={name: FOLDER, ...}'")
    paths = config["models"] or {"model": config["model"]}
    _check_names("models" if config["models"] else "model", paths, "a folder, a hub name or a checkpoint")
    return {str(name): path for name, path in paths.items()}


def _check_names(key: str, paths: Any, kind: str) -> None:
    """Check that paths have names, and that the names can be parts of file names on every system.

    Raises:
        ValueError: they are not a mapping, a path is not text, or a name is not usable or not unique.
    """
    if not isinstance(paths, Mapping):
        raise ValueError(f"{key} must name {kind} each, e.g. '{key}={{a: FOLDER, b: FOLDER}}', got {paths!r}")
    known: dict[str, str] = {}
    for name, path in paths.items():
        if not isinstance(path, str) or not path.strip():
            raise ValueError(f"{key if key == name else f'{key}: {name}'} must be {kind}, got {path!r}")
        if not _NAME.fullmatch(str(name)):
            raise ValueError(
                f"{key} has the name {str(name)!r}, which becomes part of file names: use letters, digits, '-' and '_'"
            )
        other = known.setdefault(str(name).casefold(), str(name))
        if other != str(name):
            raise ValueError(f"{key} has the names {other} and {name}, which are the same file name on some systems")


def _teacher(config: Config, models: list[NamedModel]) -> ModelFactory | None:
    """Return a function that loads the teacher, if there is one, after comparing its tokenizer with every model's."""
    if not config["teacher"]["model"]:
        return None
    if config["teacher"].get("template"):
        raise ValueError(
            "minillm-evaluate shows student and teacher the same prompts: set teacher.template=null; training measures"
            " val/reverse_kl with the teacher's own"
        )
    factory: Factory = build(config["teacher"]["model"])
    check_factory(factory)
    tokenizer = build(config["teacher"]["tokenizer"])
    check_factory_fit(factory, tokenizer, config["max_length"])
    for model in models:
        check_tokenizers(model.tokenizer, tokenizer)
    return ModelWithTokenizer(factory, tokenizer)


def _prepare(config: Config, models: list[NamedModel]) -> dict[str, list[Evaluation]]:
    """Return the evaluations of every model, prepared; models with the same tokenizer and chat template share them."""
    by_tokenizer: dict[tuple[str, str], list[Evaluation]] = {}
    by_model = {}
    for model in models:
        key = (tokenizer_fingerprint(model.tokenizer), str(model.tokenizer.chat_template))
        if key not in by_tokenizer:
            by_tokenizer[key] = [build(node) for node in config["evaluation"].values() if node]
            for evaluation in by_tokenizer[key]:
                if evaluation.needs_teacher and not config["teacher"]["model"]:
                    raise ValueError(
                        f"evaluation={evaluation.name} compares with a teacher: teacher=pretrained teacher.path=FOLDER"
                    )
                evaluation.add_bos = config["data"]["datamodule"]["add_bos"]
                evaluation.prepare(model.tokenizer)
        by_model[model.name] = by_tokenizer[key]
    return by_model


def make_module(config: Config, model: NamedModel, teacher: ModelFactory | None = None) -> EvaluationModule:
    """Return the module of a model, which is loaded when the trainer asks for it."""
    about = {
        "name": model.name,
        "model": digest_of_files(model.path),
        "dtype": config["dtype"],
        "precision": config["trainer"]["precision"],
    }
    if teacher is not None:
        path = config["teacher"].get("path")
        about["teacher"] = digest_of_files(path) if path else config["teacher"]["model"]
    return EvaluationModule(model.load, model.tokenizer, teacher=teacher, about=about)


def _records(folder: Path, model: NamedModel) -> Path:
    return folder / RECORDS_FOLDER / model.name


# --- afterwards -----------------------------------------------------------------------------------------------------


def _write_texts(folder: Path, model: NamedModel, evaluation: Evaluation, texts: Texts) -> None:
    records = record_files(_records(folder, model), evaluation).read()
    for name, rows in evaluation.texts(records).items():
        file = folder / TEXTS_FOLDER / f"{model.name}_{name}.jsonl"
        write_json_lines(file, rows)
        texts.setdefault(name, {})[model.name] = file


def _report(config: Config, loggers: list[Any], results: Results, texts: Texts) -> None:
    """Write and print everything."""
    folder = Path(config["output_dir"])
    words = (config["evaluation"].get("responses") or {}).get("words")
    about = {
        "seeds": config["seeds"],
        "split": config["split"],
        "data_sets": config["data_sets"] or {},
        "sampling": {key: value for key, value in config["sampling"].items() if key != "_target_"},
        **({"words": words} if words else {}),
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
        **({"words": words} if words else {}),
    }
    samples = next(iter(texts.values()), {})
    evaluation_report.write_report(folder, config["name"], facts, results, pictures, samples)
    evaluation_report.print_tables(results, config["name"])
    evaluation_report.log_report(loggers, results, pictures)


if __name__ == "__main__":
    commands.evaluate()
