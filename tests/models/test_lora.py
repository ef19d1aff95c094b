import peft
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lightning_minillm.models import load_causal_lm
from lightning_minillm.models.export import save_pretrained
from lightning_minillm.models.lora import add_lora, has_lora, load_lora_causal_lm, merged_state_dict


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


# --- what can be merged, and what is refused --------------------------------------------------------------------------


def randomised(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["embed_tokens"], ["lm_head", "q_proj"]])
def test_adapters_on_embeddings_and_heads_are_merged(make_model, tokenizer, tmp_path, targets):
    model = randomised(add_lora(make_model("llama"), rank=2, target_modules=targets))
    save_pretrained(model, tmp_path, tokenizer)
    loaded = load_causal_lm(tmp_path)
    assert (logits(model) - logits(make_model("llama"))).abs().max() > 0.05
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    again = PeftModel.from_pretrained(make_model("llama"), tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "target"), [("llama", "embed_tokens"), ("llama", "lm_head"), ("gpt2", "wte")])
def test_one_of_two_tied_matrices_is_refused(make_model, family, target):
    with pytest.raises(ValueError, match=f"{target} cannot be merged, because the embedding and the head"):
        add_lora(make_model(family, tie_word_embeddings=True), target_modules=[target])


def test_all_linear_layers_leave_a_tied_head_alone(make_model, tokenizer, tmp_path):
    model = randomised(add_lora(make_model("llama", tie_word_embeddings=True), target_modules="all-linear"))
    save_pretrained(model, tmp_path, tokenizer)
    torch.testing.assert_close(logits(load_causal_lm(tmp_path)), logits(model), rtol=1e-4, atol=1e-4)


def test_layers_of_other_kinds_are_refused(make_model):
    model = make_model("llama")
    model.model.layers[0].mlp.extra = torch.nn.Conv1d(4, 4, 1)
    ours, pefts = r"mlp\.extra \(Conv1d\) cannot be merged", r"Target module Conv1d\(.*\) is not supported"
    adapts = hasattr(peft.tuners.lora.layer, "Conv1d")  # peft 0.14 does not, and refuses by itself
    with pytest.raises(ValueError, match=ours if adapts else pefts):
        add_lora(model, target_modules=["extra"])


def test_quantised_students_are_refused_before_anything_is_loaded(make_model):
    with pytest.raises(ValueError, match="set quantization=null"):
        load_lora_causal_lm("nowhere", quantization="4bit")
    model = make_model("llama")
    model.is_quantized = True
    with pytest.raises(ValueError, match="set quantization=null"):
        add_lora(model)
