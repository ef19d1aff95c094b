from dataclasses import FrozenInstanceError

import pytest
import torch

from lightning_minillm.functional import lengths_to_mask
from lightning_minillm.types import EvaluationBatch, PolicyBatch, PromptBatch, RolloutBatch, TokenBatch

LENGTHS = torch.tensor([3, 1])


def prompts():
    return PromptBatch(torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4, dtype=torch.bool), torch.arange(2))


def tokens():
    mask = torch.ones(2, 4, dtype=torch.bool)
    return TokenBatch(torch.ones(2, 4, dtype=torch.int64), mask, mask, torch.arange(2), 6.0)


def rollouts(**fields):
    values = torch.zeros(2, 3)
    return RolloutBatch(
        *(torch.ones(2, 4), torch.ones(2, 4).bool(), torch.ones(2, 3), lengths_to_mask(LENGTHS, 3), torch.arange(2)),
        student_logprobs=values,
        teacher_logprobs=None,
        mixture_logprobs=values,
        reward_logprobs=None,
        **fields,
    )


def test_lengths_count_the_mask():
    assert len(rollouts()) == 2
    assert torch.equal(rollouts().lengths, LENGTHS)


def test_batches_move_with_all_that_they_hold():
    policy = PolicyBatch(
        rollouts(teacher_hidden=torch.zeros(2, 3, 5)), torch.zeros(2, 3), torch.ones(2, 3), 4.0, tokens()
    )
    moved = policy.to("meta", non_blocking=True)
    assert isinstance(moved, PolicyBatch)
    for tensor in (moved.advantages, moved.rollouts.teacher_hidden, moved.rollouts.response_mask, moved.lm.input_ids):
        assert tensor.device.type == "meta"
    assert moved.rollouts.teacher_logprobs is None
    assert moved.normalizer == 4.0
    assert policy.advantages.device.type == "cpu"  # what was moved is a copy


def test_texts_stay_with_an_evaluation_batch():
    batch = EvaluationBatch(prompts(), tokens(), (("a",), ("b", "c")), ("x", ""), (True, False), ("p", "q"))
    moved = batch.to("meta")
    assert moved.prompts.input_ids.device.type == moved.tokens.target_mask.device.type == "meta"
    assert moved.references == batch.references
    assert moved.exact == (True, False)


def test_batches_are_frozen():
    with pytest.raises(FrozenInstanceError):
        prompts().indices = torch.zeros(2)
