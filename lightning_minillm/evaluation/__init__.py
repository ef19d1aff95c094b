"""Evaluations: what is measured of students, teachers and baselines."""

from lightning_minillm.evaluation.base import Curve, Evaluation, Findings, Measure, Picture, Record

__all__ = ["Curve", "Evaluation", "Findings", "Measure", "Picture", "Record"]
