import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_minillm.callbacks import ProgressFile, RolloutProgressBar
from lightning_minillm.callbacks.progress import CollectsRollouts
from lightning_minillm.modules import on_policy_kd


class Rolling(L.LightningModule):
    """Announces two rounds of rollouts at the start of each epoch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.rollout_listeners = []

    def on_train_epoch_start(self):
        for done in (2, 4):
            for listener in self.rollout_listeners:
                listener(done, 4)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", 1.5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, module, *callbacks, progress=False, checkpoints=False, max_steps=6, ckpt_path=None, **kwargs):
    data = DataLoader(torch.ones(4, 1))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=checkpoints,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **kwargs,
    )
    trainer.fit(module, data, data, ckpt_path=ckpt_path)
    return trainer


class Recording(RolloutProgressBar):
    """Notes what the bar of the rollouts shows."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def _on_rollout(self, done, total):
        super()._on_rollout(done, total)
        task = next(task for task in self.progress.tasks if task.description.endswith("Rollouts"))
        self.seen.append((task.completed, task.total, task.visible))


def test_bar_shows_rollouts_and_hides_when_they_are_done(tmp_path):
    module, bar = Rolling(), Recording()
    fit(tmp_path, module, bar, progress=True)
    assert bar.seen == [(2, 4, True), (4, 4, False)] * 2
    assert module.rollout_listeners == []


@pytest.mark.parametrize(("max_epochs", "shown"), [(-1, "Epoch 0"), (5, "Epoch 0/4")])
def test_bar_leaves_out_a_number_of_epochs_that_is_not_limited(max_epochs, shown, tmp_path):
    seen = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            if trainer.current_epoch == 0:
                seen.append(trainer.progress_bar_callback.train_progress_bar.description.strip())

    fit(tmp_path, Rolling(), RolloutProgressBar(), Watch(), progress=True, max_epochs=max_epochs)
    assert set(seen) == {shown}


def test_bar_of_a_run_that_is_resumed_inside_an_epoch(tmp_path):
    bar, kept = RolloutProgressBar(), ModelCheckpoint(tmp_path, filename="kept", every_n_train_steps=6)
    fit(tmp_path, Rolling(), kept, checkpoints=True)
    fit(tmp_path, Rolling(), bar, progress=True, max_steps=7, ckpt_path=tmp_path / "kept.ckpt")
    assert bar.train_progress_bar.description == "Epoch 1"


def test_bar_works_without_rollouts(tmp_path):
    module = Rolling()
    del module.rollout_listeners
    module.on_train_epoch_start = lambda: None
    fit(tmp_path, module, RolloutProgressBar(), progress=True)
    assert module.trainer.global_step > 0


def test_the_rollout_module_is_listened_to(make_model, tokenizer):
    assert isinstance(on_policy_kd(make_model, tokenizer, teacher=make_model), CollectsRollouts)


def test_progress_file_tells_steps_rollouts_and_metrics(tmp_path):
    module = Rolling()
    states = []

    class Reader(L.Callback):
        def on_train_batch_end(self, *args):
            states.append(json.loads((tmp_path / "run/progress.json").read_text()))

        def on_validation_end(self, *args):
            states.append(json.loads((tmp_path / "run/progress.json").read_text()))

    fit(
        tmp_path,
        module,
        ProgressFile(str(tmp_path / "run/progress.json"), interval=0),
        Reader(),
        num_sanity_val_steps=0,
    )
    assert states[0] == {"step": 1, "max_steps": 6, "rollouts": None, "metrics": {}}
    assert states[-1]["step"] == 6
    assert states[-1]["metrics"] == {"val/loss": 1.5}
    assert module.rollout_listeners == []
    assert [item.name for item in (tmp_path / "run").iterdir()] == ["progress.json"]


def test_progress_file_is_written_at_most_once_an_interval(tmp_path):
    callback = ProgressFile(str(tmp_path / "progress.json"), interval=1000)
    callback._on_rollout(1, 4)
    callback._on_rollout(2, 4)
    assert json.loads((tmp_path / "progress.json").read_text())["rollouts"] == [1, 4]
    with pytest.raises(ValueError, match="interval must be at least 0"):
        ProgressFile("x", interval=-1)
