"""The floor of an outer iteration: the matrix products that the work needs, whoever does it, and how long they take.

Counted are the products with weights and those of causal attention, for tokens that are no padding; a multiplication
and an addition count one each, and a backward pass is two forward passes. Not counted: elementwise work (softmax over
the vocabulary, activations, the optimiser), whose part a good implementation keeps small.

- Rollout: each token of prompt and response, but the last, goes once through both bodies; each response token takes
  one projection by both heads.
- Update: forward and backward of the student's body on the same tokens and of its head on response tokens, a forward
  of the teacher's head on response tokens. The teacher's body has read these tokens in the rollout: nobody needs to
  read them again.
- Pretraining batch: forward and backward of the student, forward of the teacher.
- KD: forward and backward of the student, forward of the teacher, with the response tokens as targets.

On a GPU each decoding step also reads all weights and the keys and values of its rows, and takes at least the time
that its bytes take.

Legend: V vocabulary, H hidden size, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a causal language model that its cost follows from."""

    body_weights: int
    """Entries of the weight matrices of all layers."""
    head_weights: int
    """V x H."""
    attention_width: int
    """Layers x attention heads x head size."""
    cache_width: int
    """Numbers that a token leaves in the key-value cache."""

    @classmethod
    def of(cls, model: PreTrainedModel, vocabulary: int | None = None) -> ModelShape:
        """Read the sizes of ``model``.

        Args:
            model: with ``nn.Linear`` or ``Conv1D`` layers, every one of which each token passes once.
            vocabulary: leading ids that are projected; ``None`` for all.
        """
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        matrices = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head]
        heads = config.num_attention_heads
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        rows, width = head.weight.shape
        return cls(
            body_weights=sum(matrix.numel() for matrix in matrices),
            head_weights=min(rows, vocabulary or rows) * width,
            attention_width=config.num_hidden_layers * heads * head_size,
            cache_width=2 * config.num_hidden_layers * key_heads * head_size,
        )

    def body_flops(self, lengths: Sequence[int]) -> float:
        """Forward pass of the body over sequences of so many tokens."""
        pairs = sum(length * (length + 1) / 2 for length in lengths)
        return 2.0 * self.body_weights * sum(lengths) + 4.0 * self.attention_width * pairs

    def head_flops(self, num_tokens: int) -> float:
        """Projection of so many tokens on the vocabulary."""
        return 2.0 * self.head_weights * num_tokens


@dataclass(frozen=True)
class Work:
    """What one outer iteration has to do."""

    student: ModelShape
    teacher: ModelShape
    prompt_lengths: Sequence[int]
    """Tokens of each rollout's prompt."""
    response_lengths: Sequence[int]
    """Tokens of each rollout's response."""
    passes: int
    """``ppo_epochs``."""
    lm_lengths: Sequence[int] = ()
    """Tokens of each pretraining row of all optimiser steps."""
    rollout_batch_size: int = 1
    """Rows that may be sampled together."""

    @property
    def read_lengths(self) -> list[int]:
        """Tokens of each rollout that a body must read: the last one predicts nothing."""
        return [p + r - 1 for p, r in zip(self.prompt_lengths, self.response_lengths, strict=True)]

    @property
    def num_targets(self) -> int:
        """Response tokens of all rollouts."""
        return sum(self.response_lengths)

    def prefill_flops(self) -> float:
        """Reading the prompts."""
        return sum(model.body_flops(self.prompt_lengths) for model in (self.student, self.teacher))

    def rollout_flops(self) -> float:
        """Sampling all responses."""
        models = (self.student, self.teacher)
        return sum(m.body_flops(self.read_lengths) + m.head_flops(self.num_targets) for m in models)

    def policy_flops(self) -> float:
        """The optimiser steps on rollouts: all passes over them."""
        student = self.student.body_flops(self.read_lengths) + self.student.head_flops(self.num_targets)
        return self.passes * (3 * student + self.teacher.head_flops(self.num_targets))

    def kd_flops(self) -> float:
        """The optimiser steps of KD on the same sequences: there, the teacher reads them, too."""
        return self.policy_flops() + self.passes * self.teacher.body_flops(self.read_lengths)

    def lm_flops(self) -> float:
        """The pretraining rows of all optimiser steps."""
        read = [length - 1 for length in self.lm_lengths]
        student, teacher = (m.body_flops(read) + m.head_flops(sum(read)) for m in (self.student, self.teacher))
        return 3 * student + teacher

    def decode_bytes(self, bytes_per_number: int) -> float:
        """Memory that decoding reads: all weights a step, and each row's keys and values."""
        models = (self.student, self.teacher)
        # rows of like length together: the fewest steps
        longest = sorted(self.response_lengths, reverse=True)[:: self.rollout_batch_size]
        weights = sum(m.body_weights + m.head_weights for m in models) * sum(longest)
        slots = sum(
            step * (2 * prompt + step - 1) / 2  # prompt + (prompt + 1) + ... of ``step`` steps
            for prompt, step in zip(self.prompt_lengths, (r - 1 for r in self.response_lengths), strict=True)
        )
        return (weights + slots * sum(m.cache_width for m in models)) * bytes_per_number


def floor_fields(
    work: Work, method: str, total_s: float, rate: float, bandwidth: float | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the floor of ``work`` and how far above it a measured time is.

    Args:
        work: what was done.
        method: ``"minillm"`` or ``"kd"``.
        total_s: seconds that were measured.
        rate: floating-point operations a second.
        bandwidth: bytes a second, for decoding on a GPU; ``None`` to count operations alone.
        dtype: of weights and cache while decoding.
    """
    update_flops = (work.kd_flops() if method == "kd" else work.policy_flops()) + work.lm_flops()
    rollout_flops = work.rollout_flops() if method == "minillm" else 0.0
    rollout_s, fields = rollout_flops / rate, {}
    if bandwidth is not None and method == "minillm":
        decode_bytes = work.decode_bytes(dtype.itemsize)
        prefill_s = work.prefill_flops() / rate
        rollout_s = prefill_s + max(rollout_s - prefill_s, decode_bytes / bandwidth)
        fields = {"decode_bytes": decode_bytes, "bandwidth_bytes_per_s": bandwidth}
    floor_s = rollout_s + update_flops / rate
    return {
        "floor_flops": rollout_flops + update_flops,
        "matrix_flops_per_s": rate,
        **fields,
        "floor_rollout_s": rollout_s,
        "floor_update_s": update_flops / rate,
        "floor_s": floor_s,
        "floor_ratio": total_s / floor_s,
    }
