"""Rollouts whose teacher is shown prompts of its own."""

from dataclasses import replace

import pytest
import torch

from lightning_minillm.batch_sizes import BatchSizes
from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.models import ModelPair
from lightning_minillm.rollout import (
    AdaptiveReplay,
    RolloutBuffer,
    RolloutOptions,
    SamplingConfig,
    TeacherText,
    TextCollector,
    score_responses,
)
from lightning_minillm.rollout.batching import concatenate_rollouts, select_prompts, select_rollouts
from lightning_minillm.rollout.scoring import given_responses, rollout_sequences, teacher_states
from lightning_minillm.types import RolloutBatch

LENGTHS, OWN_LENGTHS = (5, 3, 7, 1, 4, 6), (2, 9, 4, 8, 1, 3)
COLUMNS = ("student_logprobs", "teacher_logprobs", "reward_logprobs", "mixture_logprobs", "teacher_hidden")


@pytest.fixture(scope="module")
def pair(make_model, tokenizer):
    return ModelPair(make_model("gpt2", seed=1), tokenizer, make_model("qwen2", seed=2))


@pytest.fixture
def prompts(make_prompts):
    """Prompts with other prompts of the same rows for the teacher."""
    return replace(make_prompts(LENGTHS), teacher=make_prompts(OWN_LENGTHS, width=12, seed=3))


def collector(pair, reading="auto", alpha=0.0, source=None, keeps_hidden=True, **options):
    sampling = SamplingConfig(max_new_tokens=6, teacher_mix_alpha=alpha, teacher_reward_temperature=2.0)
    chosen = {} if source is None else {"source": source}
    options = RolloutOptions(sampling, num_rollouts=6, batch_size=4, **chosen, **options)
    return TextCollector(pair, options, reading, needs_rewards=True, keeps_hidden=keeps_hidden)


def test_the_teachers_scores_are_those_of_single_passes_over_its_own_prompts(pair, prompts):
    text = collector(pair).collect(prompts, phase=0)
    for row in range(len(text)):
        prompt = prompts.teacher.input_ids[row][prompts.teacher.attention_mask[row].bool()]
        response = text.response_ids[row][text.response_mask[row]]
        ids = torch.cat([prompt, response])[None]
        hidden = pair.teacher(ids, output_hidden_states=True)
        logits = hidden.logits[0, len(prompt) - 1 : -1]
        for column, temperature in ((text.teacher_logprobs, 1.0), (text.reward_logprobs, 2.0)):
            expected = (logits / temperature).log_softmax(-1).gather(-1, response[:, None]).squeeze(-1)
            torch.testing.assert_close(column[row, : len(response)], expected, rtol=0, atol=1e-4)
        kept = text.teacher_hidden[row, : len(response)]
        torch.testing.assert_close(kept, hidden.hidden_states[-1][0, len(prompt) - 1 : -1], rtol=0, atol=1e-4)


def test_the_students_prompts_as_the_teachers_change_nothing(pair, prompts):
    plain = replace(prompts, teacher=None)
    expected = collector(pair, "after").collect(plain, phase=1)
    given = collector(pair, "auto").collect(replace(plain, teacher=plain), phase=1)
    assert torch.equal(given.response_ids, expected.response_ids)
    assert torch.equal(given.teacher_prompt_ids, given.prompt_ids)
    for name in COLUMNS:
        assert torch.equal(getattr(given, name), getattr(expected, name)), name


def test_padding_and_order_of_the_prompts_change_nothing(pair, prompts):
    text = collector(pair).collect(prompts, phase=0)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    other = collector(pair).collect(select_prompts(prompts, order), phase=0)
    assert torch.equal(other.response_ids, text.response_ids[order])
    for name in COLUMNS:
        torch.testing.assert_close(getattr(other, name), getattr(text, name)[order], rtol=0, atol=1e-4)


def test_states_in_the_update_are_after_the_teachers_prompts(pair, prompts):
    text = collector(pair).collect(prompts, phase=0)
    again = teacher_states(pair.require_teacher(), replace(text, teacher_hidden=None))
    torch.testing.assert_close(again.hidden, text.teacher_hidden[text.response_mask], rtol=0, atol=1e-4)
    tokens = rollout_sequences(text)
    assert torch.equal(tokens.input_ids[tokens.target_mask], tokens.teacher.input_ids[tokens.teacher.target_mask])
    torch.testing.assert_close(pair.teacher_token_states(tokens).hidden, again.hidden, rtol=0, atol=1e-5)
    scored = score_responses(
        pair.student_split,
        pair.teacher_split,
        prompts,
        text.response_ids,
        text.response_mask,
        SamplingConfig(teacher_mix_alpha=0.0),
    )
    torch.testing.assert_close(scored.teacher_logprobs, text.teacher_logprobs, rtol=0, atol=1e-4)


def test_the_teacher_writes_after_its_own_prompts(pair, prompts):
    text = collector(pair, source=TeacherText()).collect(prompts, phase=0)
    alone = collector(pair, source=TeacherText()).collect(replace(prompts.teacher, teacher=None), phase=0)
    assert torch.equal(text.response_ids, alone.response_ids)
    assert torch.equal(text.prompt_ids, prompts.input_ids)
    assert torch.equal(text.teacher_prompt_ids[:, -9:], prompts.teacher.input_ids[:, -9:])
    torch.testing.assert_close(text.teacher_logprobs, alone.teacher_logprobs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("reading", "alpha"), [("lockstep", 0.0), ("auto", 0.2)])
def test_a_teacher_that_would_advance_with_the_student_is_refused(pair, prompts, reading, alpha):
    message = rf"prompts of its own.*teacher_mix_alpha=0.*got teacher_mix_alpha={alpha} and reading={reading}"
    with pytest.raises(ValueError, match=message):
        collector(pair, reading, alpha).collect(prompts, phase=0)


def test_a_sampler_refuses_it_too(pair, prompts, make_sampler):
    sampler = make_sampler(pair.student, pair.teacher, teacher_mix_alpha=0.0)
    with pytest.raises(ValueError, match="cannot advance with the student"):
        sampler.sample(prompts, seed=0)


def with_own(rollouts, make_prompts, width):
    lengths = [1 + row % width for row in range(len(rollouts))]
    own = make_prompts(lengths, width=width, seed=len(rollouts))
    return replace(rollouts, teacher_prompt_ids=own.input_ids, teacher_prompt_mask=own.attention_mask)


def test_selecting_and_joining_trim_the_teachers_prompts_by_themselves(make_rollouts, make_prompts, same_rollouts):
    rollouts = with_own(make_rollouts(), make_prompts, 9)
    chosen = select_rollouts(rollouts, torch.tensor([1, 3]))
    assert chosen.teacher_prompt_ids.shape == (2, 4)
    assert torch.equal(chosen.teacher_prompt_ids, rollouts.teacher_prompt_ids[[1, 3], -4:])
    rest = select_rollouts(rollouts, torch.tensor([0, 2, *range(4, 12)]))
    joined = concatenate_rollouts([chosen, rest], pad_token_id=0)
    back = select_rollouts(joined, torch.tensor([2, 0, 3, 1, *range(4, 12)]))
    assert same_rollouts(back, select_rollouts(rollouts, torch.arange(12)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_buffers_state_has_the_teachers_prompts(make_rollouts, make_prompts, same_rollouts, ranks):
    def buffer():
        options = {"ppo_epochs": 2, "max_response_length": 6, "whiten": "all", "seed": 1}
        return RolloutBuffer(12, BatchSizes(4, 2, 1), **options)

    rollouts = with_own(make_rollouts(), make_prompts, 9)
    first, second = buffer(), buffer()
    first.fill(rollouts, torch.zeros(12, 6), torch.ones(12, 6), phase=0)
    expected = list(first)
    state = {**first.state_dict(), "position": 0}
    if ranks == 2:  # as two ranks would have written it
        whole = state["ranks"][0]
        rows = torch.arange(12)
        state["ranks"] = [{key: value[rows % 4 % 2 == rank] for key, value in whole.items()} for rank in range(2)]
    second.load_state_dict(state)
    for one, other in zip(expected, second, strict=True):
        assert same_rollouts(one.rollouts, other.rollouts)
        assert one.rollouts.teacher_prompt_ids is not None


def test_replayed_text_has_the_teachers_prompts(pair, prompts):
    made = collector(pair, source=AdaptiveReplay(probability=1.0, capacity=6, fresh="increasing"))
    first = made.collect(prompts, phase=0)
    replayed = made.collect(prompts, phase=1)
    order = torch.tensor([first.indices.tolist().index(row) for row in replayed.indices.tolist()])
    assert torch.equal(replayed.response_ids, first.response_ids[order])
    torch.testing.assert_close(replayed.teacher_logprobs, first.teacher_logprobs[order], rtol=0, atol=1e-4)


def test_references_have_the_teachers_prompts(prompts, make_prompts):
    tokens = rollout_sequences(with_own_responses(prompts))
    shifted = replace(tokens, teacher=None)
    ids, mask = shifted.input_ids, shifted.attention_mask
    order = (~mask).to(torch.int8).argsort(dim=1, stable=True)  # padded on the right
    right = replace(
        shifted,
        input_ids=ids.gather(1, order),
        attention_mask=mask.gather(1, order),
        target_mask=shifted.target_mask.gather(1, order),
    )
    rollouts = given_responses(prompts, right)
    assert torch.equal(rollouts.teacher_prompt_ids, prompts.teacher.input_ids)


def with_own_responses(prompts):
    mask = lengths_to_mask(torch.tensor([2, 3, 1, 3, 2, 1]), 3)
    zeros = torch.zeros(6, 3)
    return RolloutBatch(
        prompts.input_ids,
        prompts.attention_mask,
        torch.ones(6, 3, dtype=torch.int64),
        mask,
        prompts.indices,
        zeros,
        None,
        zeros,
        None,
    ).for_prompts(prompts)


def test_student_and_teacher_must_have_the_same_targets(pair, prompts):
    tokens = rollout_sequences(with_own_responses(prompts))
    wrong = replace(tokens.teacher, target_mask=tokens.teacher.target_mask.clone())
    wrong.target_mask[0, -3] = False
    with pytest.raises(ValueError, match=r"same targets in every row, got \[2, 3, 1, 3, 2, 1\] and \[1, 3, 1"):
        pair.teacher_token_states(replace(tokens, teacher=wrong))
