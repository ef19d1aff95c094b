"""Metrics of responses."""

from lightning_minillm.metrics.responses import ExactMatch, RougeL

__all__ = ["ExactMatch", "RougeL"]
