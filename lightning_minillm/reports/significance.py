"""Whether the difference between a model's Rouge-L and a baseline's is significant: a paired bootstrap over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import torch

from lightning_minillm.files import iterate_json_lines
from lightning_minillm.functional.bootstrap import PairedDifference, paired_bootstrap
from lightning_minillm.metrics.responses import rouge_l
from lightning_minillm.reports.read_runs import Entry

Scores = dict[tuple[int | None, int], dict[int, float]]
"""By training seed and sampling seed: Rouge-L of each prompt by its index."""


def compare_with_baseline(
    model: Sequence[Entry], baseline: Sequence[Entry], data_set: str = "", num_resamples: int = 2000
) -> tuple[PairedDifference, int] | None:
    """Compare two models on the prompts that both have answered.

    The score of a prompt is its mean over the training and sampling seeds that both models have. If they have no
    training seed in common, as with a teacher, it is the mean over all training seeds of each model.

    Args:
        model: the entries of the model, one per training seed.
        baseline: the entries of the baseline, one per training seed.
        data_set: name of the data set of the prompts; empty if there is only one.
        num_resamples: number of times the prompts are resampled.

    Returns:
        The difference, model minus baseline, and the number of prompts; ``None`` if no prompt is common to both.
    """
    first, second = scores(model, data_set), scores(baseline, data_set)
    if not first or not second or not _same_prompts(model, baseline, data_set):
        return None
    common_runs = first.keys() & second.keys()
    if common_runs:
        first, second = ({key: rows[key] for key in common_runs} for rows in (first, second))
    else:
        seeds = {seed for _, seed in first} & {seed for _, seed in second}
        first, second = ({key: row for key, row in rows.items() if key[1] in seeds} for rows in (first, second))
        if not seeds:
            return None
    prompts = sorted(set.intersection(*(set(row) for rows in (first, second) for row in rows.values())))
    if not prompts:
        return None
    means = [
        torch.tensor([fmean(row[index] for row in rows.values()) for index in prompts], dtype=torch.float64)
        for rows in (first, second)
    ]
    return paired_bootstrap(*means, num_resamples=num_resamples), len(prompts)


def scores(entries: Sequence[Entry], data_set: str = "") -> Scores:
    """Return the Rouge-L of every prompt: the stored score, or else one computed from the texts."""
    return {
        (entry.seed, seed): {index: score for index, (_, score) in _read(file).items()}
        for entry in entries
        for (name, seed), file in entry.responses.items()
        if name == data_set
    }


def _same_prompts(model: Sequence[Entry], baseline: Sequence[Entry], data_set: str) -> bool:
    """Whether an index means the same prompt in all files."""
    known: dict[int, str] = {}
    files = [file for entry in (*model, *baseline) for (name, _), file in entry.responses.items() if name == data_set]
    return all(known.setdefault(index, text) == text for file in files for index, (text, _) in _read(file).items())


def _read(file: Path) -> Mapping[int, tuple[str, float]]:
    """Return the prompt and the Rouge-L by index."""
    return _read_version(file, file.stat().st_mtime_ns)


@cache
def _read_version(file: Path, version: int) -> Mapping[int, tuple[str, float]]:
    """Read a file once per version; it is read again when it has changed."""
    found = {}
    for row in iterate_json_lines(file):
        score = row["rougeL"] if "rougeL" in row else rouge_l(row["response"], row["references"])
        found[row["index"]] = (row["prompt"], score)
    return found
