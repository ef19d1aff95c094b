"""Responses judged by a stronger model behind an API."""

from lightning_minillm.evaluation.judge.answers import Answers, CostLimits
from lightning_minillm.evaluation.judge.client import ChatClient, JudgeError
from lightning_minillm.evaluation.judge.evaluation import JudgeEvaluation

__all__ = ["Answers", "ChatClient", "CostLimits", "JudgeError", "JudgeEvaluation"]
