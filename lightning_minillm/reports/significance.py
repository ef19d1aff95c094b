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

Answers = dict[tuple[int | None, int], Mapping[int, tuple[str, float]]]
"""By training seed and sampling seed: each prompt and its Rouge-L, by its index."""


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
    first, second = _answers(model, data_set), _answers(baseline, data_set)
    if not first or not second or not _same_prompts(first, second):
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
        torch.tensor([fmean(row[index][1] for row in rows.values()) for index in prompts], dtype=torch.float64)
        for rows in (first, second)
    ]
    return paired_bootstrap(*means, num_resamples=num_resamples), len(prompts)


def _answers(entries: Sequence[Entry], data_set: str) -> Answers:
    return {
        (entry.seed, seed): _read(file, file.stat().st_mtime_ns)
        for entry in entries
        for (name, seed), file in entry.responses.items()
        if name == data_set
    }


def _same_prompts(*models: Answers) -> bool:
    """Whether an index means the same prompt in all files."""
    known: dict[int, str] = {}
    files = [answers for model in models for answers in model.values()]
    return all(known.setdefault(index, text) == text for file in files for index, (text, _) in file.items())


@cache
def _read(file: Path, version: int) -> Mapping[int, tuple[str, float]]:
    """Read a file once per version (the time it was modified); the score is computed if it is not stored."""
    found = {}
    for row in iterate_json_lines(file):
        score = (
            row["rougeL"] if "rougeL" in row else rouge_l(row["response"], row["references"], row.get("words", "auto"))
        )
        found[row["index"]] = (row["prompt"], score)
    return found
