import pytest
import torch
from lightning import Callback

from lightning_minillm.losses import ForwardKL, KDLoss, LanguageModelingLoss, ReverseKL
from lightning_minillm.modules import KDModule, SFTModule

MODULES = {
    "sft": lambda student, tokenizer, teacher, **options: SFTModule(student, tokenizer, **options),
    "kd": lambda student, tokenizer, teacher, **options: KDModule(student, tokenizer, teacher=teacher, **options),
    "kd_reverse": lambda student, tokenizer, teacher, **options: KDModule(
        student, tokenizer, teacher=teacher, loss=KDLoss(0.7, ReverseKL(), chunk_size=5), **options
    ),
}


NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


@pytest.fixture(scope="module")
def make_module(make_model, tokenizer, adamw, options_of):
    """A module of MODULES, of tiny GPT-2 models without dropout."""

    def make(name, student_options=NO_DROPOUT, **options):
        student = make_model("gpt2", seed=1, **student_options)
        teacher = make_model("gpt2", seed=2)
        return MODULES[name](student, tokenizer, teacher, **options_of(options, {"optimizer": adamw()}))

    return make


class Losses(Callback):
    def __init__(self):
        self.values, self.parts = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.values.append(float(trainer.callback_metrics["train/loss"]))
        self.parts.append(dict(trainer.callback_metrics))


@pytest.mark.parametrize("name", MODULES)
def test_micro_batches_sum_to_the_batch(name, make_module, make_data, make_tokens, cut, make_trainer, sgd, weights_of):
    """One optimiser step in 1, 2, 4 or 8 micro-batches of rows of unequal length: the same gradient."""
    whole, steps = make_tokens(8), []
    for number in (1, 2, 4, 8):
        normalizer = int(whole.target_mask.sum()) / number
        batches = [cut(whole, rows, normalizer) for rows in torch.arange(8).chunk(number)]
        module = make_module(name, optimizer=sgd())
        module.configure_model()
        before = weights_of(module.student)
        make_trainer(max_steps=1, accumulate_grad_batches=number).fit(module, make_data(train_batches=batches))
        steps.append(weights_of(module.student) - before)
    assert steps[0].abs().max() > 1e-3
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_padding_and_row_order_change_nothing(name, make_module, make_tokens, cut):
    module, batch = make_module(name), make_tokens(8)
    module.configure_model()
    expected = module.apply_loss(module.loss, batch).loss
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    shuffled = cut(batch, order, batch.normalizer)
    torch.testing.assert_close(module.apply_loss(module.loss, shuffled).loss, expected)
    wide = {
        "input_ids": torch.nn.functional.pad(batch.input_ids.masked_fill(~batch.attention_mask, 5), (0, 4), value=7),
        "attention_mask": torch.nn.functional.pad(batch.attention_mask, (0, 4)),
        "target_mask": torch.nn.functional.pad(batch.target_mask, (0, 4)),
    }
    padded = type(batch)(**wide, indices=batch.indices, normalizer=batch.normalizer)
    torch.testing.assert_close(module.apply_loss(module.loss, padded).loss, expected)


def test_sft_is_the_mean_cross_entropy_of_the_targets(make_module, make_tokens):
    module, batch = make_module("sft"), make_tokens(8)
    module.configure_model()
    total, count = 0.0, 0
    for row in range(8):
        ids = batch.input_ids[row][batch.attention_mask[row]]
        with torch.no_grad():
            logprobs = module.student(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for t in range(1, len(ids)):
            if batch.target_mask[row, t]:
                total, count = total - logprobs[t - 1, ids[t]].item(), count + 1
    assert module.apply_loss(module.loss, batch).loss.item() == pytest.approx(total / count, rel=1e-5)


def test_only_targets_are_learnt(make_module, make_tokens):
    """Prompt tokens are no targets: a batch without any other is an error."""
    module, batch = make_module("sft"), make_tokens(2)
    module.configure_model()
    empty = type(batch)(**{**vars(batch), "target_mask": torch.zeros_like(batch.target_mask)})
    with pytest.raises(ValueError, match="no target token"):
        module.apply_loss(module.loss, empty)


@pytest.mark.parametrize("name", MODULES)
def test_training_lowers_the_loss(name, make_module, make_data, make_tokens, make_trainer):
    losses = Losses()
    trainer = make_trainer(max_epochs=15, callbacks=[losses])
    trainer.fit(make_module(name), make_data(train_batches=[make_tokens(8)]))
    assert losses.values[-1] < 0.8 * losses.values[0]


def test_the_student_trains_with_the_dropout_of_its_config(make_module, make_data, make_tokens, make_trainer, sgd):
    """Models come in eval mode, and Lightning leaves modes alone: the module has to switch."""
    losses = Losses()
    module = make_module("sft", student_options={**NO_DROPOUT, "resid_pdrop": 0.5}, optimizer=sgd(lr=0.0))
    make_trainer(max_epochs=2, callbacks=[losses]).fit(module, make_data(train_batches=[make_tokens(8)]))
    assert abs(losses.values[0] - losses.values[1]) > 1e-3
    assert module.student.training


def test_a_kd_run_leaves_the_teacher_alone(make_module, make_data, make_tokens, make_trainer, weights_of):
    module = make_module("kd")
    module.configure_model()
    before = weights_of(module.teacher)
    trainer = make_trainer(max_steps=3)
    trainer.fit(module, make_data(train_batches=[make_tokens(8, seed) for seed in range(3)]))
    assert torch.equal(weights_of(module.teacher), before)
    held = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not held & {id(p) for p in module.teacher.parameters()}


@pytest.mark.parametrize(("name", "loss"), [("sft", LanguageModelingLoss), ("kd", KDLoss)])
def test_default_losses(name, loss, make_module):
    assert type(make_module(name).loss) is loss


def test_parts_are_logged_by_their_names(make_module, make_data, make_tokens, make_trainer):
    losses = Losses()
    make_trainer(max_steps=1, callbacks=[losses]).fit(make_module("kd"), make_data(train_batches=[make_tokens(8)]))
    parts = losses.parts[0]
    mixed = 0.5 * parts["train/lm_loss"] + 0.5 * parts["train/teacher_cross_entropy"]
    assert parts["train/loss"].item() == pytest.approx(mixed.item(), rel=1e-5)


def test_a_loss_against_a_teacher_needs_one(make_module, make_tokens):
    module = make_module("sft", loss=ForwardKL())
    module.configure_model()
    with pytest.raises(ValueError, match=r"there is no teacher to compare with: pass teacher=\.\.\."):
        module.apply_loss(module.loss, make_tokens(4))


def test_a_loss_that_is_not_finite_stops_with_the_rows(make_module, make_data, make_tokens, cut, make_trainer, sgd):
    batches = [cut(make_tokens(8), rows, 10.0) for rows in torch.arange(8).chunk(4)]
    with pytest.raises(FloatingPointError, match=r"at step 1, on the rows \[2, 3\]"):
        make_trainer(max_epochs=1).fit(make_module("sft", optimizer=sgd(lr=1e30)), make_data(train_batches=batches))
