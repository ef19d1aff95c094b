"""A model folder is judged before anything is loaded, and loading judges what only it can see."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from lightning_minillm.models import load_causal_lm
from lightning_minillm.models.checks import check_fit, check_model
from lightning_minillm.models.folders import local_or_hub, stored_dtype
from lightning_minillm.models.lora import add_lora

BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 37}
T5 = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 32, "d_kv": 8, "vocab_size": 37}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 37}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}


@pytest.fixture
def folder(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def change_weights(folder, change):
    state = change(load_file(folder / "model.safetensors"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, message):
    """The same refusal before loading and when a user calls the loader alone."""
    for function in (check_model, load_causal_lm):
        with pytest.raises(ValueError, match=message) as error:
            function(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600


def test_complete_folders_of_every_family_pass(make_model, family, tmp_path):
    make_model(family).save_pretrained(tmp_path / "one")
    make_model(family).save_pretrained(tmp_path / "several", max_shard_size="5KB")
    torch.save(make_model(family).state_dict(), tmp_path / "pytorch_model.bin")
    make_model(family).config.save_pretrained(tmp_path)
    for folder in (tmp_path / "one", tmp_path / "several", tmp_path):
        assert check_model(folder).model_type == family
        load_causal_lm(folder)


def test_nothing_is_drawn_from_the_global_random_state(folder):
    before = torch.get_rng_state()
    check_model(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_body_without_a_prefix_and_tied_heads_pass(make_model, tmp_path):
    make_model("gpt2").transformer.save_pretrained(tmp_path / "body")
    check_model(tmp_path / "body")
    make_model("qwen2", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    check_model(tmp_path / "tied")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.unlink(), "contains no weights"),
        (lambda file: file.write_bytes(b""), r"model\.safetensors' is not a complete file of weights"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "is not a complete file of weights"),
        (lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"), "git lfs pull"),
    ],
    ids=["absent", "empty", "cut off", "pointer"],
)
def test_files_that_hold_no_weights(folder, damage, message):
    damage(folder / "model.safetensors")
    refused(folder, message)


def test_a_cut_pickle_is_refused(make_model, tmp_path):
    make_model("gpt2").config.save_pretrained(tmp_path)
    torch.save(make_model("gpt2").state_dict(), tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    refused(tmp_path, r"pytorch_model\.bin' is not a complete file of weights")


def test_a_missing_shard_is_named(make_model, tmp_path):
    make_model("llama").save_pretrained(tmp_path, max_shard_size="5KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    refused(tmp_path, rf"1 of {len(shards)} files of weights are missing .* e\.g\. {shards[1].name}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a"')
    refused(tmp_path, "is not a complete index of weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if ".layers.1." not in k}, r"9 are missing, e\.g\. model\.layers\.1"),
        (lambda s: {k: v for k, v in s.items() if "lm_head" not in k}, r"1 are missing, e\.g\. lm_head\.weight"),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, r"without 'module\.' in their names"),
        (lambda s: {k: v[:-1].clone() if "embed" in k else v for k, v in s.items()}, "another shape, .*embed_tokens"),
    ],
    ids=["layer", "head", "prefix", "shape"],
)
def test_weights_that_are_not_the_models(folder, change, message):
    change_weights(folder, change)
    refused(folder, message)


def test_weights_that_are_not_finite_are_seen_when_they_are_loaded(folder):
    change_weights(folder, lambda s: {k: v * float("nan") if k == "lm_head.weight" else v for k, v in s.items()})
    check_model(folder)
    with pytest.raises(ValueError, match=r"are not finite \(lm_head\.weight\)"):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("kind", "fields", "auto"),
    [
        ("bert", BERT, AutoModelForCausalLM),
        ("t5", T5, AutoModelForSeq2SeqLM),
        ("bart", BART, AutoModelForSeq2SeqLM),
    ],
)
def test_other_kinds_of_models_are_named_in_one_line(kind, fields, auto, tmp_path):
    auto.from_config(AutoConfig.for_model(kind, **fields)).save_pretrained(tmp_path)
    refused(tmp_path, f"of type '{kind}' .*not a causal language model")


def test_folders_of_something_else(folder, tmp_path):
    refused(tmp_path / "nowhere", "there is no folder")
    refused(folder / "config.json", r"config\.json' is a file: pass the folder of a model")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    refused(run, r"contains no config\.json")
    (run / "checkpoints" / "last.ckpt").touch()
    refused(run, r"folder of an unfinished run.*last\.ckpt")
    shutil.move(folder, run / "student")
    refused(run, r"folder of a run.*student")
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    refused(tmp_path, "no model configuration can be read from")
    (tmp_path / "config.json").write_text('{"model_type"')
    refused(tmp_path, "no model configuration can be read from")


def test_only_the_config_is_needed_to_plan(folder):
    (folder / "model.safetensors").unlink()
    assert check_model(folder, weights=False).model_type == "llama"


def test_adapters_are_checked_with_their_model(folder, make_model, tmp_path):
    adapted = add_lora(make_model("llama"), rank=2)
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(folder)}))
    assert check_model(tmp_path / "adapter").model_type == "llama"
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    refused(tmp_path / "adapter", r"contains no weights \(adapter_model")
    adapted.save_pretrained(tmp_path / "adapter")
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(folder)}))
    change_weights(folder, lambda s: {k: v for k, v in s.items() if ".layers.1." not in k})
    refused(tmp_path / "adapter", "are missing")


def test_old_code_beside_a_model_of_transformers_is_not_needed(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_causal_lm(folder)).__name__ == "LlamaForCausalLM"


def test_a_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert local_or_hub("~/model", "model") == str(folder)
    assert check_model("~/model").model_type == "llama"


def test_the_dtype_of_weights_is_read_from_their_header(folder, make_model):
    assert stored_dtype(folder) == torch.float32
    make_model("llama").to(torch.bfloat16).save_pretrained(folder)
    assert stored_dtype(folder) == torch.bfloat16
    assert stored_dtype("some/name") is None


# --- against a tokenizer and lengths ----------------------------------------------------------------------------------


def test_every_token_needs_an_embedding(make_model, make_tokenizer):
    config = make_model("llama").config
    check_fit("m", config, make_tokenizer(), None)
    with pytest.raises(ValueError, match="has 3 tokens beyond the 37 of the model's embedding"):
        check_fit("m", config, make_tokenizer(words=40), None)
    media = make_tokenizer()
    media.add_tokens(["<image_soft_token>"], special_tokens=True)
    check_fit("m", config, media, None)


@pytest.mark.parametrize(("family", "fits"), [("gpt2", False), ("opt", False), ("llama", True), ("qwen3", True)])
def test_tables_of_positions_must_be_long_enough(make_model, make_tokenizer, family, fits):
    config = make_model(family).config
    check_fit("m", config, make_tokenizer(), 64)
    if fits:
        check_fit("m", config, make_tokenizer(), 65)
    else:
        with pytest.raises(ValueError, match="64 positions and the run asks for sequences of 65 tokens"):
            check_fit("m", config, make_tokenizer(), 65)
