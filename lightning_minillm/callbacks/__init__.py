"""Lightning callbacks: checkpoints to resume from, progress, speed, samples and plots.

Only :class:`ResumeCheckpoint` touches training: it restores random states and step counts so that a resumed run equals
an uninterrupted one. The others observe.
"""

from lightning_minillm.callbacks.checkpoint import BestCheckpoint, ResumeCheckpoint
from lightning_minillm.callbacks.metric_plots import MetricPlots
from lightning_minillm.callbacks.progress import ProgressFile, RolloutProgressBar
from lightning_minillm.callbacks.progress_lines import ProgressLines, evaluation_progress, training_progress
from lightning_minillm.callbacks.sample_table import SampleTable
from lightning_minillm.callbacks.throughput import ThroughputMonitor

__all__ = [
    "BestCheckpoint",
    "MetricPlots",
    "ProgressFile",
    "ProgressLines",
    "ResumeCheckpoint",
    "RolloutProgressBar",
    "SampleTable",
    "ThroughputMonitor",
    "evaluation_progress",
    "training_progress",
]
