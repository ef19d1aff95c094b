"""One kernel instead of seven for the activation function of GPT-2 and its relatives."""

from __future__ import annotations

from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

_TANH_GELU = (NewGELUActivation, FastGELUActivation)


def fuse_activations(model: nn.Module) -> None:
    """Compute the tanh approximation of GELU in one kernel, in place; equal up to rounding.

    transformers computes ``gelu_new`` and ``gelu_fast`` in seven elementwise operations, each of which reads and writes
    the widest tensor of a layer and keeps it for the backward pass. The modules have no weights. The config does not
    change, so exported models keep the activation's name.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) in _TANH_GELU:
                setattr(module, name, nn.GELU(approximate="tanh"))
