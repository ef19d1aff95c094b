"""Log-probabilities of given responses, by one full pass: what the sampler would have recorded for them.

Legend: B rows, P prompt tokens, T response tokens, N valid response tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_minillm.functional.logprobs import TokenStates, target_logprobs
from lightning_minillm.functional.sampling import mixture_logprobs
from lightning_minillm.models.split import SplitCausalLM
from lightning_minillm.rollout.config import SamplingConfig
from lightning_minillm.types import PromptBatch, RolloutBatch, TokenBatch


def rollout_sequences(rollouts: RolloutBatch, normalizer: float = 1.0) -> TokenBatch:
    """Return prompt + response as one sequence a row, with the response tokens as targets."""
    no_targets = torch.zeros_like(rollouts.prompt_mask)
    return TokenBatch(
        input_ids=torch.cat([rollouts.prompt_ids, rollouts.response_ids], dim=1),
        attention_mask=torch.cat([rollouts.prompt_mask, rollouts.response_mask], dim=1),
        target_mask=torch.cat([no_targets, rollouts.response_mask], dim=1),
        indices=rollouts.indices,
        normalizer=normalizer,
    )


@torch.no_grad()
def response_states(model: SplitCausalLM, rollouts: RolloutBatch) -> TokenStates:
    """Return the model's states of the N response tokens, row by row, without graph."""
    batch = rollout_sequences(rollouts)
    states, _ = model.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
    return states


def response_logprobs(model: SplitCausalLM, rollouts: RolloutBatch, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities of the response tokens by one full pass: ``[B, T]`` float32, 0 where masked."""
    mask = rollouts.response_mask
    logprobs = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    logprobs[mask] = target_logprobs(response_states(model, rollouts), rollouts.response_ids[mask], temperature)
    return logprobs


def score_responses(
    student: SplitCausalLM,
    teacher: SplitCausalLM | None,
    prompts: PromptBatch,
    response_ids: Tensor,
    response_mask: Tensor,
    config: SamplingConfig,
) -> RolloutBatch:
    """Make rollouts out of given responses.

    Args:
        student: as in :class:`~lightning_minillm.rollout.MixtureSampler`.
        teacher: likewise.
        prompts: B left-padded prompts.
        response_ids: ``[B, T]`` int64, right-padded.
        response_mask: ``[B, T]`` bool, a run of ``True`` from the left.
        config: gives temperatures and the mixture; its filters are not applied, since the text is given.

    Returns:
        The rollouts that the sampler would have returned for this text, without cached teacher states.
    """
    zeros = torch.zeros(response_mask.shape, device=response_mask.device)
    blank = RolloutBatch(
        prompt_ids=prompts.input_ids,
        prompt_mask=prompts.attention_mask.bool(),
        response_ids=response_ids,
        response_mask=response_mask,
        indices=prompts.indices,
        student_logprobs=zeros,
        teacher_logprobs=None,
        mixture_logprobs=zeros,
        reward_logprobs=None,
    )
    log_q = response_logprobs(student, blank, config.temperature)
    log_p = reward = None
    log_mu = log_q
    if teacher is not None:
        log_p = response_logprobs(teacher, blank, config.temperature)
        reward_temperature = config.teacher_reward_temperature or config.temperature
        reward = log_p
        if reward_temperature != config.temperature:
            reward = response_logprobs(teacher, blank, reward_temperature)
        log_mu = mixture_logprobs(log_q, log_p, config.teacher_mix_alpha).masked_fill(~response_mask, 0)
    return replace(
        blank, student_logprobs=log_q, teacher_logprobs=log_p, mixture_logprobs=log_mu, reward_logprobs=reward
    )
