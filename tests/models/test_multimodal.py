import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from lightning_minillm.models import SplitCausalLM, load_causal_lm

TEXT = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def gemma3():
    text, vision = {**TEXT, "head_dim": 8}, {**VISION, "model_type": "siglip_vision_model"}
    ids = {"image_token_index": 60, "boi_token_index": 61, "eoi_token_index": 62}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **ids)
    )


def llava():
    text, vision = {**TEXT, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=60))


def mistral3():
    text, vision = {**TEXT, "model_type": "mistral", "head_dim": 4}, {**VISION, "model_type": "pixtral", "head_dim": 8}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=60)
    )


def qwen_vl():
    text = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0], "rope_type": "default"}}
    vision = {"hidden_size": 16, "intermediate_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": 16}
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "fullatt_block_indexes": [0]}, **ids)
    )


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(1, 9)[None]).logits


def saved(make, folder):
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("make", "architecture"),
    [
        pytest.param(
            gemma3,
            "Gemma3ForCausalLM",
            marks=pytest.mark.skipif(
                Gemma3ForCausalLM.base_model_prefix != "model",
                reason="transformers 4 names the wrong body for Gemma3ForCausalLM; the towers are then frozen",
            ),
        ),
        (llava, "LlamaForCausalLM"),
        (mistral3, "MistralForCausalLM"),
    ],
)
def test_the_text_part_is_a_model_of_its_own(make, architecture, tmp_path):
    whole = saved(make, tmp_path / "whole")
    with pytest.warns(UserWarning, match="its text part is used, the rest is left out"):
        text = load_causal_lm(tmp_path / "whole")
    assert type(text).__name__ == architecture
    assert SplitCausalLM(text).is_split
    torch.testing.assert_close(logits(text), logits(whole), rtol=0, atol=0)
    text.save_pretrained(tmp_path / "exported")
    again = load_causal_lm(tmp_path / "exported")
    assert type(again) is type(text)
    torch.testing.assert_close(logits(again), logits(whole), rtol=0, atol=0)


def test_towers_of_gemma3_are_frozen_where_its_class_names_the_wrong_body(tmp_path, monkeypatch):
    """As in transformers 4."""
    monkeypatch.setattr(Gemma3ForCausalLM, "base_model_prefix", "language_model")
    whole = saved(gemma3, tmp_path)
    with pytest.warns(UserWarning, match="a gemma3: its text part is used, the rest stays frozen"):
        model = load_causal_lm(tmp_path)
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if "vision" in name or "multi_modal" in name}
    assert frozen


def test_towers_of_a_text_part_without_a_class_are_frozen(tmp_path):
    whole = saved(qwen_vl, tmp_path)
    with pytest.warns(UserWarning, match="a qwen2_5_vl: its text part is used, the rest stays frozen"):
        model = load_causal_lm(tmp_path)
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=0)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in model.named_parameters() if "visual" not in name}
    split = SplitCausalLM(model)
    ids, mask = torch.arange(1, 9).view(2, 4), torch.ones(2, 4, dtype=torch.bool)
    states, _ = split.token_states(ids, mask, mask & (torch.arange(4) > 0))
    states.logits().sum().backward()
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == names
