"""Classification by the likelihood of answers, and its calibration."""

from lightning_minillm.evaluation.classification.calibration import CalibrationEvaluation
from lightning_minillm.evaluation.classification.records import (
    ClassificationRecord,
    ClassificationSource,
    boolq_source,
    sst2_source,
)

__all__ = ["CalibrationEvaluation", "ClassificationRecord", "ClassificationSource", "boolq_source", "sst2_source"]
