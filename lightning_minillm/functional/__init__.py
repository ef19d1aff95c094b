"""Pure functions on tensors: masks, log-probabilities, divergences, returns, policy gradient."""

from lightning_minillm.functional.bootstrap import PairedDifference, paired_bootstrap
from lightning_minillm.functional.calibration import ReliabilityBins, reliability_bins
from lightning_minillm.functional.divergences import (
    adaptive_kl,
    alpha_beta_divergence,
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
from lightning_minillm.functional.exposure_bias import accumulated_error, excess_accumulated_error, exposure_bias_curves
from lightning_minillm.functional.logprobs import TokenStates, gather_logprobs, select_targets, target_logprobs
from lightning_minillm.functional.masking import lengths_to_mask, position_ids
from lightning_minillm.functional.policy_gradient import clipped_surrogate, importance_weights
from lightning_minillm.functional.returns import discounted_returns, token_rewards, whiten, whitening_sums

__all__ = [
    "PairedDifference",
    "ReliabilityBins",
    "TokenStates",
    "accumulated_error",
    "adaptive_kl",
    "alpha_beta_divergence",
    "clipped_surrogate",
    "cross_entropy",
    "discounted_returns",
    "entropy",
    "excess_accumulated_error",
    "exposure_bias_curves",
    "forward_kl",
    "gather_logprobs",
    "generalized_jsd",
    "importance_weights",
    "jeffreys",
    "lengths_to_mask",
    "paired_bootstrap",
    "position_ids",
    "reliability_bins",
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
