from types import SimpleNamespace

import pytest
import torch

from lightning_minillm.callbacks import MetricPlots


class ImageLogger:
    def __init__(self):
        self.images = []

    def log_image(self, **kwargs):
        self.images.append(kwargs)


def trainer(step, value, *loggers, rank_zero=True, sanity=False):
    metrics = {"val/rougeL": torch.tensor(value), "other": torch.tensor(9.0)}
    return SimpleNamespace(
        loggers=list(loggers),
        is_global_zero=rank_zero,
        sanity_checking=sanity,
        global_step=step,
        callback_metrics=metrics,
    )


def test_validations_are_drawn_and_logged(tmp_path):
    logger, plots = ImageLogger(), MetricPlots(str(tmp_path / "plots" / "validation.png"))
    plots.on_validation_end(trainer(0, 5.0, sanity=True), None)
    plots.on_validation_end(trainer(5, 10.0, logger, object()), None)
    first = plots.file.read_bytes()
    plots.on_validation_end(trainer(10, 20.0, logger), None)
    assert plots.curves == {"val/rougeL": {5: 10.0, 10: 20.0}}
    assert first[:4] == b"\x89PNG"
    assert plots.file.read_bytes() != first
    assert [image["step"] for image in logger.images] == [5, 10]


def test_a_resumed_run_keeps_its_curves(tmp_path):
    before, after = (MetricPlots(str(tmp_path / f"{name}.png")) for name in "ab")
    before.on_validation_end(trainer(5, 10.0), None)
    after.load_state_dict(before.state_dict())
    after.on_validation_end(trainer(5, 11.0), None)
    after.on_validation_end(trainer(6, 12.0), None)
    assert after.curves == {"val/rougeL": {5: 11.0, 6: 12.0}}


def test_only_the_first_rank_draws(tmp_path):
    plots = MetricPlots(str(tmp_path / "a.png"))
    plots.on_validation_end(trainer(5, 10.0, rank_zero=False), None)
    assert not plots.file.exists()


def test_something_must_be_drawn():
    with pytest.raises(ValueError, match="at least one"):
        MetricPlots("a.png", metrics=[])
