"""Switch dropout off while the rest of the model stays in training mode."""

from __future__ import annotations

from torch import nn

_RATE_NAMES = ("dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "attn_dropout", "layerdrop")


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate of ``model`` to 0, in place; its config keeps the original rates.

    Models apply dropout through ``nn.Dropout`` modules and through rates stored as numbers; both are set. Unlike eval
    mode, this leaves gradient checkpointing on.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _RATE_NAMES:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
