"""Weights in half precision and small learning rates."""

import warnings
from functools import partial

import pytest
import torch

from lightning_minillm.losses import LanguageModelingLoss
from lightning_minillm.modules import SFTModule, TrainingOptions
from lightning_minillm.modules.precision import lost_updates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", [1e-8, 5e-6, 1e-4, 1e-2])
def test_the_lost_share_is_that_of_additions_that_change_nothing(dtype, step):
    weights = torch.randn(4000, generator=torch.Generator().manual_seed(0)).mul(0.05).to(dtype)
    moved = (weights.double().abs() + step).to(dtype)
    kept = float((moved == weights.abs()).double().mean())
    assert lost_updates([weights], step) == pytest.approx(kept, abs=2e-3)


def make_module(model, tokenizer, optimizer):
    module = SFTModule(model, tokenizer, training=TrainingOptions(optimizer=optimizer))
    module.configure_model()
    return module


def test_the_warning_says_what_training_loses(make_model, tokenizer, make_tokens):
    """The share of weights that ten steps do not move is the one that is announced."""
    module = make_module(
        make_model("llama", seed=1).bfloat16(), tokenizer, partial(torch.optim.AdamW, lr=5e-6, weight_decay=0)
    )
    with pytest.warns(
        UserWarning, match=r"weights are in bfloat16, where a step of lr=5e-06 is rounded away on (\d+) %"
    ) as caught:
        optimizer = module.configure_optimizers()
    announced = int(str(caught[0].message).split(" %")[0].split()[-1])
    before = [parameter.detach().clone() for parameter in module.pair.student.parameters()]
    batch = make_tokens(8)
    for _ in range(10):
        module.apply_loss(LanguageModelingLoss(), batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = list(module.pair.student.parameters())
    kept = sum(int((a == b).sum()) for a, b in zip(before, after, strict=True)) / sum(map(torch.numel, after))
    assert announced > 90
    assert 100 * kept == pytest.approx(announced, abs=5)


@pytest.mark.parametrize(
    ("dtype", "optimizer"),
    [
        (torch.float32, partial(torch.optim.AdamW, lr=5e-6)),
        (torch.bfloat16, partial(torch.optim.AdamW, lr=1e-1)),
        (torch.bfloat16, partial(torch.optim.SGD, lr=5e-6)),  # whose steps are as large as the gradient
    ],
)
def test_no_warning_where_steps_arrive(make_model, tokenizer, dtype, optimizer):
    module = make_module(make_model("gpt2").to(dtype), tokenizer, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module.configure_optimizers()
