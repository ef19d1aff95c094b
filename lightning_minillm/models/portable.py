"""Make exported folders readable by transformers 4.56 and newer, whichever version writes them.

The versions differ in the names of the rotary embedding's fields, of tokenizer classes and of a tokenizer's extra
tokens. Both names are written where a reader would otherwise take a default without an error.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import GenerationConfig, PreTrainedTokenizerBase

from lightning_minillm.files import read_json, write_json

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_FILES = (
    "tokenizer.json", _TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
_LOCAL_FLAGS = ("is_local", "local_files_only")
_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}  # of transformers 5 alone: a class that every version has
_ROTARY_NAMES = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
_LAYERED = ("gemma3_text", "gemma3n_text", "olmo3")  # known to transformers 4, with an embedding per kind of layer
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def rename_rotary_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a ``config.json`` with the rotary embedding also under the names of transformers 4.

    Example:
        >>> rename_rotary_fields({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})["rope_theta"]
        500000.0
    """
    result = {
        key: rename_rotary_fields(value) if isinstance(value, Mapping) else value for key, value in config.items()
    }
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping) or (_FULL in rope and config.get("model_type") not in _LAYERED):
        return result  # the older names would replace the embeddings of all kinds of layers
    main = rope.get(_FULL, rope)
    sliding = rope.get(_SLIDING)
    names = _ROTARY_NAMES.get(str(config.get("model_type")), {})
    for field in ("rope_theta", "partial_rotary_factor"):
        if main.get(field) is not None:
            result.setdefault(names.get(field, field), main[field])
    if isinstance(sliding, Mapping) and sliding.get("rope_theta") is not None:
        result.setdefault("rope_local_base_freq", sliding["rope_theta"])
    if main.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in main.items() if key not in ("rope_theta", "partial_rotary_factor")}
        result.setdefault("rope_scaling", scaling)
    return result


def savable_generation_config(config: GenerationConfig) -> tuple[GenerationConfig, list[str]]:
    """Return the options that every version of transformers saves, and the names of those left out.

    Options of sampling switch ``do_sample`` on where it is not set, as their authors meant; where it is ``False``, they
    have no effect and are left out.
    """
    options = config.to_diff_dict()
    options.pop("transformers_version", None)
    if "do_sample" not in options and config.do_sample is not False and any(name in options for name in _SAMPLING):
        options["do_sample"] = True
    kept: dict[str, Any] = {key: options[key] for key in ("do_sample", "num_beams") if key in options}
    dropped = []
    for key, value in options.items():
        try:
            GenerationConfig(**{**kept, key: value}).validate(strict=True)
            kept[key] = value
        except (ValueError, TypeError):
            dropped.append(key)
    return GenerationConfig(**kept), dropped


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, original: PreTrainedTokenizerBase | None) -> None:
    """Write a tokenizer: the files it was loaded from if they still describe it, its own otherwise.

    Args:
        tokenizer: to write.
        folder: exists.
        original: the tokenizer as it is loaded from ``tokenizer.name_or_path`` now; ``None`` if it cannot be.
    """
    files = _files_of(tokenizer.name_or_path) if original is not None and _same(tokenizer, original) else {}
    if _TOKENIZER_CONFIG in files:
        for name, file in files.items():
            if file != folder / name:
                shutil.copyfile(file, folder / name)
    else:
        tokenizer.save_pretrained(folder)
    before = read_json(folder / _TOKENIZER_CONFIG)
    after = _portable_tokenizer(before)
    if after != before:
        write_json(folder / _TOKENIZER_CONFIG, after)


def _portable_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in config.items() if key not in _LOCAL_FLAGS}
    if result.get("tokenizer_class") in _CLASSES:
        result["tokenizer_class"] = _CLASSES[result["tokenizer_class"]]
        result.pop("backend", None)
    if isinstance(result.get("extra_special_tokens"), list):  # transformers 4 expects a mapping here
        extra = result.pop("extra_special_tokens")
        result.setdefault("additional_special_tokens", extra)
    return result


def _files_of(name: str) -> dict[str, Path]:
    """Return the files of a tokenizer in its folder, or in the cache of the hub."""
    folder = Path(name)
    found = {}
    for file in _TOKENIZER_FILES:
        path = folder / file if folder.is_dir() else try_to_load_from_cache(name, file)
        if isinstance(path, (str, Path)) and Path(path).is_file():
            found[file] = Path(path)
    return found


def _same(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers divide text in the same way, with the same special tokens and template."""
    return _described(first) == _described(second)


def _described(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    backend = getattr(tokenizer, "backend_tokenizer", None)  # tokenizers in Python have none
    rules = None if backend is None else backend.to_str()
    return rules, tokenizer.get_vocab(), tokenizer.special_tokens_map, tokenizer.chat_template
