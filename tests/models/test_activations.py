import pytest
import torch
from torch import nn

from lightning_minillm.models import fuse_activations


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_fused_activations_change_logits_and_gradients_by_rounding_only(name, make_model):
    plain, fused = (make_model("gpt2", seed=1, activation_function=name) for _ in range(2))
    fuse_activations(fused)
    assert isinstance(fused.transformer.h[0].mlp.act, nn.GELU)
    ids = torch.arange(1, 13).view(2, 6)
    for model in (plain, fused):
        model(input_ids=ids, labels=ids).loss.backward()
    torch.testing.assert_close(fused(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert fused.config.activation_function == name
    assert fused.state_dict().keys() == plain.state_dict().keys()


def test_other_activations_stay(make_model):
    for family, name in (("gpt2", "gelu"), ("gpt2", "relu"), ("gpt2", "quick_gelu")):
        model = make_model(family, activation_function=name)
        before = type(model.transformer.h[0].mlp.act)
        fuse_activations(model)
        assert type(model.transformer.h[0].mlp.act) is before
