"""Check what a function that loads a model would load, before it is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.models.folders import check_fit, check_model
from lightning_minillm.models.loading import init_causal_lm, init_config, load_causal_lm
from lightning_minillm.models.lora import add_lora, load_lora_causal_lm

_LORA = {"rank": "rank", "alpha": "alpha", "dropout_lora": "dropout", "target_modules": "target_modules"}


def check_factory(
    factory: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int | None = None,
    trained: bool = False,
) -> None:
    """Check a model's folder, its fit to a tokenizer and to lengths, and whether it can be trained.

    Nothing is loaded. Functions that are not of this package are not checked.

    Args:
        factory: a ``functools.partial`` of a function that loads or creates a model, with all of its arguments.
        tokenizer: of the model.
        length: tokens of the longest sequence of the run; ``None`` if it is not known.
        trained: whether the model will be trained.

    Raises:
        ValueError: as :func:`~lightning_minillm.models.folders.check_model` and
            :func:`~lightning_minillm.models.folders.check_fit`; or a model that is to be trained and is quantised, or
            gets adapters that could not be merged.
    """
    if not isinstance(factory, partial) or factory.args:
        return
    options = dict(factory.keywords)
    if factory.func is init_causal_lm:
        for name in ("seed", "attn_implementation"):
            options.pop(name, None)
        check_fit(f"the {options['architecture']} model", init_config(**options), tokenizer, length)
    elif factory.func in (load_causal_lm, load_lora_causal_lm):
        config = check_model(
            **{key: options[key] for key in ("path", "trust_remote_code", "revision") if key in options}
        )
        check_fit(str(options["path"]), config, tokenizer, length)
        if trained:
            _check_trainable(str(options["path"]), config, options)
        if factory.func is load_lora_causal_lm:
            _check_adapters(config, options)


def _check_trainable(name: str, config: PretrainedConfig, options: dict[str, Any]) -> None:
    quantized = getattr(config, "quantization_config", None)
    if options.get("quantization") is not None or quantized is not None:
        raise ValueError(
            f"{name!r} is quantised ({options.get('quantization') or 'in its folder'}), and a quantised student cannot"
            " be trained: use its unquantised weights and set student.model.quantization=null; student=lora with"
            " student.model.dtype=bfloat16 takes the least memory"
        )


def _check_adapters(config: PretrainedConfig, options: dict[str, Any]) -> None:
    """Add the adapters to a model without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=options.get("trust_remote_code", False))
        add_lora(model, **{name: options[key] for key, name in _LORA.items() if key in options})
