"""The report of a recipe: all models in one table, learning curves, pictures and samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from lightning_minillm.cli.config import Config
from lightning_minillm.cli.recipe.stages import STATE_FILE, Stage
from lightning_minillm.figures import MAIN_METRICS
from lightning_minillm.files import read_json, write_text
from lightning_minillm.reports import evaluation as evaluation_report
from lightning_minillm.reports import plots
from lightning_minillm.reports.comparison import gather
from lightning_minillm.reports.read_runs import read_run
from lightning_minillm.reports.results import from_json
from lightning_minillm.reports.summary import RESULTS_JSON, USUAL_COLUMNS, side_by_side, summary_table, write_results
from lightning_minillm.reports.tables import Summary, print_table


def report_recipe(config: Config, stages: Mapping[str, Stage], console: Console) -> dict[str, Summary]:
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
    results = from_json([read_json(place / RESULTS_JSON) for place in places.values()], models)
    seed = node["evaluate"]["seeds"][0]
    responses = {models[model]: place / "responses" / f"{model}_seed_{seed}.jsonl" for model, place in places.items()}
    about = {
        "recipe": node["name"],
        "seed": config["seed"],
        "teacher_seed": config["teacher_seed"],
        "sampling_seeds": node["evaluate"]["seeds"],
        "stages": {name: read_json(stage.folder / STATE_FILE) for name, stage in stages.items()},
        **results.to_json(),
    }
    write_results(folder, results.models, about)
    title = f"{node['name']}: test split, seed {config['seed']}"
    teacher = [stages[node["teacher"]].title]
    notes = ["mean ± standard deviation over sampling seeds"]
    table = summary_table(results.models, title=title, notes=notes, not_ranked=teacher)
    write_text(folder / "table.md", table.to_markdown())
    write_text(folder / "samples.md", side_by_side(responses))
    curves = {metric: _curves(config, stages, metric) for metric in MAIN_METRICS}
    plots.plot_curves(curves, folder / "curves.png", list(results.models), plots.STEPS_FROM_INITIAL)
    plots.plot_bars(results.models, folder / "bars.png")
    facts = {
        "recipe": node["name"],
        "training seed": f"{config['seed']} (teacher {config['teacher_seed']})",
        "sampling seeds": ", ".join(map(str, node["evaluate"]["seeds"])),
        "learning curves": "[curves.png](curves.png)",
    }
    pictures = evaluation_report.draw_pictures(results, folder)
    evaluation_report.write_report(folder, title, facts, results, pictures, responses, not_ranked=teacher)
    print_table(table, console)
    more = [column for columns in results.groups.values() for column in columns if column not in USUAL_COLUMNS]
    print_table(summary_table(results.models, more, f"{title}, more", not_ranked=teacher), console)
    _report_seeds(config, teacher, console)
    return results.models


def _report_seeds(config: Config, teacher: list[str], console: Console) -> None:
    """If the recipe has finished for other training seeds in folders beside this one, show all seeds in one table."""
    folder = Path(config["output_dir"])
    group = next(entry.group for entry in read_run(folder) or ())
    entries = []
    for item in sorted(item for item in folder.parent.iterdir() if item.is_dir()):
        try:
            entries += [entry for entry in read_run(item) or () if entry.group == group and entry.values]
        except ValueError as error:  # something else, or a run that was cut off
            console.print(f"left out of the training seeds: {error}", markup=False)
    models = gather(entries, within_one_run=False)
    num_seeds = max(len(model.entries) for model in models)
    if num_seeds < 2:
        return
    title = f"{config['recipe']['name']}: test split, {num_seeds} training seeds"
    notes = ["mean ± standard deviation over training seeds"]
    summaries = {model.name: model.summary for model in models}
    table = summary_table(summaries, title=title, notes=notes, not_ranked=teacher)
    print_table(table, console)
    write_text(Path(config["shared_dir"]) / "training_seeds.md", table.to_markdown())


def _curves(config: Config, stages: Mapping[str, Stage], metric: str) -> dict[str, plots.Curve]:
    """Return each student's curve over all its optimiser steps, including those of the student it started from."""
    curves = {}
    for name, settings in config["recipe"]["stages"].items():
        if settings["command"] == "train" and name != config["recipe"]["teacher"]:
            start = settings.get("starts_at")
            offset = stages[start].config["max_steps"] if start else 0
            curve = plots.read_curve(stages[name].folder, metric)
            curves[stages[name].title] = [(step + offset, value) for step, value in curve]
    return curves
