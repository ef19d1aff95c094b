import sys

import pytest

from lightning_minillm.cli import train as train_file
from lightning_minillm.cli.config import compose_config
from lightning_minillm.cli.train import train
from lightning_minillm.reports.model_card import describe_run


def test_a_run_writes_the_card_beside_the_student(train_overrides, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/minillm-train", "experiment=kd", "name=it's mine"])
    overrides = ["experiment=kd", *train_overrides, f"teacher.path={folders}/teacher", "max_steps=3"]
    metrics, _ = train(compose_config("train", overrides))
    card = (tmp_path / "run" / "student" / "README.md").read_text(encoding="utf-8")
    for line in (
        "# kd",
        f"| base model | {folders}/model |",
        f"| teacher | {folders}/teacher |",
        "| method | KDModule with KDLoss |",
        f"| train | {folders} |",
        f"| val/rougeL | {metrics['best']['value']:.4g} |",
        "| optimizer.lr | 0.001 |",
        "| batch_size | 4 |",
        "| loss.kd_ratio | 0.5 |",
        """minillm-train experiment=kd 'name=it'"'"'s mine'""",
    ):
        assert line in card.splitlines()
    assert "module.training.optimizer" not in card  # it is shown once, as a group of its own


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("minillm-recipe", "minillm-recipe a=1"),
        (train_file.__file__, "python -m lightning_minillm.cli.train a=1"),
        ("ipykernel_launcher.py", None),
    ],
)
def test_the_command_is_one_that_can_be_typed(train_overrides, monkeypatch, program, command):
    monkeypatch.setattr(sys, "argv", [program, "a=1"])
    config = compose_config("train", ["experiment=sft", *train_overrides])
    assert describe_run(config, {"best": None, "last": {"val/loss": 1.0, "train/loss": 2.0}}).command == command


def test_without_a_best_checkpoint_the_last_validation_counts(train_overrides):
    config = compose_config("train", ["experiment=sft", *train_overrides])
    card = describe_run(config, {"best": None, "last": {"val/loss": 1.0, "train/loss": 2.0}})
    assert (card.metrics, card.chosen_by, card.teacher) == ({"val/loss": 1.0}, "the last step", None)
