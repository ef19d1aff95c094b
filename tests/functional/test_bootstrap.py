import pytest
import torch

from lightning_minillm.functional.bootstrap import paired_bootstrap


def test_a_clear_difference_is_significant_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(400, generator=generator) * 50
    noise = torch.randn(400, generator=generator)
    better = paired_bootstrap(scores + 0.5 + noise, scores)
    assert better.low < better.mean < better.high
    assert better.mean == pytest.approx(0.5 + noise.mean().item(), abs=1e-4)
    assert better.p_value < 0.01
    assert better.low > 0
    same = paired_bootstrap(scores + noise - noise.mean(), scores)
    assert same.p_value > 0.5
    assert same.low < 0 < same.high


def test_interval_is_that_of_the_mean():
    """For many rows the interval tends to mean ± 1.96 standard errors."""
    differences = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    result = paired_bootstrap(differences, torch.zeros(2000))
    error = differences.std().item() / 2000**0.5
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_order_changes_the_sign_only():
    first, second = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([2.0, 1.0, 1.0])
    there, back = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert (there.mean, there.p_value) == (-back.mean, back.p_value)
    assert paired_bootstrap(first, first).p_value == 1.0


@pytest.mark.parametrize(("first", "second"), [([1.0], [1.0, 2.0]), ([], [])])
def test_scores_that_are_no_pairs_are_an_error(first, second):
    with pytest.raises(ValueError, match="paired scores"):
        paired_bootstrap(torch.tensor(first), torch.tensor(second))
