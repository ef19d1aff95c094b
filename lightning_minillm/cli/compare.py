"""``minillm-compare``: one table over models and seeds, with significance and learning curves."""

from __future__ import annotations

import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_minillm.cli.console import quiet_libraries
from lightning_minillm.cli.errors import short_errors
from lightning_minillm.figures import MAIN_METRICS
from lightning_minillm.reports import A_RUN

if TYPE_CHECKING:  # the imports of what does the work wait until the arguments are right
    from lightning_minillm.reports.comparison import Model
    from lightning_minillm.reports.tables import Summary, Table


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`."""

    table: Table
    models: Sequence[Model]
    """The rows."""
    folder: Path
    """Where the files were written."""

    @property
    def summaries(self) -> dict[str, Summary]:
        """Return ``{model: {metric: {"mean", "std", "values"}}}``."""
        return {model.name: model.summary for model in self.models}


def compare(
    runs: Sequence[str | Path],
    *,
    baseline: str | None = None,
    teacher: str | None = None,
    metrics: Sequence[str] | None = None,
    significance: float = 0.05,
    num_resamples: int = 2000,
    curves: Sequence[str] = MAIN_METRICS,
    output_dir: str | Path | None = None,
) -> Comparison:
    """Put runs side by side in one table, with pictures of their learning curves and of the table's means.

    Args:
        runs: folders of recipes, of ``minillm-evaluate``, of training runs, or of sweeps of them.
        baseline: the row to test the others against by a paired bootstrap over prompts; by default SFT, or the first
            row that is not a teacher.
        teacher: a row to set apart and not to rank, besides those that the runs call a teacher.
        metrics: the columns; by default Rouge-L of every data set, exact match, reverse KL, response length and loss
            (all metrics if there is none of these).
        significance: differences in Rouge-L with a smaller p get a star, in (0, 1); p is two-sided and not corrected
            for the number of rows.
        num_resamples: number of times the prompts are resampled, at least 1.
        curves: metrics of which to draw learning curves.
        output_dir: folder for ``compare.md``, ``.tex``, ``.csv``, ``.json``, ``curves.png`` and ``bars.png``; by
            default ``outputs/compare/`` and the time.

    Returns:
        The table and its rows.

    Raises:
        ValueError: a folder that holds no run, a baseline, teacher or metric that no run has, or an ``output_dir`` that
            holds a run.
    """
    if output_dir is not None and (Path(output_dir) / "config.yaml").exists():
        raise ValueError(f"output_dir {str(output_dir)!r} contains a run, whose report would be overwritten")
    if not 0 < significance < 1:
        raise ValueError(f"significance must be between 0 and 1, got {significance}")
    from lightning_minillm.reports.comparison import add_tests, choose_baseline, choose_columns, gather
    from lightning_minillm.reports.comparison_report import comparison_table, write_comparison
    from lightning_minillm.reports.read_runs import read_runs
    from lightning_minillm.reports.tables import print_table

    folder = Path(output_dir or time.strftime("outputs/compare/%Y-%m-%d_%H-%M-%S"))
    models = gather(read_runs(runs), teacher)
    columns = choose_columns(models, metrics)
    reference = choose_baseline(models, baseline)
    add_tests(models, reference, num_resamples)
    table = comparison_table(models, columns, reference, significance)
    write_comparison(folder, models, table, curves)
    print_table(table)
    print(f"results are written to {folder}")
    return Comparison(table, models, folder)


def make_parser() -> ArgumentParser:
    """Return the parser of the command line, whose names are the arguments of :func:`compare`."""
    parser = ArgumentParser(
        "minillm-compare",
        description="Put runs side by side in one table, with significance tests and learning curves.",
        epilog=f"A run is {A_RUN}.",
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="FOLDER", help="a run, or a folder of runs such as a sweep")
    add("--baseline", metavar="ROW", help="test the others against this row (default: SFT, or the first student)")
    add("--teacher", metavar="ROW", help="set this row apart, besides those that the runs call a teacher")
    add("--metrics", nargs="+", metavar="KEY", help="columns, such as rougeL dist4 (default: the usual ones)")
    add("--significance", type=float, default=0.05, metavar="P", help="a smaller p gets a star (default: 0.05)")
    add("--num-resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    usual = " ".join(MAIN_METRICS)
    add("--curves", nargs="*", default=MAIN_METRICS, metavar="KEY", help=f"learning curves (default: {usual})")
    add("--output-dir", metavar="FOLDER", help="where to write (default: outputs/compare/ and the time)")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Run ``compare`` from the command line."""
    arguments = make_parser().parse_args(words)
    with short_errors():
        quiet_libraries()
        compare(**vars(arguments))


if __name__ == "__main__":
    main()
