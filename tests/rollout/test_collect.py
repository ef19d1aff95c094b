import pytest
import torch

from lightning_minillm.rollout import collect_rollouts
from lightning_minillm.rollout.batching import select_prompts

LENGTHS = (5, 3, 7, 1, 4, 6, 2, 7, 3, 5, 1, 6)


@pytest.fixture(scope="module")
def models(make_model):
    return make_model("gpt2", seed=1), make_model("qwen2", seed=2)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 64])
def test_the_batch_size_does_not_change_the_rollouts(batch_size, models, make_sampler, make_prompts):
    sampler = make_sampler(*models, eos=[0, 1, 2, 3], keep_teacher_hidden=True)
    prompts = make_prompts(LENGTHS, width=9)
    expected = sampler.sample(prompts, seed=1, phase=2)
    given = collect_rollouts(sampler, prompts, seed=1, phase=2, batch_size=batch_size)
    assert torch.equal(given.indices, prompts.indices)
    assert torch.equal(given.response_ids, expected.response_ids)
    assert torch.equal(given.response_mask, expected.response_mask)
    assert torch.equal(given.prompt_ids[given.prompt_mask], prompts.input_ids[prompts.attention_mask])
    for name in ("student_logprobs", "teacher_logprobs", "mixture_logprobs", "reward_logprobs", "teacher_hidden"):
        torch.testing.assert_close(getattr(given, name), getattr(expected, name), rtol=0, atol=1e-4)


def test_the_order_of_prompts_changes_only_the_order(models, make_sampler, make_prompts):
    sampler, prompts = make_sampler(*models), make_prompts(LENGTHS)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    plain = collect_rollouts(sampler, prompts, seed=0, phase=0, batch_size=5)
    shuffled = collect_rollouts(sampler, select_prompts(prompts, order), seed=0, phase=0, batch_size=5)
    assert torch.equal(shuffled.response_ids, plain.response_ids[order])


def test_prompts_of_like_length_are_sampled_together(models, make_sampler, make_prompts, monkeypatch):
    sampler, widths = make_sampler(models[0]), []
    sample = sampler.sample

    def spy(prompts, **kwargs):
        widths.append(prompts.input_ids.shape)
        return sample(prompts, **kwargs)

    monkeypatch.setattr(sampler, "sample", spy)
    collect_rollouts(sampler, make_prompts(LENGTHS, width=20), seed=0, phase=0, batch_size=4)
    assert widths == [(4, 7), (4, 5), (4, 3)]


def test_listeners_hear_of_every_batch(models, make_sampler, make_prompts):
    heard = []
    collect_rollouts(
        make_sampler(models[0]),
        make_prompts(LENGTHS),
        seed=0,
        phase=0,
        batch_size=5,
        listeners=[lambda done, total: heard.append((done, total))],
    )
    assert heard == [(5, 12), (10, 12), (12, 12)]


def test_batch_size_out_of_range(models, make_sampler, make_prompts):
    with pytest.raises(ValueError, match="at least 1"):
        collect_rollouts(make_sampler(models[0]), make_prompts(LENGTHS), seed=0, phase=0, batch_size=0)
