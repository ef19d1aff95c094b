"""The metrics of one evaluation."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_minillm.metrics import ExactMatch, RougeL


class EvaluationMetrics(nn.Module):
    """The metrics of one evaluation; see ``docs/metrics.md``."""

    def __init__(self) -> None:
        super().__init__()
        self.rouge_l = RougeL()
        self.exact_match = ExactMatch()
        self.response_length = MeanMetric()
        self.loss = MeanMetric()
        self.reverse_kl = MeanMetric()

    def compute(self) -> dict[str, Tensor]:
        """Return what was measured; a metric that saw nothing on any rank is left out."""
        names = {"rougeL": self.rouge_l, "exact_match": self.exact_match, "response_length": self.response_length}
        names |= {"loss": self.loss, "reverse_kl": self.reverse_kl}
        values = {name: metric.compute() for name, metric in names.items() if metric.update_called}
        # these two divide by the rows they saw on all ranks; any other NaN is a fact about the model
        unseen = {name for name in ("rougeL", "exact_match") if name in values and values[name].isnan()}
        return {name: value for name, value in values.items() if name not in unseen}

    def reset(self) -> None:
        """Forget what was seen."""
        for metric in self.children():
            metric.reset()
