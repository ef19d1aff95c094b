"""Decode steps of fixed shapes give what plain ones give; on a GPU they are replayed as graphs."""

import warnings
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from lightning_minillm.models import SplitCausalLM
from lightning_minillm.rollout import static_step
from lightning_minillm.rollout.decoder import Decoder

LENGTHS = (5, 3, 7, 1, 4, 6, 2, 7, 3, 5, 1, 6)
ENDS = [0, 1, 2, 3]


@pytest.fixture
def taken(monkeypatch):
    """Counts the steps of fixed shapes."""
    counts = {"steps": 0, "shapes": 0}
    call, make = static_step.StaticStep.__call__, static_step.StaticStep.__init__

    def counted(name, function):
        def run(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(static_step.StaticStep, "__call__", counted("steps", call))
    monkeypatch.setattr(static_step.StaticStep, "__init__", counted("shapes", make))
    return counts


def assert_same(left, right):
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, Tensor) and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        elif isinstance(a, Tensor):
            assert torch.equal(a, b)
        else:
            assert a == b


def test_static_steps_sample_what_plain_ones_do(family, make_model, make_sampler, make_prompts, taken):
    """Rows of different lengths that end at different times, over more tokens than the cache has slots at first."""
    student, teacher = make_model(family, seed=1), make_model("gpt2", seed=2)
    options = {"eos": ENDS, "keep_teacher_hidden": True, "max_new_tokens": 24}
    plain = make_sampler(student, teacher, static=False, **options).sample(make_prompts(LENGTHS), seed=4)
    assert taken["steps"] == 0
    static = make_sampler(student, teacher, static=True, **options).sample(make_prompts(LENGTHS), seed=4)
    assert taken["steps"] > 0
    assert_same(static, plain)


def test_the_cache_grows_under_static_steps(make_model, make_sampler, make_prompts, taken, monkeypatch):
    monkeypatch.setattr("lightning_minillm.rollout.cache._BLOCK", 4)
    model = make_model("llama", seed=1)
    prompts = make_prompts(LENGTHS)
    plain = make_sampler(model, eos=[], max_new_tokens=15, static=False).sample(prompts, seed=4)
    static = make_sampler(model, eos=[], max_new_tokens=15, static=True).sample(prompts, seed=4)
    assert_same(static, plain)
    assert taken["steps"] == 14
    assert taken["shapes"] == 4  # 4 slots to begin with, then 4 more at a time


def test_shapes_change_where_half_of_the_rows_are_finished(make_model, make_sampler, make_prompts, taken):
    model = make_model("gpt2", seed=1)
    sampler = make_sampler(model, eos=list(range(12)), max_new_tokens=20, static=True)
    rollouts = sampler.sample(make_prompts(LENGTHS * 4), seed=0)
    assert len(set(rollouts.lengths.tolist())) > 5
    assert 2 <= taken["shapes"] <= 6  # 48 rows, halved at most five times


@pytest.mark.parametrize("fault", ["disagrees", "fails"])
def test_a_model_without_static_steps_is_sampled_from_plainly(
    make_model, make_sampler, make_prompts, monkeypatch, fault
):
    """One warning, the same rollouts, and no second try."""

    run = static_step.StaticStep._run

    def broken(step):
        if fault == "fails":
            raise static_step.StaticStepError("operation not permitted when stream is capturing")
        return run(step) * 2

    model = make_model("gpt2", seed=1)
    plain = make_sampler(model, eos=ENDS, static=False).sample(make_prompts(LENGTHS), seed=4)
    sampler = make_sampler(model, eos=ENDS, static=True)
    monkeypatch.setattr(static_step.StaticStep, "_run", broken)
    with pytest.warns(UserWarning, match="GPT2LMHeadModel is sampled from step by step"):
        assert_same(sampler.sample(make_prompts(LENGTHS), seed=4), plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(sampler.sample(make_prompts(LENGTHS), seed=4), plain)


def test_plain_steps_are_taken_on_a_cpu_and_where_attention_is_eager(make_model, make_prompts):
    prompts = make_prompts((3, 2), width=3)
    for attention, wanted, expected in (("sdpa", None, False), ("sdpa", True, True), ("eager", True, False)):
        model = make_model("gpt2", seed=1)
        model.set_attn_implementation(attention)
        decoder = Decoder(SplitCausalLM(model), prompts, [3, 2], 4, static=wanted)
        assert decoder.is_static is expected


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
def test_graphs_sample_what_plain_steps_do(make_model, make_sampler, make_prompts, taken, half):
    student, teacher = (make_model(name, seed=seed).cuda() for name, seed in (("gpt2", 1), ("llama", 2)))
    prompts = make_prompts(LENGTHS).to(torch.device("cuda"))
    options = {"eos": ENDS, "keep_teacher_hidden": True}
    with torch.autocast("cuda", torch.bfloat16, enabled=half), warnings.catch_warnings():
        warnings.simplefilter("error")
        static = make_sampler(student, teacher, **options).sample(prompts, seed=4)
        plain = make_sampler(student, teacher, static=False, **options).sample(prompts, seed=4)
    assert taken["steps"] > 0
    if not half:  # half precision may draw other tokens
        assert torch.equal(static.response_ids, plain.response_ids)
    torch.testing.assert_close(static.student_logprobs[:, 0], plain.student_logprobs[:, 0], rtol=0.05, atol=0.05)
