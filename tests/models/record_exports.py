"""Record exported folders of the installed transformers, which tests read under any other version.

    python tests/models/record_exports.py

writes ``tests/models/exported/transformers_MAJOR``. Each folder holds a tiny model, exported by this package from a
base that transformers saved, its tokenizer, and the base's logits on the ids 1 to 29.
"""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lightning_minillm.files import write_json
from lightning_minillm.models import load_causal_lm, load_tokenizer
from lightning_minillm.models.export import save_pretrained
from tests.conftest import build_word_tokenizer

FOLDER = Path(__file__).parent / "exported"
IDS = torch.arange(1, 30)[None]
SIZES = {
    "vocab_size": 37, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.5,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
LAYERS = ["sliding_attention", "full_attention"]


def rotary(theta, **others):
    """Name the base of the rotary embedding as the installed version does."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **others}}
    scaling = {key: value for key, value in others.items() if key != "partial_rotary_factor"}
    partial = {key: value for key, value in others.items() if key == "partial_rotary_factor"}
    return {"rope_theta": theta, **partial, **({"rope_scaling": scaling} if scaling else {})}


def models():
    """Return the model type and the config fields of each recorded model, by name."""
    five = int(transformers.__version__.split(".")[0]) >= 5
    default = {"rope_type": "default"}
    of_layers = {
        "full_attention": {"rope_theta": 7e5, **default},
        "sliding_attention": {"rope_theta": 300.0, **default},
    }
    gemma = {"rope_parameters": of_layers} if five else {"rope_theta": 7e5, "rope_local_base_freq": 300.0}
    neox = rotary(500.0, partial_rotary_factor=0.5) if five else {"rotary_emb_base": 500.0, "rotary_pct": 0.5}
    return {
        "llama": ("llama", rotary(5e5)),
        "llama_scaled": ("llama", rotary(400.0, **LLAMA3)),
        "llama_tied": ("llama", {**rotary(1e6), "tie_word_embeddings": True}),
        "phi": ("phi", {**rotary(500.0, partial_rotary_factor=0.5), "num_key_value_heads": 2}),
        "gpt_neox": ("gpt_neox", neox),
        "gemma3": ("gemma3_text", {**gemma, "head_dim": 4, "sliding_window": 5, "layer_types": LAYERS}),
    }


def record(folder):
    """Write the folders of all models."""
    for name, (model_type, fields) in models().items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **{**SIZES, "bos_token_id": 0, "eos_token_id": 0, **fields})
        with tempfile.TemporaryDirectory() as base:
            AutoModelForCausalLM.from_config(config).save_pretrained(base)
            build_word_tokenizer().save_pretrained(base)
            model = load_causal_lm(base)
            save_pretrained(model, folder / name, load_tokenizer(base))
        with torch.no_grad():
            save_file({"logits": model(input_ids=IDS).logits}, folder / name / "logits.safetensors")
    versions = {"command": "python tests/models/record_exports.py", "transformers": transformers.__version__}
    write_json(folder / "versions.json", {**versions, "torch": torch.__version__})


if __name__ == "__main__":
    record(FOLDER / f"transformers_{transformers.__version__.split('.')[0]}")
