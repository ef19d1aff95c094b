"""The frozen teacher."""

from __future__ import annotations

from transformers import PreTrainedModel


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """Switch off gradients and dropout of a teacher, in place, and return it.

    A module holds the result in a tuple, so that it is no submodule: it stays out of the optimiser, of checkpoints,
    of DDP, and of ``.train()``.
    """
    model.requires_grad_(False)
    return model.eval()
