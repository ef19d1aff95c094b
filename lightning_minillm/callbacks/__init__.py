"""Lightning callbacks: what a run shows while it trains. None of them changes what is trained."""

from lightning_minillm.callbacks.checkpoint import ResumeCheckpoint
from lightning_minillm.callbacks.metric_plots import MetricPlots
from lightning_minillm.callbacks.progress import ProgressFile, RolloutProgressBar
from lightning_minillm.callbacks.sample_table import SampleTable
from lightning_minillm.callbacks.throughput import ThroughputMonitor

__all__ = ["MetricPlots", "ProgressFile", "ResumeCheckpoint", "RolloutProgressBar", "SampleTable", "ThroughputMonitor"]
