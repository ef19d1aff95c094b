"""Check what a function that loads a model would load, before it is called.

The functions are ``functools.partial`` objects of this package's loaders, with all of their arguments. Other functions
are not checked.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lightning_minillm.models.checks import check_fit, check_model
from lightning_minillm.models.loading import init_causal_lm, init_config, load_causal_lm
from lightning_minillm.models.lora import add_lora, load_lora_causal_lm

Factory = Callable[[], PreTrainedModel]
_OF_A_FOLDER = ("path", "trust_remote_code", "revision")
_OF_ADAPTERS = {"rank": "rank", "alpha": "alpha", "dropout_lora": "dropout", "target_modules": "target_modules"}


def check_factory(factory: Factory, *, trained: bool = False) -> None:
    """Check the folder that a model would be loaded from.

    Args:
        factory: loads the model.
        trained: whether the model will be trained.

    Raises:
        ValueError: as :func:`~lightning_minillm.models.checks.check_model`; or a model that is to be trained and is
            quantised, or would get adapters that cannot be merged.
    """
    if not isinstance(factory, partial) or factory.func not in (load_causal_lm, load_lora_causal_lm):
        return
    options = factory.keywords
    config = check_model(**_chosen(options, _OF_A_FOLDER))
    if trained:
        _check_trainable(options, config)
    if factory.func is load_lora_causal_lm:
        _check_adapters(options, config)


def check_factory_fit(factory: Factory, tokenizer: PreTrainedTokenizerBase, length: int | None) -> None:
    """Check that a model would have an embedding for every token and a position for every place of a sequence.

    Args:
        factory: loads or creates the model.
        tokenizer: of the model.
        length: tokens of the longest sequence of the run; ``None`` if it is not known.

    Raises:
        ValueError: as :func:`~lightning_minillm.models.checks.check_fit`.
    """
    if not isinstance(factory, partial):
        return
    options = dict(factory.keywords)
    if factory.func is init_causal_lm:
        options = {key: value for key, value in options.items() if key not in ("seed", "attn_implementation")}
        check_fit(f"a new {options['architecture']} model", init_config(**options), tokenizer, length)
    elif factory.func in (load_causal_lm, load_lora_causal_lm):
        config = check_model(**_chosen(options, _OF_A_FOLDER), weights=False)
        check_fit(str(options["path"]), config, tokenizer, length)


def _chosen(options: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}


def _check_trainable(options: dict[str, Any], config: PretrainedConfig) -> None:
    chosen = options.get("quantization")
    if chosen is not None or getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"the student {str(options['path'])!r} is quantised ({chosen or 'in its folder'}) and cannot be trained:"
            " use weights that are not quantised and set student.model.quantization=null; student=lora with"
            " student.model.dtype=bfloat16 takes the least memory"
        )


def _check_adapters(options: dict[str, Any], config: PretrainedConfig) -> None:
    """Add the adapters to a model without weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself shows them
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=options.get("trust_remote_code", False))
        add_lora(model, **{name: options[key] for key, name in _OF_ADAPTERS.items() if key in options})
