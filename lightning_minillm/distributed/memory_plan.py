"""The memory that MiniLLM takes on each device, estimated from model configurations alone."""

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
    """The numbers in a model's configuration that determine its memory."""

    parameters: int
    layer_parameters: int
    """Parameters of the largest decoder layer."""
    num_layers: int
    hidden_size: int
    kv_size: int
    """Numbers that the cache holds per token and layer: keys and values together."""
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
    """Return the sizes of a model, which is built on the meta device and so allocates nothing."""
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


def _gathered_parameters(model: ModelSize) -> float:
    """Return the parameters gathered at once: two layers, since the next is prefetched, and those outside of layers."""
    return 2 * model.layer_parameters + model.parameters - model.num_layers * model.layer_parameters
