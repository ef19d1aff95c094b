"""Tiny models of six families with spread-out random weights, a tiny tokenizer, and where the recorded numbers lie."""

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lightning_minillm.types import PromptBatch

ROOT = Path(__file__).resolve().parents[1]
VOCAB_SIZE = 37
EOS = 0

# Wide initialisation: at the stock 0.02 every next-token distribution is almost uniform and errors hide.
FAMILIES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 64, "initializer_range": 0.3},
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "init_std": 0.3,
    },
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    "mistral": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "sliding_window": 5,
        "initializer_range": 0.3,
    },
    "qwen2": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    "qwen3": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
}


def build_model(family, seed=0, vocab_size=VOCAB_SIZE, **config):
    """A tiny causal LM in eval mode; ``config`` overrides the family's stock one."""
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": None}
    fields = {**FAMILIES.get(family, {}), **ids, "vocab_size": vocab_size, **config}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields)).eval()


def build_prompts(lengths=(5, 3, 7, 1), width=None, vocab_size=VOCAB_SIZE, seed=0, first_index=0, pad=EOS):
    """Left-padded prompts of the given lengths, without eos in them."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    rows = [torch.randint(1, vocab_size, (length,), generator=generator) for length in lengths]
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = tokens
        mask[row, width - len(tokens) :] = True
    return PromptBatch(ids, mask, torch.arange(first_index, first_index + len(rows)))


def build_word_tokenizer(pad_token=None, words=VOCAB_SIZE):
    """Words ``w1 w2 ...`` with id = number; eos is id 0, and pads unless a pad token is named (then the last id)."""
    vocabulary = {"<eos>": EOS, **{f"w{i}": i for i in range(1, words)}}
    special = {"eos_token": "<eos>", "bos_token": "<eos>", "pad_token": "<eos>"}
    if pad_token is not None:
        vocabulary[pad_token] = words
        special["pad_token"] = pad_token
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w1"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **special)


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(scope="session")
def make_model():
    """``make_model(family, seed=0, vocab_size=37, **config)``."""
    return build_model


@pytest.fixture(scope="session")
def make_prompts():
    """``make_prompts(lengths, width=None, ...)``."""
    return build_prompts


@pytest.fixture(scope="session")
def make_tokenizer():
    """``make_tokenizer(pad_token=None, words=37)``."""
    return build_word_tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """A word tokenizer of 37 ids whose pad is its eos."""
    return build_word_tokenizer()


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    """Each family that the package promises to work with."""
    return request.param


@pytest.fixture(scope="session")
def golden_folder():
    """Folder of the numbers recorded with the official code; tests that need it skip without it."""
    folder = Path(os.environ.get("MINILLM_TEST_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not list(folder.glob("*.safetensors")):
        pytest.skip(f"no recorded numbers at '{folder}': set MINILLM_TEST_GOLDEN to a folder of .safetensors files")
    return folder


@pytest.fixture(scope="session")
def data_folder():
    """Folder of real public data sets and models; tests that need it skip without it."""
    folder = Path(os.environ.get("MINILLM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at '{folder}': set MINILLM_TEST_DATA to a folder that holds it")
    return folder
