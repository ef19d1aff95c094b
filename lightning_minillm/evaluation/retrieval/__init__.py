"""Retrieval of passages by the likelihood of a question."""

from lightning_minillm.evaluation.retrieval.evaluation import RetrievalEvaluation, load_encoder
from lightning_minillm.evaluation.retrieval.passages import (
    PassageSet,
    PassageSource,
    Question,
    peerqa_source,
    scifact_source,
)

__all__ = [
    "PassageSet",
    "PassageSource",
    "Question",
    "RetrievalEvaluation",
    "load_encoder",
    "peerqa_source",
    "scifact_source",
]
