import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from lightning_minillm.functional.calibration import reliability_bins


def test_bins_by_hand():
    confidence = torch.tensor([0.05, 0.5, 0.51, 0.95, 1.0])
    correct = torch.tensor([False, True, False, True, True])
    bins = reliability_bins(confidence, correct, num_bins=2)
    assert bins.counts.tolist() == [2, 3]
    assert bins.confidence.tolist() == pytest.approx([0.275, 2.46 / 3])
    assert bins.accuracy.tolist() == pytest.approx([0.5, 2 / 3])


def test_bins_give_torchmetrics_calibration_error():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator)
    correct = torch.rand(500, generator=generator) < confidence**2
    bins = reliability_bins(confidence, correct, num_bins=15)
    ours = (bins.counts * (bins.confidence - bins.accuracy).abs()).sum() / 500
    theirs = binary_calibration_error(confidence, correct.int(), n_bins=15)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert ours > 0.05


@pytest.mark.parametrize(("count", "num_bins", "message"), [(2, 0, "at least 1"), (3, 2, "3 confidences and 2")])
def test_mistakes_are_named(count, num_bins, message):
    with pytest.raises(ValueError, match=message):
        reliability_bins(torch.ones(count), torch.ones(2, dtype=torch.bool), num_bins)
