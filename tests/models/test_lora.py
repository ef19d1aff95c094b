import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_minillm.models.export import save_pretrained
from lightning_minillm.models.lora import add_lora, has_lora, merged_state_dict


@pytest.fixture
def adapted(make_model, family):
    """A model of each family whose adapters do something."""
    targets = {"gpt2": ["c_attn", "c_proj"], "opt": ["q_proj", "fc2"]}.get(family, ["q_proj", "down_proj"])
    model = add_lora(make_model(family), rank=2, alpha=6.0, target_modules=targets)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return model


def logits(model):
    return model(input_ids=torch.arange(1, 9)[None]).logits


def test_only_adapters_are_trained_and_start_without_effect(make_model, family):
    plain = make_model(family)
    model = add_lora(make_model(family), target_modules="all-linear", rank=2)
    assert has_lora(model)
    assert not has_lora(plain)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    torch.testing.assert_close(logits(model), logits(plain))


def test_merged_weights_give_the_same_logits(adapted, make_model, family):
    merged = make_model(family)
    merged.load_state_dict(merged_state_dict(adapted, adapted.state_dict()))
    assert (logits(adapted) - logits(make_model(family))).abs().max() > 0.05
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=1e-4, atol=1e-4)


def test_the_folder_holds_the_merged_model_and_the_adapters(adapted, make_model, family, tokenizer, tmp_path):
    save_pretrained(adapted, tmp_path / "student", tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    assert not has_lora(loaded)
    torch.testing.assert_close(logits(loaded), logits(adapted), rtol=1e-4, atol=1e-4)
    again = PeftModel.from_pretrained(make_model(family), tmp_path / "student" / "adapter").eval()
    torch.testing.assert_close(logits(again), logits(adapted), rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_adapters(make_model):
    first, second, other = (add_lora(make_model("llama"), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_rank_below_one_is_an_error(make_model):
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        add_lora(make_model("gpt2"), rank=0)
