import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_minillm.functional.grouping import equal_groups, left_aligned, length_groups


def test_left_aligned_puts_tokens_first_in_their_order():
    mask = torch.rand(20, 15, generator=torch.Generator().manual_seed(0)) < 0.4
    order = left_aligned(mask)
    assert order.shape[1] == mask.sum(-1).max()
    for row, columns in zip(mask, order, strict=True):
        assert columns[: row.sum()].tolist() == row.nonzero().squeeze(-1).tolist()
        assert not row[columns[row.sum() :]].any()


@pytest.mark.parametrize("min_tokens", [0, 100, 512])
def test_groups_cover_all_rows_and_waste_little(min_tokens):
    lengths = sorted(torch.randint(16, 65, (64,), generator=torch.Generator().manual_seed(0)).tolist(), reverse=True)
    groups = length_groups(lengths, min_tokens)
    assert [row for group in groups for row in range(64)[group]] == list(range(64))
    padded = sum(lengths[group.start] * (group.stop - group.start) for group in groups)
    assert padded < 1.2 * sum(lengths)
    assert len(groups) > 1


def test_rows_of_one_length_or_too_few_tokens_stay_together():
    assert length_groups([7] * 9, 1) == [slice(0, 9)]
    assert length_groups([9, 5, 1], 1000) == [slice(0, 3)]
    assert length_groups([4], 1) == [slice(0, 1)]


def test_a_group_has_no_more_than_max_tokens():
    assert length_groups([8] * 5, 8, max_tokens=16) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert length_groups([100, 8], 1, max_tokens=16) == [slice(0, 1), slice(1, 2)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_groups_of_one_length_cover_all_rows(lengths):
    lengths.sort(reverse=True)
    groups = equal_groups(lengths)
    assert [row for group in groups for row in range(len(lengths))[group]] == list(range(len(lengths)))
    assert [len(set(lengths[group])) for group in groups] == [1] * len(set(lengths))
