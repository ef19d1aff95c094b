"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) through peft, the extra ``lightning-minillm[peft]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_minillm.models.loading import is_quantized, load_causal_lm

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

_ADAPTER = "default"
_QUANTIZED = (
    "adapters cannot be merged into a quantised student: set quantization=null; with dtype=bfloat16, the frozen weights"
    " take 2 bytes each"
)


def add_lora(
    model: PreTrainedModel,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Freeze a model and add trainable adapters to its projections, in place.

    Args:
        model: any transformers causal LM.
        rank: rank of the adapters' two factors, at least 1.
        alpha: the product of the factors is multiplied by alpha / rank.
        dropout: dropout on the input of the adapters, in [0, 1).
        target_modules: names of the projections; ``None`` for peft's choice for the family, ``"all-linear"`` for all.
        seed: seed of the first factor; the second starts at zero. The global random state is not changed.

    Returns:
        The same model, in eval mode.

    Raises:
        ImportError: peft is not installed.
        ValueError: ``rank`` is below 1, peft rejects an option, or adapters that could not be merged: on a quantised
            model, on one of two tied matrices, or on a layer that is neither linear nor an embedding.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'lightning-minillm[peft]'") from error
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if is_quantized(model):
        raise ValueError(_QUANTIZED)
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # declared as int, used as a factor
        lora_dropout=dropout,
        target_modules=target_modules
        if target_modules is None or isinstance(target_modules, str)
        else [*target_modules],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config, adapter_name=_ADAPTER)
    _check_targets(model, tied)
    model.eval()
    return model


def load_lora_causal_lm(
    path: str | Path,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout_lora: float = 0.0,
    target_modules: Sequence[str] | str | None = None,
    seed: int = 0,
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model with :func:`load_causal_lm`, which takes ``kwargs``, and add adapters with :func:`add_lora`."""
    if kwargs.get("quantization") is not None:
        raise ValueError(_QUANTIZED)
    model = load_causal_lm(path, **kwargs)
    return add_lora(model, rank=rank, alpha=alpha, dropout=dropout_lora, target_modules=target_modules, seed=seed)


def has_lora(model: nn.Module) -> bool:
    """Return whether a model has adapters of :func:`add_lora`."""
    return any(True for _ in _adapted_layers(model))


def merged_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the model without adapters, with their products added to the weights.

    W' = W + (alpha / rank) B A

    Args:
        model: a model with adapters; only its structure is used, so that it may be sharded.
        state: its whole state dict.
    """
    from peft.tuners.lora import Linear

    merged = {name: value for name, value in state.items() if ".lora_" not in name}
    for name, layer in _adapted_layers(model):
        of_tokens = _ADAPTER in layer.lora_embedding_A
        key = "{}.lora_embedding_{}.{}" if of_tokens else "{}.lora_{}.{}.weight"
        first, second = (state[key.format(name, factor, _ADAPTER)] for factor in "AB")
        product = (second.float() @ first.float()) * layer.scaling[_ADAPTER]
        key = f"{name}.base_layer.weight"
        weight = merged[key]
        is_plain = isinstance(layer, Linear) and not layer.fan_in_fan_out
        merged[key] = (weight.float() + (product if is_plain else product.T)).to(weight.dtype)
    return {name.replace(".base_layer.", "."): value for name, value in merged.items()}


def _check_targets(model: PreTrainedModel, tied: bool) -> None:
    """Check that :func:`merged_state_dict` can merge all adapters."""
    from peft.tuners.lora import Embedding, Linear

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    for name, layer in _adapted_layers(model):
        if tied and any(layer is end for end in ends):
            raise ValueError(
                f"adapters on {name} cannot be merged, because the embedding and the head of this model share one"
                " matrix: leave it out of target_modules"
            )
        if not isinstance(layer, (Linear, Embedding)):
            raise ValueError(
                f"adapters on {name} ({type(layer).__name__}) cannot be merged: name linear layers in target_modules"
            )


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    if "peft" not in sys.modules:  # which made the adapters, if there are any
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
