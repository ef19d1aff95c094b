"""MiniLLM's policy-gradient loss (arXiv 2306.08543, section 2.2 and Algorithm 1; official minillm/losses.py).

Legend: B rows, T response tokens, N valid response tokens.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from lightning_minillm.functional.divergences import entropy
from lightning_minillm.functional.kl_estimators import k3
from lightning_minillm.functional.logprobs import gather_logprobs
from lightning_minillm.functional.policy_gradient import clipped_surrogate
from lightning_minillm.functional.policy_terms import policy_terms
from lightning_minillm.functional.returns import ReturnStart, Whitening, discounted_returns, token_rewards
from lightning_minillm.losses.base import DEFAULT_CHUNK_SIZE, TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.types import RolloutBatch, TokenSignals, TokenValues


class MiniLLMLoss(TokenLoss):
    """Clipped policy gradient of the reverse KL, plus its exact single-step term.

    The defaults are the official code's, from which the published numbers come (``loss=minillm_official``).
    ``loss=minillm_paper`` follows the paper's text: ``gamma=1, return_start="next", whiten="none",
    reward_scaling=None, reward_clip=None, weight_single_step=True``.

    Args:
        clip_range: eps of the clipped surrogate, positive.
        gamma: discount in [0, 1].
        reward_scaling: the reward is divided by it; ``None`` for 1.
        reward_clip: the scaled reward is clipped to +-reward_clip; ``None`` or 0 for none.
        return_start: ``"current"`` (official) or ``"next"`` (paper).
        length_normalize: divide the return by the tokens left (paper, eq. 6). The official code always does.
        whiten: ``"none"`` (paper), ``"response"`` (statistics over response tokens) or ``"all"`` (official: padded
            positions count as 0).
        single_step: add KL(q_now || p) of every prefix, exact over the vocabulary (paper, eq. 5).
        weight_single_step: weight the single-step term by w_t (paper) or not (official).
        pg_coef: weight of the policy-gradient term, at least 0 (1 in the paper).
        chunk_size: see :class:`TokenLoss`.

    Raises:
        ValueError: an option outside its range.
    """

    token_inputs: tuple[str, ...] = ("old_logprobs", "advantages", "importance_weights")

    def __init__(
        self,
        clip_range: float = 0.2,
        gamma: float = 0.95,
        reward_scaling: float | None = 0.5,
        reward_clip: float | None = 100.0,
        return_start: ReturnStart = "current",
        length_normalize: bool = True,
        whiten: Whitening = "all",
        single_step: bool = True,
        weight_single_step: bool = False,
        pg_coef: float = 1.0,
        chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    ) -> None:
        super().__init__(chunk_size)
        if clip_range <= 0:
            raise ValueError(f"clip_range must be positive, got {clip_range}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
        if reward_scaling is not None and reward_scaling <= 0:
            raise ValueError(f"reward_scaling must be positive or null, got {reward_scaling}")
        if reward_clip is not None and reward_clip < 0:
            raise ValueError(f"reward_clip must be positive, or 0 or null for none, got {reward_clip}")
        if return_start not in get_args(ReturnStart):
            raise ValueError(f"return_start must be one of {get_args(ReturnStart)}, got {return_start!r}")
        if whiten not in get_args(Whitening):
            raise ValueError(f"whiten must be one of {get_args(Whitening)}, got {whiten!r}")
        if pg_coef < 0 or (pg_coef == 0 and not single_step):
            raise ValueError(f"pg_coef must be at least 0, and positive without single_step; got {pg_coef}")
        self.clip_range = clip_range
        self.gamma = gamma
        self.reward_scaling = reward_scaling
        self.reward_clip = reward_clip
        self.return_start: ReturnStart = return_start
        self.length_normalize = length_normalize
        self.whiten: Whitening = whiten
        self.single_step = single_step
        self.weight_single_step = weight_single_step
        self.pg_coef = pg_coef

    @property
    def reads_teacher(self) -> bool:
        """Only the single-step term reads the teacher's logits; the rewards come with the rollouts."""
        return self.single_step

    @torch.no_grad()
    def rewards(self, rollouts: RolloutBatch) -> Tensor:
        """Return the scaled and clipped token rewards ``[B, T]``; 0 where masked."""
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

    def token_values(self, signals: TokenSignals) -> TokenValues:
        """Return pg_coef x clipped surrogate + single-step reverse KL of each token."""
        single_step = None
        if self.single_step:
            assert signals.teacher_logits is not None  # TokenLoss.forward has checked it
            logprobs, single_step, q_entropy = policy_terms(
                signals.student_logits, signals.target_ids, signals.teacher_logits
            )
        else:
            logprobs = gather_logprobs(signals.student_logits, signals.target_ids)
            q_entropy = entropy(signals.student_logits.detach())
        old_logprobs, weights = signals.inputs["old_logprobs"], signals.inputs["importance_weights"]
        ratio = (logprobs - old_logprobs).exp() * weights
        policy_gradient, clipped = clipped_surrogate(ratio, signals.inputs["advantages"], self.clip_range)
        loss = self.pg_coef * policy_gradient
        with torch.no_grad():
            parts = {
                "pg_loss": policy_gradient,
                "clip_fraction": clipped.float(),
                "importance_weight": weights,
                "entropy": q_entropy,
                "policy_drift": weights * k3(old_logprobs, logprobs),
            }
        if single_step is not None:
            single_step = weights * single_step if self.weight_single_step else single_step
            loss = loss + single_step
            parts["single_step_loss"] = single_step
        return TokenValues(loss, parts)
