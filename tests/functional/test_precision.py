"""float64 where the device has it, and on the CPU where it has not: a stand-in for Apple's MPS."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lightning_minillm.evaluation.scoring import row_sums
from lightning_minillm.functional.exposure_bias import accumulated_error
from lightning_minillm.functional.precision import near_float64
from lightning_minillm.functional.returns import whiten, whitening_sums
from lightning_minillm.metrics.exposure_bias import ExposureBias
from lightning_minillm.metrics.responses import RougeL


class Mps(torch.Tensor):
    """A tensor that says it is on MPS, computes on the CPU, and has no float64 like the real ones."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device="mps")

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        leaves = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if kwargs.get("device") is not None:
            kwargs["device"] = "cpu"
        if kwargs.get("dtype") == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        plain = tree_map_only(Mps, lambda tensor: tensor.held, (args, kwargs))
        out = func(*plain[0], **plain[1])
        return out if leaves else tree_map_only(torch.Tensor, Mps, out)


class MovesToMps(TorchFunctionMode):
    """Makes stand-ins of the tensors that are moved to MPS."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and isinstance(args[1], torch.device) and args[1].type == "mps":
            assert args[0].dtype != torch.float64
            return Mps(args[0])
        return func(*args, **(kwargs or {}))


def test_the_stand_in_has_no_float64():
    tensor = Mps(torch.ones(2))
    assert tensor.device.type == "mps"
    assert (tensor + 1).cpu().tolist() == [2, 2]
    with pytest.raises(TypeError, match="float64"):
        tensor.double()


def test_float64_is_on_the_device_that_has_it():
    on_cpu = torch.ones(2)
    assert near_float64(on_cpu) is on_cpu
    moved = near_float64(Mps(on_cpu)).double()
    assert (moved.dtype, moved.device.type, type(moved)) == (torch.float64, "cpu", torch.Tensor)


@pytest.mark.parametrize("mode", ["response", "all"])
def test_whitening_gives_the_same_numbers(mode):
    returns, mask = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.rand(4, 6) > 0.3
    expected = whiten(returns, whitening_sums(returns, mask, mode, 6))
    sums = whitening_sums(Mps(returns), Mps(mask), mode, 6)
    assert (sums.device.type, sums.dtype) == ("cpu", torch.float64)
    with MovesToMps():
        found = whiten(Mps(returns), sums)
    assert (found.device.type, found.dtype) == ("mps", torch.float32)
    assert torch.equal(found.held, expected)


def test_errors_and_sums_of_rows_give_the_same_numbers():
    errors, mask = torch.rand(3, 4), torch.tensor([[True] * 3 + [False]] * 3)
    assert torch.equal(accumulated_error(Mps(errors), Mps(mask), 5), accumulated_error(errors, mask, 5))
    assert row_sums(Mps(errors[mask]), Mps(mask)) == row_sums(errors[mask], mask)


@pytest.mark.parametrize("metric", [RougeL(), ExposureBias(3)])
def test_states_stay_where_float64_is(metric):
    def to_mps(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return tensor

    moved = metric._apply(to_mps)
    assert moved is metric
    assert metric.count.dtype == torch.float64
    assert metric._apply(lambda tensor: tensor.to("meta")).count.device.type == "meta"
