"""The text part of a model that also reads images or sound."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)


def has_towers(config: PretrainedConfig) -> bool:
    """Return whether a config is that of a text decoder of transformers with towers for images or sound before it."""
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return known and config.get_text_config() is not config and not config.is_encoder_decoder


def auto_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers that loads a model that writes text."""
    whole = has_towers(config) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if whole else AutoModelForCausalLM


def text_part(model: PreTrainedModel, config: PretrainedConfig, name: str) -> PreTrainedModel:
    """Return the text part of a model with towers; a warning says what becomes of the towers.

    The text part becomes a model of its own if transformers has a class for it. Otherwise the model stays whole, and
    its towers are frozen.

    Args:
        model: as :func:`auto_class` loads it.
        config: of the folder, for which :func:`has_towers` holds.
        name: of the model, for the warning.
    """
    leaves_out = type(model.config) is type(config.get_text_config())  # transformers has taken the text part itself
    text = model if leaves_out else _text_model(model)
    rest = "stays frozen and is exported unchanged" if text is None else "is left out"
    warnings.warn(f"{name!r} is a {config.model_type}: its text part is used, the rest {rest}", stacklevel=3)
    return _freeze_towers(model) if text is None else text


def _text_model(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return the decoder and the head as a causal language model; ``None`` if transformers has no class for it."""
    decoder: PreTrainedModel = model.get_decoder()
    config = decoder.config
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    head = model.get_output_embeddings()
    config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    with torch.device("meta"):
        text: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    if type(text.base_model) is not type(decoder):
        return None
    setattr(text, text.base_model_prefix, decoder)
    text.set_output_embeddings(head)
    text.generation_config = model.generation_config
    text.eval()
    return text


def _freeze_towers(model: PreTrainedModel) -> PreTrainedModel:
    used: list[nn.Module] = [model.get_decoder(), model.get_output_embeddings()]
    trained = {id(parameter) for module in used for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return model
