"""Pure functions on tensors: masks, log-probabilities, divergences, returns, policy gradient."""

from lightning_minillm.functional.adaptive_kl import adaptive_kl
from lightning_minillm.functional.alpha_beta import alpha_beta_divergence
from lightning_minillm.functional.divergences import (
    cross_entropy,
    entropy,
    forward_kl,
    generalized_jsd,
    jeffreys,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)
from lightning_minillm.functional.logprobs import TokenStates, gather_logprobs, select_targets, target_logprobs
from lightning_minillm.functional.masking import (
    lengths_to_mask,
    masked_mean,
    masked_sum,
    position_ids,
    response_lengths,
)
from lightning_minillm.functional.policy_gradient import clipped_surrogate, importance_weights
from lightning_minillm.functional.returns import discounted_returns, token_rewards, whiten, whitening_sums

__all__ = [
    "TokenStates",
    "adaptive_kl",
    "alpha_beta_divergence",
    "clipped_surrogate",
    "cross_entropy",
    "discounted_returns",
    "entropy",
    "forward_kl",
    "gather_logprobs",
    "generalized_jsd",
    "importance_weights",
    "jeffreys",
    "lengths_to_mask",
    "masked_mean",
    "masked_sum",
    "position_ids",
    "response_lengths",
    "reverse_kl",
    "select_targets",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "target_logprobs",
    "token_rewards",
    "total_variation",
    "whiten",
    "whitening_sums",
]
