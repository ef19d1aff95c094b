import math

import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.functional.returns import discounted_returns, token_rewards, whiten, whitening_sums

NAN = float("nan")
LENGTHS = (5, 1, 3, 7)
WIDTH = 7


def random_batch(seed=0, lengths=LENGTHS, width=WIDTH):
    values = torch.randn(len(lengths), width, generator=torch.Generator().manual_seed(seed))
    return values, lengths_to_mask(torch.tensor(lengths), width)


def naive_returns(rewards, length, gamma, start, length_normalize):
    """Sum over s of gamma^(s-t) r_s by its definition, in float64."""
    first = 0 if start == "current" else 1
    returns = []
    for t in range(length):
        terms = [gamma ** (s - t - first) * rewards[s] for s in range(t + first, length)]
        returns.append(math.fsum(terms) / (max(len(terms), 1) if length_normalize else 1))
    return returns


# --- rewards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "clip", "expected"),
    [
        (None, None, [1.0, -3.0, 0.5]),
        (0.5, None, [2.0, -6.0, 1.0]),
        (None, 2.0, [1.0, -2.0, 0.5]),
        (0.5, 1.5, [1.5, -1.5, 1.0]),  # scaled first, clipped then
        (0.5, 0, [2.0, -6.0, 1.0]),  # the official code's 0 means no clipping
    ],
)
def test_rewards_by_hand(scaling, clip, expected):
    teacher, student = torch.tensor([[-1.0, -4.0, -1.0, NAN]]), torch.tensor([[-2.0, -1.0, -1.5, 0.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert token_rewards(teacher, student, mask, scaling, clip).tolist() == [[*expected, 0.0]]


@pytest.mark.parametrize("options", [{"scaling": 0.0}, {"scaling": -1.0}, {"clip": -1.0}])
def test_reward_options_out_of_range(options):
    with pytest.raises(ValueError, match="must be positive"):
        token_rewards(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), **options)


# --- returns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.95, 0.5, 0.0])
@pytest.mark.parametrize("start", ["current", "next"])
@pytest.mark.parametrize("length_normalize", [True, False])
def test_returns_against_a_float64_loop(gamma, start, length_normalize):
    rewards, mask = random_batch()
    given = discounted_returns(rewards, mask, gamma, start, length_normalize)
    for row, length in enumerate(LENGTHS):
        expected = naive_returns(rewards[row].tolist(), length, gamma, start, length_normalize)
        assert given[row, :length].tolist() == pytest.approx(expected, abs=1e-6)
        assert given[row, length:].eq(0).all()


@pytest.mark.parametrize("start", ["current", "next"])
def test_long_responses_do_not_overflow(start):
    """Dividing by gamma^t, as a peer does, is NaN from about 1,000 tokens on."""
    rewards, mask = random_batch(seed=1, lengths=(3000,), width=3000)
    given = discounted_returns(rewards, mask, 0.9, start, length_normalize=True)
    expected = naive_returns(rewards[0, -40:].tolist(), 40, 0.9, start, True)
    assert torch.isfinite(given).all()
    assert given[0, -40:].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("start", ["current", "next"])
def test_padding_and_row_order_change_nothing(start):
    rewards, mask = random_batch()
    given = discounted_returns(rewards, mask, 0.9, start)
    padded = torch.cat([rewards.masked_fill(~mask, NAN), torch.full((4, 3), NAN)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(4, 3, dtype=torch.bool)], dim=1)
    assert torch.equal(discounted_returns(padded, padded_mask, 0.9, start)[:, :WIDTH], given)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(discounted_returns(rewards[order], mask[order], 0.9, start), given[order])


def test_the_last_token_has_no_future_reward():
    rewards, mask = random_batch()
    last = discounted_returns(rewards, mask, 1.0, "next")[torch.arange(4), torch.tensor(LENGTHS) - 1]
    assert last.eq(0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"gamma": 1.1}, "gamma"), ({"gamma": -0.1}, "gamma"), ({"start": "later"}, "return_start")],
)
def test_return_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        discounted_returns(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), **options)


# --- whitening --------------------------------------------------------------------------------------------------------


def naive_whiten(values, counted):
    mean = math.fsum(counted) / len(counted)
    variance = math.fsum((x - mean) ** 2 for x in counted) / len(counted)
    return [(x - mean) / math.sqrt(variance + 1e-8) for x in values]


@pytest.mark.parametrize("mode", ["response", "all"])
def test_whitening_against_a_float64_loop(mode):
    values, mask = random_batch(seed=2)
    values = values.masked_fill(~mask, 0)
    valid = values[mask].tolist()
    counted = valid if mode == "response" else values.flatten().tolist()
    given = whiten(values, whitening_sums(values, mask, mode))
    assert given[mask].tolist() == pytest.approx(naive_whiten(valid, counted), abs=1e-5)


def test_response_whitening_gives_mean_zero_and_variance_one():
    values, mask = random_batch(seed=3)
    valid = whiten(values * 7 + 3, whitening_sums(values * 7 + 3, mask, "response"))[mask]
    assert valid.mean().item() == pytest.approx(0, abs=1e-6)
    assert valid.var(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("mode", ["response", "all"])
def test_trimming_changes_nothing_when_the_width_is_given(mode):
    values, mask = random_batch(seed=4, lengths=(2, 1, 3), width=9)
    trimmed, trimmed_mask = values[:, :3], mask[:, :3]
    full = whitening_sums(values, mask, mode, width=12)
    assert torch.equal(whitening_sums(trimmed, trimmed_mask, mode, width=12), full)
    assert torch.equal(whiten(trimmed, full), whiten(values, full)[:, :3])


def test_all_counts_every_column_without_a_width():
    values, mask = random_batch(lengths=(2, 1), width=4)
    assert whitening_sums(values, mask, "all")[0] == 8
    assert whitening_sums(values, mask, "all", width=5)[0] == 10
    assert whitening_sums(values, mask, "response", width=5)[0] == 3


@pytest.mark.parametrize("mode", ["response", "all"])
def test_sums_add_over_pieces_and_masked_values_have_no_effect(mode):
    values, mask = random_batch(seed=5)
    junk = values.masked_fill(~mask, NAN)
    pieces = [whitening_sums(junk[rows], mask[rows], mode) for rows in ([0], [1, 3], [2])]
    torch.testing.assert_close(sum(pieces), whitening_sums(values, mask, mode), rtol=1e-12, atol=1e-12)


def test_large_equal_returns_whiten_to_zero():
    values, mask = torch.full((2, 3), 1e6), torch.ones(2, 3, dtype=torch.bool)
    assert whiten(values, whitening_sums(values, mask, "response")).abs().max() < 1e-3


def test_whitening_over_nothing_is_an_error():
    values, mask = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="over no element"):
        whiten(values, whitening_sums(values, mask, "response"))
