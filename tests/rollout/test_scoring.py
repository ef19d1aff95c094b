from dataclasses import replace

import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.models import SplitCausalLM
from lightning_minillm.rollout import SamplingConfig, score_responses
from lightning_minillm.rollout.scoring import given_responses, response_logprobs, rollout_sequences
from lightning_minillm.types import PromptBatch, TokenBatch

PROMPT_LENGTHS = (5, 3, 7, 1)
LENGTHS = (4, 6, 1, 3)


def responses(width=6, seed=1):
    ids = torch.randint(1, 37, (4, width), generator=torch.Generator().manual_seed(seed))
    mask = lengths_to_mask(torch.tensor(LENGTHS), width)
    return ids.masked_fill(~mask, 0), mask


def naive_logprobs(model, prompts, ids, temperature):
    """One row and one token at a time, without padding or cache, in float64."""
    rows = []
    model = model.double()
    for row, length in enumerate(LENGTHS):
        tokens = prompts.input_ids[row][prompts.attention_mask[row]].tolist()
        values = []
        for token in ids[row, :length].tolist():
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
            values.append((logits / temperature).log_softmax(-1)[token].item())
            tokens.append(token)
        rows.append(values)
    model.float()
    return rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_against_a_loop_over_tokens(family, temperature, make_model, make_prompts):
    student, teacher = make_model(family, seed=1), make_model(family, seed=2)
    prompts, (ids, mask) = make_prompts(PROMPT_LENGTHS, width=9), responses()
    config = SamplingConfig(temperature=temperature, teacher_mix_alpha=0.3, teacher_reward_temperature=1.0)
    given = score_responses(SplitCausalLM(student), SplitCausalLM(teacher), prompts, ids, mask, config)
    log_q = naive_logprobs(student, prompts, ids, temperature)
    log_p = naive_logprobs(teacher, prompts, ids, temperature)
    reward = naive_logprobs(teacher, prompts, ids, 1.0)
    for row, length in enumerate(LENGTHS):
        q, p = torch.tensor(log_q[row]), torch.tensor(log_p[row])
        assert given.student_logprobs[row, :length].tolist() == pytest.approx(log_q[row], abs=1e-4)
        assert given.teacher_logprobs[row, :length].tolist() == pytest.approx(log_p[row], abs=1e-4)
        assert given.reward_logprobs[row, :length].tolist() == pytest.approx(reward[row], abs=1e-4)
        mixture = (0.7 * q.exp() + 0.3 * p.exp()).log()
        torch.testing.assert_close(given.mixture_logprobs[row, :length], mixture, rtol=0, atol=1e-4)
        assert given.mixture_logprobs[row, length:].eq(0).all()
        assert given.student_logprobs[row, length:].eq(0).all()


def test_padding_and_row_order_change_nothing(make_model, make_prompts):
    split = SplitCausalLM(make_model("gpt2", seed=1))
    prompts, (ids, mask) = make_prompts(PROMPT_LENGTHS), responses()
    config = SamplingConfig(teacher_mix_alpha=0.0)
    given = score_responses(split, None, prompts, ids, mask, config).student_logprobs
    wide_prompts = PromptBatch(
        torch.nn.functional.pad(prompts.input_ids, (5, 0), value=17),
        torch.nn.functional.pad(prompts.attention_mask, (5, 0)),
        prompts.indices,
    )
    wide_ids = torch.nn.functional.pad(ids.masked_fill(~mask, 23), (0, 3), value=9)
    wide_mask = torch.nn.functional.pad(mask, (0, 3))
    wide = score_responses(split, None, wide_prompts, wide_ids, wide_mask, config).student_logprobs
    torch.testing.assert_close(wide[:, :6], given)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = PromptBatch(prompts.input_ids[order], prompts.attention_mask[order], prompts.indices[order])
    again = score_responses(split, None, shuffled, ids[order], mask[order], config).student_logprobs
    torch.testing.assert_close(again, given[order])


def test_sequences_join_prompt_and_response(make_rollouts):
    rollouts = make_rollouts()
    batch = rollout_sequences(rollouts, normalizer=7.0)
    assert torch.equal(batch.input_ids, torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1))
    assert torch.equal(batch.attention_mask, torch.cat([rollouts.prompt_mask, rollouts.response_mask], 1))
    assert torch.equal(batch.target_mask[:, 4:], rollouts.response_mask)
    assert not batch.target_mask[:, :4].any()  # no prompt token is ever a target
    assert batch.normalizer == 7.0


def test_the_teacher_is_optional(make_model, make_prompts):
    split = SplitCausalLM(make_model("gpt2", seed=1))
    given = score_responses(split, None, make_prompts(PROMPT_LENGTHS), *responses(), SamplingConfig())
    assert given.teacher_logprobs is None
    assert given.reward_logprobs is None
    assert torch.equal(given.mixture_logprobs, given.student_logprobs)


def test_response_logprobs_carry_no_gradient(make_model, make_prompts, make_rollouts):
    split = SplitCausalLM(make_model("gpt2", seed=1))
    rollouts = replace(make_rollouts(), teacher_hidden=None)
    assert not response_logprobs(split, rollouts).requires_grad


def test_given_responses_are_those_of_the_sequences(make_prompts):
    """Of right-padded pairs with eos (the pad id) inside; a table made by hand."""
    prompts = make_prompts((2, 3))
    first, second = (row[mask].tolist() for row, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True))
    ids = torch.tensor([[*first, 7, 0, 5, 0], [*second, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
    targets = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]]).bool()
    text = given_responses(prompts, TokenBatch(ids, mask, targets, prompts.indices, 1.0))
    assert text.response_ids.tolist() == [[7, 0, 5, 0], [9, 0, 0, 0]]
    assert text.response_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert text.prompt_ids is prompts.input_ids
    again = rollout_sequences(text)
    for row, tokens in enumerate(([*first, 7, 0, 5, 0], [*second, 9, 0])):
        assert again.input_ids[row][again.attention_mask[row]].tolist() == tokens
    assert again.target_mask.sum(-1).tolist() == [4, 2]
