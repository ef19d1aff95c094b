"""Load students, teachers and tokenizers, with the checks that make a run fail early rather than late."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lightning_minillm.models.checks import check_loaded, check_model
from lightning_minillm.models.folders import adapted_model, local_or_hub, stored_dtype
from lightning_minillm.models.multimodal import auto_class, has_towers, text_part

Quantization = Literal["8bit", "4bit"]
_QUANTIZATIONS = ("8bit", "4bit")
_LOWEST_BITSANDBYTES = "0.47"  # older versions lose the scales of 8-bit models on the CPU, and their outputs are wrong
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DROPOUT_KEYS = ("dropout", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout")
_SAVE_TOKENIZER = "save the tokenizer of the model's training there with tokenizer.save_pretrained(FOLDER)"
_STORED_DTYPES: WeakKeyDictionary[PreTrainedModel, torch.dtype] = WeakKeyDictionary()


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

    Of a model that also reads images or sound, the text part is taken.

    Args:
        path: folder or hub name. Adapters in peft's format (the extra ``peft``) are merged into the model they adapt.
        dtype: ``"float32"`` (for students: these are the optimiser's master weights), ``"bfloat16"`` or ``"float16"``.
        trust_remote_code: run code that comes with the model.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"`` or any other name that transformers knows;
            ``None`` for its default.
        dropout: overrides every dropout rate of the config, in [0, 1); ``None`` keeps them.
        revision: branch, tag or commit on the hub.
        quantization: store the matrices of a frozen model in ``"8bit"`` (LLM.int8, arXiv 2208.07339) or ``"4bit"``
            (NF4, arXiv 2305.14314), which needs the extra ``quantization``; ``dtype`` is then the dtype of compute. In
            8 bits, the outputs for a row depend slightly on the other rows of its batch.

    Returns:
        The model, in eval mode, on the CPU; a quantised model on the current GPU if there is one.

    Raises:
        ValueError: unknown dtype or quantization, adapters together with quantization, weights that are not finite, or
            what :func:`~lightning_minillm.models.checks.check_model` refuses.
        ImportError: a required extra is not installed.
    """
    quantized = _quantization_options(quantization, dtype_of(dtype)) if quantization is not None else {}
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "attn_implementation": attn_implementation}
    config = check_model(path, trust_remote_code=trust_remote_code, revision=revision)
    name = local_or_hub(path, "model")
    base = adapted_model(name)
    if base is not None:
        if quantized:
            raise ValueError(
                f"{str(path)!r} contains adapters, which cannot be merged into a quantised model: export the merged"
                " model, or set quantization=null"
            )
        return _merge(load_causal_lm(base, dtype=dtype, dropout=dropout, **options), name)
    loaded: Any = auto_class(config).from_pretrained(
        name,
        dtype=dtype_of(dtype),
        revision=revision,
        output_loading_info=True,
        ignore_mismatched_sizes=not quantized,  # refused below, with a short message
        **options,
        **quantized,
        **_dropout_overrides(config, dropout),
    )
    model: PreTrainedModel = loaded[0].eval()
    report: dict[str, Any] = loaded[1]
    check_loaded(name, *(list(report[f"{kind}_keys"]) for kind in ("missing", "mismatched", "unexpected")))
    _check_finite(name, model)
    if has_towers(config):
        model = text_part(model, config, name)
    stored = config.dtype or stored_dtype(name)
    if stored is not None:
        _STORED_DTYPES[model] = dtype_of(stored) if isinstance(stored, str) else stored
    return model


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of a name.

    Raises:
        ValueError: it is not one that models may have.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {name!r}")
    return _DTYPES[name]


def base_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """Return the dtype that a model's weights have in the folder it was loaded from; ``None`` if it was not loaded."""
    return _STORED_DTYPES.get(model)


def is_quantized(model: PreTrainedModel) -> bool:
    """Return whether a model's matrices are stored in fewer bits than its dtype has; such a model is not sharded."""
    return bool(getattr(model, "is_quantized", False))


def stays_on_its_device(model: PreTrainedModel) -> bool:
    """Return whether bitsandbytes quantised a model as it loaded it, on the device where it then has to stay."""
    return is_quantized(model) and getattr(model, "quantization_method", None) == "bitsandbytes"


def _quantization_options(quantization: str, compute: torch.dtype) -> dict[str, Any]:
    if quantization not in _QUANTIZATIONS:
        raise ValueError(f"quantization must be 8bit, 4bit or null, got {quantization!r}")
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise ImportError(
            "quantization needs bitsandbytes and accelerate: pip install 'lightning-minillm[quantization]'"
        )
    installed = version("bitsandbytes")
    if Version(installed) < Version(_LOWEST_BITSANDBYTES):
        raise ImportError(
            f"quantization needs bitsandbytes {_LOWEST_BITSANDBYTES} or newer, got {installed}:"
            " pip install 'lightning-minillm[quantization]'"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _merge(model: PreTrainedModel, folder: str) -> PreTrainedModel:
    """Add a folder's adapters to the weights of the model that they were trained on."""
    from peft import PeftModel

    merged: PreTrainedModel = PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    return merged


@torch.no_grad()
def _check_finite(name: str, model: PreTrainedModel) -> None:
    for key, value in model.named_parameters():
        if value.is_floating_point() and not bool(value.sum(dtype=torch.float32).isfinite()):
            raise ValueError(f"the weights in {name!r} are not finite ({key}): the run that wrote them has diverged")


def _dropout_overrides(config: PretrainedConfig, dropout: float | None) -> dict[str, float]:
    """Return the config's dropout fields with their new rate."""
    if dropout is None:
        return {}
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    return {key: dropout for key in _DROPOUT_KEYS if hasattr(config, key)}


def init_causal_lm(
    architecture: str,
    tokenizer: PreTrainedTokenizerBase | str | Path,
    *,
    seed: int = 0,
    attn_implementation: str | None = None,
    **config: Any,
) -> PreTrainedModel:
    """Create a causal language model with random weights.

    Args:
        architecture: model type of transformers: ``"gpt2"``, ``"opt"``, ``"llama"``, ``"mistral"``, ``"qwen2"``, ...
        tokenizer: a tokenizer or its folder, for vocabulary size and special ids; a ``vocab_size`` in ``config`` makes
            the embedding larger.
        seed: seed of the weights. The global random state is not changed.
        attn_implementation: name of the attention in transformers, such as ``"sdpa"``; ``None`` for its default.
        config: fields of the model's config (``n_layer=2, n_head=2, n_embd=48, n_positions=128``, ...).

    Returns:
        The model in float32, in eval mode, on the CPU.

    Raises:
        ValueError: unknown architecture or config field.
    """
    model_config = init_config(architecture, tokenizer, **config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config, attn_implementation=attn_implementation)
    model.float().eval()
    return model


def init_config(architecture: str, tokenizer: PreTrainedTokenizerBase | str | Path, **config: Any) -> PretrainedConfig:
    """Return the config of the model that :func:`init_causal_lm` creates; it takes the same arguments.

    Raises:
        ValueError: unknown architecture or config field.
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    config.setdefault("vocab_size", len(tokenizer))
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    stock = AutoConfig.for_model(architecture, **ids)
    unknown = [key for key in config if not hasattr(stock, key)]
    if unknown:
        raise ValueError(
            f"{architecture} has no config fields {', '.join(unknown)}: use those of transformers'"
            f" {type(stock).__name__}"
        )
    model_config: PretrainedConfig = AutoConfig.for_model(architecture, **ids, **config)
    return model_config


def load_tokenizer(
    path: str | Path | None, *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a pad token pads with eos, which is safe because no mask is made from ids.

    Args:
        path: folder or hub name; for a folder of adapters without a tokenizer, that of the model they adapt.
        trust_remote_code: run code that comes with the tokenizer.
        revision: branch, tag or commit on the hub.

    Returns:
        The tokenizer, padding on the left.

    Raises:
        ValueError: no path, a folder that does not exist or has no tokenizer, or a tokenizer without an eos token to
            end responses with.
    """
    if path is None:
        raise ValueError("no tokenizer given: pass a folder or a hub name (data.tokenizer=... in commands)")
    name = local_or_hub(path, "tokenizer")
    if not (Path(name) / "tokenizer_config.json").is_file():
        base = adapted_model(name)
        name, revision = (name, revision) if base is None else (base, None)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, revision=revision
        )
    except Exception as error:  # transformers raises exceptions of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ValueError(f"no tokenizer could be loaded from {name!r} ({reason}): {_SAVE_TOKENIZER}") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # made up by transformers if there is no file
        raise ValueError(f"there is no tokenizer in {name!r}: {_SAVE_TOKENIZER}")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name!r} has no eos token to end responses with: set one and save it")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def shared_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel) -> int:
    """Return the number of leading ids that both models have logits for.

    Models of one family pad their embedding to different sizes (Qwen2.5: 151,936 and 152,064 rows); the rows beyond the
    tokenizer have no token.
    """
    sizes: list[int] = [model.get_output_embeddings().weight.shape[0] for model in (student, teacher)]
    return min(sizes)
