"""From the log-probabilities of rollouts to advantages (MiniLLM, arXiv 2306.08543, equations 4 to 6).

Legend: B rows, T response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_minillm.checks import check_choice, check_range
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
    """

    gamma: float = 0.95
    reward_scaling: float | None = 0.5
    reward_clip: float | None = 100.0
    return_start: ReturnStart = "current"
    length_normalize: bool = True
    whiten: Whitening = "all"

    def __post_init__(self) -> None:
        scaling, clip = self.reward_scaling, self.reward_clip
        check_range(0 <= self.gamma <= 1, "gamma", "in [0, 1]", self.gamma)
        check_range(scaling is None or scaling > 0, "reward_scaling", "positive or null", scaling)
        check_range(clip is None or clip >= 0, "reward_clip", "positive, or 0 or null for none", clip)
        check_choice("return_start", self.return_start, ReturnStart)
        check_choice("whiten", self.whiten, Whitening)

    @torch.no_grad()
    def rewards(self, rollouts: RolloutBatch) -> Tensor:
        """Return the scaled and clipped token rewards ``[B, T]``; 0 where masked.

        Raises:
            ValueError: the rollouts carry no log-probabilities of the teacher.
        """
        log_p, log_q, mask = rollouts.reward_logprobs, rollouts.student_logprobs, rollouts.response_mask
        if log_p is None:
            raise ValueError("the rollouts carry no teacher log-probabilities: sample them with a teacher")
        return token_rewards(log_p, log_q, mask, self.reward_scaling, self.reward_clip)

    @torch.no_grad()
    def returns(self, rollouts: RolloutBatch) -> Tensor:
        """Return the advantages before whitening ``[B, T]``; 0 where masked."""
        rewards, mask = self.rewards(rollouts), rollouts.response_mask
        return discounted_returns(rewards, mask, self.gamma, self.return_start, self.length_normalize)
