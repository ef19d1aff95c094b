import math

import pytest

from lightning_minillm.metrics import distinct_ngrams, repeated_ngrams


def test_distinct_ngrams_by_hand():
    assert distinct_ngrams(["a b c", "a b", "one", "b c d"], 2) == pytest.approx(100 * 3 / 5)  # ab bc ab bc cd
    assert distinct_ngrams(["a b c d e", "b c d e f", "a b c d e", "x y z w"]) == pytest.approx(100 * 4 / 7)


def test_words_do_not_run_into_each_other():
    assert distinct_ngrams(["ab c", "a bc"], 2) == 100


def test_repetition_by_hand():
    texts = ["a a a a", "a b c", "one"]  # 2 of 3 repeat, none of 2; the last has no pair
    assert repeated_ngrams(texts, 2) == pytest.approx(100 / 3)


@pytest.mark.parametrize("function", [distinct_ngrams, repeated_ngrams])
def test_nothing_to_count_is_not_a_number(function):
    assert math.isnan(function(["too short", ""]))
    assert not math.isnan(function(["too short", "now long enough for it"]))
    assert math.isnan(function([]))


@pytest.mark.parametrize("function", [distinct_ngrams, repeated_ngrams])
def test_size_is_checked(function):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        function(["a b"], 0)
