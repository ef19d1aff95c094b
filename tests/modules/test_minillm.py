import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_minillm.losses import KDLoss, MiniLLMLoss
from lightning_minillm.modules import MiniLLMModule
from lightning_minillm.rollout import SamplingConfig

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*contains.*but.*no.*val.*loop.*"),
]


@pytest.fixture(scope="module")
def make_module(make_model, tokenizer, adamw):
    """A module of tiny models: phases of 16 rollouts, two passes."""

    def make(student="gpt2", teacher="gpt2", student_options=None, teacher_options=None, **options):
        defaults = {
            "teacher": make_model(teacher, seed=2, **(teacher_options or {})),
            "optimizer": adamw(),
            "sampling": SamplingConfig(max_new_tokens=8),
            "num_rollouts": 16,
            "ppo_epochs": 2,
            "rollout_batch_size": 5,
            "evaluation_sampling": SamplingConfig(max_new_tokens=8, teacher_mix_alpha=0.0),
        }
        return MiniLLMModule(
            make_model(student, seed=1, **(student_options or {})), tokenizer, **{**defaults, **options}
        )

    return make


class Recorder(Callback):
    """Keeps what was logged at every step, the batches, and the buffer's rollouts."""

    def __init__(self):
        self.steps, self.batches, self.lr = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.batches.append(batch)
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])


# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_trains_the_student_and_leaves_the_teacher_alone(make_module, make_data, make_trainer, weights_of):
    module, recorder = make_module(), Recorder()
    module.configure_model()
    student, teacher = weights_of(module.student), weights_of(module.teacher)
    trainer = make_trainer(max_epochs=2, callbacks=[recorder])
    trainer.fit(module, make_data())
    assert trainer.global_step == 2 * 2 * 16 // 8
    assert (weights_of(module.student) - student).abs().max() > 1e-3
    assert torch.equal(weights_of(module.teacher), teacher)
    assert not any(p.requires_grad or p.grad is not None for p in module.teacher.parameters())
    assert not any(m.training for m in module.teacher.modules())
    # the teacher is no submodule: neither optimiser nor state knows of it
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in module.student.parameters()}
    assert all(name.startswith("student.") for name in module.state_dict())
    expected = {"train/loss", "train/pg_loss", "train/single_step_loss", "train/rl_loss", "train/pt_loss",
                "train/lm_loss", "train/teacher_cross_entropy", "train/clip_fraction", "train/importance_weight",
                "train/entropy", "train/policy_drift", "rollout/reward", "rollout/reverse_kl",
                "rollout/importance_weight", "rollout/response_length", "rollout/seconds",
                "rollout/tokens_per_second"}  # fmt: skip
    assert expected <= recorder.steps[-1].keys() | trainer.callback_metrics.keys()


def test_a_phase_is_sampled_once_and_served_twice(make_module, make_data, make_trainer):
    recorder = Recorder()
    make_trainer(max_epochs=2, callbacks=[recorder]).fit(make_module(), make_data())

    def rows(start, stop):
        return sorted(torch.cat([batch.rollouts.indices for batch in recorder.batches[start:stop]]).tolist())

    assert rows(0, 2) == rows(2, 4)
    assert rows(4, 6) == rows(6, 8)
    # 20 prompts, 16 a phase: the second phase goes on where the first one stopped
    assert set(rows(0, 2)) | set(rows(4, 6)) == set(range(20))
    responses = {i: ids for b in recorder.batches[:2] for i, ids in zip(b.rollouts.indices.tolist(),
                 b.rollouts.response_ids.tolist(), strict=True)}  # fmt: skip
    for batch in recorder.batches[2:4]:
        for index, ids in zip(batch.rollouts.indices.tolist(), batch.rollouts.response_ids.tolist(), strict=True):
            width = min(len(ids), len(responses[index]))
            assert ids[:width] == responses[index][:width]
        assert not batch.advantages.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen3"])
def test_the_first_update_starts_from_the_policy_that_sampled(family, make_module, make_data, make_trainer):
    """Cached decoding and the update's pass agree, so that ratio = w before the first step."""
    recorder = Recorder()
    module = make_module(student=family, teacher="llama", sampling=SamplingConfig(max_new_tokens=8, temperature=0.8))
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_data())
    assert abs(recorder.steps[0]["train/policy_drift"]) < 1e-6


def test_without_mixing_nothing_is_clipped_at_first(make_module, make_data, make_trainer):
    recorder = Recorder()
    module = make_module(sampling=SamplingConfig(max_new_tokens=8, teacher_mix_alpha=0.0))
    make_trainer(max_epochs=1, callbacks=[recorder]).fit(module, make_data())
    assert recorder.steps[0]["train/clip_fraction"] == 0
    assert recorder.steps[0]["train/importance_weight"] == pytest.approx(1)
    assert recorder.steps[-1]["train/clip_fraction"] > 0


@pytest.mark.parametrize("loss", [MiniLLMLoss(), MiniLLMLoss(single_step=False)], ids=["full", "policy_gradient"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore:the student has logits for")
def test_vocabularies_of_other_sizes_agree_between_sampling_and_update(
    loss, recompute, make_module, make_data, make_trainer
):
    """The student's rows past the shared ids take no probability, neither when sampling nor in the update."""
    recorder = Recorder()
    module = make_module(student_options={"vocab_size": 64}, loss=loss, recompute_logprobs=recompute)
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_data(lm=False))
    assert abs(recorder.steps[0]["train/policy_drift"]) < 1e-6


def test_other_vocabulary_sizes_are_said_once(make_module):
    module = make_module(student_options={"vocab_size": 40})
    with pytest.warns(UserWarning, match="logits for 40 ids and the teacher for 37; they are compared on the 37"):
        module.configure_model()


# --- options ----------------------------------------------------------------------------------------------------------


def gradient_step(module, data, trainer, weights_of):
    """What one plain gradient step of length 1 changes: minus the gradient."""
    module.configure_model()
    before = weights_of(module.student)
    trainer.fit(module, data)
    return weights_of(module.student) - before


@pytest.mark.parametrize(
    "options",
    [{"teacher_cache": "none"}, {"recompute_logprobs": True}, {"rollout_batch_size": 64}],
    ids=["teacher again", "recomputed", "one batch"],
)
def test_options_for_speed_and_memory_change_no_gradient(
    options, make_module, make_data, make_trainer, sgd, weights_of
):
    steps = [
        gradient_step(
            make_module(teacher="llama", optimizer=sgd(), **o), make_data(), make_trainer(max_steps=1), weights_of
        )
        for o in ({}, options)
    ]
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("whiten", ["all", "response", "none"])
def test_micro_batches_sum_to_the_batch(whiten, make_module, make_data, make_trainer, sgd, weights_of):
    """One optimiser step in 1, 2 or 4 micro-batches: the same gradient, also with the pretraining batch."""
    steps = []
    for micro in (8, 4, 2):
        module = make_module(optimizer=sgd(), loss=MiniLLMLoss(whiten=whiten, chunk_size=7))
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=8 // micro)
        steps.append(gradient_step(module, make_data(micro_batch_size=micro), trainer, weights_of))
    assert steps[0].abs().max() > 1e-3
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lm_coef", [0.0, 2.0])
def test_the_pretraining_loss_is_added_with_its_weight(lm_coef, make_module, make_data, make_trainer):
    recorder = Recorder()
    make_trainer(max_steps=1, callbacks=[recorder]).fit(make_module(lm_coef=lm_coef, lm_loss=KDLoss(0.25)), make_data())
    logged = recorder.steps[0]
    if lm_coef == 0:
        assert recorder.batches[0].lm is None
        assert logged["train/loss"] == pytest.approx(logged["train/rl_loss"], abs=1e-6)
    else:
        expected = logged["train/rl_loss"] + 2 * logged["train/pt_loss"]
        assert logged["train/loss"] == pytest.approx(expected, rel=1e-5)
        mixed = 0.75 * logged["train/lm_loss"] + 0.25 * logged["train/teacher_cross_entropy"]
        assert logged["train/pt_loss"] == pytest.approx(mixed, rel=1e-5)


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_off_unless_asked_for(dropout, make_module, make_data, make_trainer):
    """With dropout, the update's first ratio is no longer that of the sampled tokens."""
    recorder = Recorder()
    module = make_module(student_options={"resid_pdrop": 0.3}, dropout=dropout)
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_data())
    drift = recorder.steps[0]["train/policy_drift"]
    assert module.student.training
    assert drift > 1e-2 if dropout else drift < 1e-6


def test_listeners_hear_of_the_rollouts(make_module, make_data, make_trainer):
    module, heard = make_module(), []
    module.rollout_listeners.append(lambda done, total: heard.append((done, total)))
    make_trainer(max_steps=1).fit(module, make_data())
    assert heard == [(5, 16), (10, 16), (15, 16), (16, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm_coef": -1.0}, "lm_coef must be at least 0"),
        ({"teacher_cache": "logits"}, "teacher_cache must be 'hidden' or 'none'"),
        ({"num_rollouts": 0}, "must be at least 1"),
        ({"ppo_epochs": 0}, "must be at least 1"),
        ({"sampling": SamplingConfig(temperature=0.0, teacher_mix_alpha=0.0)}, "positive sampling temperature"),
    ],
)
def test_options_out_of_range_are_refused_when_made(options, message, make_module):
    with pytest.raises(ValueError, match=message):
        make_module(**options)


def test_sizes_that_do_not_divide_stop_before_any_rollout(make_module, make_data, make_trainer):
    with pytest.raises(ValueError, match="num_rollouts=20 is not a multiple of batch_size=8; the nearest is 16 or 24"):
        make_trainer(max_steps=1).fit(make_module(num_rollouts=20), make_data())


def test_a_pad_token_of_its_own_gives_the_same_run(
    make_model, make_tokenizer, make_prompts, make_data, make_trainer, adamw, weights_of
):
    """Masks come from lengths: whether pad is eos or not, the same weights to the bit."""
    runs = []
    for pad_token, pad in ((None, 0), ("<pad>", 36)):
        tokenizer = make_tokenizer(pad_token, words=36)
        assert tokenizer.pad_token_id == pad
        module = MiniLLMModule(
            make_model("gpt2", seed=1),
            tokenizer,
            teacher=make_model("gpt2", seed=2),
            optimizer=adamw(),
            sampling=SamplingConfig(max_new_tokens=8),
            num_rollouts=16,
            ppo_epochs=2,
        )
        data = make_data()
        data.train_set.prompts = make_prompts((5, 3, 7, 1) * 5, vocab_size=36, pad=pad)
        make_trainer(max_steps=4).fit(module, data)
        runs.append(weights_of(module.student))
    assert torch.equal(runs[0], runs[1])


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 1), (8, 2), (2, 2)])
def test_steps_of_another_size_than_the_batch_are_an_error(
    micro_batch_size, accumulate, make_module, make_data, make_trainer
):
    """Otherwise gradients would silently be scaled by the ratio of both."""
    number = 8 // micro_batch_size
    with pytest.raises(
        ValueError, match=rf"comes in {number} micro-batches .* set Trainer\(accumulate_grad_batches={number}\)"
    ):
        make_trainer(max_steps=1, accumulate_grad_batches=accumulate).fit(
            make_module(), make_data(micro_batch_size=micro_batch_size)
        )


# --- repeating and resuming -------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(make_module, make_data, make_trainer, weights_of):
    runs = []
    for number, seed in enumerate((7, 7, 8)):
        torch.manual_seed(number)  # the global random state plays no part
        module = make_module(seed=seed)
        make_trainer(max_epochs=2).fit(module, make_data())
        runs.append(weights_of(module.student))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


# 4 optimiser steps a phase, two phases; options of the checkpoint, and the step at which it is written
CHECKPOINTS = {
    "first step": ({"every_n_train_steps": 1}, 1),
    "middle of a phase": ({"every_n_train_steps": 3}, 3),
    "last step of a phase": ({"every_n_train_steps": 4}, 4),
    "middle of the second phase": ({"every_n_train_steps": 6}, 6),
    "end of a phase": ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, 4),
    "validation after a phase": ({"every_n_epochs": 1, "save_on_train_epoch_end": False, "mode": "max"}, 4),
}


@pytest.fixture(scope="module")
def train_with_checkpoints(make_module, make_data, make_evaluation, make_trainer, weights_of):
    """A function that trains, keeps every kind of checkpoint, and returns the weights and what was recorded."""

    def train(folder, validation, limit, **fit):
        module = make_module(
            scheduler=partial(torch.optim.lr_scheduler.LinearLR, total_iters=8),
            sampling=SamplingConfig(max_new_tokens=4),
            evaluation_sampling=SamplingConfig(max_new_tokens=2, teacher_mix_alpha=0.0),
        )
        data = make_data(micro_batch_size=4, validation=[make_evaluation()] if validation else ())
        keep = [] if folder is None else [
            ModelCheckpoint(folder, filename=f"{kind} {{step}}", save_top_k=-1, **options)
            for kind, (options, _) in CHECKPOINTS.items()
        ]  # fmt: skip
        recorder = Recorder()
        trainer = make_trainer(
            accumulate_grad_batches=2,
            callbacks=[*keep, recorder],
            enable_checkpointing=bool(keep),
            limit_val_batches=1.0 if validation else 0,
            **limit,
        )
        trainer.fit(module, data, **fit)
        return weights_of(module.student), recorder

    return train


@pytest.fixture(scope="module", params=[False, True], ids=["train only", "with validation"])
def uninterrupted(request, train_with_checkpoints, tmp_path_factory):
    """Folder of checkpoints, whether there was validation, weights at the end, and what was recorded."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, request.param, *train_with_checkpoints(folder, request.param, {"max_steps": 8})


@pytest.mark.parametrize("limit", [{"max_steps": 8}, {"max_epochs": 2}], ids=["steps", "epochs"])
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind, limit, uninterrupted, train_with_checkpoints):
    """Bit for bit, wherever in a phase the checkpoint was written."""
    folder, validation, weights, recorder = uninterrupted
    assert len(recorder.batches) == 16
    step = CHECKPOINTS[kind][1]
    path = folder / f"{kind} step={step}.ckpt"
    if kind == "validation after a phase" and not validation:
        assert not path.exists()
        return
    resumed, rest = train_with_checkpoints(None, validation, limit, ckpt_path=path, weights_only=False)
    assert [b.rollouts.indices.tolist() for b in rest.batches] == [
        b.rollouts.indices.tolist() for b in recorder.batches[2 * step :]
    ]
    assert rest.lr == recorder.lr[2 * step :]
    assert torch.equal(resumed, weights)


def test_checkpoints_hold_the_student_only(make_module, make_data, make_trainer, tmp_path):
    module, trainer = make_module(), make_trainer(max_steps=3)
    trainer.fit(module, make_data())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert checkpoint["state_dict"].keys() == {f"student.{name}" for name in module.student.state_dict()}
    assert not [key for key in checkpoint if "teacher" in key]


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_the_rows_of_the_batch(make_module, make_data, make_trainer, tmp_path):
    class Broken(MiniLLMLoss):
        def token_values(self, signals):
            values = super().token_values(signals)
            self.calls = getattr(self, "calls", 0) + 1
            return values if self.calls < 3 else replace(values, loss=values.loss * float("inf"))

    recorder = Recorder()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(max_epochs=1, callbacks=[recorder, keep], enable_checkpointing=True)
    module = make_module(loss=Broken())
    with pytest.raises(FloatingPointError, match="at step 2") as error:
        trainer.fit(module, make_data(lm=False))
    rows = [int(i) for i in re.search(r"rows \[(.*?)\]", str(error.value)).group(1).split(",")]
    assert len(rows) == 8
    served = torch.cat([batch.rollouts.indices for batch in recorder.batches]).tolist()
    assert set(rows) <= set(served)  # the third batch opens the second pass
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=1.ckpt", "step=2.ckpt"}
