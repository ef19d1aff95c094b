import sys

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_minillm.callbacks import RolloutProgressBar, evaluation_progress, training_progress
from lightning_minillm.callbacks.progress_lines import ProgressLines
from lightning_minillm.evaluation import EvaluationProgressBar


class Rolling(L.LightningModule):
    """Announces rollouts at the start of each epoch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rollout_listeners = []

    def on_train_epoch_start(self):
        for done in (2, 4):
            for listener in self.rollout_listeners:
                listener(done, 4)

    def training_step(self, batch, batch_idx):
        self.log("train/loss", 2.0)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.5)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", 1.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Clock:
    """Ten seconds later at every look."""

    now = 0.0

    def __call__(self):
        self.now += 10
        return self.now


def make_trainer(tmp_path, *callbacks):
    return L.Trainer(
        accelerator="cpu",
        max_steps=8,
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=True,
        enable_model_summary=False,
        num_sanity_val_steps=1,
        default_root_dir=tmp_path,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lines_come_now_and_then(tmp_path, capsys):
    data, module = DataLoader(torch.ones(4, 1)), Rolling()
    lines = ProgressLines(interval=25, clock=Clock())
    make_trainer(tmp_path, lines).fit(module, data, data)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition("] ")[2] for line in printed] == [
        "step 1 of 8, train/loss 2",
        "step 4 of 8, train/loss 2",
        "step 4: val/loss 1.5",
        "step 5 of 8, train/loss 2",
        "step 8 of 8, train/loss 2",
        "step 8: val/loss 1.5",
    ]
    assert module.rollout_listeners == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_rollouts_and_tests_are_shown_too(tmp_path, capsys):
    data, module = DataLoader(torch.ones(2, 1)), Rolling()
    trainer = make_trainer(tmp_path, ProgressLines(interval=0))
    trainer.fit(module, data, data)
    trainer.test(module, data, verbose=False)
    printed = capsys.readouterr().out
    assert "rollouts: 2 of 4" in printed
    assert "batch 2 of 2" in printed


def test_the_display_fits_the_place(monkeypatch):
    assert type(training_progress()) is ProgressLines
    assert type(evaluation_progress(interval=5)) is ProgressLines
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert type(training_progress()) is RolloutProgressBar
    assert type(evaluation_progress()) is EvaluationProgressBar


def test_a_hidden_display_prints_nothing(capsys):
    lines = ProgressLines(interval=0)
    lines.disable()
    lines._on_rollout(1, 2)
    assert capsys.readouterr().out == ""
    lines.enable()
    lines._on_rollout(1, 2)
    assert capsys.readouterr().out.endswith("rollouts: 1 of 2\n")
    with pytest.raises(ValueError, match="interval must be at least 0"):
        ProgressLines(interval=-1)
