"""Evaluations: what is measured of students, teachers and baselines."""

from lightning_minillm.evaluation.base import Curve, Evaluation, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.classification import (
    CalibrationEvaluation,
    ClassificationRecord,
    ClassificationSource,
    boolq_source,
    sst2_source,
)
from lightning_minillm.evaluation.data_sets import named_sources
from lightning_minillm.evaluation.divergence import DivergenceEvaluation
from lightning_minillm.evaluation.exposure_bias import ExposureBiasEvaluation
from lightning_minillm.evaluation.judge import ChatClient, JudgeError, JudgeEvaluation
from lightning_minillm.evaluation.module import EvaluationModule, EvaluationProgressBar
from lightning_minillm.evaluation.prompted import PromptedEvaluation
from lightning_minillm.evaluation.responses import Responses
from lightning_minillm.evaluation.retrieval import (
    PassageSet,
    PassageSource,
    Question,
    RetrievalEvaluation,
    load_encoder,
    peerqa_source,
    scifact_source,
)
from lightning_minillm.evaluation.runner import record_files, run_evaluation

__all__ = [
    "CalibrationEvaluation",
    "ChatClient",
    "ClassificationRecord",
    "ClassificationSource",
    "Curve",
    "DivergenceEvaluation",
    "Evaluation",
    "EvaluationModule",
    "EvaluationProgressBar",
    "ExposureBiasEvaluation",
    "Findings",
    "JudgeError",
    "JudgeEvaluation",
    "Measure",
    "PassageSet",
    "PassageSource",
    "Picture",
    "PromptedEvaluation",
    "Question",
    "Record",
    "Responses",
    "RetrievalEvaluation",
    "boolq_source",
    "load_encoder",
    "named_sources",
    "peerqa_source",
    "record_files",
    "run_evaluation",
    "scifact_source",
    "sst2_source",
]
