"""The memory that MiniLLM takes on each device, estimated from model configurations alone."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)

from lightning_minillm.distributed.sharding import decoder_layers

GIB = 2**30
_ADAM_BYTES = 8  # two float32 moments
_LAYER_TENSORS = 34  # bytes per token and hidden unit of a layer in half precision (Korthikanti et al., 2205.05198)


@dataclass(frozen=True)
class ModelSize:
    """The numbers in a model's configuration that determine its memory."""

    parameters: int
    layer_parameters: int
    """Parameters of the largest decoder layer."""
    outer_parameters: int
    """Parameters outside of the decoder layers."""
    num_layers: int
    hidden_size: int
    kv_size: int
    """Numbers that the cache holds per token: the keys and values of all layers."""
    state_size: int
    """Numbers that the cache holds per row, however long it is: the states of layers without keys and values."""
    vocabulary: int


@dataclass(frozen=True)
class Workload:
    """Sizes of a run on one device."""

    rollout_rows: int
    """Rows that are sampled together."""
    micro_batch_rows: int
    """Rows of one forward pass of an update."""
    length: int
    """Tokens of prompt and response together."""
    bytes_per_value: int = 2
    """Bytes of a number in the dtype of compute: 2 for bfloat16, 4 for float32."""


def model_size(config: PretrainedConfig) -> ModelSize:
    """Return the sizes of a model, which is built on the meta device and so allocates nothing.

    Of a model that also reads images or sound, its text part is measured.
    """
    text = config.get_text_config()
    with torch.device("meta"):
        # in half precision, since some kernels of mixtures of experts take nothing else
        model = AutoModelForCausalLM.from_config(text if type(text) in MODEL_FOR_CAUSAL_LM_MAPPING else config)
        model = model.bfloat16().eval()
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
    kv_size, state_size = _cache_sizes(model)
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        layer_parameters=max(layers),
        outer_parameters=sum(p.numel() for p in model.parameters()) - sum(layers),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        kv_size=kv_size,
        state_size=state_size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
    )


@torch.no_grad()
def _cache_sizes(model: PreTrainedModel) -> tuple[int, int]:
    """Return the numbers that a cache holds per token and per row, measured by a pass over one row."""
    names = inspect.signature(model.base_model.forward).parameters
    name = next((name for name in ("past_key_values", "cache_params") if name in names), None)
    if name is None:
        return 0, 0
    cache = DynamicCache(config=model.config)
    try:
        model.base_model(torch.zeros(1, 8, dtype=torch.int64, device="meta"), **{name: cache}, use_cache=True)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        heads = getattr(model.config, "num_attention_heads", 0)
        head_size = getattr(model.config, "head_dim", None) or model.config.hidden_size // max(heads, 1)
        warnings.warn(
            f"the cache of {type(model).__name__} cannot be measured without weights ({error}): its size is estimated"
            " from the number of heads",
            stacklevel=4,
        )
        groups = getattr(model.config, "num_key_value_heads", None) or heads
        return 2 * groups * head_size * model.config.num_hidden_layers, 0
    per_token = per_row = 0
    for layer in cache.layers:
        for name in ("keys", "values"):
            kept = getattr(layer, name, None)
            per_token += 0 if kept is None else kept.shape[1] * kept.shape[-1]
        for name in ("conv_states", "recurrent_states"):
            states = getattr(layer, name, {}).values()
            per_row += sum(state.numel() for state in states if state is not None)
    return per_token, per_row


def plan_memory(
    student: ModelSize, teacher: ModelSize, work: Workload, *, ranks: int, sharded: bool, teacher_bytes: int = 2
) -> dict[str, dict[str, float]]:
    """Return GiB on each device, during updates and during rollouts, by part.

    The student has float32 master weights, gradients and AdamW's two moments: 16 bytes per parameter. If models are
    sharded, each rank keeps its part of these and of the teacher. During updates, two layers of each model and the
    parameters outside of the layers are gathered; during rollouts both models are whole, in the dtype of compute.
    Activations take 34 bytes per token, hidden unit and layer in half precision (twice that in float32). A chunk of
    logits takes at most 512 MiB in float32, and three times that with its gradient and softmax.

    Args:
        student: size of the student.
        teacher: size of the teacher.
        work: rows and lengths on one device.
        ranks: number of devices.
        sharded: FSDP; ``False`` for a copy on each device.
        teacher_bytes: bytes per parameter of the teacher's stored weights.

    Returns:
        ``{"update": {part: GiB}, "rollout": {part: GiB}}``; the parts add up to the memory of a device.
    """
    share = ranks if sharded else 1
    value = work.bytes_per_value
    kept = {
        "student, float32": student.parameters * 4 / share,
        "gradients": student.parameters * 4 / share,
        "AdamW": student.parameters * _ADAM_BYTES / share,
        "teacher": teacher.parameters * teacher_bytes / share,
    }
    tokens = work.micro_batch_rows * work.length
    update = {
        **kept,
        "gathered layers": sum(map(_gathered_parameters, (student, teacher))) * value if sharded else 0.0,
        "activations": tokens * student.hidden_size * student.num_layers * _LAYER_TENSORS * value / 2,
        "logits": 3 * min(2**29, tokens * student.vocabulary * 4),
    }
    cached = sum(model.kv_size * work.length + model.state_size for model in (student, teacher))
    rollout = {
        **kept,
        "gathered models": (student.parameters + teacher.parameters) * value if sharded else 0.0,
        "key-value caches": work.rollout_rows * value * cached,
        "logits": 4 * work.rollout_rows * (student.vocabulary + teacher.vocabulary) * 4,
    }
    return {
        moment: {part: number / GIB for part, number in parts.items()}
        for moment, parts in (("update", update), ("rollout", rollout))
    }


def _gathered_parameters(model: ModelSize) -> float:
    """Return the parameters gathered at once: two layers, since the next is prefetched, and those outside of layers."""
    return 2 * model.layer_parameters + model.outer_parameters
