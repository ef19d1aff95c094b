import random

import lightning as L
import numpy as np
import pytest
import torch

from lightning_minillm.callbacks import ResumeCheckpoint
from lightning_minillm.callbacks.checkpoint import random_state, set_random_state
from lightning_minillm.data import TokenLoader


class Noisy(L.LightningModule):
    """Every step consumes random numbers and notes epoch and weight."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.epochs = []

    def on_train_epoch_start(self):
        self.epochs.append(self.current_epoch)

    def training_step(self, batch, batch_idx):
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return self.layer(batch * noise).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Rows:
    """A data set of four rows for a ``TokenLoader``, which knows epochs and uses no global random state."""

    lengths = target_counts = torch.ones(4, dtype=torch.int64)

    def __len__(self):
        return 4

    def token_batch(self, indices, normalizer):
        return 1.0 + indices[:, None].expand(-1, 4)


class Stop(L.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


def run(folder, every, stop=None, resume=False, validate=None):
    torch.manual_seed(0)
    module = Noisy()
    L.seed_everything(1, verbose=False)
    callbacks = [ResumeCheckpoint(str(folder), every)] + ([Stop(stop)] if stop else [])
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=10,
        callbacks=callbacks,
        logger=L.pytorch.loggers.CSVLogger(folder / "log"),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
        val_check_interval=validate,
        limit_val_batches=1 if validate else 0,
    )
    data = TokenLoader(Rows(), batch_size=1)
    trainer.fit(module, data, [torch.ones(1, 4)], ckpt_path=folder / "last.ckpt" if resume else None)
    return module, trainer


@pytest.mark.parametrize("validate", [None, 4])
@pytest.mark.parametrize(("every", "stop"), [(1, 3), (2, 3), (4, 5), (2, 9), (3, 4)])
def test_resumed_run_equals_an_uninterrupted_one(every, stop, validate, tmp_path):
    whole, trainer = run(tmp_path / "whole", every, validate=validate)
    with pytest.raises(RuntimeError, match="stopped"):
        run(tmp_path / "run", every, stop=stop, validate=validate)
    resumed, resumed_trainer = run(tmp_path / "run", every, resume=True, validate=validate)
    torch.testing.assert_close(resumed.layer.weight, whole.layer.weight, rtol=0, atol=0)
    assert resumed_trainer.global_step == trainer.global_step == 10
    assert resumed_trainer.current_epoch == trainer.current_epoch
    assert resumed.epochs == whole.epochs[-len(resumed.epochs) :] if resumed.epochs else True
    loop, whole_loop = resumed_trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop
    assert loop._batches_that_stepped == whole_loop._batches_that_stepped


def test_one_file_is_kept_and_whole(tmp_path):
    run(tmp_path, every=3)
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 9


def test_random_states_come_back():
    def draw():
        return (
            torch.rand(3).tolist(),
            random.random(),
            np.random.rand(3).tolist(),
            np.random.randn(),
            random.gauss(0, 1),
        )

    np.random.randn()  # leaves a second number waiting
    state = random_state()
    first = draw()
    draw()
    set_random_state(state)
    assert draw() == first


def test_interval_is_checked(tmp_path):
    with pytest.raises(ValueError, match="every_n_train_steps must be at least 1"):
        ResumeCheckpoint(str(tmp_path), 0)
