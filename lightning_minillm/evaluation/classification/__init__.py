"""Classification by the likelihood of answers, and its calibration."""
