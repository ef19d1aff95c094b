"""Reads the results in the folders of runs: recipes, evaluations, training runs, and sweeps of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_minillm.evaluation import Measure
from lightning_minillm.files import digest, read_json, replace_in_strings
from lightning_minillm.reports import A_RUN
from lightning_minillm.reports import run_folder as runs
from lightning_minillm.reports.plots import read_curve
from lightning_minillm.reports.results import read_measures
from lightning_minillm.reports.summary import RESULTS_JSON, USUAL_COLUMNS

_OVERRIDES = Path(".hydra") / "overrides.yaml"


@dataclass(frozen=True)
class Entry:
    """One model of one run."""

    model: str
    """Its name in the table."""
    group: str
    """Entries of the same model and group differ only in the training seed."""
    folder: Path
    """The folder of the run; its name tells models of the same name apart."""
    split: str
    """The data split it was measured on: ``test``, ``validation``."""
    values: Mapping[str, Sequence[float]]
    """By metric, one value per sampling seed; empty if the run has none yet."""
    seed: int | None = None
    """The training seed, if known."""
    responses: Mapping[tuple[str, int], Path] = field(default_factory=dict)
    """JSON Lines with ``index``, ``references`` and ``response``, by data set (empty for a single one) and seed."""
    measures: Mapping[str, Measure] = field(default_factory=dict)
    """How metrics are shown, if the run says so."""
    metrics: Path | None = None
    """The run directory with the learning curve."""
    starts_at: int = 0
    """Optimiser steps before the learning curve begins."""
    is_teacher: bool = False
    lacks: str = ""
    """The results that are missing from the folder."""


def read_runs(folders: Sequence[str | Path]) -> list[Entry]:
    """Read all models of all runs; a folder that is given twice counts once.

    Raises:
        ValueError: no folder, a folder that does not exist, or one that contains no run.
    """
    if not folders:
        raise ValueError(f"no runs given: name at least one, e.g. outputs/quickstart/seed_0; a run is {A_RUN}")
    entries: dict[tuple[Path, str], Entry] = {}
    for given in folders:
        folder = Path(given).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"there is no folder {str(given)!r}; a run is {A_RUN}")
        found = read_run(folder)
        if found is None:
            found = list(_read_sweep(folder))
        if not found:
            raise ValueError(f"{str(given)!r} contains no run; a run is {A_RUN}")
        entries |= {(entry.folder, entry.model): entry for entry in found}
    return list(entries.values())


def read_run(folder: Path) -> list[Entry] | None:
    """Return the models of one recipe, evaluation or training run, or ``None`` if the folder is none of them.

    Raises:
        ValueError: a file of the run is cut off, or lacks what every run writes.
    """
    config = runs.read_config(folder) or {}
    results = read_json(folder / RESULTS_JSON) or {}
    try:
        return _read(folder, config, results)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the run in {str(folder)!r} cannot be read, a file lacks something ({error!r})") from error


def _read(folder: Path, config: Mapping[str, Any], results: Mapping[str, Any]) -> list[Entry] | None:
    if "recipe" in config:
        return _read_recipe(folder, config, results)
    if "models" in results or {"models", "seeds"} <= config.keys():
        return _read_evaluation(folder, config, results)
    return [_read_training(folder, config)] if {"max_steps", "module"} <= config.keys() else None


# --- recipes --------------------------------------------------------------------------------------------------------


def _read_recipe(folder: Path, config: Mapping[str, Any], results: Mapping[str, Any]) -> list[Entry]:
    node = config["recipe"]
    stages, seeds = node["stages"], node["evaluate"]["seeds"]
    group = _group({"recipe": node, "teacher_seed": config.get("teacher_seed")}, folder, config)
    entries = []
    for stage in node["evaluate"]["models"]:
        title = stages[stage].get("title") or stage
        summary = results.get("models", {}).get(title, {})
        start = stages[stage].get("starts_at")
        start_config = runs.read_config(_beside(folder, config, start)) if start else None
        entry = Entry(
            model=title,
            group=group,
            folder=folder,
            split="test",
            values=_values(summary),
            seed=None if stage in node["shared"] else config["seed"],
            responses=_response_files(_beside(folder, config, f"evaluate_{stage}"), stage, seeds),
            measures=read_measures(results),
            metrics=_beside(folder, config, stage),
            starts_at=int((start_config or {}).get("max_steps", 0)),
            is_teacher=stage == node["teacher"],
            lacks="" if summary else f"{RESULTS_JSON} (the recipe has not finished)",
        )
        entries.append(entry)
    return entries


def _beside(folder: Path, config: Mapping[str, Any], stage: str) -> Path:
    """Return the folder of a stage, also if a recipe was moved together with its shared stages."""
    if stage.removeprefix("evaluate_") not in config["recipe"]["shared"]:
        return folder / stage
    shared = Path(config["shared_dir"])
    return (shared if shared.is_dir() else folder.parent / shared.name) / stage


def _values(summary: Mapping[str, Any]) -> dict[str, list[float]]:
    return {metric: value["values"] for metric, value in summary.items()}


# --- evaluations ----------------------------------------------------------------------------------------------------


def _read_evaluation(folder: Path, config: Mapping[str, Any], results: Mapping[str, Any]) -> list[Entry]:
    paths = config.get("models") or {"model": config.get("model")}
    teacher = (config.get("teacher") or {}).get("path")
    seeds, data_sets = results.get("seeds", []), [*(results.get("data_sets") or {})]
    return [
        Entry(
            model=name,
            group=str(folder),
            folder=folder,
            split=results.get("split", config.get("split", "test")),
            values=_values(summary),
            responses=_response_files(folder, name, seeds, data_sets),
            measures=read_measures(results),
            is_teacher=teacher is not None and paths.get(name) == teacher,
            lacks="" if "models" in results else f"{RESULTS_JSON} (the evaluation has not finished)",
        )
        for name, summary in results.get("models", {name: {} for name in paths}).items()
    ]


def _response_files(
    folder: Path, model: str, seeds: Sequence[int], data_sets: Sequence[str] = ()
) -> dict[tuple[str, int], Path]:
    names = ["", *(data_sets if len(data_sets) > 1 else ())]
    files = {
        (name, seed): folder / "responses" / "_".join(filter(None, [model, name, f"seed_{seed}.jsonl"]))
        for name in names
        for seed in seeds
    }
    return {key: file for key, file in files.items() if file.is_file()}


# --- training runs --------------------------------------------------------------------------------------------------


def _read_training(folder: Path, config: Mapping[str, Any]) -> Entry:
    """Read a training run: the validation of the best weights, or the last validation if none were kept."""
    metrics = read_json(folder / runs.METRICS_FILE)
    best = (metrics or {}).get("best")
    values, step = {}, None
    for metric in (column.key for column in USUAL_COLUMNS) if metrics else ():
        curve = dict(read_curve(folder, f"val/{metric}"))
        if curve:
            step = _step_of(curve, best["optimizer_steps"] if best else None)
            values[metric] = [curve[step]]
        elif f"val/{metric}" in metrics["last"]:
            values[metric] = [metrics["last"][f"val/{metric}"]]
    if best:  # the checkpoint has it in full precision
        values[best["metric"].removeprefix("val/")] = [best["value"]]
    samples = _sample_file(folder, best["optimizer_steps"] if best else step)
    not_identity = ("output_dir", "cache_dir", "logger", "callbacks")
    identity = {key: value for key, value in config.items() if key not in not_identity}
    return Entry(
        model=config["name"],
        group=_group(identity, folder, config),
        folder=folder,
        split="validation",
        values=values,
        seed=config["seed"],
        responses={("", config["validation"]["seed"]): samples} if samples else {},
        metrics=folder,
        lacks="" if metrics else f"{runs.METRICS_FILE} (the run has not finished)",
    )


def _step_of(curve: Mapping[int, float], optimizer_steps: int | None) -> int:
    """Return the step under which the logger has a validation: Lightning counts it from 0 while it trains."""
    if optimizer_steps is None:
        return max(curve)
    return next((step for step in (optimizer_steps, optimizer_steps - 1) if step in curve), max(curve))


def _sample_file(folder: Path, step: int | None) -> Path | None:
    if step is None:
        return None
    files = [folder / "samples" / f"val_step_{number:06d}.jsonl" for number in (step, step + 1)]
    return next((file for file in files if file.is_file()), None)


# --- sweeps ---------------------------------------------------------------------------------------------------------


def _read_sweep(folder: Path) -> Iterator[Entry]:
    """Read the runs in a folder, and name them by the overrides in which they differ."""
    jobs = sorted((item for item in folder.iterdir() if item.is_dir()), key=_job_order)
    found = {job: read_run(job) for job in jobs}
    overrides = {job: _overrides(job) for job in jobs if found[job] is not None or (job / _OVERRIDES).is_file()}
    for job, label in label_jobs(overrides).items():
        entries = found[job]
        if entries is None:
            yield Entry(label or job.name, str(folder), job, "", {}, lacks="everything (the job failed or was not run)")
        for entry in entries or ():
            single = len(entries or ()) == 1 and label
            name = label if single else (f"{entry.model}, {label}" if label else entry.model)
            # the label tells the jobs of a sweep apart; without a label, jobs differ at most in the seed
            yield replace(entry, model=name, group=f"{folder} {label}" if label else entry.group)


def _job_order(folder: Path) -> tuple[int, int, str]:
    return (0, int(folder.name), "") if folder.name.isdigit() else (1, 0, folder.name)


def _overrides(job: Path) -> dict[str, str]:
    file = job / _OVERRIDES
    lines = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else []
    pairs = (str(line).lstrip("+").partition("=") for line in lines or [])
    return {key: value for key, _, value in pairs}


def label_jobs(overrides: Mapping[Path, Mapping[str, str]]) -> dict[Path, str]:
    """Name jobs by the overrides in which they differ, without the training seed.

    Args:
        overrides: by job, ``{key: value}``.

    Returns:
        Names such as ``"teacher_mix_alpha=0.2, lr=1e-4"``; keys are shortened as long as they stay different.

    Example:
        >>> a, b = {"advantages.gamma": "1", "seed": "0"}, {"advantages.gamma": "0.9", "seed": "0"}
        >>> list(label_jobs({Path("0"): a, Path("1"): b}).values())
        ['gamma=1', 'gamma=0.9']
    """
    keys = list(dict.fromkeys(key for given in overrides.values() for key in given if key not in ("seed", "sweep")))
    differing = [key for key in keys if len({given.get(key) for given in overrides.values()}) > 1]
    last = [key.rpartition(".")[2] for key in differing]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(differing, last, strict=True)}
    return {
        job: ", ".join(f"{short[key]}={given[key]}" for key in differing if key in given)
        for job, given in overrides.items()
    }


# --- identity -------------------------------------------------------------------------------------------------------


def _group(identity: Mapping[str, Any], folder: Path, config: Mapping[str, Any]) -> str:
    """Return a digest of a run's settings (``identity``) that is the same for every training seed and folder."""
    places = {str(place): "<folder>" for place in (config.get("output_dir") or folder, folder)}
    return digest(_without_seed(replace_in_strings(identity, places), config["seed"]))[:16]


def _without_seed(value: Any, seed: int) -> Any:
    """Remove the training seed from a configuration, also from overrides and from the names of folders."""
    if isinstance(value, Mapping):
        return {key: _without_seed(item, seed) for key, item in value.items() if (key, item) != ("seed", seed)}
    if isinstance(value, list):  # the seeds of a recipe's stages are overrides; the teacher's is a setting of its own
        return [_without_seed(item, seed) for item in value if not re.fullmatch(r"seed=\d+", str(item))]
    return re.sub(rf"\bseed_{seed}\b", "seed_*", value) if isinstance(value, str) else value
