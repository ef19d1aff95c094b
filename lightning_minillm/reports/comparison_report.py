"""The report of a comparison: one table with its notes, learning curves and bars, as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_minillm.files import write_json, write_text
from lightning_minillm.reports import plots
from lightning_minillm.reports.comparison import TEACHER, Model, column_of
from lightning_minillm.reports.summary import summarise
from lightning_minillm.reports.tables import Column, Row, Table


def comparison_table(
    models: Sequence[Model], columns: Sequence[Column], baseline: Model | None = None, significance: float = 0.05
) -> Table:
    """Return the table: p beside every tested column of Rouge-L, and a star if p is below ``significance``."""
    tested = [column.key for column in columns if any(column.key in model.tests for model in models)]
    shown = []
    for column in columns:
        shown.append(column)
        if column.key in tested:
            shown.append(Column(f"{column.key}_p", "p", 3))
    rows = []
    for model in models:
        p_values = {key: model.tests[key][0].p_value for key in tested if key in model.tests}
        values = {**model.summary, **{f"{key}_p": summarise([p]) for key, p in p_values.items()}}
        marks = {key: "*" for key, p in p_values.items() if p < significance}
        rows.append(Row(model.name, values, marks, model.section, ranked=model.section != TEACHER))
    return Table(shown, rows, _title(models), _notes(models, columns, baseline, tested, significance))


def _splits(models: Sequence[Model]) -> list[str]:
    return sorted({model.section for model in models} - {TEACHER, ""})


def _title(models: Sequence[Model]) -> str:
    splits = " and ".join(f"{split} split" for split in _splits(models))
    return f"Results on the {splits}" if splits else "Results"


def _notes(
    models: Sequence[Model],
    columns: Sequence[Column],
    baseline: Model | None,
    tested: Sequence[str],
    significance: float,
) -> list[str]:
    """Explain deviations and stars, and name missing results."""
    notes = [f"mean ± deviation; {_repetitions(models)}"]
    if tested and baseline is not None:
        prompts = sorted({model.tests[key][1] for model in models for key in tested if key in model.tests})
        notes.append(
            f"* differs from {baseline.name} in Rouge-L with p < {significance:g} (paired bootstrap over"
            f" {' or '.join(map(str, prompts))} prompts, two-sided, not corrected for the number of rows)"
        )
    elif baseline is not None and len(models) > 1:
        notes.append(f"nothing was tested: no model has responses to the same prompts as {baseline.name}")
    splits = _splits(models)
    for split in splits if len(splits) > 1 else ():
        notes.append(f"on the {split} split: {_listed(model.name for model in models if model.section == split)}")
    for model in models:
        notes += [f"{model.name}: {entry.folder} lacks {entry.lacks}" for entry in model.entries if entry.lacks]
        missing = [column.title for column in columns if column.key not in model.summary]
        if missing and not all(entry.lacks for entry in model.entries):
            notes.append(f"{model.name}: no {', '.join(missing)}")
    return notes


def _repetitions(models: Sequence[Model]) -> str:
    """Say what the deviations are taken over."""
    kinds: dict[str, list[str]] = {}
    for model in models:
        finished = [entry for entry in model.entries if entry.values]
        if len(finished) > 1:
            seeds = ", ".join(str(entry.seed) for entry in finished)
            kinds.setdefault(f"over {len(finished)} training seeds ({seeds})", []).append(model.name)
        elif finished:
            count = max(map(len, finished[0].values.values()), default=0)
            kinds.setdefault(f"over {count} sampling seed(s) of one training run", []).append(model.name)
    if len(kinds) == 1:
        return next(iter(kinds))
    return "; ".join(f"{_listed(names)} {kind}" for kind, names in kinds.items()) or "nothing was measured"


def _listed(names: Iterable[str]) -> str:
    """Join names, with quotes around those that contain a comma."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


# --- files ----------------------------------------------------------------------------------------------------------


def write_comparison(folder: Path, models: Sequence[Model], table: Table, curves: Sequence[str]) -> None:
    """Write ``compare.md``, ``.tex``, ``.csv`` and ``.json``, ``curves.png`` and ``bars.png``.

    Args:
        folder: the folder to write to.
        models: the rows.
        table: what Markdown and LaTeX show; CSV and JSON hold every metric.
        curves: metrics of which to draw learning curves, such as ``val/rougeL``.
    """
    later = any(entry.starts_at for model in models for entry in model.entries)
    plots.plot_curves(
        {metric: {model.name: _curve(model, metric) for model in models} for metric in curves},
        folder / "curves.png",
        [model.name for model in models],
        plots.STEPS_FROM_INITIAL if later else plots.STEPS,
    )
    plots.plot_bars({model.name: model.summary for model in models}, folder / "bars.png")
    everything = [column_of(models, key) for key in dict.fromkeys(key for model in models for key in model.summary)]
    write_text(folder / "compare.tex", table.to_latex())
    write_text(folder / "compare.csv", comparison_table(models, everything).to_csv())
    write_json(folder / "compare.json", {"models": {model.name: _to_json(model) for model in models}})
    sources = [f"- {model.name}: " + ", ".join(f"`{entry.folder}`" for entry in model.entries) for model in models]
    pictures = [
        f"![{title}]({file})"
        for title, file in (("Learning curves", "curves.png"), ("Means and deviations", "bars.png"))
        if (folder / file).is_file()
    ]
    parts = [f"# {table.title}", table.to_markdown(), *pictures, "## Runs", "\n".join(sources)]
    write_text(folder / "compare.md", "\n\n".join(part.strip() for part in parts) + "\n")


def _curve(model: Model, metric: str) -> plots.Curve:
    """Return the mean learning curve over training seeds, at the steps that all of them have."""
    found = [
        {step + entry.starts_at: value for step, value in plots.read_curve(entry.metrics, metric)}
        for entry in model.entries
        if entry.metrics is not None and not entry.is_teacher
    ]
    curves = [curve for curve in found if curve]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(step, fmean(curve[step] for curve in curves)) for step in steps]


def _to_json(model: Model) -> dict[str, Any]:
    return {
        "section": model.section,
        "runs": [
            {"folder": str(run.folder), "training_seed": run.seed, "split": run.split, "lacks": run.lacks or None}
            for run in model.entries
        ],
        "metrics": model.summary,
        "difference_to_baseline": {
            key: {**difference._asdict(), "prompts": prompts} for key, (difference, prompts) in model.tests.items()
        },
    }
