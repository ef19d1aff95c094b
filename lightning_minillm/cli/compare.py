"""``minillm-compare``: one table over models and seeds, with significance and learning curves."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from lightning_minillm.cli.config import Config, quote, run_command, to_plain
from lightning_minillm.files import write_json, write_text
from lightning_minillm.reports import plots
from lightning_minillm.reports import summary as report
from lightning_minillm.reports.comparison import (
    TEACHER,
    Model,
    add_tests,
    choose_baseline,
    choose_columns,
    column_of,
    gather,
)
from lightning_minillm.reports.read_runs import read_runs
from lightning_minillm.reports.tables import Column, Row, Table

KEYS = "baseline curves metrics num_resamples output_dir runs significance teacher_name".split()
# Words of Hydra's own command line that the next word belongs to.
_TAKES_A_WORD = {
    "--config-dir",
    "-cd",
    "--config-name",
    "-cn",
    "--config-path",
    "-cp",
    "--package",
    "-p",
    "--info",
    "-i",
}


def compare(cfg: DictConfig | Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Put runs side by side in one table; the pictures show their learning curves and the table's means.

    Args:
        cfg: as composed from ``conf/compare.yaml``.

    Returns:
        ``{model: {metric: {"mean", "std", "values"}}}``, and objects: ``config``, ``table``, ``models``.

    Raises:
        ValueError: a folder that is no run, or a baseline, teacher or metric that no run has.
    """
    config = to_plain(cfg, KEYS)
    if not 0 < config["significance"] < 1:
        raise ValueError(f"significance must lie between 0 and 1, got {config['significance']}")
    models = gather(read_runs(config["runs"]), config["teacher_name"])
    columns = choose_columns(models, config["metrics"])
    baseline = choose_baseline(models, config["baseline"])
    add_tests(models, baseline, config["num_resamples"])
    table = _table(models, columns, baseline, config["significance"])
    _write(config, models, columns, table)
    console = report.make_console()
    console.print(table.to_rich())
    for note in table.notes:
        console.print(note, style="dim", markup=False, highlight=False)
    console.print(f"everything is in {config['output_dir']}", markup=False, highlight=False)
    return {model.name: model.summary for model in models}, {"config": config, "table": table, "models": models}


# --- output ---------------------------------------------------------------------------------------------------------


def _table(
    models: Sequence[Model], columns: Sequence[Column], baseline: Model | None, significance: float, title: str = ""
) -> Table:
    """Make the table: a star for what is significant, and p for every column of Rouge-L."""
    keys = {column.key: column.title for column in columns}
    tested = [key for key in keys if any(key in model.tests for model in models)]
    shown = []
    for column in columns:
        shown.append(column)
        if column.key in tested:
            shown.append(Column(f"{column.key}_p", "p", 3))
    rows = []
    for model in models:
        ps = {f"{key}_p": model.tests[key][0].p_value for key in tested if key in model.tests}
        values = {**model.summary, **{key: {"mean": p, "std": 0.0, "values": [p]} for key, p in ps.items()}}
        marks = {key.removesuffix("_p"): "*" for key, p in ps.items() if p < significance}
        rows.append(Row(model.name, values, marks, model.section, ranked=model.section != TEACHER))
    return Table(shown, rows, title or _title(models), _notes(models, columns, baseline, tested, significance))


def _title(models: Sequence[Model]) -> str:
    splits = sorted({model.section for model in models} - {TEACHER, ""})
    return "Results on the " + " and ".join(f"{split} split" for split in splits) if splits else "Results"


def _notes(
    models: Sequence[Model],
    columns: Sequence[Column],
    baseline: Model | None,
    tested: Sequence[str],
    significance: float,
) -> list[str]:
    """Say what deviations and stars mean, and what is missing."""
    notes = [f"mean ± deviation; {_repetitions(models)}"]
    if tested and baseline is not None:
        prompts = sorted({model.tests[key][1] for model in models for key in tested if key in model.tests})
        notes.append(
            f"* differs from {baseline.name} in Rouge-L with p < {significance:g} (paired bootstrap over"
            f" {' or '.join(map(str, prompts))} prompts, two-sided, not corrected for the number of rows)"
        )
    elif baseline is not None and len(models) > 1:
        notes.append(f"nothing to test: no model has responses to the same prompts as {baseline.name}")
    for section in sorted({model.section for model in models} - {TEACHER, ""}):
        if len({model.section for model in models} - {TEACHER, ""}) > 1:
            names = _listed(model.name for model in models if model.section == section)
            notes.append(f"on the {section} split: {names}")
    for model in models:
        for entry in model.entries:
            if entry.lacks:
                notes.append(f"{model.name}: {entry.folder} lacks {entry.lacks}")
        missing = [column.title for column in columns if column.key not in model.summary]
        if missing and not all(entry.lacks for entry in model.entries):
            notes.append(f"{model.name}: no {', '.join(missing)}")
    return notes


def _repetitions(models: Sequence[Model]) -> str:
    """Say over what the deviations are."""
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
    """Join names, in quotes where a comma of their own would mislead."""
    return ", ".join(f'"{name}"' if "," in name else name for name in names)


def _write(config: Config, models: Sequence[Model], columns: Sequence[Column], table: Table) -> None:
    """Write every file."""
    folder = Path(config["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    curves = {metric: {model.name: _curve(model, metric) for model in models} for metric in config["curves"]}
    later = any(entry.starts_at for model in models for entry in model.entries)
    x_label = plots.STEPS_FROM_INITIAL if later else plots.STEPS
    plots.plot_curves(curves, folder / "curves.png", [model.name for model in models], x_label)
    plots.plot_bars({model.name: model.summary for model in models}, folder / "bars.png")
    everything = [column_of(models, key) for key in dict.fromkeys(key for model in models for key in model.summary)]
    write_text(folder / "compare.tex", table.to_latex())
    write_text(folder / "compare.csv", _table(models, everything, None, config["significance"]).to_csv())
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
            {
                "folder": str(entry.folder),
                "training_seed": entry.seed,
                "split": entry.split,
                "lacks": entry.lacks or None,
            }
            for entry in model.entries
        ],
        "metrics": model.summary,
        "difference_to_baseline": {
            key: {**difference._asdict(), "prompts": prompts} for key, (difference, prompts) in model.tests.items()
        },
    }


# --- command line ---------------------------------------------------------------------------------------------------


def translate_paths(words: Sequence[str]) -> list[str]:
    """Turn plain paths into ``runs=[...]``, which Hydra's grammar takes.

    Raises:
        ValueError: paths given in both ways.

    Example:
        >>> translate_paths(["a/b", "baseline=SFT", "c"])
        ['baseline=SFT', "runs=['a/b','c']"]
    """
    paths, others, belongs = [], [], False
    for word in words:
        is_path = not belongs and not word.startswith("-") and ("=" not in word or Path(word).exists())
        (paths if is_path else others).append(word)
        belongs = word in _TAKES_A_WORD
    if paths and any(word.startswith("runs=") for word in others):
        raise ValueError(f"give the runs as paths ({', '.join(paths)}) or as runs=[...], not both")
    return [*others, *([f"runs=[{','.join(map(quote, paths))}]"] if paths else [])]


def main() -> None:
    """Run ``compare`` from the command line."""
    try:
        sys.argv[1:] = translate_paths(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    run_command(compare, "compare")


if __name__ == "__main__":
    main()
