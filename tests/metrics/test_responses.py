import math
import random

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from lightning_minillm.metrics import ExactMatch, RougeL, exact_match, normalize, rouge_l

WORDS = "the cats are sitting quietly on a mat running runs easily, House. it's 42 état x-ray".split()


def random_texts(count, seed):
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=chooser.randint(0, 12))) for _ in range(count)]


def random_rows(count=60, seed=0):
    texts = random_texts(6 * count, seed)
    references = [[t or "nothing" for t in texts[6 * i + 1 : 6 * i + 2 + i % 4]] for i in range(count)]
    return texts[::6], references


def test_rouge_l_equals_the_reference_scorer():
    """Best F-measure over the references, with stemming, as the paper's evaluation has it."""
    responses, references = random_rows()
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [
        max(scorer.score(reference, response)["rougeL"].fmeasure for reference in row)
        for response, row in zip(responses, references, strict=True)
    ]
    metric = RougeL()
    for start in range(0, 60, 7):
        metric.update(responses[start : start + 7], references[start : start + 7])
    assert metric.compute().item() == pytest.approx(100 * sum(expected) / 60, abs=1e-3)


@pytest.mark.parametrize(
    ("response", "references", "score"),
    [
        ("the cat sat", ["the cat sat"], 100),
        ("The cats sat!", ["the cat sat"], 100),  # case, punctuation and endings do not count
        ("a b", ["a c"], 50),
        ("b a", ["a b"], 50),  # order counts
        ("a b", ["x y", "a b c d"], 200 / 3),  # the best reference counts
        ("", ["a b"], 0),
        ("!!!", ["a b"], 0),
    ],
)
def test_rouge_l_by_hand(response, references, score):
    metric = RougeL()
    metric.update([response], [references])
    assert metric.compute().item() == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize(
    ("response", "references", "score"),
    [
        ("Paris", ["Paris"], 100),
        ("paris.", ["Paris"], 100),
        ("  New   York\n", ["new york"], 100),
        ("U.S.A.", ["usa"], 100),
        ("Paris", ["London", "PARIS!"], 100),
        ("Paris is", ["Paris"], 0),
        ("the cat", ["cat"], 0),  # articles count
        ("", ["Paris"], 0),
        ("?!", ["..."], 100),
        ("4 2", ["42"], 0),
    ],
)
def test_exact_match_by_hand(response, references, score):
    assert exact_match(response, references) == (score == 100)
    metric = ExactMatch()
    metric.update([response], [references])
    assert metric.compute().item() == score


@pytest.mark.parametrize("metric_class", [RougeL, ExactMatch])
def test_batches_and_row_order_change_nothing(metric_class):
    responses, references = random_rows(seed=1)
    responses[::5] = [row[-1] for row in references[::5]]
    whole, pieces = metric_class(), metric_class()
    whole.update(responses, references)
    order = random.Random(0).sample(range(60), 60)
    for rows in (order[:1], order[1:50], order[50:]):
        pieces.update([responses[i] for i in rows], [references[i] for i in rows])
    assert pieces.compute().item() == pytest.approx(whole.compute().item(), abs=1e-4)
    assert 0 < whole.compute().item() < 100


@pytest.mark.parametrize("metric_class", [RougeL, ExactMatch])
def test_states_of_ranks_add_up(metric_class):
    """What torchmetrics does over ranks: sums of ``total`` and ``count``, also from a rank that saw nothing."""
    responses, references = random_rows(count=20, seed=2)
    whole, ranks = metric_class(), [metric_class() for _ in range(3)]
    whole.update(responses, references)
    ranks[0].update(responses[:13], references[:13])
    ranks[1].update(responses[13:], references[13:])
    ranks[2].update([], [])
    total = sum(rank.total for rank in ranks) / sum(rank.count for rank in ranks)
    assert total.item() == pytest.approx(whole.compute().item(), abs=1e-4)


@pytest.mark.parametrize("metric_class", [RougeL, ExactMatch])
def test_reset_forgets_and_nothing_seen_is_not_a_number(metric_class):
    metric = metric_class()
    metric.update(["a"], [["a"]])
    metric.reset()
    metric.update([], [])
    assert math.isnan(metric.compute().item())


@pytest.mark.parametrize("metric_class", [RougeL, ExactMatch])
@pytest.mark.parametrize(
    ("responses", "references", "message"),
    [(["a", "b"], [["a"]], "2 responses and 1 rows"), (["a"], [[]], "a row has no reference")],
)
def test_rows_that_do_not_fit_are_an_error(metric_class, responses, references, message):
    with pytest.raises(ValueError, match=message):
        metric_class().update(responses, references)


def test_metrics_are_kept_in_double_precision():
    metric = ExactMatch()
    for _ in range(3):
        metric.update(["a"], [["a"]])
    assert metric.total.dtype == torch.float64


def test_normalize():
    assert normalize("  The U.S.A.,\t(again)  ") == "the usa again"


def test_rouge_l_of_a_row_agrees_to_a_millionth():
    responses, references = random_rows(200, seed=3)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    for response, row in zip(responses, references, strict=True):
        expected = max(scorer.score(reference, response)["rougeL"].fmeasure for reference in row)
        assert rouge_l(response, row) / 100 == pytest.approx(expected, abs=1e-6)
