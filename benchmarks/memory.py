"""Measure the peak memory of MiniLLM's loss and its gradient, as vocabulary and tokens grow. One JSON line per case.

    python benchmarks/memory.py --threads 2
    python benchmarks/memory.py --vocabularies 131072 --tokens 1024 8192 --chunks auto

A case is ``MiniLLMLoss`` with its backward pass on N response tokens. Its inputs are the last hidden states of student
and teacher (``--hidden 128 512``), each with a linear head, as in an update. ``chunk_size`` is ``"auto"``, the default,
or ``None`` for all logits at once, as in a plain implementation. Every case runs in its own process.

- ``peak_mb`` is the peak memory minus the memory before the loss, when states and heads already exist (on a CPU the
  resident memory of the process, on a GPU the memory of tensors);
- ``gradient_mb`` is the part that chunks cannot avoid: the gradients of the states and of the student's head;
- ``logits_mb`` is the size of one float32 tensor of all logits ``[N, V]``, for comparison;
- ``seconds`` is the time of loss and gradient.

Cases that would need more than ``--limit-gb`` are reported as left out. The last lines show, for each vocabulary, how
peak memory grows from the smallest to the largest number of tokens.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Sequence
from typing import Any

import torch
from measure import clock, machine, peak_device_mb, peak_rss_mb, rounded, rss_mb
from torch.nn import functional as F

from lightning_minillm.functional.logprobs import TokenStates
from lightning_minillm.losses import MiniLLMLoss

_PLAIN_COPIES = 8  # tensors [N, V] that the plain computation holds at its peak, generously


def states(num_tokens: int, hidden_size: int, vocabulary: int, device: str) -> TokenStates:
    """Make random states with a linear head."""
    hidden = torch.randn(num_tokens, hidden_size, device=device)
    weight = torch.randn(vocabulary, hidden_size, device=device).mul_(hidden_size**-0.5)
    return TokenStates(hidden, lambda rows: F.linear(rows, weight), (weight,), vocabulary)


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Measure one case in this process.

    Args:
        case: ``vocabulary``, ``tokens``, ``chunk_size``, ``hidden`` (student's, teacher's), ``device``, ``threads``.
    """
    torch.set_num_threads(case["threads"])
    torch.manual_seed(0)
    device, num_tokens, vocabulary = torch.device(case["device"]), case["tokens"], case["vocabulary"]
    _evaluate(64, 64, "auto", case)  # libraries load, thread pools start
    prepared = _prepare(num_tokens, vocabulary, case)
    before = _memory(device)
    started = clock(device)
    _differentiate(prepared, case["chunk_size"])
    seconds = clock(device) - started
    gradient = (num_tokens + vocabulary) * case["hidden"][0] * 4 / 1e6
    return {
        "benchmark": "memory",
        **{name: case[name] for name in ("vocabulary", "tokens", "chunk_size", "hidden")},
        "peak_mb": _peak(device) - before,
        "gradient_mb": gradient,
        "logits_mb": num_tokens * vocabulary * 4 / 1e6,
        "seconds": seconds,
        **machine(device),
    }


def _prepare(num_tokens: int, vocabulary: int, case: dict[str, Any]) -> dict[str, Any]:
    device = case["device"]
    student, teacher = (states(num_tokens, size, vocabulary, device) for size in case["hidden"])
    assert student.parameters is not None
    for tensor in (student.hidden, *student.parameters):
        tensor.requires_grad_()
    inputs = {name: torch.randn(num_tokens, device=device) for name in ("old_logprobs", "advantages")}
    return {
        "student": student,
        "teacher": teacher,
        "target_ids": torch.randint(vocabulary, (num_tokens,), device=device),
        "inputs": {**inputs, "importance_weights": torch.ones(num_tokens, device=device)},
    }


def _differentiate(prepared: dict[str, Any], chunk_size: Any) -> None:
    MiniLLMLoss(chunk_size=chunk_size)(**prepared).loss.backward()


def _evaluate(num_tokens: int, vocabulary: int, chunk_size: Any, case: dict[str, Any]) -> None:
    _differentiate(_prepare(num_tokens, vocabulary, case), chunk_size)


def _memory(device: torch.device) -> float:
    """Memory in use now, MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    return rss_mb()


def _peak(device: torch.device) -> float:
    device_mb = peak_device_mb(device)
    return peak_rss_mb() if device_mb is None else device_mb


def growth(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the most tokens with the fewest, for each vocabulary and chunk size.

    Returns:
        ``vocabulary``, ``chunk_size``, ``from_tokens``, ``to_tokens`` and ``growth_percent`` of ``peak_mb``.
    """
    groups: dict[tuple[int, Any], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["vocabulary"], result["chunk_size"]), []).append(result)
    lines = []
    for (vocabulary, chunk_size), members in groups.items():
        first, last = (choose(members, key=lambda result: result["tokens"]) for choose in (min, max))
        if first is last:
            continue
        lines.append(
            {
                "benchmark": "memory growth",
                "vocabulary": vocabulary,
                "chunk_size": chunk_size,
                "from_tokens": first["tokens"],
                "to_tokens": last["tokens"],
                "growth_percent": 100 * (last["peak_mb"] / first["peak_mb"] - 1),
            }
        )
    return lines


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8192, 32768, 131072, 262144], metavar="V")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048, 4096, 8192], metavar="N")
    parser.add_argument("--chunks", choices=("auto", "none"), nargs="+", default=["auto", "none"])
    parser.add_argument("--hidden", type=int, nargs=2, default=(128, 512), metavar=("STUDENT", "TEACHER"))
    parser.add_argument("--limit-gb", type=float, default=16.0, help="leave larger cases out (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if min(*arguments.vocabularies, *arguments.tokens, *arguments.hidden, arguments.threads) < 1:
        parser.error("vocabularies, tokens, hidden sizes and threads must be at least 1")
    return arguments


def cases(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cases, those that do not fit with ``"left_out"`` set to the GB they would need."""
    fixed = {"hidden": list(arguments.hidden), "device": arguments.device, "threads": arguments.threads}
    found = []
    for chunk in arguments.chunks:
        for vocabulary in arguments.vocabularies:
            for tokens in arguments.tokens:
                needed = _PLAIN_COPIES * tokens * vocabulary * 4 / 1e9
                left_out = needed if chunk == "none" and needed > arguments.limit_gb else None
                chunk_size = None if chunk == "none" else chunk
                case = {"vocabulary": vocabulary, "tokens": tokens, "chunk_size": chunk_size, "left_out": left_out}
                found.append({**case, **fixed})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    results = []
    spawn = multiprocessing.get_context("spawn")
    for case in cases(parse(argv)):
        if case["left_out"]:
            size = f"vocabulary {case['vocabulary']} x {case['tokens']} tokens"
            print(f"{size} at once would need about {case['left_out']:.0f} GB: left out", file=sys.stderr)
            continue
        with spawn.Pool(1) as pool:
            results.append(pool.apply(run_case, (case,)))
        print(json.dumps(rounded(results[-1])), flush=True)
    for line in growth(results):
        print(json.dumps(rounded(line)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
