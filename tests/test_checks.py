from typing import Literal

import pytest

from lightning_minillm.checks import check_choice, check_range


def test_a_value_outside_its_range_is_named_with_what_is_allowed():
    check_range(True, "top_k", "at least 1", 0)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        check_range(False, "top_k", "at least 1", 0)


def test_a_choice_is_one_of_the_values_of_a_literal():
    check_choice("whiten", "none", Literal["none", "all"])
    with pytest.raises(ValueError, match=r"whiten must be one of \('none', 'all'\), got 'some'"):
        check_choice("whiten", "some", Literal["none", "all"])
