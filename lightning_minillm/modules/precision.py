"""Updates that are lost because weights are stored in half precision."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

_WEIGHTS_LOOKED_AT = 4096  # of each parameter: enough for a percentage
_WORTH_A_WARNING = 0.1


def lost_updates(parameters: list[Tensor], step: float) -> float:
    """Return the share of weights that a step of that size would leave as they are.

    A sum is rounded to the nearest number, so a step is lost if it is smaller than half the distance between the
    numbers around the weight. In float32 that is 6e-8 of the weight, in bfloat16 0.4 %, in float16 0.05 %.

    Args:
        parameters: weights of any floating dtypes; some of each are looked at.
        step: size of an update, positive.

    Example:
        >>> weights = torch.tensor([1.0, 0.001])
        >>> lost_updates([weights], 5e-6), lost_updates([weights.bfloat16()], 5e-6)
        (0.0, 0.5)
    """
    lost = count = 0.0
    for parameter in parameters:
        flat = parameter.detach().flatten()
        weights = flat[:: max(1, len(flat) // _WEIGHTS_LOOKED_AT)].float().abs()
        # a number in [2^e, 2^(e + 1)) is eps 2^e away from the next one
        half_distance = torch.finfo(parameter.dtype).eps / 2 * weights.log2().floor().exp2()
        lost += float((half_distance > step).float().mean()) * len(flat)
        count += len(flat)
    return lost / max(count, 1.0)


def warn_of_lost_updates(optimizer: torch.optim.Optimizer) -> None:
    """Warn if the weights are in half precision, and an optimiser of Adam's kind would leave many as they are.

    Such an optimiser changes a weight by about the learning rate, whatever the size of its gradient. Other optimisers
    are not judged.
    """
    for group in optimizer.param_groups:
        halves = [parameter for parameter in group["params"] if parameter.dtype in (torch.bfloat16, torch.float16)]
        if not halves or "betas" not in group or group["lr"] <= 0:
            continue
        share = lost_updates(halves, float(group["lr"]))
        if share >= _WORTH_A_WARNING:
            warnings.warn(
                f"the student's weights are in {str(halves[0].dtype).removeprefix('torch.')}, where a step of"
                f" lr={float(group['lr']):g} is rounded away on {100 * share:.0f} % of them: train float32 weights"
                " (student.model.dtype=float32; trainer.precision=bf16-mixed keeps the passes in bfloat16), or raise"
                " the learning rate",
                stacklevel=2,
            )
            return
