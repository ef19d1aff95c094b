"""Evaluations: measurements of students, teachers and baselines."""

from lightning_minillm.evaluation.base import Curve, Evaluation, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.classification.calibration import CalibrationEvaluation
from lightning_minillm.evaluation.classification.records import (
    ClassificationRecord,
    ClassificationSource,
    boolq_source,
    sst2_source,
)
from lightning_minillm.evaluation.data_sets import named_sources
from lightning_minillm.evaluation.divergence import DivergenceEvaluation
from lightning_minillm.evaluation.exposure_bias import ExposureBiasEvaluation
from lightning_minillm.evaluation.generation import GenerationEvaluation
from lightning_minillm.evaluation.judge.answers import CostLimits
from lightning_minillm.evaluation.judge.client import ChatClient, JudgeError
from lightning_minillm.evaluation.judge.evaluation import JudgeEvaluation
from lightning_minillm.evaluation.module import EvaluationModule, EvaluationProgressBar
from lightning_minillm.evaluation.prompt_sets import PromptItems, PromptSets
from lightning_minillm.evaluation.responses import ResponsesEvaluation
from lightning_minillm.evaluation.retrieval.evaluation import RetrievalEvaluation, load_encoder
from lightning_minillm.evaluation.retrieval.passages import (
    PassageSet,
    PassageSource,
    Question,
    peerqa_source,
    scifact_source,
)
from lightning_minillm.evaluation.runner import record_files, run_evaluation

__all__ = [
    "CalibrationEvaluation",
    "ChatClient",
    "ClassificationRecord",
    "ClassificationSource",
    "CostLimits",
    "Curve",
    "DivergenceEvaluation",
    "Evaluation",
    "EvaluationModule",
    "EvaluationProgressBar",
    "ExposureBiasEvaluation",
    "Findings",
    "GenerationEvaluation",
    "JudgeError",
    "JudgeEvaluation",
    "Measure",
    "PassageSet",
    "PassageSource",
    "Picture",
    "PromptItems",
    "PromptSets",
    "Question",
    "Record",
    "ResponsesEvaluation",
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
