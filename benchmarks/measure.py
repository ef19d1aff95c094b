"""What the benchmarks measure with: time, memory, and how fast the machine is at its best."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

_STATUS = Path("/proc/self/status")
_RATE_SECONDS = 0.5  # how long a rate is looked for


@dataclass(frozen=True)
class Times:
    """Seconds of one outer iteration."""

    rollout: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of both."""
        return self.rollout + self.update


def clock(device: torch.device) -> float:
    """Return seconds on a monotonic clock, after all work on ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def summary(times: list[Times]) -> dict[str, Any]:
    """Return the fastest repeat (``rollout_s + update_s = total_s``), and the median of each part over all repeats."""
    best = min(times, key=lambda repeat: repeat.total)
    return {
        "rollout_s": best.rollout,
        "update_s": best.update,
        "total_s": best.total,
        "rollout_s_median": statistics.median(repeat.rollout for repeat in times),
        "update_s_median": statistics.median(repeat.update for repeat in times),
        "total_s_median": statistics.median(repeat.total for repeat in times),
        "repeats": len(times),
    }


def rss_mb() -> float:
    """Return the memory of this process that is resident now, in MB (10^6 bytes)."""
    kilobytes = _status("VmRSS")
    return peak_rss_mb() if kilobytes is None else kilobytes * 1024 / 1e6


def peak_rss_mb() -> float:
    """Return the most memory of this process that has been resident, in MB (10^6 bytes), imports and models included.

    Linux's ``VmHWM``, which equals ``ru_maxrss`` with one exception: a process that a different one starts inherits the
    other's ``ru_maxrss``. Where there is none, ``ru_maxrss`` itself.
    """
    kilobytes = _status("VmHWM")
    if kilobytes is not None:
        return kilobytes * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _status(key: str) -> int | None:
    if not _STATUS.exists():
        return None
    values = [line.split()[1] for line in _STATUS.read_text().splitlines() if line.startswith(key + ":")]
    return int(values[0]) if values else None


def peak_device_mb(device: torch.device) -> float | None:
    """Return the most memory that tensors have taken on a GPU, in MB (10^6 bytes); ``None`` on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the highest rate of square matrix products: floating-point operations a second.

    Multiplications and additions count one each. The best of several sizes, since that is the machine's best.
    """
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    return max(_best_rate(device, dtype, size) for size in sizes)


def _best_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return 2 * size**3 / _fastest(device, lambda: torch.mm(left, right, out=result))


def copy_rate(device: torch.device) -> float:
    """Measure the memory bandwidth of ``device`` in bytes a second: a copy reads and writes each byte once."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _fastest(device, lambda: target.copy_(source))


def _fastest(device: torch.device, function: Any) -> float:
    function()
    fastest, spent, calls = float("inf"), 0.0, 0
    while spent < _RATE_SECONDS or calls < 3:
        start = clock(device)
        function()
        seconds = clock(device) - start
        fastest, spent, calls = min(fastest, seconds), spent + seconds, calls + 1
    return fastest


def machine(device: torch.device) -> dict[str, Any]:
    """Return what a result depends on besides the command: processor, threads and versions."""
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def rounded(fields: dict[str, Any]) -> dict[str, Any]:
    """Return ``fields`` with numbers of four significant digits: more is noise."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}
