"""Any divergence on the text of any source; what MiniLLM's phases promise holds here too."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_minillm.callbacks import ResumeCheckpoint
from lightning_minillm.data import ShuffledStream
from lightning_minillm.losses import ForwardKL, LanguageModelingLoss, MiniLLMLoss, ReverseKL, TokenLoss
from lightning_minillm.modules import KDModule, on_policy_kd
from lightning_minillm.rollout import AdaptiveReplay, ReferenceText, SamplingConfig, StudentText, TeacherText
from lightning_minillm.types import TokenBatch

VOCAB_SIZE = 37


class PairSet:
    """A training set of prompts with one reference each, of 1 to 6 tokens."""

    def __init__(self, prompts):
        self.prompts = prompts
        generator = torch.Generator().manual_seed(11)
        lengths = torch.randint(1, 7, (len(prompts.indices),), generator=generator).tolist()
        self.responses = [torch.randint(1, VOCAB_SIZE, (length,), generator=generator) for length in lengths]

    def __len__(self):
        return len(self.responses)

    def prompt_batch(self, rows):
        ids, mask = self.prompts.input_ids[rows], self.prompts.attention_mask[rows]
        return type(self.prompts)(ids, mask, rows)

    def token_batch(self, rows, normalizer):
        pairs = [
            torch.cat([self.prompts.input_ids[row][self.prompts.attention_mask[row]], self.responses[row]])
            for row in rows.tolist()
        ]
        ids = torch.nn.utils.rnn.pad_sequence(pairs, batch_first=True)
        places = torch.arange(ids.shape[1])
        ends = torch.tensor([len(pair) for pair in pairs])[:, None]
        starts = ends - torch.tensor([len(self.responses[row]) for row in rows.tolist()])[:, None]
        mask = places < ends
        return TokenBatch(ids, mask, mask & (places >= starts), rows, float(normalizer))

    response_batch = token_batch  # the response is all that is learned from


@pytest.fixture
def make_pairs(make_data):
    """``make_pairs(batch_size=8, ...)``: data of 20 prompts with references."""

    def make(**options):
        data = make_data(**{"lm": False, **options})
        data.train_set = PairSet(data.train_set.prompts)
        return data

    return make


@pytest.fixture
def make_module(make_model, tokenizer, sgd, options_of):
    """``make_module(**options)``: phases of 8 prompts, one pass, a plain gradient step of length 1."""

    def make(family="gpt2", kind=on_policy_kd, **options):
        defaults = {
            "teacher": make_model(family, seed=2),
            "optimizer": sgd(),
            "validation_sampling": SamplingConfig(max_new_tokens=2, teacher_mix_alpha=0.0),
        }
        if kind is on_policy_kd:
            sampling = SamplingConfig(max_new_tokens=8, teacher_mix_alpha=0.0)
            defaults |= {
                "sampling": sampling,
                "num_rollouts": 8,
                "ppo_epochs": 1,
                "rollout_batch_size": 5,
                "loss_temperature": 1.0,
                "pretraining_loss": LanguageModelingLoss(),
                "cache": "none",
            }
        plain = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
        return kind(make_model(family, seed=1, **plain), tokenizer, **options_of(options, defaults))

    return make


def step_of(module, data, trainer, weights_of):
    """What one plain gradient step of length 1 changes: minus the gradient."""
    module.configure_model()
    before = weights_of(module.student)
    trainer.fit(module, data)
    return weights_of(module.student) - before


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_gradient_on_student_text_is_that_of_a_plain_loop(
    family, temperature, make_module, make_model, make_pairs, make_trainer, make_recorder, weights_of
):
    recorder = make_recorder()
    module = make_module(family, loss=ReverseKL(), source=StudentText(1.0), loss_temperature=temperature)
    trainer = make_trainer(max_steps=1, callbacks=[recorder], accumulate_grad_batches=2)
    step = step_of(module, make_pairs(micro_batch_size=4), trainer, weights_of)

    student, teacher = make_model(family, seed=1).double(), make_model(family, seed=2).double()
    total, count = 0.0, 0
    for batch in recorder.batches:
        text = batch.rollouts
        for row in range(len(text)):
            prompt = text.prompt_ids[row][text.prompt_mask[row]]
            response = text.response_ids[row][text.response_mask[row]]
            ids = torch.cat([prompt, response])[None]
            log_q = (student(input_ids=ids).logits[0] / temperature).log_softmax(-1)
            with torch.no_grad():
                log_p = (teacher(input_ids=ids).logits[0] / temperature).log_softmax(-1)
            for t in range(len(response)):
                place = len(prompt) + t - 1
                total = total + (log_q[place].exp() * (log_q[place] - log_p[place])).sum()
                count += 1
    (total / count).backward()
    expected = -torch.cat([p.grad.flatten() for p in student.parameters()])
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(step.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_text_of_a_phase_is_the_students_of_that_moment(
    make_module, make_pairs, make_trainer, make_recorder, make_prompts
):
    recorder = make_recorder()
    module = make_module(loss=ForwardKL())
    make_trainer(max_steps=2, callbacks=[recorder]).fit(module, make_pairs())
    last = recorder.batches[-1].rollouts
    assert sorted(last.indices.tolist()) != sorted(recorder.batches[0].rollouts.indices.tolist())
    again = make_module(loss=ForwardKL(), num_rollouts=8)
    again.configure_model()
    first = recorder.batches[0].rollouts
    prompts = type(make_prompts((1,)))(first.prompt_ids, first.prompt_mask, first.indices)
    torch.testing.assert_close(again.collector.collect(prompts, phase=0).response_ids, first.response_ids)


@pytest.mark.parametrize(
    "loss", [ForwardKL(), ReverseKL(), LanguageModelingLoss()], ids=lambda loss: type(loss).__name__
)
def test_on_references_it_is_word_level_distillation(loss, make_module, make_pairs, make_trainer, weights_of):
    data = make_pairs()
    module = make_module(loss=loss, source=ReferenceText())
    trainer = make_trainer(max_steps=1)
    given = step_of(module, data, trainer, weights_of)
    rows = ShuffledStream(20, seed=0).indices(0, 8)
    batch = data.train_set.token_batch(rows, sum(len(data.train_set.responses[row]) for row in rows.tolist()))
    other = make_trainer(max_steps=1)
    known = step_of(make_module(kind=KDModule, loss=loss), make_pairs(train_batches=[batch]), other, weights_of)
    assert known.abs().max() > 1e-3
    torch.testing.assert_close(given, known, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trainer.callback_metrics["train/loss"], other.callback_metrics["train/loss"])


def test_the_teachers_text_is_the_teachers(make_module, make_prompts):
    """Sampled from itself, a student as wise as the teacher writes the same."""
    module = make_module(source=TeacherText())
    module.configure_model()
    prompts = make_prompts((5, 3, 7, 1))
    written = module.collector.collect(prompts, phase=3)
    module.rollouts = replace(module.rollouts, source=StudentText())
    assert not torch.equal(module.collector.collect(prompts, phase=3).response_ids, written.response_ids)
    module.student.load_state_dict(module.teacher.state_dict())
    assert torch.equal(module.collector.collect(prompts, phase=3).response_ids, written.response_ids)


@pytest.mark.parametrize("cache", ["none", "hidden"])
def test_padding_changes_nothing(cache, make_module, make_pairs, make_trainer, make_recorder):
    recorder = make_recorder()
    module = make_module(cache=cache, optimizer=partial(torch.optim.SGD, lr=0.0))
    make_trainer(max_steps=1, callbacks=[recorder]).fit(module, make_pairs())
    batch = recorder.batches[0]
    text = batch.rollouts

    def widen(value, left, right, fill):
        return torch.nn.functional.pad(value, (0, 0) * (value.ndim - 2) + (left, right), value=fill)

    wide = replace(
        text,
        prompt_ids=widen(text.prompt_ids, 3, 0, 7),
        prompt_mask=widen(text.prompt_mask, 3, 0, False),
        response_ids=widen(text.response_ids.masked_fill(~text.response_mask, 9), 0, 4, 5),
        response_mask=widen(text.response_mask, 0, 4, False),
        teacher_hidden=None if text.teacher_hidden is None else widen(text.teacher_hidden, 0, 4, torch.nan),
    )
    expected = module.rollout_loss(batch).loss
    torch.testing.assert_close(module.rollout_loss(replace(batch, rollouts=wide)).loss, expected)
    assert expected > 0.01


@pytest.mark.parametrize(
    "options",
    [{"cache": "hidden"}, {"rollout_batch_size": 64}, {"offload": True, "cache": "hidden"}],
    ids=["teacher kept", "one batch", "teacher offloaded"],
)
def test_options_for_speed_and_memory_change_no_gradient(options, make_module, make_pairs, make_trainer, weights_of):
    steps = [
        step_of(make_module("llama", **o), make_pairs(), make_trainer(max_steps=1), weights_of) for o in ({}, options)
    ]
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-5)


def test_micro_batches_sum_to_the_batch_with_the_pretraining_batch(make_module, make_pairs, make_trainer, weights_of):
    steps = []
    for micro in (8, 4, 2):
        trainer = make_trainer(max_steps=1, accumulate_grad_batches=8 // micro)
        steps.append(
            step_of(make_module(pretraining_coef=0.5), make_pairs(micro_batch_size=micro, lm=True), trainer, weights_of)
        )
        metrics = trainer.callback_metrics
        total = metrics["train/kd_loss"] + 0.5 * metrics["train/pt_loss"]
        torch.testing.assert_close(metrics["train/loss"], total)
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0], rtol=1e-4, atol=1e-6)


def test_training_brings_student_and_teacher_together(make_module, make_pairs, make_trainer, make_recorder, adamw):
    recorder = make_recorder()
    make_trainer(max_steps=40, callbacks=[recorder]).fit(make_module(optimizer=adamw(3e-2)), make_pairs())
    losses = [step["train/kd_loss"] for step in recorder.steps]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


# --- sources --------------------------------------------------------------------------------------------------------


def test_a_worse_validation_loss_raises_the_probability_of_student_text(
    make_module, make_pairs, make_evaluation, make_trainer, adamw
):
    """Validation is on random text, which a student that learns from its teacher gets worse at."""
    source = AdaptiveReplay(tolerance=0.0, step=0.25)
    module = make_module(source=source, loss=ForwardKL(), optimizer=adamw(3e-2))
    trainer = make_trainer(max_steps=6, val_check_interval=1)
    data, seen = make_pairs(validation=[make_evaluation()]), []
    on_validation = source.on_validation
    source.on_validation = lambda loss: (on_validation(loss), seen.append((loss, source.probability)))
    trainer.fit(module, data)
    assert len(seen) == 6
    assert seen[-1][0] == pytest.approx(float(trainer.callback_metrics["val/loss"]), rel=1e-6)
    assert seen[0][1] == 0
    for (_, before), (loss, after) in pairwise(seen):
        assert after in (before, before + 0.25)
        assert (after > before) == (loss >= source_loss(seen, before))
    assert source.probability > 0
    assert "rollout/student_probability" in trainer.callback_metrics


def source_loss(seen, probability):
    """The loss that set ``probability``: what the next is compared with."""
    return next(loss for loss, value in seen if value == probability)


def test_the_sanity_check_is_no_validation(make_module, make_pairs, make_evaluation, make_trainer):
    source = AdaptiveReplay()
    trainer = make_trainer(max_steps=1, num_sanity_val_steps=1, limit_val_batches=1, check_val_every_n_epoch=5)
    trainer.fit(make_module(source=source), make_pairs(validation=[make_evaluation()]))
    assert source.state_dict()["compared_loss"] is None


SOURCES = {
    "mixed": lambda: StudentText(0.5),
    "replay": lambda: AdaptiveReplay(probability=0.6, tolerance=0.0, capacity=16, fresh="constant"),
}


@pytest.fixture(params=SOURCES)
def train(request, make_module, make_pairs, make_evaluation, make_trainer, make_recorder, weights_of, adamw):
    """``train(*checkpoints, steps=12, **fit)``: weights, source and batches of phases of 2 steps; 3 a validation."""

    def run(*checkpoints, steps=12, **fit):
        source, recorder = SOURCES[request.param](), make_recorder()
        module = make_module(source=source, num_rollouts=16, optimizer=adamw(), loss=ForwardKL())
        trainer = make_trainer(
            max_steps=steps,
            accumulate_grad_batches=2,
            callbacks=[*checkpoints, recorder],
            enable_checkpointing=bool(checkpoints),
            val_check_interval=6,
            check_val_every_n_epoch=None,
        )
        trainer.fit(module, make_pairs(micro_batch_size=4, validation=[make_evaluation()]), **fit)
        return weights_of(module.student), source, recorder.batches

    return run


def turn(batches):
    """What tells apart whose text a phase is on: references are not sampled, and replays are of rows seen before."""
    return bool(batches[0].rollouts.student_logprobs.any()), set(batches[0].rollouts.indices.tolist()) < set(range(16))


def same(value, other):
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    return torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_a_resumed_run_equals_an_uninterrupted_one(train, tmp_path):
    """Bit for bit, from the middle and the end of a phase, and from the step of a validation."""
    every_step = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    weights, source, batches = train(every_step)
    assert len(batches) == 24
    assert len({turn(batches[4 * phase : 4 * phase + 4]) for phase in range(6)}) > 1
    train(ResumeCheckpoint(str(tmp_path), every_n_train_steps=9), steps=9)
    for name, step in (("step=2", 2), ("step=5", 5), ("step=7", 7), ("last", 9)):
        resumed, again, rest = train(ckpt_path=tmp_path / f"{name}.ckpt", weights_only=False)
        assert [b.rollouts.response_ids.tolist() for b in rest] == [
            b.rollouts.response_ids.tolist() for b in batches[2 * step :]
        ], step
        assert torch.equal(resumed, weights), step
        assert same(source.state_dict(), again.state_dict()), step


# --- options --------------------------------------------------------------------------------------------------------


class Weighted(TokenLoss):
    token_inputs = ("importance_weights",)

    def token_values(self, signals):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": MiniLLMLoss()}, r"MiniLLMLoss reads advantages, and there are none: pass advantages"),
        (
            {"loss": Weighted(), "source": ReferenceText()},
            "Weighted reads importance_weights.*only text of the student",
        ),
        ({"loss_temperature": 0.0}, "temperature must be positive"),
        ({"pretraining_coef": -1.0}, "weight of the pretraining loss must be at least 0"),
        ({"sampling": SamplingConfig(temperature=0.0, teacher_mix_alpha=0.0)}, "positive sampling temperature"),
    ],
)
def test_options_out_of_range_are_refused_when_made(options, message, make_module):
    with pytest.raises(ValueError, match=message):
        make_module(**options)


def test_an_offloaded_teacher_that_every_step_reads_is_refused(make_module, make_pairs, make_trainer):
    with pytest.raises(ValueError, match=r"set teacher_use\.cache=hidden"):
        make_trainer(max_steps=1).fit(make_module(offload=True), make_pairs())
