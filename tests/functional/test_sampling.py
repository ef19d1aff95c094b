import math

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from lightning_minillm.functional.sampling import (
    filter_logprobs,
    mixture_logprobs,
    repeated_ngram_mask,
    sample_with_noise,
)


def random_logprobs(rows=5, vocabulary=20, seed=0, scale=2.0):
    return (scale * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))).log_softmax(-1)


@pytest.mark.parametrize("top_k", [1, 3, 19, 20, 50, 0])
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.95, 1.0])
def test_filters_against_a_loop(top_k, top_p):
    logprobs = random_logprobs()
    for row, given in zip(logprobs.exp().tolist(), filter_logprobs(logprobs, top_k, top_p).exp().tolist(), strict=True):
        order = sorted(range(20), key=lambda i: -row[i])
        kept = order[: top_k or 20]
        total, mass, nucleus = sum(row[i] for i in kept), 0.0, []
        for i in kept:
            if mass >= top_p:
                break
            nucleus.append(i)
            mass += row[i] / total
        total = sum(row[i] for i in nucleus)
        expected = [row[i] / total if i in nucleus else 0.0 for i in range(20)]
        assert given == pytest.approx(expected, abs=1e-5)


def test_top_p_keeps_the_smallest_set_with_the_mass():
    logprobs = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert filter_logprobs(logprobs, top_p=0.4).exp().gt(0).tolist() == [[True, False, False]]
    assert filter_logprobs(logprobs, top_p=0.6).exp().gt(0).tolist() == [[True, True, False]]
    assert filter_logprobs(logprobs, top_p=0.9).exp().gt(0).tolist() == [[True, True, True]]
    assert filter_logprobs(logprobs, top_p=1e-6).exp().gt(0).tolist() == [[True, False, False]]


def test_filters_work_on_banned_tokens():
    logprobs = torch.tensor([[0.0, 0.6, 0.4]]).log()
    assert filter_logprobs(logprobs, top_k=2).exp()[0].tolist() == pytest.approx([0, 0.6, 0.4])
    assert filter_logprobs(logprobs, top_p=0.99).exp()[0].tolist() == pytest.approx([0, 0.6, 0.4])


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_mixture_against_probabilities(alpha):
    q, p = random_logprobs(seed=1), random_logprobs(seed=2)
    expected = (1 - alpha) * q.exp() + alpha * p.exp()
    torch.testing.assert_close(mixture_logprobs(q, p, alpha).exp(), expected)


def test_mixture_of_tokens_that_one_model_never_says():
    q, p = torch.tensor([[-math.inf, 0.0]]), torch.tensor([[0.0, -math.inf]])
    assert mixture_logprobs(q, p, 0.25).exp()[0].tolist() == pytest.approx([0.25, 0.75])
    never = torch.full((1, 1), -math.inf)
    assert mixture_logprobs(never, never, 0.25).item() == -math.inf


def test_a_token_is_drawn_where_the_noise_falls():
    logprobs = torch.tensor([[0.2, 0.3, 0.0, 0.5]]).log().expand(7, -1)
    noise = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, 0.8, 1 - 1e-12], dtype=torch.float64)
    assert sample_with_noise(logprobs, noise).tolist() == [0, 0, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2**-53])
def test_tokens_without_probability_are_never_drawn(noise):
    logprobs = torch.full((4, 6), -math.inf)
    logprobs[torch.arange(4), torch.tensor([0, 2, 5, 3])] = 0.0
    drawn = sample_with_noise(logprobs, torch.full((4,), noise, dtype=torch.float64))
    assert drawn.tolist() == [0, 2, 5, 3]


def test_evenly_spaced_noise_draws_in_proportion():
    logprobs = random_logprobs(rows=1, vocabulary=10)
    count = 20_000
    noise = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = sample_with_noise(logprobs.expand(count, -1), noise)
    frequencies = torch.bincount(drawn, minlength=10) / count
    assert (frequencies - logprobs[0].exp()).abs().max() < 1e-3


def test_a_row_is_drawn_by_its_own_noise():
    logprobs, noise = random_logprobs(rows=8), torch.rand(8, generator=torch.Generator().manual_seed(3))
    together = sample_with_noise(logprobs, noise)
    alone = torch.cat([sample_with_noise(logprobs[i : i + 1], noise[i : i + 1]) for i in range(8)])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 40])
def test_repeated_ngrams_against_transformers(size, length):
    ids = torch.randint(0, 3, (20, length), generator=torch.Generator().manual_seed(size))
    scores = NoRepeatNGramLogitsProcessor(size)(ids, torch.zeros(20, 7))
    given = repeated_ngram_mask(ids, torch.ones_like(ids, dtype=torch.bool), size, vocabulary=7)
    assert torch.equal(given, scores.isinf())
    assert given.any() or length < 40


def test_padding_makes_no_ngram():
    ids = torch.randint(0, 3, (20, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    alone = repeated_ngram_mask(ids, mask, 3, vocabulary=5)
    for pad in (0, 2, 4):
        padded = torch.cat([torch.full((20, 9), pad), ids], dim=1)
        padded_mask = torch.cat([torch.zeros(20, 9, dtype=torch.bool), mask], dim=1)
        assert torch.equal(repeated_ngram_mask(padded, padded_mask, 3, vocabulary=5), alone)


def test_ids_past_the_vocabulary_are_left_out():
    ids = torch.tensor([[1, 9, 1, 9, 2, 9, 1]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert repeated_ngram_mask(ids, mask, 2, vocabulary=4).tolist() == [[False] * 4]
    assert repeated_ngram_mask(ids[:, :-1], mask[:, :-1], 2, vocabulary=4).tolist() == [[False, True, True, False]]


def test_something_is_left_where_every_token_would_repeat():
    ids = torch.tensor([[0, 1, 2], [0, 1, 1]])
    given = repeated_ngram_mask(ids, torch.ones_like(ids, dtype=torch.bool), 1, vocabulary=3)
    assert given.tolist() == [[False, False, False], [True, True, False]]
