"""Sampled responses to the prompts of data sets, compared with references and with a teacher.

Legend: B rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_minillm.evaluation.base import Curve, Evaluation, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.prompt_sets import PromptItems, PromptSets
from lightning_minillm.evaluation.scoring import pair_divergences, row_sums, target_scores
from lightning_minillm.functional.divergences import reverse_kl
from lightning_minillm.metrics import (
    Words,
    choose_words,
    count_unseen,
    distinct_ngrams,
    exact_match,
    repeated_ngrams,
    rouge_l,
)
from lightning_minillm.metrics.words import check_words
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import SamplingConfig, decode_responses, sampler_for
from lightning_minillm.rollout.scoring import rollout_sequences
from lightning_minillm.types import EvaluationBatch, RolloutBatch

LENGTH_BUCKETS = {"0-5": (0, 5), "6-10": (6, 10), "11+": (11, math.inf)}
"""The paper's buckets of the reference's length in tokens, both ends included."""
MEASURES = {
    "rougeL": Measure("Rouge-L", 2, True),
    "exact_match": Measure("exact match %", 1, True),
    "reverse_kl": Measure("reverse KL / token", 4, False),
    "response_length": Measure("response tokens", 1),
    "loss": Measure("loss", 3, False),
    "repetition": Measure("repeated 4-grams %", 1, False),
    "dist4": Measure("distinct 4-grams %", 1, True),
    **{f"rougeL_{name}": Measure(f"Rouge-L, {name} tokens", 2, True) for name in LENGTH_BUCKETS},
}


class ResponsesEvaluation(PromptItems, Evaluation):
    """Samples a response to every prompt for every seed.

    Args:
        prompts: the data sets, and how models respond to them.
        words: what Rouge-L, exact match and n-grams compare; see :data:`~lightning_minillm.metrics.Words`.
    """

    name = "responses"
    measures_of_set: ClassVar = MEASURES
    pictures_of_set: ClassVar = {
        "rougeL_by_length": Picture(
            title="Rouge-L by length of the reference",
            x_label="tokens of the reference",
            y_label="Rouge-L",
            kind="bars",
            x_ticks=tuple(LENGTH_BUCKETS),
        )
    }

    def __init__(self, prompts: PromptSets, *, words: Words = "auto") -> None:
        check_words(words)
        super().__init__(prompts)
        self.words = words
        self.reference_lengths: dict[str, list[int]] = {}

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise the data sets, and count the tokens of their references.

        References in which Rouge-L finds no word are counted in a warning.
        """
        super().prepare(tokenizer)
        for name, data in self.prompts.data.items():
            warn_of_unseen(name, [record.responses for record in data.records], self.words)
            references = [record.responses[0] for record in data.records]
            ids = tokenizer(references, add_special_tokens=False, verbose=False).input_ids
            self.reference_lengths[name] = [len(row) for row in ids]

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Sample a batch of responses and score them; with the first seed, also score the references."""
        seed, name, rows = self.prompts.find(items)
        batch = self.prompts.data[name].evaluation_batch(rows).to(pair.device)
        is_first = seed == self.prompts.seeds[0]
        # processes that gather shards make the same passes
        scores_references = is_first or pair.placement.shards_models
        records = measure_responses(pair, batch, self.prompts.sampling, seed, scores_references, self.words)
        for item, row, record in zip(items, rows, records, strict=True):
            record |= {
                "item": item,
                "data_set": name,
                "seed": seed,
                "words": choose_words(record["references"], self.words),
                "reference_tokens": self.reference_lengths[name][row],
            }
            if not is_first:
                record.pop("reference_loss", None)
                record.pop("loss_tokens", None)
        return records

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Compute every metric of each seed; responses without text are counted in a warning."""
        num_empty = sum(not record["response"].strip() for record in records)
        if num_empty:
            rank_zero_warn(f"{name}: {num_empty} of {len(records)} responses are empty and score 0")
        values: dict[str, list[float]] = {}
        loss = mean_reference_loss(records)
        for seed in self.prompts.seeds:
            own = [record for record in records if record["seed"] == seed]
            summary = summarise_responses(own, self.words) | {"loss": loss}
            for metric, value in summary.items():
                if not math.isnan(value):  # otherwise no record has it
                    values.setdefault(metric, []).append(value)
        means = [values.get(f"rougeL_{bucket}") for bucket in LENGTH_BUCKETS]
        found = [(float(place), sum(mean) / len(mean)) for place, mean in enumerate(means) if mean]
        return Findings(values, {"rougeL_by_length": Curve(*map(list, zip(*found, strict=True)))})

    def identity(self) -> dict[str, Any]:
        """Return what determines prompts, responses and scores."""
        return {**super().identity(), "words": self.words}

    def texts(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Return the responses of each data set and seed, row by row."""
        files: dict[str, list[Record]] = {}
        for record in records:
            row = {key: value for key, value in record.items() if key not in ("item", "data_set", "seed")}
            files.setdefault(self.file_name(record, f"seed_{record['seed']}"), []).append(row)
        return files


def measure_responses(
    pair: ModelPair,
    batch: EvaluationBatch,
    sampling: SamplingConfig,
    seed: int,
    scores_references: bool = True,
    words: Words = "auto",
) -> list[Record]:
    """Sample a response to every prompt of a batch, and compare it with the references and with the teacher.

    Args:
        pair: student and, if there is one, teacher.
        batch: B rows, on the pair's device.
        sampling: of the student alone.
        seed: of the sampling noise.
        scores_references: also run the student over the first reference of each row.
        words: of Rouge-L.

    Returns:
        B records: ``index``, ``task``, ``prompt``, ``references``, ``response``, ``exact``, ``rougeL`` in percent, and
        ``response_tokens``; with a teacher ``reverse_kl`` (nats, summed over the response); if asked for,
        ``reference_loss`` (nats, summed over the reference) and ``loss_tokens`` (the number of its tokens).
    """
    rollouts = sampler_for(pair, sampling).sample(batch.prompts, seed=seed)
    columns: dict[str, list[Any]] = {"response_tokens": rollouts.lengths.tolist()}
    if pair.teacher is not None:
        tokens = rollout_sequences(rollouts)
        divergences = pair_divergences(pair, tokens, {"reverse_kl": reverse_kl}, sampling)
        columns["reverse_kl"] = row_sums(divergences["reverse_kl"], tokens.target_mask)
    if scores_references:
        columns["reference_loss"] = [-score for score in target_scores(pair, batch.tokens)]
        columns["loss_tokens"] = batch.tokens.target_mask.sum(-1).tolist()
    records = describe_responses(pair, batch, rollouts)
    for row, record in enumerate(records):
        record |= {"exact": batch.exact[row], "rougeL": rouge_l(record["response"], record["references"], words)}
        record |= {key: values[row] for key, values in columns.items()}
    return records


def describe_responses(pair: ModelPair, batch: EvaluationBatch, rollouts: RolloutBatch) -> list[Record]:
    """Return ``index``, ``task``, ``prompt``, ``references`` and ``response`` of each row of a batch."""
    responses = decode_responses(pair.tokenizer, rollouts)
    return [
        {"index": int(index), "task": task, "prompt": prompt, "references": list(references), "response": response}
        for index, task, prompt, references, response in zip(
            batch.prompts.indices, batch.tasks, batch.prompt_texts, batch.references, responses, strict=True
        )
    ]


def summarise_responses(records: Sequence[Record], words: Words = "auto") -> dict[str, float]:
    """Return the metrics of one seed's responses to one data set; NaN for a metric that no record has.

    Args:
        records: as returned by :func:`measure_responses`, at least one; with ``reference_tokens`` for Rouge-L by
            length.
        words: of exact match and n-grams.
    """
    texts = [record["response"] for record in records]
    chosen = [choose_words(record["references"], words) for record in records]
    exact = [record for record in records if record["exact"]]
    tokens = [record["response_tokens"] for record in records]
    values = {
        "rougeL": _mean([record["rougeL"] for record in records]),
        "exact_match": _mean(
            [100.0 * exact_match(record["response"], record["references"], words) for record in exact]
        ),
        "response_length": _mean(tokens),
        "repetition": repeated_ngrams(texts, words=chosen),
        "dist4": distinct_ngrams(texts, words=chosen),
    }
    for name, (shortest, longest) in LENGTH_BUCKETS.items():
        lengths = [record.get("reference_tokens", -1) for record in records]
        scores = [row["rougeL"] for row, count in zip(records, lengths, strict=True) if shortest <= count <= longest]
        values[f"rougeL_{name}"] = _mean(scores)
    if "reverse_kl" in records[0]:
        values["reverse_kl"] = sum(record["reverse_kl"] for record in records) / sum(tokens)
    if any("reference_loss" in record for record in records):
        values["loss"] = mean_reference_loss(records)
    return values


def mean_reference_loss(records: Sequence[Record]) -> float:
    """Return the mean loss per token of the references, over the records that have it: those of the first seed."""
    scored = [record for record in records if "reference_loss" in record]
    total = sum(record["reference_loss"] for record in scored)
    return float(total / sum(record["loss_tokens"] for record in scored))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def warn_of_unseen(name: str, references: Sequence[Sequence[str]], words: Words) -> None:
    """Warn if Rouge-L finds no word in some rows of references, and say which option finds one.

    Args:
        name: of the data set.
        references: of each row.
        words: see :data:`~lightning_minillm.metrics.Words`.
    """
    unseen = count_unseen(references, words)
    if unseen:
        found = unseen - count_unseen(references, "unicode")
        remedy = f"words=unicode finds some in {found} of them" if found > 0 else "they have neither letters nor digits"
        rank_zero_warn(
            f"{name}: rougeL sees no token in {unseen} of {len(references)} references (words={words}), so every"
            f" response to them scores 0: {remedy}"
        )
