"""Reports: tables and pictures of results, and the folders of runs that they are read from."""

A_RUN = (
    "a recipe's folder (results.json), an output folder of minillm-evaluate (results.json), a training run"
    " (config.yaml, metrics.json), or a sweep (a folder of such folders)"
)
"""The folders that can be compared."""
