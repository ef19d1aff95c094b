"""Calibration: whether a model is right as often as it is confident.

Legend: K label words, N examples of a data set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error
from transformers import PreTrainedTokenizerBase

from lightning_minillm.data import EncodedInstructions, InstructionRecord, Lengths, PromptTemplate
from lightning_minillm.evaluation.base import (
    Curve,
    Evaluation,
    Findings,
    Measure,
    Picture,
    Record,
    join_sets,
    pictures_of_sets,
)
from lightning_minillm.evaluation.classification.records import ClassificationSource
from lightning_minillm.evaluation.data_sets import ItemNumbers, batches_by_length, digest_of_data, require_data
from lightning_minillm.evaluation.scoring import response_scores
from lightning_minillm.functional.calibration import reliability_bins
from lightning_minillm.models import ModelPair

MEASURES = {
    "ece": Measure("ECE", 3, False),
    "accuracy": Measure("accuracy %", 1, True),
    "confidence": Measure("mean confidence %", 1),
}
PICTURES = {"reliability": Picture("Reliability", "confidence", "accuracy", kind="reliability")}
_ROOM_FOR_WORDS = 64


@dataclass(frozen=True)
class _Examples:
    """A tokenised data set: K rows per example, each with one of the label words as response."""

    rows: EncodedInstructions
    labels: tuple[int, ...]
    num_words: int

    def __len__(self) -> int:
        return len(self.labels)


class CalibrationEvaluation(Evaluation):
    """Expected calibration error and accuracy of a classifier made from a language model.

    Each label word is scored as the beginning of a response to the prompt, by the sum of the log-probabilities of its
    tokens; a softmax over the label words gives the probabilities of the classes.

    The findings are ``ece`` (a fraction, as in the paper: bins of equal width, weighted by their number of
    predictions), ``accuracy`` and ``confidence`` (percent), and the curve of the reliability diagram: accuracy over
    confidence, for the bins with predictions.

    Args:
        datasets: examples by the name of the data set; those without a path are left out. If one is left, metrics have
            plain names; if several are, the name of the data set comes first.
        template: makes the prompts.
        max_prompt_length: maximum number of tokens of a prompt; longer prompts are left out, with a warning.
        batch_size: number of sequences that one rank processes together, K per example.
        num_bins: number of bins of the confidence, at least 1.
        cache_dir: folder for tokenised data; ``None`` tokenises every time.

    Raises:
        ValueError: ``num_bins`` or ``batch_size`` is below 1.

    Source: MiniLLM (arXiv 2306.08543), section 3.3, "calibration"; Guo et al. (arXiv 1706.04599), eq. 3.
    """

    name = "calibration"

    def __init__(
        self,
        datasets: Mapping[str, ClassificationSource],
        template: PromptTemplate,
        *,
        max_prompt_length: int = 256,
        batch_size: int = 64,
        num_bins: int = 10,
        cache_dir: str | None = None,
    ) -> None:
        if num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {num_bins}")
        if batch_size < 1:
            raise ValueError(f"the batch size must be at least 1, got {batch_size}")
        self.known = tuple(datasets)
        self.sources = {name: source for name, source in datasets.items() if source.path is not None}
        self.template = template
        self.max_prompt_length = max_prompt_length
        self.batch_size = batch_size
        self.num_bins = num_bins
        self.cache_dir = cache_dir
        self.data: dict[str, _Examples] = {}
        self.items = ItemNumbers({})
        self.data_sets = tuple(self.sources)
        self.measures = join_sets(dict.fromkeys(self.sources, MEASURES))
        self.pictures = pictures_of_sets(PICTURES, self.data_sets)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read the data sets, and tokenise every prompt with every label word.

        Raises:
            ValueError: no data set has a path; or data is missing, empty or broken, or has a label without a word.
        """
        require_data(self.name, self.known, self.sources)
        for name, source in self.sources.items():
            try:
                self.data[name] = self._encode(name, source, tokenizer)
            except FileNotFoundError as error:
                raise ValueError(f"data set {name!r}: {error}") from error
        self.items = ItemNumbers({name: len(data) for name, data in self.data.items()})

    def _encode(self, name: str, source: ClassificationSource, tokenizer: PreTrainedTokenizerBase) -> _Examples:
        examples, words = source.load(), source.label_words
        _check_words(name, words, tokenizer)
        rows = EncodedInstructions(
            [
                InstructionRecord(one.instruction, one.input, (word,), str(one.label))
                for one in examples
                for word in words
            ],
            tokenizer,
            self.template,
            Lengths(self.max_prompt_length + _ROOM_FOR_WORDS, self.max_prompt_length, cache_dir=self.cache_dir),
            add_bos=self.add_bos,
        )
        if rows.num_truncated:
            raise ValueError(
                f"data set {name!r}: a label word of {words} has {_ROOM_FOR_WORDS} tokens or more: shorten it"
            )
        if rows.num_dropped:
            rank_zero_warn(
                f"{name}: {rows.num_dropped // len(words)} of {len(examples)} prompts have more than"
                f" max_prompt_length={self.max_prompt_length} tokens and are left out"
            )
        # the rows of an example have the same prompt, so they are kept or dropped together
        labels = tuple(int(record.task) for record in rows.records[:: len(words)])
        return _Examples(rows, labels, len(words))

    def batches(self) -> list[list[int]]:
        """Return each data set's examples in batches of prompts of similar length."""
        batches = []
        for name, data in self.data.items():
            count = data.num_words
            by_length = batches_by_length(data.rows, len(data.rows))[0]
            examples = [row // count for row in by_length if row % count == 0]
            size = max(1, self.batch_size // count)
            batches += [
                self.items.number(name, examples[start : start + size]) for start in range(0, len(examples), size)
            ]
        return batches

    def identity(self) -> dict[str, Any]:
        """Return the name, the batch size, and a digest of prompts, label words and labels."""
        rows = {name: data.rows for name, data in self.data.items()}
        return {"name": self.name, "batch_size": self.batch_size, "data": digest_of_data(rows)}

    def step(self, pair: ModelPair, items: Sequence[int]) -> list[Record]:
        """Score the label words of a batch of examples: the log-probability of each under the prompt."""
        name, examples = self.items.find(items)
        data = self.data[name]
        rows = [example * data.num_words + word for example in examples for word in range(data.num_words)]
        scores = response_scores(pair, data.rows.token_batch(rows, normalizer=1.0))
        of_words = [scores[start : start + data.num_words] for start in range(0, len(scores), data.num_words)]
        return [
            {"item": item, "data_set": name, "label": data.labels[example], "logprobs": logprobs}
            for item, example, logprobs in zip(items, examples, of_words, strict=True)
        ]

    def summarise(self, name: str, records: Sequence[Record]) -> Findings:
        """Compute the metrics and the reliability curve."""
        probabilities = torch.tensor([record["logprobs"] for record in records], dtype=torch.float64).softmax(-1)
        labels = torch.tensor([record["label"] for record in records])
        measured = calibration_metrics(probabilities, labels, self.num_bins)
        confidence, predicted = probabilities.max(-1)
        bins = reliability_bins(confidence, predicted == labels, self.num_bins)
        filled = bins.counts > 0
        curve = Curve(bins.confidence[filled].tolist(), bins.accuracy[filled].tolist())
        return Findings({key: [value] for key, value in measured.items()}, {"reliability": curve})


def calibration_metrics(probabilities: Tensor, labels: Tensor, num_bins: int = 10) -> dict[str, float]:
    """Return expected calibration error (a fraction), accuracy and mean confidence (percent).

    Args:
        probabilities: ``[N, K]`` of the classes; each row sums to 1.
        labels: ``[N]`` int64 in ``[0, K)``.
        num_bins: number of bins, of equal width.

    Example:
        >>> found = calibration_metrics(torch.tensor([[0.75, 0.25], [0.75, 0.25]]), torch.tensor([0, 1]))
        >>> {name: round(value, 4) for name, value in found.items()}
        {'ece': 0.25, 'accuracy': 50.0, 'confidence': 75.0}
    """
    classes = probabilities.shape[-1]
    error = multiclass_calibration_error(probabilities, labels, num_classes=classes, n_bins=num_bins, norm="l1")
    accuracy = multiclass_accuracy(probabilities, labels, num_classes=classes, average="micro")
    return {
        "ece": float(error),
        "accuracy": 100 * float(accuracy),
        "confidence": 100 * float(probabilities.max(-1).values.mean()),
    }


def _check_words(name: str, words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that label words have tokens, and differ in them."""
    ids = [tuple(tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    if len(set(ids)) < len(ids) or not all(ids):
        raise ValueError(
            f"data set {name!r}: the label words {', '.join(map(repr, words))} have the token ids {ids} in this"
            " tokenizer and cannot be told apart: choose words that are in its vocabulary"
        )
