"""Metrics of responses: functions of texts, and torchmetrics classes that accumulate them over batches and ranks."""

from lightning_minillm.metrics.diversity import distinct_ngrams, repeated_ngrams
from lightning_minillm.metrics.exposure_bias import ExposureBias
from lightning_minillm.metrics.responses import ExactMatch, RougeL, exact_match, rouge_l
from lightning_minillm.metrics.words import Words, choose_words, count_unseen, normalize, split_words

__all__ = [
    "ExactMatch",
    "ExposureBias",
    "RougeL",
    "Words",
    "choose_words",
    "count_unseen",
    "distinct_ngrams",
    "exact_match",
    "normalize",
    "repeated_ngrams",
    "rouge_l",
    "split_words",
]
