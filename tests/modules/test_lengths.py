"""Sequences longer than a model's table of positions are an error before any work."""

from functools import partial

import pytest
import torch
from lightning import Trainer

from lightning_minillm.modules import KDModule, SFTModule, TrainingOptions, ValidationOptions, minillm
from lightning_minillm.rollout import RolloutOptions, SamplingConfig

POSITIONS = 20


@pytest.fixture
def fit(make_model, make_data, make_evaluation, make_tokens, tokenizer, tmp_path):
    """``fit(make_module, lengths)``: train on data of these lengths; returns the forward passes of models."""
    passes = []

    def run(make_module, lengths, run="fit", short="student"):
        student, teacher = (
            make_model("gpt2", seed=seed, n_positions=POSITIONS if name == short else 64)
            for seed, name in enumerate(("student", "teacher"))
        )
        for model in (student, teacher):
            model.register_forward_pre_hook(lambda *_: passes.append(1))
            model.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
        sampling = SamplingConfig(max_new_tokens=6, teacher_mix_alpha=0.0)
        module = make_module(
            student,
            tokenizer,
            teacher=teacher,
            training=TrainingOptions(optimizer=partial(torch.optim.SGD, lr=0.1)),
            validation=ValidationOptions(sampling),
        )
        module.configure_model()
        passes.clear()
        pairs = None if make_module is make_minillm else [make_tokens(8)]
        data = make_data(validation=[make_evaluation()], train_batches=pairs)
        data.longest_rows, data.rows_with = (lambda: lengths), (lambda token_ids: {})
        trainer = Trainer(
            max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            default_root_dir=tmp_path,
        )  # fmt: skip
        getattr(trainer, run)(module, datamodule=data)
        return len(passes)

    run.passes = passes
    return run


def make_minillm(student, tokenizer, **options):
    sampling = SamplingConfig(max_new_tokens=6, teacher_mix_alpha=0.0)
    return minillm(student, tokenizer, rollouts=RolloutOptions(sampling, num_rollouts=8, ppo_epochs=1), **options)


@pytest.mark.parametrize("short", ["student", "teacher"])
@pytest.mark.parametrize(
    ("make_module", "lengths", "message"),
    [
        (SFTModule, {"train": (5, 21)}, "20 positions and the run asks for sequences of 21 tokens"),
        (KDModule, {"validation": (5, 40)}, "20 positions and the run asks for sequences of 40 tokens"),
        (KDModule, {"validation": (16, 17)}, "max_new_tokens=6 need 21 positions, and the .* has 20: lower"),
        (make_minillm, {"train": (16, 17)}, "max_new_tokens=6 need 21 positions, and the .* has 20: lower"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_the_first_pass(fit, make_module, lengths, message, short):
    with pytest.raises(ValueError, match=message):
        fit(make_module, lengths, short=short)
    assert not fit.passes


@pytest.mark.parametrize("run", ["validate", "test"])
def test_so_are_those_of_a_validation_alone(fit, run):
    with pytest.raises(ValueError, match="need 21 positions"):
        fit(SFTModule, {"validation": (16, 17), "test": (16, 17)}, run)


def test_data_that_fit_are_trained_on(fit):
    assert fit(SFTModule, {"train": (19, 20), "validation": (15, 20)}) > 0
    assert fit(make_minillm, {"train": (15, 20)}) > 0


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_a_batch_that_does_not_fit_names_both_numbers(make_model, make_tokens, tokenizer, family):
    table = "n_positions" if family == "gpt2" else "max_position_embeddings"
    module = SFTModule(make_model(family, **{table: 8}), tokenizer)
    with pytest.raises(ValueError, match="has 8 positions and the run asks for sequences of 9 tokens"):
        module.apply_loss(module.loss, make_tokens(8))
