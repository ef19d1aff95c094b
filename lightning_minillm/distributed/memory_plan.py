"""How much memory MiniLLM takes on each device, from model configurations alone.

Legend: B rows, L tokens of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from lightning_minillm.distributed.sharding import decoder_layers

GIB = 2**30
_ADAM_BYTES = 8  # two float32 moments
_LAYER_TENSORS = 34  # bytes per token and hidden unit of a layer in half precision (Korthikanti et al., 2205.05198)


@dataclass(frozen=True)
class ModelSize:
    """What of a model's configuration decides its memory."""

    parameters: int
    layer_parameters: int
    """Of the largest decoder layer."""
    num_layers: int
    hidden_size: int
    kv_size: int
    """Numbers of keys and values per token and layer."""
    vocabulary: int


@dataclass(frozen=True)
class Workload:
    """Sizes of a run on one device."""

    rollout_rows: int
    """Rows that advance together while sampling."""
    micro_batch_rows: int
    length: int
    """Tokens of prompt and response."""
    bytes_per_value: int = 2
    """Of compute: 2 for bfloat16, 4 for float32."""


def model_size(config: PretrainedConfig) -> ModelSize:
    """Count without allocating: the model is made on the meta device."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    layers = [sum(p.numel() for p in layer.parameters()) for layer in decoder_layers(model)]
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        layer_parameters=max(layers),
        num_layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        kv_size=2 * (getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=model.get_output_embeddings().weight.shape[0],
    )


def plan_memory(
    student: ModelSize, teacher: ModelSize, work: Workload, *, ranks: int, sharded: bool, teacher_bytes: int = 2
) -> dict[str, dict[str, float]]:
    """Return GiB on each device, by moment and part.

    The student has float32 masters, gradients and AdamW's two moments: 16 bytes a parameter. Sharded, each rank keeps
    its part of these and of the teacher; in an update one layer of each is gathered with what belongs to no layer;
    while sampling, both models are whole, in the dtype of compute. Activations are 34 bytes per token, hidden unit and
    layer in half precision (twice that in float32); logits are 512 MiB a chunk in float32, three times that with their
    gradient and softmax.

    Args:
        student: its size.
        teacher: its size.
        work: rows and lengths on one device.
        ranks: devices.
        sharded: FSDP instead of copies.
        teacher_bytes: per parameter of the teacher's stored weights.

    Returns:
        ``{"update": {part: GiB}, "rollout": {part: GiB}}``; the parts of a moment add up.
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
        "gathered layers": sum(map(_of_a_layer, (student, teacher))) * value if sharded else 0.0,
        "activations": tokens * student.hidden_size * student.num_layers * _LAYER_TENSORS * value / 2,
        "logits": 3 * min(2**29, tokens * student.vocabulary * 4),
    }
    cached = work.rollout_rows * work.length * value
    rollout = {
        **kept,
        "gathered models": (student.parameters + teacher.parameters) * value if sharded else 0.0,
        "key-value caches": cached * sum(m.kv_size * m.num_layers for m in (student, teacher)),
        "logits": 4 * work.rollout_rows * (student.vocabulary + teacher.vocabulary) * 4,
    }
    return {
        moment: {part: number / GIB for part, number in parts.items()}
        for moment, parts in (("update", update), ("rollout", rollout))
    }


def _of_a_layer(model: ModelSize) -> float:
    """Parameters that are gathered at once: two layers, since the next is fetched early, and what is in no layer."""
    return 2 * model.layer_parameters + model.parameters - model.num_layers * model.layer_parameters
