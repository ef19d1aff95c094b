import pytest
import torch

from lightning_minillm.functional.masking import (
    lengths_to_mask,
    masked_mean,
    masked_sum,
    position_ids,
    response_lengths,
)

NAN = float("nan")


@pytest.mark.parametrize(
    ("lengths", "width", "expected"),
    [
        ([0, 2], 2, [[0, 0], [1, 1]]),
        ([3], 5, [[1, 1, 1, 0, 0]]),
        ([], 4, []),
        ([0], 0, [[]]),
    ],
)
def test_lengths_to_mask(lengths, width, expected):
    mask = lengths_to_mask(torch.tensor(lengths, dtype=torch.int64), width)
    assert mask.dtype == torch.bool
    assert mask.shape == (len(lengths), width)
    assert mask.int().tolist() == expected


@pytest.mark.parametrize(
    ("row", "length"),
    [
        ([5, 6, 7, 8], 4),  # no eos: everything counts
        ([9, 9, 9, 9], 1),  # eos at once, then padding that looks like eos
        ([5, 9, 6, 9], 2),  # the first eos ends the response, whatever follows
        ([5, 6, 7, 9], 4),  # the eos itself is a target
        ([0, 0, 9, 0], 3),  # a pad id inside does not end a response
    ],
)
def test_a_response_ends_with_its_first_eos(row, length):
    assert response_lengths(torch.tensor([row]), eos_token_id=9).tolist() == [length]


def test_several_ids_may_end_a_response():
    ids = torch.tensor([[5, 8, 9], [9, 8, 5], [5, 6, 7]])
    assert response_lengths(ids, [8, 9]).tolist() == [2, 1, 3]
    assert response_lengths(ids, [9]).tolist() == [3, 1, 3]


def test_padding_after_the_end_does_not_change_lengths():
    ids = torch.tensor([[5, 9], [9, 1]])
    padded = torch.cat([ids, torch.tensor([[9, 3, 0], [2, 9, 9]])], dim=1)
    assert torch.equal(response_lengths(ids, 9), response_lengths(padded, 9))


def test_positions_start_at_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]


@pytest.mark.parametrize("junk", [NAN, float("inf"), -float("inf"), 1e30])
def test_masked_values_have_no_effect(junk):
    mask = torch.tensor([[True, True, False], [False, True, False]])
    values = torch.tensor([[1.0, 2.0, junk], [junk, 4.0, junk]], requires_grad=True)
    assert masked_sum(values, mask).item() == 7
    mean = masked_mean(values, mask)
    assert mean.item() == pytest.approx(7 / 3)
    mean.backward()
    assert torch.equal(values.grad, mask / 3)


def test_a_mean_over_nothing_is_an_error():
    with pytest.raises(ValueError, match="selects no element"):
        masked_mean(torch.ones(2), torch.zeros(2, dtype=torch.bool))
