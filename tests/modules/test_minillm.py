import re
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_minillm.losses import KDLoss, LanguageModelingLoss, MiniLLMLoss, ReverseKL, TokenLoss
from lightning_minillm.modules import RolloutModule, TrainingOptions, minillm
from lightning_minillm.rollout import AdvantageEstimator, RolloutOptions, SamplingConfig

# --- a run ------------------------------------------------------------------------------------------------------------


def test_a_run_trains_the_student_and_leaves_the_teacher_alone(
    make_minillm, make_data, make_trainer, make_recorder, weights_of
):
    module, recorder = make_minillm(), make_recorder()
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


def test_a_phase_is_sampled_once_and_served_twice(make_minillm, make_data, make_trainer, make_recorder):
    recorder = make_recorder()
    make_trainer(max_epochs=2, callbacks=[recorder]).fit(make_minillm(), make_data())

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
def test_the_first_update_starts_from_the_policy_that_sampled(
    family, make_minillm, make_data, make_trainer, make_recorder
):
    """Cached decoding and the update's pass agree, so that ratio = w before the first step."""
    recorder = make_recorder()
    module = make_minillm(student=family, teacher="llama", sampling=SamplingConfig(max_new_tokens=8, temperature=0.8))
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_data())
    assert abs(recorder.steps[0]["train/policy_drift"]) < 1e-6


def test_without_mixing_nothing_is_clipped_at_first(make_minillm, make_data, make_trainer, make_recorder):
    recorder = make_recorder()
    module = make_minillm(sampling=SamplingConfig(max_new_tokens=8, teacher_mix_alpha=0.0))
    make_trainer(max_epochs=1, callbacks=[recorder]).fit(module, make_data())
    assert recorder.steps[0]["train/clip_fraction"] == 0
    assert recorder.steps[0]["train/importance_weight"] == pytest.approx(1)
    assert recorder.steps[-1]["train/clip_fraction"] > 0


@pytest.mark.parametrize("loss", [MiniLLMLoss(), MiniLLMLoss(single_step=False)], ids=["full", "policy_gradient"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.filterwarnings("ignore:the student has logits for")
def test_vocabularies_of_other_sizes_agree_between_sampling_and_update(
    loss, recompute, make_minillm, make_data, make_trainer, make_recorder
):
    """The student's rows past the shared ids take no probability, neither when sampling nor in the update."""
    recorder = make_recorder()
    module = make_minillm(student_options={"vocab_size": 64}, loss=loss, recompute_logprobs=recompute)
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_data(lm=False))
    assert abs(recorder.steps[0]["train/policy_drift"]) < 1e-6


def test_other_vocabulary_sizes_are_said_once(make_minillm):
    module = make_minillm(student_options={"vocab_size": 40})
    with pytest.warns(UserWarning, match="logits for 40 ids and the teacher for 37; they are compared on the 37"):
        module.configure_model()


# --- options ----------------------------------------------------------------------------------------------------------


def gradient_step(module, data, trainer, weights_of):
    """What one plain gradient step of length 1 changes: minus the gradient."""
    module.configure_model()
    before = weights_of(module.student)
    trainer.fit(module, data)
    return weights_of(module.student) - before


@pytest.mark.parametrize("alpha", [0.0, 0.2])
def test_the_reverse_kl_as_loss_is_the_single_step_term_alone(
    alpha, make_minillm, make_data, make_trainer, sgd, weights_of
):
    steps = []
    for loss in (MiniLLMLoss(pg_coef=0.0), ReverseKL()):
        module = make_minillm(
            optimizer=sgd(), loss=loss, sampling=SamplingConfig(max_new_tokens=8, teacher_mix_alpha=alpha)
        )
        steps.append(gradient_step(module, make_data(), make_trainer(max_steps=1), weights_of))
    assert steps[0].abs().max() > 1e-3
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-6)


class ReadsAdvantages(TokenLoss):
    token_inputs = ("advantages",)

    def token_values(self, signals):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("loss", "advantages", "message"),
    [
        (ReadsAdvantages(), None, "ReadsAdvantages reads advantages, and there are none"),
        (ReverseKL(), AdvantageEstimator(), "ReverseKL reads no advantages: pass advantages=None"),
    ],
)
def test_a_loss_and_its_advantages_belong_together(loss, advantages, message, make_model, tokenizer):
    with pytest.raises(ValueError, match=message):
        RolloutModule(make_model("gpt2"), tokenizer, teacher=make_model("gpt2"), loss=loss, advantages=advantages)


def test_any_loss_may_read_advantages(make_minillm):
    assert make_minillm(loss=ReadsAdvantages()).advantages == AdvantageEstimator()


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "none"},
        {"recompute_logprobs": True},
        {"rollout_batch_size": 64},
        {"gradient_checkpointing": True},
        {"activation_offload": True},
        {"compile_backend": "aot_eager"},
    ],
    ids=["teacher again", "recomputed", "one batch", "layers again", "offloaded", "compiled"],
)
def test_options_for_speed_and_memory_change_no_gradient(
    options, make_minillm, make_data, make_trainer, sgd, weights_of
):
    steps = [
        gradient_step(
            make_minillm(teacher="llama", optimizer=sgd(), **o), make_data(), make_trainer(max_steps=1), weights_of
        )
        for o in ({}, options)
    ]
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-5)


def without_the_teacher_in_the_lm_loss(**options):
    return {"pretraining_loss": LanguageModelingLoss(), **options}


def test_an_offloaded_teacher_rests_on_the_cpu_and_changes_nothing(
    make_minillm, make_data, make_trainer, sgd, weights_of, monkeypatch
):
    options = without_the_teacher_in_the_lm_loss(teacher="llama", optimizer=sgd())
    expected = gradient_step(make_minillm(**options), make_data(), make_trainer(max_steps=1), weights_of)
    module = make_minillm(offload=True, **options)
    place, places = module.pair.place_teacher, []
    monkeypatch.setattr(module.pair, "rest_teacher", lambda device: places.append("rest"))
    monkeypatch.setattr(module.pair, "place_teacher", lambda device: (places.append("placed"), place(device)))
    given = gradient_step(module, make_data(), make_trainer(max_steps=1), weights_of)
    torch.testing.assert_close(given, expected)
    assert places[-2:] == ["placed", "rest"]  # on this rank's device for the rollouts, and back


def test_a_teacher_offloaded_from_the_middle_of_a_phase_waits_for_the_next_one(
    make_minillm, make_data, make_trainer, monkeypatch, tmp_path
):
    """A phase that was collected with cache=none has no states of the teacher: its updates run it to the end."""
    options = without_the_teacher_in_the_lm_loss(teacher="llama")
    keep = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=3)
    trainer = make_trainer(max_steps=4, callbacks=[keep], enable_checkpointing=True)
    trainer.fit(make_minillm(cache="none", **options), make_data())

    module, rested = make_minillm(offload=True, **options), []
    monkeypatch.setattr(module.pair, "rest_teacher", lambda device: rested.append(module.global_step))
    make_trainer(max_steps=5).fit(module, make_data(), ckpt_path=tmp_path / "middle.ckpt", weights_only=False)
    assert rested == [4]


@pytest.mark.gpu
def test_an_offloaded_teacher_leaves_the_gpu(make_minillm, make_data, make_trainer, sgd):
    module = make_minillm(offload=True, **without_the_teacher_in_the_lm_loss(teacher="llama", optimizer=sgd()))
    make_trainer(max_steps=1, accelerator="gpu").fit(module, make_data())
    head = module.teacher.get_output_embeddings().weight
    assert head.device.type == "cuda"
    assert {p.device.type for p in module.teacher.parameters() if p is not head} == {"cpu"}


@pytest.mark.parametrize("options", [{}, {"cache": "none", "pretraining_coef": 0.0}])
def test_a_teacher_that_every_step_reads_cannot_be_offloaded(options, make_minillm, make_data, make_trainer):
    with pytest.raises(ValueError, match=r"cache=hidden, and pretraining\.loss\.kd_ratio=0"):
        make_trainer(max_steps=1).fit(make_minillm(offload=True, **options), make_data())


@pytest.mark.parametrize("reward_temperature", [1.0, 0.5, None])
@pytest.mark.parametrize("cache", ["hidden", "none"])
def test_a_teacher_that_comes_after_says_the_same(cache, reward_temperature, make_minillm, make_prompts):
    sampling = SamplingConfig(
        max_new_tokens=12, temperature=0.8, teacher_mix_alpha=0.0, teacher_reward_temperature=reward_temperature
    )
    prompts = make_prompts((5, 3, 7, 1, 4, 6, 2, 7), width=9)
    collected = []
    for reading in ("lockstep", "after"):
        module = make_minillm(
            teacher="llama", teacher_options={"vocab_size": 41}, sampling=sampling, cache=cache,
            reading=reading, rollout_batch_size=3,
        )  # fmt: skip
        module.configure_model()
        collected.append(module.collector.collect(prompts, phase=2))
    lockstep, after = collected
    assert torch.equal(after.response_ids, lockstep.response_ids)
    for name in ("student_logprobs", "teacher_logprobs", "reward_logprobs", "mixture_logprobs"):
        torch.testing.assert_close(getattr(after, name), getattr(lockstep, name), rtol=0, atol=1e-4)
    if cache == "none":
        assert after.teacher_hidden is lockstep.teacher_hidden is None
    else:
        torch.testing.assert_close(after.teacher_hidden, lockstep.teacher_hidden, rtol=0, atol=1e-4)


def test_the_memory_of_the_cache_is_logged(make_minillm, make_data, make_trainer):
    logged = {}
    for cache in ("hidden", "none"):
        trainer = make_trainer(max_epochs=1)
        trainer.fit(make_minillm(cache=cache), make_data())
        logged[cache] = trainer.callback_metrics.get("rollout/teacher_cache_mib")
    assert logged["none"] is None
    assert 0 < logged["hidden"] <= 16 * 8 * 16 * 4 / 2**20


@pytest.mark.parametrize("whiten", ["all", "response", "none"])
def test_micro_batches_sum_to_the_batch(whiten, make_minillm, make_data, make_trainer, sgd, weights_of):
    """One optimiser step in 1, 2 or 4 micro-batches: the same gradient, also with the pretraining batch."""
    steps = []
    for micro in (8, 4, 2):
        module = make_minillm(optimizer=sgd(), loss=MiniLLMLoss(chunk_size=7), whiten=whiten)
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=8 // micro)
        steps.append(gradient_step(module, make_data(micro_batch_size=micro), trainer, weights_of))
    assert steps[0].abs().max() > 1e-3
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pretraining_coef", [0.0, 2.0])
def test_the_pretraining_loss_is_added_with_its_weight(
    pretraining_coef, make_minillm, make_data, make_trainer, make_recorder
):
    recorder = make_recorder()
    make_trainer(max_steps=1, callbacks=[recorder]).fit(
        make_minillm(pretraining_coef=pretraining_coef, pretraining_loss=KDLoss(0.25)), make_data()
    )
    logged = recorder.steps[0]
    if pretraining_coef == 0:
        assert recorder.batches[0].lm is None
        assert logged["train/loss"] == pytest.approx(logged["train/rl_loss"], abs=1e-6)
    else:
        expected = logged["train/rl_loss"] + 2 * logged["train/pt_loss"]
        assert logged["train/loss"] == pytest.approx(expected, rel=1e-5)
        mixed = 0.75 * logged["train/lm_loss"] + 0.25 * logged["train/teacher_cross_entropy"]
        assert logged["train/pt_loss"] == pytest.approx(mixed, rel=1e-5)


@pytest.mark.parametrize("dropout", [False, True])
def test_dropout_is_off_unless_asked_for(dropout, make_minillm, make_data, make_trainer, make_recorder):
    """With dropout, the update's first ratio is no longer that of the sampled tokens."""
    recorder = make_recorder()
    module = make_minillm(student_options={"resid_pdrop": 0.3}, dropout=dropout)
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_data())
    drift = recorder.steps[0]["train/policy_drift"]
    assert module.student.training
    assert drift > 1e-2 if dropout else drift < 1e-6


def test_listeners_hear_of_the_rollouts(make_minillm, make_data, make_trainer):
    module, heard = make_minillm(), []
    module.rollout_listeners.append(lambda done, total: heard.append((done, total)))
    make_trainer(max_steps=1).fit(module, make_data())
    assert heard == [(5, 16), (10, 16), (15, 16), (16, 16)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretraining_coef": -1.0}, "weight of the pretraining loss must be at least 0"),
        ({"cache": "logits"}, r"cache must be one of \('hidden', 'none'\)"),
        ({"reading": "never"}, r"reading must be one of \('auto', 'lockstep', 'after'\)"),
        ({"reading": "after"}, r"set teacher_use\.reading=lockstep or teacher_mix_alpha=0"),
        ({"num_rollouts": 0}, "must be at least 1"),
        ({"ppo_epochs": 0}, "must be at least 1"),
        ({"sampling": SamplingConfig(temperature=0.0, teacher_mix_alpha=0.0)}, "positive sampling temperature"),
    ],
)
def test_options_out_of_range_are_refused_when_made(options, message, make_minillm):
    with pytest.raises(ValueError, match=message):
        make_minillm(**options)


def test_sizes_that_do_not_divide_stop_before_any_rollout(make_minillm, make_data, make_trainer):
    with pytest.raises(ValueError, match="num_rollouts=20 is not a multiple of batch_size=8; the nearest is 16 or 24"):
        make_trainer(max_steps=1).fit(make_minillm(num_rollouts=20), make_data())


def test_more_rollouts_than_prompts_are_said(make_minillm, make_data, recwarn):
    module = make_minillm(num_rollouts=24)
    with pytest.warns(UserWarning, match="num_rollouts=24: more than the 20 prompts, so that every phase"):
        module.build_train_loader(make_data())
    recwarn.clear()
    make_minillm(num_rollouts=16).build_train_loader(make_data())
    assert not [warning for warning in recwarn if "num_rollouts" in str(warning.message)]


def test_a_pad_token_of_its_own_gives_the_same_run(
    make_model, make_tokenizer, make_prompts, make_data, make_trainer, adamw, weights_of
):
    """Masks come from lengths: whether pad is eos or not, the same weights to the bit."""
    runs = []
    for pad_token, pad in ((None, 0), ("<pad>", 36)):
        tokenizer = make_tokenizer(pad_token, words=36)
        assert tokenizer.pad_token_id == pad
        module = minillm(
            make_model("gpt2", seed=1),
            tokenizer,
            teacher=make_model("gpt2", seed=2),
            training=TrainingOptions(adamw()),
            rollouts=RolloutOptions(SamplingConfig(max_new_tokens=8), num_rollouts=16, ppo_epochs=2),
        )
        data = make_data()
        data.train_set.prompts = make_prompts((5, 3, 7, 1) * 5, vocab_size=36, pad=pad)
        make_trainer(max_steps=4).fit(module, data)
        runs.append(weights_of(module.student))
    assert torch.equal(runs[0], runs[1])


@pytest.mark.parametrize(("micro_batch_size", "accumulate"), [(4, 1), (8, 2), (2, 2)])
def test_steps_of_another_size_than_the_batch_are_an_error(
    micro_batch_size, accumulate, make_minillm, make_data, make_trainer
):
    """Otherwise gradients would silently be scaled by the ratio of both."""
    number = 8 // micro_batch_size
    with pytest.raises(
        ValueError, match=rf"comes in {number} micro-batches .* set Trainer\(accumulate_grad_batches={number}\)"
    ):
        make_trainer(max_steps=1, accumulate_grad_batches=accumulate).fit(
            make_minillm(), make_data(micro_batch_size=micro_batch_size)
        )


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_the_rows_of_the_batch(
    make_minillm, make_data, make_trainer, make_recorder, tmp_path
):
    class Broken(MiniLLMLoss):
        def token_values(self, signals):
            values = super().token_values(signals)
            self.calls = getattr(self, "calls", 0) + 1
            return values if self.calls < 3 else replace(values, loss=values.loss * float("inf"))

    recorder = make_recorder()
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(max_epochs=1, callbacks=[recorder, keep], enable_checkpointing=True)
    module = make_minillm(loss=Broken())
    with pytest.raises(FloatingPointError, match="at step 2") as error:
        trainer.fit(module, make_data(lm=False))
    rows = [int(i) for i in re.search(r"rows \[(.*?)\]", str(error.value)).group(1).split(",")]
    assert len(rows) == 8
    served = torch.cat([batch.rollouts.indices for batch in recorder.batches]).tolist()
    assert set(rows) <= set(served)  # the third batch opens the second pass
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step=1.ckpt", "step=2.ckpt"}
