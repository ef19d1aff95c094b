"""The report of a recipe: all models in one table, learning curves, pictures and samples."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from lightning_minillm.cli.config import Config
from lightning_minillm.cli.recipe.stages import Stage
from lightning_minillm.files import read_json, write_text
from lightning_minillm.reports import evaluation as evaluation_report
from lightning_minillm.reports import plots
from lightning_minillm.reports import summary as report
from lightning_minillm.reports.results import from_json

CURVES = ("val/rougeL", "val/reverse_kl", "val/loss", "val/response_length")


def report_recipe(config: Config, stages: Mapping[str, Stage], console: Console) -> dict[str, Any]:
    """Gather the evaluations into tables, files and plots.

    Args:
        config: the recipe's, plain.
        stages: all of them, finished.
        console: where the tables are printed.

    Returns:
        ``{model: {metric: {"mean", "std", "values"}}}``.
    """
    node, folder = config["recipe"], Path(config["output_dir"])
    models = {model: stages[model].title for model in node["evaluate"]["models"]}
    places = {model: stages[f"evaluate_{model}"].folder for model in models}
    results = from_json([read_json(place / report.RESULTS_JSON) for place in places.values()], models)
    seed = node["evaluate"]["seeds"][0]
    responses = {models[model]: place / "responses" / f"{model}_seed_{seed}.jsonl" for model, place in places.items()}
    about = {
        "recipe": node["name"],
        "seed": config["seed"],
        "teacher_seed": config["teacher_seed"],
        "settings": _settings(config),
        "sampling_seeds": node["evaluate"]["seeds"],
        "stages": {name: read_json(stage.folder / "stage.json") for name, stage in stages.items()},
        **results.to_json(),
    }
    report.write_results(folder, results.models, about)
    write_text(folder / "table.md", report.markdown_table(results.models))
    write_text(folder / "samples.md", report.side_by_side(responses))
    curves = {metric: _curves(config, stages, metric) for metric in CURVES}
    plots.plot_curves(curves, folder / "curves.png", list(results.models), plots.STEPS_FROM_INITIAL)
    plots.plot_bars(results.models, folder / "bars.png")
    title = f"{node['name']}: test split, seed {config['seed']}"
    facts = {
        "recipe": node["name"],
        "training seed": f"{config['seed']} (teacher {config['teacher_seed']})",
        "sampling seeds": ", ".join(map(str, node["evaluate"]["seeds"])),
        "learning curves": "[curves.png](curves.png)",
    }
    pictures = evaluation_report.draw_pictures(results, folder)
    evaluation_report.write_report(folder, title, facts, results, pictures, responses)
    teacher = stages[node["teacher"]].title
    report.print_table(results.models, title, console, not_ranked=[teacher])
    shown = {key for key, *_ in report.COLUMNS}
    more = [column for columns in results.groups.values() for column in columns if column[0] not in shown]
    evaluation_report.print_wide(results.models, more, f"{title}, more", console, not_ranked=[teacher])
    _report_seeds(config, teacher, console)
    return results.models


def _report_seeds(config: Config, teacher: str, console: Console) -> None:
    """Where other training seeds have ended beside this one, show all of them in one table."""
    beside = sorted(folder for folder in Path(config["output_dir"]).parent.iterdir() if folder.is_dir())
    results = report.over_training_seeds(beside, _settings(config))
    runs_of_each = max(len(value["values"]) for summary in results.values() for value in summary.values())
    if runs_of_each < 2:
        return
    title = f"{config['recipe']['name']}: test split, {runs_of_each} training seeds"
    report.print_table(results, title, console, not_ranked=[teacher])
    write_text(Path(config["shared_dir"]) / "training_seeds.md", report.markdown_table(results))


def _settings(config: Config) -> str:
    """Return a digest of the recipe that is the same for every training seed."""
    text = json.dumps([config["recipe"], config["teacher_seed"]]).replace(config["output_dir"], "")
    return hashlib.sha256(re.sub(r'"seed=\d+"', "", text).encode()).hexdigest()[:16]


def _curves(config: Config, stages: Mapping[str, Stage], metric: str) -> dict[str, plots.Curve]:
    """Return each student's curve over all its optimiser steps, those of the student it started from included."""
    curves = {}
    for name, settings in config["recipe"]["stages"].items():
        if settings["command"] == "train" and name != config["recipe"]["teacher"]:
            start = settings.get("starts_at")
            offset = stages[start].config["max_steps"] if start else 0
            curve = plots.read_curve(stages[name].folder, metric)
            curves[stages[name].title] = [(step + offset, value) for step, value in curve]
    return curves
