"""MiniLLM's policy-gradient loss (arXiv 2306.08543, section 2.2 and Algorithm 1; official minillm/losses.py).

Legend: B rows, T response tokens, N valid response tokens.
"""

from __future__ import annotations

import torch

from lightning_minillm.checks import check_range
from lightning_minillm.functional.divergences import entropy
from lightning_minillm.functional.kl_estimators import k3
from lightning_minillm.functional.logprobs import gather_logprobs
from lightning_minillm.functional.policy_gradient import clipped_surrogate
from lightning_minillm.functional.policy_terms import policy_terms
from lightning_minillm.losses.base import TokenLoss
from lightning_minillm.losses.chunking import ChunkSize
from lightning_minillm.types import TokenSignals, TokenValues


class MiniLLMLoss(TokenLoss):
    """Clipped policy gradient of the reverse KL, plus its exact single-step term.

    Rewards and returns come from an :class:`~lightning_minillm.rollout.AdvantageEstimator`. The defaults are the
    official code's, from which the published numbers come (``loss=minillm_official``); the paper's text
    (``loss=minillm_paper``) has ``weight_single_step=True``.

    Args:
        clip_range: eps of the clipped surrogate, positive.
        single_step: add KL(q_now || p) of every prefix, exact over the vocabulary (paper, eq. 5).
        weight_single_step: weight the single-step term by w_t (paper) or not (official).
        pg_coef: weight of the policy-gradient term, at least 0, and positive without ``single_step`` (1 in the paper).
    """

    token_inputs: tuple[str, ...] = ("old_logprobs", "advantages", "importance_weights")

    def __init__(
        self,
        clip_range: float = 0.2,
        single_step: bool = True,
        weight_single_step: bool = False,
        pg_coef: float = 1.0,
        chunk_size: ChunkSize = "auto",
    ) -> None:
        super().__init__(chunk_size)
        check_range(clip_range > 0, "clip_range", "positive", clip_range)
        is_trained = pg_coef > 0 or (pg_coef == 0 and single_step)
        check_range(is_trained, "pg_coef", "at least 0, and positive without single_step", pg_coef)
        self.clip_range = clip_range
        self.single_step = single_step
        self.weight_single_step = weight_single_step
        self.pg_coef = pg_coef

    @property
    def reads_teacher(self) -> bool:
        """Only the single-step term reads the teacher's logits; the rewards come with the rollouts."""
        return self.single_step

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
