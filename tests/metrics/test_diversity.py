import math

import pytest
import torch

from lightning_minillm.metrics import DistinctNGrams, RepeatedNGrams


def test_distinct_ngrams_by_hand():
    metric = DistinctNGrams(2)
    metric.update(["a b c", "a b"])
    metric.update(["one", "b c d"])
    assert metric.compute().item() == pytest.approx(100 * 3 / 5)  # ab bc ab bc cd


def test_words_do_not_run_into_each_other():
    metric = DistinctNGrams(2)
    metric.update(["ab c", "a bc"])
    assert metric.compute().item() == 100


def test_distinct_ngrams_of_ranks_are_those_of_all_texts():
    """What torchmetrics does over ranks: digests are joined, so an n-gram that two ranks saw counts once."""
    texts = ["a b c d e", "b c d e f", "a b c d e", "x y z w"]
    whole, ranks = DistinctNGrams(), [DistinctNGrams() for _ in range(2)]
    whole.update(texts)
    ranks[0].update(texts[:2])
    ranks[1].update(texts[2:])
    together = torch.cat([*ranks[0].digests, *ranks[1].digests])
    assert 100 * len(together.unique()) / len(together) == pytest.approx(whole.compute().item())
    assert whole.compute().item() == pytest.approx(100 * 4 / 7)


def test_repetition_by_hand():
    metric = RepeatedNGrams(2)
    metric.update(["a a a a", "a b c", "one"])  # 2 of 3 repeat, none of 2; the last has no pair
    assert metric.compute().item() == pytest.approx(100 / 3)


@pytest.mark.parametrize("metric_class", [DistinctNGrams, RepeatedNGrams])
def test_nothing_to_count_is_not_a_number(metric_class):
    metric = metric_class(4)
    metric.update(["too short", ""])
    assert math.isnan(metric.compute().item())
    metric.update(["now long enough for it"])
    assert not math.isnan(metric.compute().item())
    metric.reset()
    metric.update([])
    assert math.isnan(metric.compute().item())


@pytest.mark.parametrize("metric_class", [DistinctNGrams, RepeatedNGrams])
def test_size_is_checked(metric_class):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        metric_class(0)
