import math

import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.metrics import ExposureBias

LENGTHS = 7


def make_rows(count, seed, scale=1.0):
    """Errors per token with garbage where responses have ended."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTHS, (count,), generator=generator)
    mask = lengths_to_mask(lengths, LENGTHS - 1)
    return (scale * torch.rand(mask.shape, generator=generator)).masked_fill(~mask, math.nan), mask


def naive(student, student_mask, teacher, teacher_mask):
    """The definition, in Python's floats."""

    def mean_sum(errors, mask, length):
        sums = [
            sum(float(errors[b, t]) for t in range(min(length, mask.shape[1])) if mask[b, t]) for b in range(len(mask))
        ]
        return sum(sums) / len(sums)

    curve = []
    for length in range(1, LENGTHS + 1):
        regret, oracle = mean_sum(student, student_mask, length), mean_sum(teacher, teacher_mask, length)
        curve.append(((regret - oracle) / oracle * 100, regret, oracle / length))
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*curve, strict=True)]


@pytest.fixture
def rows():
    return (*make_rows(12, 0, scale=2.0), *make_rows(12, 1))


def test_equals_the_naive_loop(rows):
    metric = ExposureBias(LENGTHS)
    for part in (slice(0, 5), slice(5, 12)):
        metric.update(*(value[part] for value in rows))
    given, (excess, regret, epsilon) = metric.compute(), naive(*rows)
    torch.testing.assert_close(given["excess_error"], excess, rtol=1e-12, atol=0)
    torch.testing.assert_close(given["regret"], regret, rtol=1e-12, atol=0)
    torch.testing.assert_close(given["epsilon"], epsilon, rtol=1e-12, atol=0)
    assert (excess > 20).all()


def test_rows_of_ranks_add_up(rows):
    whole, ranks = ExposureBias(LENGTHS), [ExposureBias(LENGTHS) for _ in range(2)]
    whole.update(*rows)
    ranks[0].update(*(value[:3] for value in rows))
    ranks[1].update(*(value[3:] for value in rows))
    for name in ("regret", "oracle_error", "count"):
        setattr(ranks[0], name, getattr(ranks[0], name) + getattr(ranks[1], name))
    torch.testing.assert_close(ranks[0].compute()["excess_error"], whole.compute()["excess_error"])


def test_no_excess_where_both_write_alike():
    errors, mask = make_rows(4, 2)
    metric = ExposureBias(LENGTHS)
    metric.update(errors, mask, errors, mask)
    assert metric.compute()["excess_error"].tolist() == [0.0] * LENGTHS
    assert metric.compute()["regret"][-1] > 0


def test_mistakes_are_named(rows):
    with pytest.raises(ValueError, match="at least 1"):
        ExposureBias(0)
    with pytest.raises(ValueError, match="12 rows of student text and 11"):
        ExposureBias(LENGTHS).update(*rows[:2], *(value[:11] for value in rows[2:]))
