"""Loading students, teachers and tokenizers, and the checks that keep a run from failing late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

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
) -> PreTrainedModel:
    """Load a causal language model from a Hugging Face folder or hub name.

    Args:
        path: folder or hub name.
        dtype: ``"float32"`` (students: the optimiser's master weights), ``"bfloat16"`` or ``"float16"``.
        trust_remote_code: run code that comes with the model; off unless asked for.
        attn_implementation: as in transformers (``"sdpa"``, ``"eager"``, ``"flash_attention_2"``); ``None`` for its
            default.
        dropout: overrides every dropout rate of the config, in [0, 1); ``None`` keeps them.
        revision: branch, tag or commit on the hub.

    Returns:
        The model, in eval mode, on the CPU.

    Raises:
        ValueError: unknown dtype, a folder that does not exist or lacks config.json, or a model that needs remote code.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {dtype!r}")
    source = _checked_source(path)
    overrides = _dropout_overrides(source, dropout, trust_remote_code, revision)
    return AutoModelForCausalLM.from_pretrained(
        source,
        dtype=_DTYPES[dtype],
        trust_remote_code=trust_remote_code,
        revision=revision,
        attn_implementation=attn_implementation,
        **overrides,
    ).eval()


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


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer; where it has no pad token, eos pads (masks never look at ids, so that does no harm).

    Args:
        path: folder or hub name.
        trust_remote_code: run code that comes with the tokenizer; off unless asked for.

    Returns:
        The tokenizer, padding on the left.

    Raises:
        ValueError: a folder that does not exist, or a tokenizer without eos: responses could not end.
    """
    source = str(path)
    if _looks_local(source) and not Path(source).is_dir():
        raise ValueError(f"there is no folder {source!r} to load a tokenizer from; give a folder or a hub name")
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
