"""Pure functions on tensors: masks, log-probabilities, divergences, returns, policy gradient."""

from lightning_minillm.functional.divergences import cross_entropy, entropy, forward_kl, generalized_jsd, reverse_kl
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
    "clipped_surrogate",
    "cross_entropy",
    "discounted_returns",
    "entropy",
    "forward_kl",
    "gather_logprobs",
    "generalized_jsd",
    "importance_weights",
    "lengths_to_mask",
    "masked_mean",
    "masked_sum",
    "position_ids",
    "response_lengths",
    "reverse_kl",
    "select_targets",
    "target_logprobs",
    "token_rewards",
    "whiten",
    "whitening_sums",
]
