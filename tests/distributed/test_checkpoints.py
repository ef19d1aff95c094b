"""Stopped and resumed on any number of ranks, in both formats."""

import os
import runpy
import shutil
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from transformers import AutoModelForCausalLM

from lightning_minillm.callbacks import ResumeCheckpoint
from lightning_minillm.checkpoints.weights import read_weights

scenarios = runpy.run_path(str(Path(__file__).parent / "scenarios.py"), run_name="scenarios")
train = scenarios["train"]
STEPS, BOUNDARY, MIDDLE = 8, 4, 6


def train_keeping(folder, export=None, **options):
    """Train, keep the checkpoints after a phase and in the middle of one, and export at the end."""
    options_of = {"every_n_train_steps": 2, "save_top_k": -1, "auto_insert_metric_name": False}
    keep = [ModelCheckpoint(folder, filename="{step}", **options_of)]
    return train(callbacks=keep, steps=STEPS, validate=False, export=export, **options)


def resume(path, **options):
    return train(fit={"ckpt_path": path}, steps=STEPS, validate=False, **options)


def largest_difference(given, expected):
    assert given.keys() == expected.keys()
    return max(float((given[name] - expected[name]).abs().max()) for name in expected)


@pytest.fixture(scope="module", params=["file", "folder"])
def sharded_run(request, run_ranks, tmp_path_factory):
    """An uninterrupted run on two ranks with its checkpoints."""
    folder = tmp_path_factory.mktemp(request.param)
    options = {"save_distributed_checkpoint": request.param == "folder"}
    results = run_ranks(
        train_keeping, 2, strategy="fsdp", options=options, folder=str(folder), export=str(folder / "student")
    )
    return folder, options, results


@pytest.mark.parametrize("step", [BOUNDARY, MIDDLE])
def test_resumed_on_the_same_number_of_ranks_it_is_the_same_run_to_the_bit(step, sharded_run, run_ranks):
    folder, options, results = sharded_run
    assert (folder / f"{step}.ckpt").is_dir() == options["save_distributed_checkpoint"]
    resumed = run_ranks(resume, 2, strategy="fsdp", options=options, path=str(folder / f"{step}.ckpt"))
    assert largest_difference(resumed[0]["weights"], results[0]["weights"]) == 0
    losses = [metrics["train/loss"] for metrics in results[0]["metrics"]][step:]
    assert [metrics["train/loss"] for metrics in resumed[0]["metrics"]] == losses
    for name in ("rollout/reward", "rollout/response_length"):  # of a phase that the checkpoint cut in two, as well
        assert resumed[0]["last"][name] == results[0]["last"][name]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("step", [BOUNDARY, MIDDLE])
def test_resumed_on_a_different_number_of_ranks_it_ends_alike(ranks, step, sharded_run, run_ranks):
    folder, options, results = sharded_run
    resumed = run_ranks(resume, ranks, strategy="fsdp", options=options, path=str(folder / f"{step}.ckpt"))
    assert len(resumed[0]["metrics"]) == STEPS - step
    assert largest_difference(resumed[0]["weights"], results[0]["weights"]) < 1e-5


def test_a_plain_process_resumes_what_two_ranks_saved_and_accumulates(sharded_run, run_ranks):
    folder, options, results = sharded_run
    if options["save_distributed_checkpoint"]:
        with pytest.raises(Exception, match="strategy=fsdp"):
            run_ranks(resume, 1, path=str(folder / f"{MIDDLE}.ckpt"))
        return
    resumed = run_ranks(resume, 1, micro_batch_size=3, path=str(folder / f"{MIDDLE}.ckpt"))
    assert len(resumed[0]["metrics"]) == 4 * (STEPS - MIDDLE)
    assert largest_difference(resumed[0]["weights"], results[0]["weights"]) < 1e-5


def test_checkpoints_hold_the_student_only_and_can_be_read_alone(sharded_run, make_model):
    folder, _, results = sharded_run
    weights = read_weights(folder / f"{MIDDLE}.ckpt")
    assert {name.removeprefix("student.") for name in weights} == set(results[0]["weights"])
    assert {tuple(value.shape) for value in weights.values()} == {
        tuple(value.shape) for value in make_model("llama").state_dict().values()
    }


def test_the_exported_folder_holds_the_trained_weights(sharded_run):
    folder, _, results = sharded_run
    exported = AutoModelForCausalLM.from_pretrained(folder / "student").state_dict()
    assert largest_difference(exported, results[0]["weights"]) == 0


@pytest.mark.parametrize("damage", ["cut off", "foreign", "other architecture"])
def test_a_damaged_checkpoint_is_a_clear_error(damage, sharded_run, run_ranks, tmp_path):
    folder, options, _ = sharded_run
    path, message, other = folder / f"{MIDDLE}.ckpt", "not a complete checkpoint", {}
    if damage == "other architecture":
        other, message = {"family": "qwen2"}, "different architecture"
    else:
        damaged = tmp_path / "damaged.ckpt"
        (damage_folder if path.is_dir() else damage_file)(path, damaged, damage)
        path = damaged
    with pytest.raises(ValueError, match=message):
        run_ranks(resume, 2, strategy="fsdp", options=options, path=str(path), **other)


def damage_file(path, damaged, damage):
    content = path.read_bytes()
    damaged.write_bytes(content[: len(content) // 2])
    if damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, damaged)


def damage_folder(path, damaged, damage):
    shutil.copytree(path, damaged)
    if damage == "foreign":
        (damaged / ".metadata").unlink()
    else:
        part = next(damaged.glob("*.distcp"))
        os.truncate(part, part.stat().st_size // 2)


class Terminate(Callback):
    """One rank gets SIGTERM in the middle of a step, at a different moment than the other."""

    def __init__(self, step):
        self.step = step

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.global_step + 1 == self.step and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


def train_until_terminated(folder, step, **options):
    last = ResumeCheckpoint(folder, every_n_train_steps=1000)
    try:
        train(callbacks=[last, Terminate(step)], steps=STEPS, validate=False, **options)
    except SystemExit as stopped:
        return stopped.code
    return "not stopped"


def resume_last(folder, **options):
    last = ResumeCheckpoint(folder, every_n_train_steps=1000)
    return train(callbacks=[last], fit={"ckpt_path": f"{folder}/last.ckpt"}, steps=STEPS, validate=False, **options)


@pytest.mark.parametrize("step", [3, 4])
def test_sigterm_on_one_rank_saves_and_stops_all(step, sharded_run, run_ranks, tmp_path):
    """Step 4 is the last of a phase, where the checkpoint waits for the next one to begin."""
    _, options, results = sharded_run
    codes = run_ranks(train_until_terminated, 2, strategy="fsdp", options=options, folder=str(tmp_path), step=step)
    assert codes == [None, None]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    resumed = run_ranks(resume_last, 2, strategy="fsdp", options=options, folder=str(tmp_path))
    assert len(resumed[0]["metrics"]) == STEPS - step
    assert largest_difference(resumed[0]["weights"], results[0]["weights"]) == 0
