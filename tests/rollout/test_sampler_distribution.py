"""Tokens follow the distribution that they should: chi-square tests on a small vocabulary, with fixed seeds."""

import pytest
import torch

from lightning_minillm.rollout.sampler import token_noise
from lightning_minillm.types import PromptBatch

EOS = 0


def next_probabilities(model, ids, temperature=1.0):
    with torch.no_grad():
        return (model(input_ids=torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)


def chi_square_limit(freedom):
    """Quantile at 1 - 1e-3, by Wilson and Hilferty's approximation."""
    return freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def draw(sampler, prompt, count, seed=0):
    """``count`` responses to one prompt, each with noise of its own."""
    ids = torch.tensor([prompt]).expand(count, -1)
    prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(count))
    return sampler.sample(prompts, seed=seed)


def check_chi_square(cells, probabilities):
    """The draws ``cells`` follow ``probabilities``; what cannot happen does not."""
    counts = torch.bincount(cells, minlength=len(probabilities)).double()
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    expected = probabilities[possible] * len(cells)
    assert expected.min() > 5, "the test needs more draws"
    statistic = ((counts[possible] - expected).square() / expected).sum().item()
    assert statistic < chi_square_limit(int(possible.sum()) - 1)


def keep_only(probabilities, kept):
    mask = torch.zeros_like(probabilities)
    mask[kept] = 1
    return probabilities * mask / (probabilities * mask).sum()


@pytest.fixture(scope="module")
def small(make_model):
    """Student and teacher of 8 ids, not too sure of anything, and a prompt."""
    student = make_model("gpt2", seed=3, vocab_size=8, initializer_range=0.15)
    teacher = make_model("gpt2", seed=4, vocab_size=8, initializer_range=0.15)
    prompt = [3, 1, 4]
    q, p = next_probabilities(student, prompt), next_probabilities(teacher, prompt)
    assert (q - p).abs().max() > 0.1
    return student, teacher, prompt, q, p


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_tokens_follow_the_mixture(alpha, small, make_sampler):
    """With alpha = 0 the samples are the student's, with alpha = 1 the teacher's."""
    student, teacher, prompt, q, p = small
    sampler = make_sampler(student, teacher, teacher_mix_alpha=alpha, max_new_tokens=1)
    tokens = draw(sampler, prompt, 4000).response_ids[:, 0]
    check_chi_square(tokens, (1 - alpha) * q + alpha * p)


def test_the_mixture_differs_from_its_parts(small, make_sampler):
    """The test above can tell: the mixture's draws do not pass for the student's or the teacher's."""
    student, teacher, prompt, q, p = small
    tokens = draw(make_sampler(student, teacher, teacher_mix_alpha=0.3, max_new_tokens=1), prompt, 4000).response_ids
    for probabilities in (q, p):
        with pytest.raises(AssertionError):
            check_chi_square(tokens[:, 0], probabilities)


def test_the_temperature_applies_to_both_models(small, make_sampler):
    student, teacher, prompt, _, _ = small
    sampler = make_sampler(student, teacher, teacher_mix_alpha=0.5, temperature=1.7, max_new_tokens=1)
    expected = (next_probabilities(student, prompt, 1.7) + next_probabilities(teacher, prompt, 1.7)) / 2
    check_chi_square(draw(sampler, prompt, 4000).response_ids[:, 0], expected)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_top_k_filters_each_model(alpha, small, make_sampler):
    student, teacher, prompt, q, p = small
    sampler = make_sampler(student, teacher, teacher_mix_alpha=alpha, top_k=3, max_new_tokens=1)
    expected = (1 - alpha) * keep_only(q, q.topk(3).indices) + alpha * keep_only(p, p.topk(3).indices)
    check_chi_square(draw(sampler, prompt, 3000).response_ids[:, 0], expected)


def test_top_p_keeps_the_nucleus(small, make_sampler):
    student, _, prompt, q, _ = small
    sampler = make_sampler(student, top_p=0.8, max_new_tokens=1)
    order = q.argsort(descending=True)
    nucleus = order[: int((q[order].cumsum(0) < 0.8).sum()) + 1]
    assert 1 < len(nucleus) < 8
    check_chi_square(draw(sampler, prompt, 3000).response_ids[:, 0], keep_only(q, nucleus))


def test_eos_waits_for_min_new_tokens(small, make_sampler):
    student, teacher, prompt, q, p = small
    sampler = make_sampler(student, teacher, teacher_mix_alpha=0.3, min_new_tokens=1, max_new_tokens=2)
    rollouts = draw(sampler, prompt, 4000)
    others = torch.arange(1, 8)
    check_chi_square(rollouts.response_ids[:, 0], 0.7 * keep_only(q, others) + 0.3 * keep_only(p, others))
    assert (rollouts.response_ids[:, 1] == EOS).any()


def test_whole_responses_follow_the_mixture(small, make_sampler):
    """All responses of up to two tokens: the cached second step samples from the right distribution too."""
    student, teacher, prompt, q, p = small
    first = 0.7 * q + 0.3 * p
    cells = [first[EOS]]
    for token in range(1, 8):
        second = 0.7 * next_probabilities(student, [*prompt, token]) + 0.3 * next_probabilities(
            teacher, [*prompt, token]
        )
        cells += [first[token] * second[:4].sum(), first[token] * second[4:].sum()]
    sampler = make_sampler(student, teacher, teacher_mix_alpha=0.3, max_new_tokens=2)
    ids = draw(sampler, prompt, 8000).response_ids
    given = torch.where(ids[:, 0] == EOS, 0, 2 * ids[:, 0] - 1 + (ids[:, 1] >= 4).long())
    cells = torch.stack(cells)
    check_chi_square(given, cells)


def test_noise_is_uniform():
    noise = token_noise(0, 0, torch.arange(200), 100)
    assert noise.min() >= 0
    assert noise.max() < 1
    counts = torch.histc(noise.float(), bins=16, min=0, max=1)
    assert ((counts - 1250).square() / 1250).sum() < chi_square_limit(15)
