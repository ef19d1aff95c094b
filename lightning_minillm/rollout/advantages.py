"""From the log-probabilities of rollouts to advantages (MiniLLM, arXiv 2306.08543, equations 4 to 6).

Legend: B rows, T response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from lightning_minillm.functional.returns import ReturnStart, Whitening, discounted_returns, token_rewards
from lightning_minillm.types import RolloutBatch


@dataclass(frozen=True)
class AdvantageEstimator:
    """Discounted, length-normalised returns of the reward log p - log q.

    The defaults are the official code's, from which the published numbers come (``loss=minillm_official``). The paper's
    text (``loss=minillm_paper``) has ``gamma=1, return_start="next", whiten="none", reward_scaling=None,
    reward_clip=None``.

    Attributes:
        gamma: discount in [0, 1].
        reward_scaling: the reward is divided by it; positive, ``None`` for 1.
        reward_clip: the scaled reward is clipped to +-reward_clip; ``None`` or 0 for no clipping.
        return_start: ``"current"`` sums rewards from the token itself on (official), ``"next"`` from the next token on
            (paper).
        length_normalize: divide the return by the number of tokens left (paper, eq. 6). The official code always does.
        whiten: ``"none"`` (paper), ``"response"`` (statistics over response tokens) or ``"all"`` (official: padded
            positions count as 0). The buffer applies it, over a whole optimiser step.

    Raises:
        ValueError: an option outside its range.
    """

    gamma: float = 0.95
    reward_scaling: float | None = 0.5
    reward_clip: float | None = 100.0
    return_start: ReturnStart = "current"
    length_normalize: bool = True
    whiten: Whitening = "all"

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {self.gamma}")
        if self.reward_scaling is not None and self.reward_scaling <= 0:
            raise ValueError(f"reward_scaling must be positive or null, got {self.reward_scaling}")
        if self.reward_clip is not None and self.reward_clip < 0:
            raise ValueError(f"reward_clip must be positive, or 0 or null for none, got {self.reward_clip}")
        if self.return_start not in get_args(ReturnStart):
            raise ValueError(f"return_start must be one of {get_args(ReturnStart)}, got {self.return_start!r}")
        if self.whiten not in get_args(Whitening):
            raise ValueError(f"whiten must be one of {get_args(Whitening)}, got {self.whiten!r}")

    @torch.no_grad()
    def rewards(self, rollouts: RolloutBatch) -> Tensor:
        """Return the scaled and clipped token rewards ``[B, T]``; 0 where masked.

        Raises:
            ValueError: the rollouts carry no log-probabilities of the teacher.
        """
        if rollouts.reward_logprobs is None:
            raise ValueError("the rollouts carry no teacher log-probabilities: sample them with a teacher")
        return token_rewards(
            rollouts.reward_logprobs,
            rollouts.student_logprobs,
            rollouts.response_mask,
            self.reward_scaling,
            self.reward_clip,
        )

    @torch.no_grad()
    def returns(self, rollouts: RolloutBatch) -> Tensor:
        """Return the advantages before whitening ``[B, T]``; 0 where masked."""
        return discounted_returns(
            self.rewards(rollouts), rollouts.response_mask, self.gamma, self.return_start, self.length_normalize
        )
