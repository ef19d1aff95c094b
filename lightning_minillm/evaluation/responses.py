"""What a model says: responses to the prompts of data sets, compared with references and with a teacher.

Legend: B rows, N target tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_minillm.evaluation.base import Curve, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.items import metric_name
from lightning_minillm.evaluation.prompted import PromptedEvaluation
from lightning_minillm.functional.divergences import reverse_kl
from lightning_minillm.functional.logprobs import TokenStates, chunk_bounds, target_logprobs
from lightning_minillm.losses.chunking import tokens_per_chunk
from lightning_minillm.metrics import DistinctNGrams, RepeatedNGrams, RougeLByLength, normalize, rouge_l
from lightning_minillm.rollout import decode_responses, sampler_for
from lightning_minillm.rollout.scoring import rollout_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_minillm.models import ModelPair
    from lightning_minillm.rollout import SamplingConfig
    from lightning_minillm.types import EvaluationBatch, RolloutBatch, TokenBatch

BUCKETS = RougeLByLength().names
MEASURES = {
    "rougeL": Measure("Rouge-L", 2, True),
    "exact_match": Measure("exact match %", 1, True),
    "reverse_kl": Measure("reverse KL / token", 4, False),
    "response_length": Measure("response tokens", 1),
    "loss": Measure("loss", 3, False),
    "repetition": Measure("repeated 4-grams %", 1, False),
    "dist4": Measure("distinct 4-grams %", 1, True),
    **{f"rougeL_{name}": Measure(f"Rouge-L, {name} tokens", 2, True) for name in BUCKETS},
}
PICTURES = {
    "rougeL_by_length": Picture(
        title="Rouge-L by length of the reference",
        x_label="tokens of the reference",
        y_label="Rouge-L",
        kind="bars",
        x_ticks=BUCKETS,
    )
}


class Responses(PromptedEvaluation):
    """Samples a response to every prompt for every seed.

    The arguments are those of :class:`~lightning_minillm.evaluation.prompted.PromptedEvaluation`.
    """

    name = "responses"
    measures_of_a_set = MEASURES
    pictures_of_a_set = PICTURES

    # --- before any model -------------------------------------------------------------------------------------------

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise the data sets."""
        super().prepare(tokenizer)
        self.reference_lengths: dict[str, list[int]] = {}
        for name, data in self.data.items():
            references = [record.responses[0] for record in data.records]
            ids = tokenizer(references, add_special_tokens=False, verbose=False).input_ids
            self.reference_lengths[name] = [len(row) for row in ids]

    # --- with a model -----------------------------------------------------------------------------------------------

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Sample a batch of responses and score them; with the first seed, also the references."""
        place, name, rows = self.find(items)
        batch = self.data[name].evaluation_batch(rows).to(pair.device)
        # processes that gather shards make the same passes
        scores_references = place == 0 or pair.placement.shards_models
        records = measure_responses(pair, batch, self.sampling, self.seeds[place], scores_references)
        for item, row, record in zip(items, rows, records, strict=True):
            record |= {
                "item": item,
                "data_set": name,
                "seed": self.seeds[place],
                "reference_tokens": self.reference_lengths[name][row],
            }
            if place != 0:
                record.pop("reference_loss", None)
                record.pop("loss_tokens", None)
        return records

    # --- afterwards -------------------------------------------------------------------------------------------------

    def findings(self, records: Sequence[Record]) -> Findings:
        """Compute every metric of each data set and seed."""
        values: dict[str, list[float]] = {}
        curves = {}
        for name in self.sources:
            key = partial(metric_name, data_set=name, data_sets=self.sources)
            own = [record for record in records if record["data_set"] == name]
            loss = mean_reference_loss(own)
            for seed in self.seeds:
                summary = summarise_responses([record for record in own if record["seed"] == seed]) | {"loss": loss}
                for metric, value in summary.items():
                    if not math.isnan(value):  # else there was nothing to measure it on
                        values.setdefault(key(metric), []).append(value)
            means = [values.get(key(f"rougeL_{bucket}")) for bucket in BUCKETS]
            found = [(float(place), sum(mean) / len(mean)) for place, mean in enumerate(means) if mean]
            curves[key("rougeL_by_length")] = Curve(*map(list, zip(*found, strict=True)))
        return Findings({name: values[name] for name in self.measures if name in values}, curves)

    def texts(self, records: Sequence[Record]) -> dict[str, list[Record]]:
        """Return the responses of each data set and seed, row by row."""
        files: dict[str, list[Record]] = {}
        for record in sorted(records, key=lambda record: record["item"]):
            prefix = f"{record['data_set']}_" if len(self.sources) > 1 else ""
            kept = {key: value for key, value in record.items() if key not in ("item", "data_set", "seed")}
            files.setdefault(f"{prefix}seed_{record['seed']}", []).append(kept)
        return files


def measure_responses(
    pair: ModelPair, batch: EvaluationBatch, sampling: SamplingConfig, seed: int, scores_references: bool = True
) -> list[Record]:
    """Sample a response to every prompt of a batch, and compare it with the references and with the teacher.

    Args:
        pair: student and, if there is one, teacher.
        batch: B rows, on the pair's device.
        sampling: of the student alone.
        seed: of the sampling noise.
        scores_references: also run the student over the first reference of each row.

    Returns:
        B records: ``index``, ``task``, ``prompt``, ``references``, ``response``, ``exact``, ``rougeL`` in percent, and
        ``response_tokens``; with a teacher ``reverse_kl`` (nats, summed over the response); if asked for,
        ``reference_loss`` (nats, summed over the reference) and ``loss_tokens`` (their number).
    """
    rollouts = sampler_for(pair, sampling).sample(batch.prompts, seed=seed)
    columns: dict[str, list[Any]] = {"response_tokens": rollouts.lengths.tolist()}
    if pair.teacher is not None:
        columns["reverse_kl"] = _reverse_kl(pair, rollouts, sampling.temperature or 1.0)
    if scores_references:
        columns["reference_loss"], columns["loss_tokens"] = _reference_loss(pair, batch.tokens)
    records = []
    for row, response in enumerate(decode_responses(pair.tokenizer, rollouts)):
        record = {
            "index": int(batch.prompts.indices[row]),
            "task": batch.tasks[row],
            "prompt": batch.prompt_texts[row],
            "references": list(batch.references[row]),
            "response": response,
            "exact": batch.exact[row],
            "rougeL": rouge_l(response, batch.references[row]),
        }
        records.append(record | {key: values[row] for key, values in columns.items()})
    return records


def summarise_responses(records: Sequence[Record]) -> dict[str, float]:
    """Return the metrics of one seed's responses to one data set; NaN where there was nothing to measure.

    Args:
        records: as :func:`measure_responses` returns them, at least one; with ``reference_tokens`` where Rouge-L by
            length is wanted.
    """
    buckets, repetition, distinct = RougeLByLength(), RepeatedNGrams(), DistinctNGrams()
    texts = [record["response"] for record in records]
    for record in records:
        if "reference_tokens" in record:
            buckets.add(record["rougeL"], record["reference_tokens"])
    judged = [record for record in records if record["exact"]]
    matches = [normalize(record["response"]) in map(normalize, record["references"]) for record in judged]
    tokens = [record["response_tokens"] for record in records]
    values = {
        "rougeL": sum(record["rougeL"] for record in records) / len(records),
        "exact_match": 100 * sum(matches) / len(matches) if matches else math.nan,
        "response_length": sum(tokens) / len(tokens),
    }
    if "reference_tokens" in records[0]:  # of an evaluation, on one rank
        repetition.update(texts)
        distinct.update(texts)
        values |= {"repetition": repetition.compute(), "dist4": distinct.compute()}
        values |= {f"rougeL_{name}": value for name, value in buckets.compute().items()}
    if "reverse_kl" in records[0]:
        values["reverse_kl"] = sum(record["reverse_kl"] for record in records) / sum(tokens)
    if any("reference_loss" in record for record in records):
        values["loss"] = mean_reference_loss(records)
    return {name: float(value) for name, value in values.items()}


def token_reverse_kl(student: TokenStates, teacher: TokenStates, temperature: float = 1.0) -> Tensor:
    """Return KL(student || teacher) of every token, a chunk at a time: ``[N]`` float32, on the ids that both have.

    Args:
        student: N states.
        teacher: states of the same tokens.
        temperature: divides the logits of both; positive.
    """
    pieces = []
    for start, stop in chunk_bounds(len(student), tokens_per_chunk("auto", student)):
        logits = [states.logits(start, stop, temperature) for states in (student, teacher)]
        shared = min(value.shape[-1] for value in logits)
        pieces.append(reverse_kl(*(value[:, :shared] for value in logits)))
    return torch.cat(pieces)


def _reverse_kl(pair: ModelPair, rollouts: RolloutBatch, temperature: float) -> list[float]:
    """Return KL(student || teacher) summed over the tokens of each response."""
    batch = rollout_sequences(rollouts)
    student, _ = pair.token_states(batch)
    return _row_sums(token_reverse_kl(student, pair.teacher_token_states(batch), temperature), batch.target_mask)


def _reference_loss(pair: ModelPair, batch: TokenBatch) -> tuple[list[float], list[int]]:
    """Return -log q summed over the target tokens of each row, and how many these are."""
    states, target_ids = pair.token_states(batch)
    return _row_sums(-target_logprobs(states, target_ids), batch.target_mask), batch.target_mask.sum(-1).tolist()


def _row_sums(values: Tensor, mask: Tensor) -> list[float]:
    """Sum token values ``[N]`` over the rows of the mask ``[B, L]`` that they come from."""
    rows = mask.cpu().nonzero()[:, 0]
    sums: list[float] = torch.zeros(len(mask), dtype=torch.float64).index_add_(0, rows, values.double().cpu()).tolist()
    return sums


def mean_reference_loss(records: Sequence[Record]) -> float:
    """Return the loss of the references by token; it is known of one seed's records, since no seed changes it."""
    scored = [record for record in records if "reference_loss" in record]
    total = sum(record["reference_loss"] for record in scored)
    tokens = sum(record["loss_tokens"] for record in scored)
    return float(total / tokens)
