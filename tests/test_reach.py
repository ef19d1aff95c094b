"""What the package takes from the insides of its dependencies is still there and still means the same."""

import pytest
import torch

from lightning_minillm import _reach


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**48)
    assert _reach.is_out_of_memory(raised.value)
    assert _reach.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert _reach.is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert _reach.is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as raised:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not _reach.is_out_of_memory(raised.value)
    assert not _reach.is_out_of_memory(ValueError("out of memory"))
