import pytest
import torch

from lightning_minillm.functional.masking import lengths_to_mask, position_ids


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


def test_positions_start_at_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 2, 2]]
