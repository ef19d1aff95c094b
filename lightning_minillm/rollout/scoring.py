"""Log-probabilities of given responses by one full pass, as the sampler would have recorded them.

Legend: B rows, P prompt tokens, T response tokens, N valid response tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_minillm.functional.logprobs import TokenStates, target_logprobs
from lightning_minillm.functional.sampling import mixture_logprobs
from lightning_minillm.models.split import SplitCausalLM
from lightning_minillm.rollout.batching import select_rollouts
from lightning_minillm.rollout.sampling import SamplingConfig
from lightning_minillm.types import PolicyBatch, PromptBatch, RolloutBatch, TokenBatch

POLICY_INPUTS = ("old_logprobs", "advantages", "importance_weights")
"""Per-token inputs that a loss on rollouts may read: log q, the whitened advantage, and w = q / mu when sampled."""


def rollout_sequences(rollouts: RolloutBatch, normalizer: float = 1.0) -> TokenBatch:
    """Return prompt + response as one sequence per row, with the response tokens as targets; also as the teacher's."""
    has_own = rollouts.teacher_prompt_ids is not None
    no_targets = torch.zeros_like(rollouts.prompt_mask)
    return TokenBatch(
        input_ids=torch.cat([rollouts.prompt_ids, rollouts.response_ids], dim=1),
        attention_mask=torch.cat([rollouts.prompt_mask, rollouts.response_mask], dim=1),
        target_mask=torch.cat([no_targets, rollouts.response_mask], dim=1),
        indices=rollouts.indices,
        normalizer=normalizer,
        teacher=rollout_sequences(rollouts.of_teacher, normalizer) if has_own else None,
    )


def given_responses(prompts: PromptBatch, tokens: TokenBatch) -> RolloutBatch:
    """Return given text as rollouts; since it was not sampled, its log-probabilities are 0 and mean nothing.

    The inverse of :func:`rollout_sequences`.

    Args:
        prompts: B left-padded prompts.
        tokens: the same B rows as prompt + response, padded on the right; the response's tokens are the targets, and
            end each row.

    Returns:
        B rows, trimmed to the longest response.
    """
    lengths = tokens.target_mask.sum(-1)
    places = torch.arange(int(lengths.max()), device=lengths.device)
    mask = places < lengths[:, None]
    starts = tokens.attention_mask.sum(-1) - lengths
    columns = (starts[:, None] + places).clamp(max=tokens.input_ids.shape[1] - 1)
    ids = tokens.input_ids.gather(1, columns).masked_fill(~mask, 0)
    return _unscored(prompts, ids, mask)


@torch.no_grad()
def response_states(model: SplitCausalLM, rollouts: RolloutBatch) -> TokenStates:
    """Return the model's states of the N response tokens after the student's prompts, row by row, without graph."""
    batch = rollout_sequences(rollouts)
    states, _ = model.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
    return states


def teacher_states(teacher: SplitCausalLM, rollouts: RolloutBatch) -> TokenStates:
    """Return the teacher's states of the N response tokens: those kept with the rollouts, or computed again.

    They are after the teacher's prompts, where these differ from the student's.
    """
    if rollouts.teacher_hidden is None:
        return response_states(teacher, rollouts.of_teacher)
    return teacher.states(rollouts.teacher_hidden[rollouts.response_mask])


def policy_inputs(batch: PolicyBatch, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the inputs ``[N]`` of a loss on a micro-batch of rollouts that :data:`POLICY_INPUTS` names."""
    columns = {
        "old_logprobs": batch.rollouts.student_logprobs,
        "advantages": batch.advantages,
        "importance_weights": batch.importance_weights,
    }
    return {name: columns[name][batch.rollouts.response_mask] for name in names}


@torch.no_grad()
def recompute_student(
    rollouts: RolloutBatch, student: SplitCausalLM, config: SamplingConfig, batch_size: int
) -> RolloutBatch:
    """Replace the student's log-probabilities by those of full passes without a cache, ``batch_size`` rows at a time.

    The mixture's log-probabilities stay: they are those that the tokens were drawn with.
    """
    logprobs = torch.zeros_like(rollouts.student_logprobs)
    for rows in torch.arange(len(rollouts), device=logprobs.device).split(batch_size):
        chosen = select_rollouts(rollouts, rows)
        block = response_logprobs(student, chosen, config.temperature)
        logprobs[rows, : block.shape[1]] = block
    return replace(rollouts, student_logprobs=logprobs)


def response_logprobs(model: SplitCausalLM, rollouts: RolloutBatch, temperature: float = 1.0) -> Tensor:
    """Return log-probabilities of the response tokens by one full pass: ``[B, T]`` float32, 0 where masked."""
    mask = rollouts.response_mask
    logprobs = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    logprobs[mask] = target_logprobs(response_states(model, rollouts), rollouts.response_ids[mask], temperature)
    return logprobs


@torch.no_grad()
def add_teacher(
    rollouts: RolloutBatch, teacher: SplitCausalLM, config: SamplingConfig, batch_size: int, keep_hidden: bool
) -> RolloutBatch:
    """Add the teacher's part to rollouts that were sampled from the student alone.

    The result is that of sampling both in lockstep, for less memory: only the student needs a key-value cache.

    Args:
        rollouts: B rows; none of the teacher's fields is set.
        teacher: the teacher, split.
        config: gives the temperatures.
        batch_size: rows that the teacher reads together.
        keep_hidden: also keep the teacher's last hidden states on the response tokens.

    Returns:
        The rollouts with ``teacher_logprobs``, ``reward_logprobs`` and, if asked for, ``teacher_hidden``.
    """
    mask = rollouts.response_mask
    log_p = torch.zeros_like(rollouts.student_logprobs)
    rewards = log_p
    if config.teacher_reward_temperature not in (None, config.temperature):
        rewards = torch.zeros_like(log_p)
    kept = None
    for rows in torch.arange(len(rollouts), device=mask.device).split(batch_size):
        chosen = select_rollouts(rollouts, rows)
        states, ids = response_states(teacher, chosen.of_teacher), chosen.response_ids[chosen.response_mask]
        places = mask & torch.isin(torch.arange(len(mask), device=mask.device), rows)[:, None]
        log_p[places] = target_logprobs(states, ids, config.temperature)
        if rewards is not log_p:
            rewards[places] = target_logprobs(states, ids, config.teacher_reward_temperature or 1.0)
        if keep_hidden:
            kept = states.hidden.new_zeros(*mask.shape, states.hidden.shape[-1]) if kept is None else kept
            kept[places] = states.hidden
    return replace(rollouts, teacher_logprobs=log_p, reward_logprobs=rewards, teacher_hidden=kept)


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
        student: the student, split.
        teacher: the teacher, split, or ``None``.
        prompts: B left-padded prompts.
        response_ids: ``[B, T]`` int64, right-padded.
        response_mask: ``[B, T]`` bool, a run of ``True`` from the left.
        config: gives temperatures and the mixture; its filters are not applied, since the text is given.

    Returns:
        The rollouts that the sampler would have returned for this text, without cached teacher states.
    """
    rollouts = recompute_student(_unscored(prompts, response_ids, response_mask), student, config, len(response_ids))
    if teacher is None:
        return replace(rollouts, mixture_logprobs=rollouts.student_logprobs)
    rollouts = add_teacher(rollouts, teacher, config, len(response_ids), keep_hidden=False)
    assert rollouts.teacher_logprobs is not None
    log_mu = mixture_logprobs(rollouts.student_logprobs, rollouts.teacher_logprobs, config.teacher_mix_alpha)
    return replace(rollouts, mixture_logprobs=log_mu.masked_fill(~response_mask, 0))


def _unscored(prompts: PromptBatch, response_ids: Tensor, response_mask: Tensor) -> RolloutBatch:
    """Return given text as rollouts whose log-probabilities are all 0."""
    zeros = torch.zeros(response_mask.shape, device=response_mask.device)
    return RolloutBatch(
        prompt_ids=prompts.input_ids,
        prompt_mask=prompts.attention_mask.bool(),
        response_ids=response_ids,
        response_mask=response_mask,
        indices=prompts.indices,
        student_logprobs=zeros,
        teacher_logprobs=None,
        mixture_logprobs=zeros,
        reward_logprobs=None,
    ).for_prompts(prompts)
