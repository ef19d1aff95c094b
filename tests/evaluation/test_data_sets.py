import pytest

from lightning_minillm.evaluation.data_sets import ItemNumbers


def test_numbers_go_through_all_data_sets():
    numbers = ItemNumbers({"a": 3, "b": 1, "c": 4})
    assert numbers.total == 8
    assert [*numbers.number("a", range(3)), *numbers.number("b", [0]), *numbers.number("c", range(4))] == list(range(8))
    assert numbers.find([7, 4]) == ("c", [3, 0])


@pytest.mark.parametrize("items", [[8], [2, 3], [-1]])
def test_items_of_no_data_set_or_of_several_are_refused(items):
    with pytest.raises(IndexError, match=r"\[0, 8\), all of one data set"):
        ItemNumbers({"a": 3, "b": 1, "c": 4}).find(items)
