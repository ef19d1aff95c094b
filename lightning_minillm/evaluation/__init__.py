"""Evaluations: what is measured of students, teachers and baselines."""

from lightning_minillm.evaluation.base import Curve, Evaluation, Findings, Measure, Picture, Record
from lightning_minillm.evaluation.calibration import CalibrationEvaluation
from lightning_minillm.evaluation.data_sets import named_sources
from lightning_minillm.evaluation.divergence import DivergenceEvaluation
from lightning_minillm.evaluation.exposure_bias import ExposureBiasEvaluation
from lightning_minillm.evaluation.judge import JudgeEvaluation
from lightning_minillm.evaluation.judge_client import ChatClient, JudgeError
from lightning_minillm.evaluation.module import EvaluationModule, EvaluationProgressBar
from lightning_minillm.evaluation.prompted import PromptedEvaluation
from lightning_minillm.evaluation.responses import Responses
from lightning_minillm.evaluation.retrieval import RetrievalEvaluation, load_encoder
from lightning_minillm.evaluation.runner import record_files, run_evaluation

__all__ = [
    "CalibrationEvaluation",
    "ChatClient",
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
    "Picture",
    "PromptedEvaluation",
    "Record",
    "Responses",
    "RetrievalEvaluation",
    "load_encoder",
    "named_sources",
    "record_files",
    "run_evaluation",
]
