"""``minillm-recipe``: the paper's whole procedure in stages, which are kept, resumed, compared and reported."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from lightning_minillm.cli import schema
from lightning_minillm.cli.build import prepare_data
from lightning_minillm.cli.config import Config, build, compose_config, quote, to_plain
from lightning_minillm.cli.recipe.report import report_recipe
from lightning_minillm.cli.recipe.scheduler import choose_workers, run_stages
from lightning_minillm.cli.recipe.stages import (
    COMMANDS,
    PROGRESS_FILE,
    SET_ASIDE,
    Stage,
    check_folder,
    digest_data,
    fingerprints_of,
    is_stale,
    redo,
    set_aside,
)
from lightning_minillm.cli.resume import STUDENT_FOLDER
from lightning_minillm.files import changed_keys, replace_in_strings
from lightning_minillm.models.factories import check_factory
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports.summary import RESULTS_JSON
from lightning_minillm.reports.tables import make_console

KEYS = schema.KEYS["recipe"].split()
_RECIPE_KEYS = set(
    "common evaluate extra name requires shared size stages steps teacher train_common train_extra".split()
)
_SETTINGS = ("recipe", "seed", "teacher_seed", "data")
_STAGE_KEYS = {"command", "title", "needs", "starts_at", "overrides", "extra"}


def recipe(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the stages of a recipe and write a report on the models that they train.

    ``output_dir`` then contains one folder per stage, ``results.json``, ``results.csv``, ``table.md``, ``curves.png``,
    ``bars.png``, ``samples.md``, and ``report.md`` with tables, samples and the pictures of the evaluations.

    Args:
        cfg: as composed from ``conf/recipe.yaml``.

    Returns:
        ``{model: {metric: {"mean", "std", "values"}}}``, and objects: ``config``, ``stages`` (by name), ``ran``
        (the stages that had work to do).

    Raises:
        ValueError: a recipe or a stage whose configuration cannot work, before any stage runs.
        RecipeError: a stage failed.
    """
    console = make_console()
    config = read_config(cfg)
    workers = choose_workers(config["workers"])
    stages = compose_stages(config, shown_progress=workers == 1)
    chosen = _until(stages, config["until"])
    check_given_models(stages)
    for name in config["redo"]:
        if name not in stages:
            raise ValueError(f"redo names {name!r}, which is not a stage; the stages are {', '.join(stages)}")
    folder = Path(config["output_dir"])
    started = time.perf_counter()
    with runs.claimed(folder):
        earlier = runs.check_folder(folder, "recipe")
        for stage in chosen:
            check_folder(stage)
        for name in config["redo"]:
            redo(stages[name])
        if earlier is not None:
            _set_report_aside(earlier, config, console)
        runs.start_run(folder, config)
        console.print("data")
        fingerprints = fingerprints_of(stages, _prepare(config), _folders(config))
        for stage in chosen:
            if is_stale(stage, fingerprints[stage.name]):
                console.print(f"{stage.name}: its inputs have changed; the earlier result moves to {SET_ASIDE}/")
        ran = run_stages(chosen, fingerprints, workers, console)
        results = report_recipe(config, stages, console) if config["until"] is None else {}
    console.print(f"{config['recipe']['name']}: {time.perf_counter() - started:.0f} s; results are written to {folder}")
    return results, {"config": config, "stages": stages, "ran": [name for name, anything in ran.items() if anything]}


def _folders(config: Config) -> dict[str, Path]:
    return {name: Path(config[f"{name}_dir"]) for name in ("output", "shared", "cache")}


def _set_report_aside(earlier: Config, config: Config, console: Console) -> None:
    """Move the report of a recipe with different settings out of the way."""
    before, now = (
        replace_in_strings(
            {key: node.get(key) for key in _SETTINGS}, {str(v): f"<{k}>" for k, v in _folders(node).items()}
        )
        for node in (earlier, config)
    )
    folder = Path(config["output_dir"])
    changed = changed_keys(before, now)
    if changed and (folder / RESULTS_JSON).exists():
        names = (runs.CONFIG_FILE, runs.ENVIRONMENT_FILE, *runs.WRITTEN["recipe"])
        place = set_aside(folder, names, folder / SET_ASIDE / "report")
        console.print(f"the report of different settings ({', '.join(changed)}) is moved to {place}", markup=False)


# --- stages --------------------------------------------------------------------------------------------------------


def read_config(cfg: DictConfig | Mapping[str, Any]) -> Config:
    """Return a recipe's configuration, plain and with absolute folders, which hold in every stage.

    Raises:
        ValueError: an unknown key, or a missing value.
    """
    copy = cfg.copy() if isinstance(cfg, DictConfig) else OmegaConf.create(dict(cfg))
    for key in ("output_dir", "shared_dir", "cache_dir"):  # each may refer to the one before
        copy[key] = str(Path(copy[key]).expanduser().resolve())
    for key, value in copy.data.items():
        if value is not None and Path(value).expanduser().exists():  # otherwise it is a hub name
            copy.data[key] = str(Path(value).expanduser().resolve())
    return to_plain(copy, KEYS)


def compose_stages(config: Config, shown_progress: bool) -> dict[str, Stage]:
    """Compose the configuration of every stage.

    Args:
        config: the recipe's, plain, with absolute paths.
        shown_progress: show progress bars on the screen; otherwise each stage writes a progress file.

    Returns:
        Stages by name, each after the stages it needs; evaluations last.

    Raises:
        ValueError: unknown keys, commands or stages.
    """
    node = config["recipe"]
    _check_keys("recipe", node, _RECIPE_KEYS)
    missing = [key for key in node["requires"] if config["data"][key.removeprefix("data.")] is None]
    if missing:
        raise ValueError(f"recipe={node['name']} needs {' and '.join(f'{key}=...' for key in missing)}")
    stages: dict[str, Stage] = {}
    for name, settings in node["stages"].items():
        _check_keys(f"recipe.stages.{name}", settings, _STAGE_KEYS)
        if settings["command"] not in COMMANDS:
            raise ValueError(f"recipe.stages.{name}.command must be one of {COMMANDS}, got {settings['command']!r}")
        missing = [need for need in settings["needs"] if need not in stages]
        if missing:
            raise ValueError(f"stage '{name}' needs {', '.join(missing)}, which must come before it in recipe.stages")
        stages[name] = _stage(config, name, settings, shown_progress)
    for model in node["evaluate"]["models"]:
        if model not in stages or stages[model].command != "train":
            raise ValueError(f"recipe.evaluate.models names {model!r}, which is not a training stage")
        stages[f"evaluate_{model}"] = _evaluation(config, stages, model, shown_progress)
    return stages


def check_given_models(stages: Mapping[str, Stage]) -> None:
    """Check the models that no stage makes, before any stage runs.

    Raises:
        ValueError: a folder that contains no complete causal language model, or a student that cannot be trained.
    """
    for stage in stages.values():
        for role in ("student", "teacher"):
            node = stage.config.get(role) or {}
            path = node.get("path")
            made = path and any(Path(path).is_relative_to(other.folder) for other in stages.values())
            if path and not made and node.get("model"):
                check_factory(build(node["model"]), trained=role == "student")


def _folder(config: Config, name: str) -> Path:
    shared = name.removeprefix("evaluate_") in config["recipe"]["shared"]
    return Path(config["shared_dir" if shared else "output_dir"]) / name


def _stage(config: Config, name: str, settings: Mapping[str, Any], shown_progress: bool) -> Stage:
    node, command, folder = config["recipe"], settings["command"], _folder(config, name)
    is_training = command == "train"
    overrides = [
        *node["common"],
        *(node["train_common"] if is_training else ()),
        *settings["overrides"],
        *node["extra"],
        *(node["train_extra"] if is_training else ()),
        *(settings.get("extra") or ()),
        f"name={name}",
        *_places(config, folder),
        *(() if is_training or shown_progress else ("callbacks.progress=null",)),
    ]
    composed = _compose(command, overrides, f"recipe.stages.{name}" if name in node["stages"] else name)
    if is_training and not shown_progress:
        shown = {"_target_": "lightning_minillm.callbacks.ProgressFile", "path": str(folder / PROGRESS_FILE)}
        composed["callbacks"] = {**composed["callbacks"], "progress": shown}
    return Stage(name, command, folder, tuple(settings["needs"]), composed, settings.get("title") or name)


def _evaluation(config: Config, stages: Mapping[str, Stage], model: str, shown_progress: bool) -> Stage:
    node = config["recipe"]
    teacher, settings = node["teacher"], node["evaluate"]
    names = settings.get("teacher_evaluations" if model == teacher else "evaluations") or ["responses"]
    own = [
        f"seeds={list(settings['seeds'])}",
        f"models={{{model}: {quote(stages[model].folder / STUDENT_FOLDER)}}}",
        f"evaluation={list(names)}".replace("'", ""),
    ]
    if model != teacher:
        own += ["teacher=pretrained", f"teacher.path={quote(stages[teacher].folder / STUDENT_FOLDER)}"]
    stage = {"command": "evaluate", "needs": dict.fromkeys([model, teacher]), "title": stages[model].title}
    stage |= {"overrides": settings["overrides"], "extra": own}
    return _stage(config, f"evaluate_{model}", stage, shown_progress)


def _places(config: Config, folder: Path) -> list[str]:
    return [f"output_dir={quote(folder)}", f"cache_dir={quote(Path(config['cache_dir']))}"]


def _compose(command: str, overrides: Sequence[str], where: str) -> Config:
    try:
        cfg = compose_config(command, overrides)
        return to_plain(cfg, map(str, cfg))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _check_keys(where: str, node: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(node) - known)
    if unknown:
        raise ValueError(f"nothing reads {', '.join(unknown)} in {where}; the keys are {', '.join(sorted(known))}")


def _until(stages: Mapping[str, Stage], names: str | Sequence[str] | None) -> list[Stage]:
    """Return all stages, or the chosen stages with those they need."""
    if names is None:
        return list(stages.values())
    wanted = {names} if isinstance(names, str) else set(names)
    if not wanted:
        raise ValueError(f"until names no stage; the stages are {', '.join(stages)}, and null runs all")
    for name in sorted(wanted - stages.keys()):
        raise ValueError(f"until names {name!r}, which is not a stage; the stages are {', '.join(stages)}")
    for name in reversed([*stages]):
        if name in wanted:
            wanted |= set(stages[name].needs)
    return [stage for name, stage in stages.items() if name in wanted]


def _prepare(config: Config) -> str:
    """Write the data set if the recipe makes one, and return the digest of its files."""
    node = config["recipe"]
    overrides = [*node["common"], *node["extra"], *_places(config, Path(config["output_dir"]))]
    composed = _compose("train", overrides, "data")
    prepare_data(composed["data"])
    return digest_data(composed["data"])
