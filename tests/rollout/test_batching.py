from dataclasses import replace

import torch

from lightning_minillm.rollout.batching import concatenate_rollouts, select_prompts, select_rollouts
from lightning_minillm.types import PromptBatch


def test_selected_prompts_lose_only_padding_that_all_share(make_prompts):
    prompts = make_prompts((2, 5, 3), width=9)
    chosen = select_prompts(prompts, torch.tensor([2, 0]))
    assert chosen.input_ids.shape == (2, 3)
    assert chosen.indices.tolist() == [2, 0]
    for row, source in enumerate([2, 0]):
        kept = prompts.input_ids[source][prompts.attention_mask[source]]
        assert torch.equal(chosen.input_ids[row][chosen.attention_mask[row]], kept)


def test_selected_rollouts_are_trimmed_to_their_longest_row(make_rollouts):
    rollouts = make_rollouts(count=20)
    rows = torch.tensor([3, 17, 3])
    chosen = select_rollouts(rollouts, rows)
    assert chosen.prompt_ids.shape[1] == rollouts.prompt_mask[rows].sum(-1).max()
    assert chosen.response_ids.shape[1] == rollouts.lengths[rows].max()
    assert torch.equal(chosen.lengths, rollouts.lengths[rows])
    mask = chosen.response_mask
    for name in ("response_ids", "student_logprobs", "teacher_logprobs", "reward_logprobs", "teacher_hidden"):
        assert torch.equal(getattr(chosen, name)[mask], getattr(rollouts, name)[rows][rollouts.response_mask[rows]])


def test_absent_fields_stay_absent(make_rollouts):
    rollouts = replace(make_rollouts(), teacher_logprobs=None, reward_logprobs=None, teacher_hidden=None)
    for batch in (select_rollouts(rollouts, torch.tensor([0])), concatenate_rollouts([rollouts, rollouts], 0)):
        assert batch.teacher_logprobs is None
        assert batch.teacher_hidden is None


def test_cut_and_joined_rollouts_are_the_same(make_rollouts, same_rollouts):
    rollouts = select_rollouts(make_rollouts(count=15), torch.arange(15))
    pieces = [select_rollouts(rollouts, rows) for rows in torch.arange(15).split(4)]
    joined = concatenate_rollouts(pieces, pad_token_id=0)
    mask = rollouts.prompt_mask
    assert torch.equal(joined.prompt_ids[mask], rollouts.prompt_ids[mask])
    clean = replace(rollouts, prompt_ids=rollouts.prompt_ids.masked_fill(~mask, 0))
    assert same_rollouts(replace(joined, prompt_ids=joined.prompt_ids.masked_fill(~mask, 0)), clean)


def test_the_pad_id_fills_id_columns_only(make_rollouts):
    short, long = make_rollouts(count=2, response_width=2), make_rollouts(count=2, response_width=6, prompt_width=8)
    joined = concatenate_rollouts([short, long], pad_token_id=99)
    assert joined.prompt_ids[:2, :4].eq(99).all()
    assert joined.response_ids[:2, 2:].eq(99).all()
    assert not joined.prompt_mask[:2, :4].any()
    assert not joined.response_mask[:2, 2:].any()
    assert joined.student_logprobs[:2, 2:].eq(0).all()
    assert joined.teacher_hidden[:2, 2:].eq(0).all()


def test_batches_move_with_what_they_hold(make_rollouts):
    rollouts = make_rollouts()
    moved = rollouts.to("meta")
    assert moved.teacher_hidden.is_meta
    assert moved.response_mask.is_meta
    assert not rollouts.response_mask.is_meta
    assert isinstance(PromptBatch(*(torch.zeros(1, 1),) * 3).to("cpu"), PromptBatch)
