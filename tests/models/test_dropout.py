import pytest
import torch

from lightning_minillm.models import disable_dropout

RATES = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "llama": {"attention_dropout": 0.5},
    "mistral": {"attention_dropout": 0.5},
    "qwen2": {"attention_dropout": 0.5},
    "qwen3": {"attention_dropout": 0.5},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_dropout_train_mode_equals_eval_mode(family, attention, make_model, make_prompts):
    model = make_model(family, attn_implementation=attention, **RATES[family])
    ids = make_prompts((9, 9)).input_ids
    expected = model.eval()(input_ids=ids).logits
    model.train()
    torch.manual_seed(0)
    assert (model(input_ids=ids).logits - expected).abs().max() > 1e-2  # the rates were active
    disable_dropout(model)
    assert model.training
    torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_the_config_keeps_the_rates_the_model_was_made_with(make_model):
    model = make_model("llama", attention_dropout=0.5)
    disable_dropout(model)
    assert model.config.attention_dropout == 0.5
