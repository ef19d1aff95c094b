import math

import pytest
import torch

from lightning_minillm.functional.exposure_bias import accumulated_error, excess_accumulated_error


def test_sums_stop_where_responses_end():
    errors = torch.tensor([[1.0, 2.0, math.nan], [4.0, 5.0, 6.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert accumulated_error(errors, mask, 4).tolist() == [[1.0, 3.0, 3.0, 3.0], [4.0, 9.0, 15.0, 15.0]]


def test_responses_that_are_too_long_are_an_error():
    with pytest.raises(ValueError, match="responses of 3 tokens do not fit into num_lengths=2"):
        accumulated_error(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), 2)


def test_excess_is_a_quotient_of_sums():
    regret, oracle = torch.tensor([1.0, 3.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    assert excess_accumulated_error(regret, oracle).tolist() == [0.0, 50.0, -25.0]


def test_rounding_is_no_excess_and_an_error_that_only_the_student_makes_is_infinite():
    tiny = torch.tensor([2e-9, 3e-9], dtype=torch.float64)
    assert excess_accumulated_error(tiny, tiny / 3).tolist() == [0.0, 0.0]
    assert excess_accumulated_error(torch.tensor([0.0, 1.0]), torch.zeros(2)).tolist() == [0.0, math.inf]
