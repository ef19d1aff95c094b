"""Loading students, teachers and tokenizers, and the checks that keep a run from failing late."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

Quantization = Literal["8bit", "4bit"]
_ADAPTER_FILE = "adapter_config.json"
_QUANTIZATIONS = ("8bit", "4bit")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DROPOUT_KEYS = ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout")


def load_causal_lm(
    path: str | Path,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    dropout: float | None = None,
    revision: str | None = None,
    quantization: Quantization | None = None,
) -> PreTrainedModel:
    """Load a causal language model from a Hugging Face folder or hub name, or adapters with the model they adapt.

    Args:
        path: folder or hub name; a folder of adapters in peft's format (the extra ``peft``) is merged into its model.
        dtype: ``"float32"`` (students: the optimiser's master weights), ``"bfloat16"`` or ``"float16"``.
        trust_remote_code: run code that comes with the model; off unless asked for.
        attn_implementation: as in transformers (``"sdpa"``, ``"eager"``, ``"flash_attention_2"``); ``None`` for its
            default.
        dropout: overrides every dropout rate of the config, in [0, 1); ``None`` keeps them.
        revision: branch, tag or commit on the hub.
        quantization: keep the matrices of a frozen model in ``"8bit"`` (LLM.int8, arXiv 2208.07339) or ``"4bit"`` (NF4,
            arXiv 2305.14314) through the extra ``quantization``; ``dtype`` is then that of compute. In 8 bits, what
            a row gives depends a little on the rows beside it.

    Returns:
        The model, in eval mode, on the CPU; a quantised one on the current GPU, where there is one.

    Raises:
        ValueError: unknown dtype or quantization, a folder that does not exist or lacks config.json, a model that needs
            remote code, or adapters that are to be quantised.
        ImportError: an extra that is needed is not installed.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {dtype!r}")
    quantized = _quantization_options(quantization, _DTYPES[dtype]) if quantization is not None else {}
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, "attn_implementation": attn_implementation}
    if (Path(path).expanduser() / _ADAPTER_FILE).is_file():
        if quantized:
            raise ValueError(f"{str(path)!r} holds adapters, which cannot be merged into a quantised model: export it")
        return _load_merged(Path(path).expanduser(), {**options, "dropout": dropout, "revision": revision})
    source = _checked_source(path)
    overrides = _dropout_overrides(source, dropout, trust_remote_code, revision)
    return AutoModelForCausalLM.from_pretrained(
        source, **{**options, "dtype": _DTYPES[dtype], "revision": revision}, **quantized, **overrides
    ).eval()


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether a model's matrices are kept in 8 or 4 bits: they cannot be sharded, and stay on their device."""
    return bool(getattr(model, "is_quantized", False))


def _quantization_options(quantization: str, compute: torch.dtype) -> dict[str, Any]:
    if quantization not in _QUANTIZATIONS:
        raise ValueError(f"quantization must be 8bit, 4bit or null, got {quantization!r}")
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise ImportError("a quantised model needs bitsandbytes: pip install 'lightning-minillm[quantization]'")
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _load_merged(folder: Path, options: dict[str, Any]) -> PreTrainedModel:
    """Load the model that adapters were made for, and add them to its weights."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError("loading adapters needs peft: pip install 'lightning-minillm[peft]'") from error
    model = load_causal_lm(_adapted_model(folder), **options)
    merged: PreTrainedModel = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return merged.eval()


def _adapted_model(folder: Path) -> str:
    """Return the folder or hub name of the model that adapters were made for."""
    name = json.loads((folder / _ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not name:
        raise ValueError(f"{folder / _ADAPTER_FILE} does not name the model it adapts (base_model_name_or_path)")
    return str(name)


def init_causal_lm(
    architecture: str,
    tokenizer: PreTrainedTokenizerBase | str | Path,
    *,
    seed: int = 0,
    attn_implementation: str | None = None,
    **config: Any,
) -> PreTrainedModel:
    """Make a causal language model with random weights.

    Args:
        architecture: transformers' model type: ``"gpt2"``, ``"opt"``, ``"llama"``, ``"mistral"``, ``"qwen2"``, ...
        tokenizer: a tokenizer or its folder; gives vocabulary size and special ids (``vocab_size`` in ``config``
            makes the embedding larger).
        seed: of the weights. The global random state is left as it was.
        attn_implementation: as in transformers; ``None`` for its default.
        config: fields of the model's config (``n_layer=2, n_head=2, n_embd=48, n_positions=128``, ...).

    Returns:
        The model, float32, in eval mode, on the CPU.

    Raises:
        ValueError: an unknown architecture or config field.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    config.setdefault("vocab_size", len(tokenizer))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model_config = AutoConfig.for_model(architecture, **ids, pad_token_id=tokenizer.pad_token_id)
    unknown = [key for key in config if not hasattr(model_config, key)]
    if unknown:
        raise ValueError(f"{architecture} has no config fields {unknown}; see {type(model_config).__name__}")
    model_config = AutoConfig.for_model(architecture, **ids, pad_token_id=tokenizer.pad_token_id, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(model_config, attn_implementation=attn_implementation)
    return model.float().eval()


def load_tokenizer(path: str | Path | None, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer; where it has no pad token, eos pads (masks never look at ids, so that does no harm).

    Args:
        path: folder or hub name; for a folder of adapters without a tokenizer, that of the model they adapt.
        trust_remote_code: run code that comes with the tokenizer; off unless asked for.

    Returns:
        The tokenizer, padding on the left.

    Raises:
        ValueError: none was named, a folder that does not exist, or a tokenizer without eos: responses could not end.
    """
    if path is None:
        raise ValueError("no tokenizer was named: give a folder or a hub name (with commands, data.tokenizer=...)")
    source = str(path)
    if _looks_local(source) and not Path(source).is_dir():
        raise ValueError(f"there is no folder {source!r} to load a tokenizer from; give a folder or a hub name")
    folder = Path(source).expanduser()
    if (folder / _ADAPTER_FILE).is_file() and not (folder / "tokenizer_config.json").is_file():
        source = _adapted_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {source!r} has no eos token, so responses cannot end; set one and save it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Make sure that both models mean the same by every token id.

    Args:
        student: the student's tokenizer.
        teacher: the teacher's tokenizer.

    Raises:
        ValueError: an id stands for different tokens, or the ends of a text differ.
    """
    student_vocab, teacher_vocab = student.get_vocab(), teacher.get_vocab()
    different = set(student_vocab.keys() ^ teacher_vocab.keys())
    different |= {token for token, index in student_vocab.items() if teacher_vocab.get(token, index) != index}
    if different or student.eos_token_id != teacher.eos_token_id:
        examples = ", ".join(repr(token) for token in sorted(different)[:3]) or "the eos token"
        raise ValueError(
            f"student and teacher have different tokenizers ({len(different)} tokens differ, e.g. {examples}), so their"
            " distributions cannot be compared token by token. Use SeqKD, which needs only the teacher's text:"
            " minillm-generate model=TEACHER ..., then minillm-train experiment=sft on the responses."
        )


def shared_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> int:
    """Return the number of leading ids that both models have logits for.

    Models of one family pad their embedding to different sizes (Qwen2.5: 151,936 and 152,064 rows); the rows past the
    tokenizer stand for nothing.
    """
    return min(student.get_output_embeddings().weight.shape[0], teacher.get_output_embeddings().weight.shape[0])


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or Path(source).exists()


def _checked_source(path: str | Path) -> str:
    source = str(path)
    if not _looks_local(source):
        return source
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {source!r} to load a model from; give an existing folder or a hub name")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{source!r} holds no config.json: it is not a Hugging Face model folder")
    return str(folder)


def _dropout_overrides(
    source: str, dropout: float | None, trust_remote_code: bool, revision: str | None
) -> dict[str, float]:
    """Find which dropout fields the config has; also the early test for remote code."""
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}) and not trust_remote_code:
        raise ValueError(f"{source!r} brings its own code; set trust_remote_code=true if you trust its authors")
    if dropout is None:
        return {}
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    return {key: dropout for key in _DROPOUT_KEYS if hasattr(config, key)}
