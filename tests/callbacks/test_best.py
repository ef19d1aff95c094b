import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_minillm.callbacks import BestCheckpoint


class Measured(L.LightningModule):
    """Logs given scores and losses, one of each per validation; its weight counts the steps."""

    def __init__(self, scores, losses):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.scores, self.losses = scores, losses

    def training_step(self, batch, batch_idx):
        return -self.weight.sum()

    def validation_step(self, batch, batch_idx):
        place = self.global_step - 1
        self.log("val/rougeL", float(self.scores[place]))
        self.log("val/loss", float(self.losses[place]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, scores, losses, *, resume=None, make=BestCheckpoint, **options):
    """One step before each validation; returns the callback and the step of the kept weights."""
    options = {"dirpath": folder, "filename": "best", "monitor": "val/rougeL", "mode": "max"} | options
    best = make(**options, enable_version_counter=False)
    last = ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=len(scores), callbacks=[best, last], logger=False, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    rows = DataLoader(torch.zeros(1, 1))
    trainer.fit(Measured(scores, losses), rows, rows, ckpt_path=resume)
    return best, int(torch.load(best.best_model_path, weights_only=True)["state_dict"]["weight"])


@pytest.mark.parametrize(
    ("scores", "losses", "kept"),
    [
        ([0, 0, 0, 0], [4, 2, 1, 3], 3),  # constant 0: the lowest loss
        ([0, 0, 5, 0], [4, 1, 3, 2], 3),  # a score at last: it decides
        ([0, 5, 0, 7], [1, 2, 0.5, 3], 4),
        ([6, 0, 0, 5], [9, 1, 1, 1], 1),
        ([2, 3, 3, 1], [1, 2, 0, 0], 2),  # the first of equals, as Lightning has it
        ([0, 0, 0], [float("nan"), 2, 3], 1),
    ],
)
@pytest.mark.filterwarnings("ignore:val/rougeL is 0")
def test_the_lowest_loss_decides_only_where_the_score_is_always_zero(scores, losses, kept, tmp_path):
    best, step = fit(tmp_path, scores, losses)
    assert step == kept
    assert best.best_model_score == scores[kept - 1]
    assert (best.fallback_score is None) == any(scores)


def test_the_fallback_is_said_once(tmp_path):
    with pytest.warns(UserWarning, match=r"val/rougeL is 0 at every validation so far.*lowest val/loss") as said:
        best, _ = fit(tmp_path, [0, 0, 0], [3, 2, 1])
    assert sum("val/rougeL is 0" in str(each.message) for each in said) == 1
    assert best.fallback_score == 1


@pytest.mark.parametrize("options", [{"fallback": None}, {"mode": "min"}, {"fallback": "val/nothing"}])
def test_without_a_fallback_it_is_lightnings(options, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "val/rougeL")
        best, step = fit(tmp_path, [0, 0, 0], [3, 2, 1], **options)
    assert step == 1
    assert best.fallback_score is None


@pytest.mark.filterwarnings("ignore:val/rougeL is 0")
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize(("scores", "kept"), [([0, 0, 0, 0], 3), ([0, 0, 0, 1], 4)])
def test_a_resumed_run_keeps_the_same(first, scores, kept, tmp_path):
    losses = [4, 2, 1, 3]
    fit(tmp_path, scores[:first], losses[:first])
    assert fit(tmp_path, scores, losses, resume=tmp_path / "last.ckpt")[1] == kept


def test_a_run_that_began_with_lightnings_callback_resumes(tmp_path):
    fit(tmp_path, [5, 4], [1, 1], make=ModelCheckpoint)
    best, step = fit(tmp_path, [5, 4, 3], [1, 1, 1], resume=tmp_path / "last.ckpt")
    assert (step, best.best_model_score) == (1, 5)


@pytest.mark.filterwarnings("ignore:val/rougeL is 0")
def test_a_run_that_continues_in_a_new_folder_keeps_the_better_weights(tmp_path):
    fit(tmp_path / "a", [0, 0], [2, 1])
    assert fit(tmp_path / "b", [0, 0, 0], [2, 1, 3], resume=tmp_path / "a/last.ckpt")[1] == 2
    (tmp_path / "a/best.ckpt").unlink()
    with pytest.warns(UserWarning, match="best.ckpt is missing: the best weights are chosen from the validations"):
        assert fit(tmp_path / "c", [0, 0, 0], [2, 1, 3], resume=tmp_path / "a/last.ckpt")[1] == 3
