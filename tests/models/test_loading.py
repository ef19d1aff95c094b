import json

import pytest
import torch

from lightning_minillm.models import (
    init_causal_lm,
    is_quantized,
    load_causal_lm,
    load_lora_causal_lm,
    load_tokenizer,
    loading,
    shared_vocabulary,
)
from lightning_minillm.models.export import save_pretrained

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, make_model):
    folder = tmp_path_factory.mktemp("model")
    make_model("gpt2").save_pretrained(folder)
    return folder


def weights(model):
    return torch.cat([p.detach().flatten().float() for p in model.parameters()])


# --- loading a model --------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_as_it_was(model_folder, make_model, make_prompts):
    loaded, original = load_causal_lm(model_folder), make_model("gpt2")
    ids = make_prompts((5, 5)).input_ids
    assert not loaded.training
    assert next(loaded.parameters()).dtype == torch.float32
    assert torch.equal(loaded(input_ids=ids).logits, original(input_ids=ids).logits)


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_for_teachers(model_folder, dtype, expected):
    assert {p.dtype for p in load_causal_lm(model_folder, dtype=dtype).parameters()} == {expected}


def test_the_attention_implementation_is_chosen(model_folder):
    model = load_causal_lm(str(model_folder), attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_dropout_overrides_every_rate_or_none(model_folder, dropout, expected):
    config = load_causal_lm(model_folder, dropout=dropout).config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (expected,) * 3


@pytest.mark.parametrize("dropout", [-0.1, 1.0])
def test_dropout_outside_its_range(model_folder, dropout):
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
        load_causal_lm(model_folder, dropout=dropout)


def test_an_unknown_dtype_names_the_known_ones(model_folder):
    with pytest.raises(ValueError, match="float32"):
        load_causal_lm(model_folder, dtype="float64")


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(
        ValueError, match=r"there is no folder .* to load a model from: pass an existing folder or a hub name"
    ):
        load_causal_lm(tmp_path / "missing")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"no config.json: pass a Hugging Face model folder"):
        load_causal_lm(tmp_path)


REMOTE_CODE = """
raise SystemExit("code of a model ran although nobody asked for it")
"""


@pytest.mark.parametrize(
    ("model_type", "auto_map"),
    [
        ("vit", {"AutoModelForCausalLM": "modeling_odd.OddLM"}),
        ("odd", {"AutoConfig": "modeling_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddLM"}),
    ],
)
def test_remote_code_is_refused_unless_asked_for(tmp_path, model_type, auto_map):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": auto_map}))
    (tmp_path / "modeling_odd.py").write_text(REMOTE_CODE)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_causal_lm(tmp_path)


# --- making a model ---------------------------------------------------------------------------------------------------


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone(tokenizer):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = init_causal_lm("gpt2", tokenizer, seed=1, **TINY)
    assert torch.equal(torch.rand(3), expected)
    torch.rand(7)
    assert torch.equal(weights(first), weights(init_causal_lm("gpt2", tokenizer, seed=1, **TINY)))
    assert not torch.equal(weights(first), weights(init_causal_lm("gpt2", tokenizer, seed=2, **TINY)))


def test_sizes_and_special_ids_come_from_the_tokenizer(tokenizer, tmp_path):
    model = init_causal_lm("gpt2", tokenizer, **TINY)
    assert model.get_output_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert not model.training
    tokenizer.save_pretrained(tmp_path)
    from_folder = init_causal_lm("gpt2", tmp_path, vocab_size=64, **TINY)
    assert from_folder.get_output_embeddings().weight.shape == (64, 16)


def test_an_unknown_field_or_architecture_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"no config fields n_layers: use those of transformers' GPT2Config"):
        init_causal_lm("gpt2", tokenizer, n_layers=2)
    with pytest.raises(ValueError, match="gpt2000"):
        init_causal_lm("gpt2000", tokenizer)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_eos_pads_where_there_is_no_pad_token(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token_id == loaded.eos_token_id
    assert loaded.padding_side == "left"


def test_a_pad_token_of_its_own_stays(tmp_path, make_tokenizer):
    make_tokenizer(pad_token="<pad>").save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token == "<pad>"
    assert loaded.pad_token_id != loaded.eos_token_id


def test_a_tokenizer_without_eos_is_an_error(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no eos token"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"there is no folder .* to load a tokenizer from"):
        load_tokenizer(tmp_path / "missing")


def test_the_shared_vocabulary_is_the_smaller_one(make_model):
    small, large = make_model("gpt2", vocab_size=37), make_model("llama", vocab_size=40)
    assert shared_vocabulary(small, large) == shared_vocabulary(large, small) == 37


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_model_says_nearly_the_same(quantization, make_model, tmp_path, make_prompts):
    pytest.importorskip("bitsandbytes")
    model = make_model("llama", hidden_size=64, intermediate_size=128, initializer_range=0.05)
    model.save_pretrained(tmp_path)
    loaded = load_causal_lm(tmp_path, quantization=quantization)
    assert is_quantized(loaded)
    assert not is_quantized(load_causal_lm(tmp_path))
    ids = make_prompts((6, 6)).input_ids.to(loaded.device)
    expected = model(input_ids=ids.cpu()).logits
    difference = (loaded(input_ids=ids).logits.cpu() - expected).norm() / expected.norm()
    # a rounding to 1/127 or 1/8 of the largest number, in each of 14 matrices whose errors add up like noise
    assert 0 < difference < {"8bit": 14**0.5 / 127, "4bit": 14**0.5 / 8}[quantization]
    bytes_of = [sum(p.nbytes for p in m.model.layers.parameters()) for m in (loaded, model)]
    assert bytes_of[0] < bytes_of[1] / {"8bit": 3, "4bit": 6}[quantization]


def test_a_bitsandbytes_that_loses_scales_is_refused(model_folder, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(loading, "version", lambda name: "0.46.1")
    with pytest.raises(ImportError, match=r"needs bitsandbytes 0\.47 or newer, got 0\.46\.1"):
        load_causal_lm(model_folder, quantization="8bit")


def test_an_unknown_quantization(model_folder):
    with pytest.raises(ValueError, match="8bit, 4bit or null, got '3bit'"):
        load_causal_lm(model_folder, quantization="3bit")


def test_quantization_without_its_extra_names_it(model_folder, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lightning-minillm\[quantization\]"):
        load_causal_lm(model_folder, quantization="8bit")


def test_adapters_are_merged_into_the_model_they_adapt(tmp_path, make_model, tokenizer, make_prompts):
    base, folder = tmp_path / "base", tmp_path / "student"
    make_model("llama").save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapted = load_lora_causal_lm(base, rank=2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    save_pretrained(adapted, folder, tokenizer)
    loaded = load_causal_lm(folder / "adapter")
    assert load_tokenizer(folder / "adapter").get_vocab() == tokenizer.get_vocab()
    ids = make_prompts((6, 6)).input_ids
    assert loaded.state_dict().keys() == load_causal_lm(base).state_dict().keys()
    torch.testing.assert_close(loaded(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="cannot be merged into a quantised model"):
        load_causal_lm(folder / "adapter", quantization="8bit")


def test_adapters_of_a_model_without_a_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="does not name the model that the adapters belong to"):
        load_causal_lm(tmp_path)


def test_a_tokenizer_that_nobody_named_is_an_error():
    with pytest.raises(ValueError, match=r"data\.tokenizer="):
        load_tokenizer(None)


def test_a_folder_without_a_tokenizer_says_so_in_one_line(model_folder):
    with pytest.raises(ValueError, match=r"no tokenizer .*save the tokenizer of the model's training there") as error:
        load_tokenizer(model_folder)
    assert "\n" not in str(error.value)


def test_a_revision_chooses_the_tokenizer(monkeypatch, tokenizer):
    given = {}
    monkeypatch.setattr(
        loading.AutoTokenizer, "from_pretrained", lambda name, **options: given.update(options) or tokenizer
    )
    load_tokenizer("some/name", revision="abc")
    assert given["revision"] == "abc"
