import pytest
import torch

from lightning_minillm.functional.kl_estimators import k1, k3


def test_by_hand():
    log_q, log_p = torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -1.0])
    assert k1(log_q, log_p).tolist() == [1.0, -1.0]
    assert k3(log_q, log_p).tolist() == pytest.approx([0.36787944 - 1 + 1, 2.71828183 - 1 - 1], abs=1e-6)


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_expectation_is_the_reverse_kl(estimator):
    """Exact, by summing over the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    log_q, log_p = torch.randn(2, 20, generator=generator, dtype=torch.float64).log_softmax(-1)
    expected = (log_q.exp() * (log_q - log_p)).sum()
    torch.testing.assert_close((log_q.exp() * estimator(log_q, log_p)).sum(), expected)


def test_k3_is_never_negative_and_zero_only_at_equality():
    log_ratio = torch.linspace(-8, 8, 160, dtype=torch.float64)
    assert k3(torch.zeros_like(log_ratio), log_ratio).min() > 0
    assert k3(log_ratio, log_ratio).eq(0).all()
