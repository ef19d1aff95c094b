"""Exported folders are read by other versions of transformers, and keep what their base had."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightning_minillm.models import load_causal_lm, load_tokenizer
from lightning_minillm.models.export import save_pretrained
from lightning_minillm.models.portable import rename_rotary_fields, savable_generation_config

EXPORTED = Path(__file__).parent / "exported"
FOLDERS = sorted(str(file.parent.relative_to(EXPORTED)) for file in EXPORTED.glob("*/*/logits.safetensors"))
IDS = torch.arange(1, 30)[None]


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_other_versions_are_read(name, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(EXPORTED / name).eval()
    with torch.no_grad():
        logits = model(input_ids=IDS).logits
    torch.testing.assert_close(logits, load_file(EXPORTED / name / "logits.safetensors")["logits"])
    tokenizer = AutoTokenizer.from_pretrained(EXPORTED / name)
    assert tokenizer("w3 w5").input_ids == [3, 5]
    assert tokenizer.eos_token_id == 0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)


def test_both_versions_have_recorded_the_same_models():
    names = {major: {name.split("/")[1] for name in FOLDERS if f"_{major}/" in name} for major in (4, 5)}
    assert names[4] == names[5]
    assert len(names[4]) == 6


# --- configs ----------------------------------------------------------------------------------------------------------


def test_rotary_fields_keep_their_names_and_get_the_older_ones():
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "partial_rotary_factor": 0.5}
    renamed = rename_rotary_fields({"model_type": "phi", "rope_parameters": scaled, "hidden_size": 8})
    assert renamed["rope_parameters"] == scaled
    assert renamed["rope_theta"] == 5e5
    assert renamed["partial_rotary_factor"] == 0.5
    assert renamed["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    nested = rename_rotary_fields({"text_config": {"rope_parameters": {"rope_theta": 2.0}}})
    assert nested["text_config"]["rope_theta"] == 2.0
    assert rename_rotary_fields({"rope_theta": 3.0, "n_head": 2}) == {"rope_theta": 3.0, "n_head": 2}


def test_layers_with_embeddings_of_their_own_keep_them():
    full = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}
    layers = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    config = {"model_type": "gemma4_text", "rope_parameters": layers}
    assert rename_rotary_fields(config) == config
    older = rename_rotary_fields({**config, "model_type": "gemma3_text"})
    assert (older["rope_theta"], older["rope_local_base_freq"]) == (1e6, 1e4)


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.95, "top_k": 20}, {"temperature", "top_k", "top_p"}),
        ({"do_sample": False, "num_beams": 1, "early_stopping": True}, {"early_stopping"}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 20}, set()),
        ({"num_beams": 4, "length_penalty": 2.0}, set()),
        ({"pad_token_id": -1}, {"pad_token_id"}),
        ({"eos_token_id": [0, 5]}, set()),
    ],
)
def test_generation_options_that_have_no_effect_are_left_out(options, dropped, tmp_path):
    config, without = savable_generation_config(GenerationConfig(**options))
    assert set(without) == dropped
    config.validate(strict=True)
    config.save_pretrained(tmp_path)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    for name, value in options.items():
        if name not in dropped:
            assert getattr(loaded, name) == value


@pytest.mark.skipif(transformers.__version__.startswith("4."), reason="version 4 does not tell unset from false")
def test_options_of_sampling_switch_sampling_on():
    config, dropped = savable_generation_config(GenerationConfig(temperature=0.6, top_p=0.9))
    assert (config.do_sample, config.temperature, config.top_p, dropped) == (True, 0.6, 0.9, [])


# --- what an export keeps of its base ---------------------------------------------------------------------------------


@pytest.fixture
def base(make_model, make_tokenizer, tmp_path):
    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def exported(base, out, **options):
    save_pretrained(load_causal_lm(base), out, load_tokenizer(base), **options)
    return json.loads((out / "config.json").read_text())["dtype"]


def test_weights_have_the_dtype_of_the_base_unless_one_is_given(base, tmp_path):
    assert exported(base, tmp_path / "same") == "bfloat16"
    size = (base / "model.safetensors").stat().st_size
    assert (tmp_path / "same" / "model.safetensors").stat().st_size == pytest.approx(size, rel=0.01)
    assert exported(base, tmp_path / "wide", dtype="float32") == "float32"
    for name in ("same", "wide"):
        given, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / name, base))
        assert given.keys() == expected.keys()
        assert all(torch.equal(given[key].float(), expected[key].float()) for key in expected)
    with pytest.raises(ValueError, match="dtype must be one of"):
        exported(base, tmp_path / "odd", dtype="int8")
    assert not (tmp_path / "odd").exists()


def test_a_base_that_does_not_name_its_dtype_is_judged_by_its_weights(base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config))
    assert exported(base, tmp_path / "out") == "bfloat16"


def test_a_new_model_keeps_its_own_dtype_and_config(make_model, tokenizer, tmp_path):
    model = make_model("qwen2", tie_word_embeddings=True)
    save_pretrained(model, tmp_path / "out", tokenizer)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    save_pretrained(model, tmp_path / "half", tokenizer, dtype="float16")
    assert next(model.parameters()).dtype == torch.float32
    assert model.config.dtype in (None, torch.float32)
    assert load_causal_lm(tmp_path / "half").get_output_embeddings().weight.shape == (37, 16)


def test_an_unchanged_tokenizer_keeps_its_files(base, tmp_path):
    file = base / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), "tokenizer_class": "GPT2TokenizerFast", "is_local": True, "note": "mine"}
    file.write_text(json.dumps(config))
    exported(base, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written == {key: value for key, value in config.items() if key != "is_local"}
    del config["is_local"]
    file.write_text(json.dumps(config))
    exported(base, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer_config.json").read_bytes() == file.read_bytes()


def test_a_changed_tokenizer_is_written_anew_and_portable(base, tmp_path):
    tokenizer = load_tokenizer(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    save_pretrained(load_causal_lm(base), tmp_path / "out", tokenizer)
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only"} & written.keys()
    assert not isinstance(written.get("extra_special_tokens"), list)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode("w3<turn>") == [3, 37]


def test_a_tokenizer_whose_folder_is_gone_is_written(base, tmp_path):
    model, tokenizer = load_causal_lm(base), load_tokenizer(base)
    shutil.rmtree(base)
    save_pretrained(model, tmp_path / "out", tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_a_base_with_a_generation_config_that_cannot_be_saved_can_be_exported(base, tmp_path):
    options = {"do_sample": False, "temperature": 0.6, "eos_token_id": [0, 5]}
    (base / "generation_config.json").write_text(json.dumps(options))
    with pytest.warns(UserWarning, match="written without temperature"):
        exported(base, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [0, 5]
    (base / "generation_config.json").write_text('{"max_new_tokens": -1}')
    with pytest.raises(ValueError, match=r"generation_config\.json' is not valid .*: correct or delete it"):
        load_causal_lm(base)
