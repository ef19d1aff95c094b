"""Every reach past the public interface of torch, transformers and Lightning, in one place.

Each function says what it reaches for and why; ``tests/test_reach.py`` fails when a new version of a dependency has
renamed or changed it. No other module reads a name with a leading underscore from an object that is not ours.
"""

from __future__ import annotations

import torch

_ALLOCATION_FAILURES = ("out of memory", "can't allocate memory", "failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out.

    torch has a class for GPUs (``OutOfMemoryError``), but its allocator for the CPU, and calls to CUDA outside of the
    allocator, raise a plain ``RuntimeError`` that can be told only by its message.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _ALLOCATION_FAILURES)
