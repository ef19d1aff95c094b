"""Time one whole outer iteration: collect rollouts, then all optimiser steps on them. Prints one JSON line.

    python benchmarks/make_workload.py work --vocabulary 8192
    python benchmarks/outer_iteration.py --student work/student --teacher work/teacher --prompts work/prompts.json \
        --rollouts 64 --batch-size 16 --ppo-epochs 4 --max-prompt-length 64 --max-length 128 --teacher-mix-alpha 0.2 \
        --lm --threads 2 --seed 0

What runs is the package's own code, without Lightning's Trainer around it: ``MiniLLMModule.collect`` (sampler and
collector), ``RolloutBuffer``, ``MiniLLMModule.training_step``, backward, clipping to norm 1, AdamW. Each repeat starts
from the weights in the folder with the same seed, so that all do the same work. ``--method kd`` times the optimiser
steps of word-level KD (``KDModule``) on the same sequences: sampled once with the same seed, outside the clock.

Fields: ``rollout_s``, ``update_s``, ``total_s`` of the fastest repeat, ``..._median`` over repeats; ``steps``
(optimiser steps); ``step_s`` = total_s / steps; ``mean_length`` (response tokens, eos included); ``start_rss_mb`` and
``peak_rss_mb`` (resident memory of this process before the first iteration, with both models loaded, and at its peak);
``peak_device_mb`` (tensors on the GPU); ``floor_s`` with its parts (see arithmetic.py) and
``floor_ratio`` = total_s / floor_s. ``--profile FILE`` runs once more afterwards under torch's profiler, and writes
which operations took how long.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from arithmetic import ModelShape, Work, floor_fields
from measure import Times, clock, copy_rate, machine, matrix_rate, peak_device_mb, peak_rss_mb, rounded, rss_mb, summary
from torch import Tensor
from workload import (
    GRADIENT_CLIP,
    OPTIMIZER,
    Workload,
    add_arguments,
    load_workload,
    pad_rows,
    setting_fields,
)

from lightning_minillm.data.batches import LMStream, TokenLoader
from lightning_minillm.functional.policy_gradient import importance_weights
from lightning_minillm.models import load_causal_lm, shared_vocabulary
from lightning_minillm.modules import KDModule, MiniLLMModule
from lightning_minillm.rollout import RolloutBuffer, SamplingConfig
from lightning_minillm.types import PromptBatch, RolloutBatch, TokenBatch


class TokenRows:
    """Rows of token ids as the data set of a loader.

    Args:
        rows: of at least 2 tokens.
        first_targets: number of each row's first token that is a target.
        pad_token_id: fills shorter rows of a batch.
    """

    def __init__(self, rows: Sequence[list[int]], first_targets: Sequence[int], pad_token_id: int) -> None:
        self._rows = rows
        self._first_targets = torch.tensor(first_targets)
        self._pad_token_id = pad_token_id
        self.lengths = torch.tensor([len(row) for row in rows])
        self.target_counts = self.lengths - self._first_targets

    def __len__(self) -> int:
        return len(self._rows)

    def token_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        """Return rows padded on the right."""
        ids, mask = pad_rows([self._rows[index] for index in indices.tolist()], self._pad_token_id, left=False)
        targets = mask & (torch.arange(ids.shape[1]) >= self._first_targets[indices][:, None])
        return TokenBatch(ids, mask, targets, indices, normalizer)


class OuterIteration:
    """The package's modules around one workload.

    Args:
        arguments: see :func:`main`.
        workload: token ids.
    """

    def __init__(self, arguments: argparse.Namespace, workload: Workload) -> None:
        self.arguments = arguments
        self.workload = workload
        self.device = torch.device(arguments.device)
        self.module: Any = MiniLLMModule(
            student=partial(load_causal_lm, arguments.student),
            teacher=partial(load_causal_lm, arguments.teacher, dtype=arguments.dtype),
            tokenizer=SimpleNamespace(eos_token_id=workload.eos_token_ids, pad_token_id=workload.pad_token_id),
            optimizer=partial(torch.optim.AdamW, **OPTIMIZER),
            sampling=SamplingConfig(
                max_new_tokens=workload.max_new_tokens, teacher_mix_alpha=arguments.teacher_mix_alpha
            ),
            num_rollouts=arguments.rollouts,
            ppo_epochs=arguments.ppo_epochs,
            rollout_batch_size=arguments.rollout_batch_size,
            teacher_cache=arguments.teacher_cache,
            seed=arguments.seed,
        )
        self._start(self.module)
        ids, mask = pad_rows(workload.prompts, workload.pad_token_id, left=True)
        self.prompts = PromptBatch(ids, mask, torch.arange(len(ids))).to(self.device)
        self.lm_stream = None
        if workload.lm and arguments.method == "minillm":
            rows = TokenRows(workload.lm, [1] * len(workload.lm), workload.pad_token_id)
            self.lm_stream = LMStream(rows, arguments.batch_size, arguments.micro_batch_size, seed=arguments.seed)
        self.buffer = self._empty_buffer()
        self.kd_loader: TokenLoader | None = None
        if arguments.method == "kd":
            self._prepare_kd()
        self._initial = {name: value.cpu().clone() for name, value in self.module.student.state_dict().items()}

    def _start(self, module: Any) -> None:
        module.configure_model()
        module.to(self.device)
        module.on_fit_start()

    def _empty_buffer(self) -> RolloutBuffer:
        return RolloutBuffer(
            num_rollouts=self.arguments.rollouts,
            batch_size=self.arguments.batch_size,
            micro_batch_size=self.arguments.micro_batch_size,
            ppo_epochs=self.arguments.ppo_epochs,
            max_response_length=self.workload.max_new_tokens,
            whiten=self.module.loss.whiten,
            seed=self.arguments.seed,
            lm_batch=None if self.lm_stream is None else self.lm_stream.batch,
        )

    def _prepare_kd(self) -> None:
        """Sample the responses that KD learns from, and change to its module."""
        rollouts = self._collect()
        rows = [
            prompt + ids[mask].tolist()
            for prompt, ids, mask in zip(
                self.workload.prompts, rollouts.response_ids, rollouts.response_mask, strict=True
            )
        ]
        self.response_lengths = rollouts.lengths.tolist()
        dataset = TokenRows(rows, [len(ids) for ids in self.workload.prompts], self.workload.pad_token_id)
        self.kd_loader = TokenLoader(
            dataset, self.arguments.batch_size, self.arguments.micro_batch_size, seed=self.arguments.seed
        )
        minillm = self.module
        self.module = KDModule(
            student=minillm.student,
            teacher=minillm.teacher,
            tokenizer=minillm.tokenizer,
            optimizer=partial(torch.optim.AdamW, **OPTIMIZER),
        )
        self._start(self.module)

    def run(self) -> Times:
        """Do one outer iteration from the initial weights."""
        self.module.student.load_state_dict(self._initial)
        optimizer = self.module.configure_optimizers()
        started = clock(self.device)
        if self.kd_loader is None:
            self._fill_buffer()
        collected = clock(self.device)
        self._update(optimizer)
        ended = clock(self.device)
        return Times(collected - started if self.kd_loader is None else 0.0, ended - collected)

    def _precision(self) -> torch.autocast:
        """Lightning's ``bf16-mixed``, or nothing."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.arguments.dtype == "bfloat16")

    def _collect(self) -> RolloutBatch:
        with self._precision():
            return self.module.collect(self.prompts, phase=0)

    def _fill_buffer(self) -> None:
        rollouts = self._collect()
        weights = importance_weights(rollouts.student_logprobs, rollouts.mixture_logprobs, rollouts.response_mask)
        self.buffer.fill(rollouts, self.module.loss.returns(rollouts), weights, phase=0)
        self.response_lengths = rollouts.lengths.tolist()

    def _batches(self) -> Iterable[Any]:
        if self.kd_loader is None:
            yield from self.buffer
            return
        for epoch in range(self.arguments.ppo_epochs):
            self.kd_loader.sampler.set_epoch(epoch)
            yield from self.kd_loader

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, batch in enumerate(self._batches()):
            with self._precision():
                loss = self.module.training_step(batch.to(self.device), number)
            (loss / self.buffer.accumulation).backward()
            if (number + 1) % self.buffer.accumulation == 0:
                torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
                optimizer.step()
                optimizer.zero_grad()

    def work(self) -> Work:
        """Return what the last iteration had to do."""
        lm_lengths = []
        if self.lm_stream is not None:
            batches = (self.lm_stream.batch(number) for number in range(len(self.buffer)))
            lm_lengths = [length for batch in batches for length in batch.attention_mask.sum(-1).tolist()]
        student, teacher = self.module.student, self.module.teacher
        vocabulary = shared_vocabulary(student, teacher)
        return Work(
            student=ModelShape.of(student, vocabulary),
            teacher=ModelShape.of(teacher, vocabulary),
            prompt_lengths=[len(ids) for ids in self.workload.prompts],
            response_lengths=self.response_lengths,
            passes=self.arguments.ppo_epochs,
            lm_lengths=lm_lengths,
            rollout_batch_size=self.arguments.rollout_batch_size,
        )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the warm-up and the repeats; return the fields of the JSON line."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    workload = load_workload(arguments)
    iteration = OuterIteration(arguments, workload)
    device = iteration.device
    start_rss = rss_mb()
    times = [iteration.run() for _ in range(arguments.warmup + arguments.repeats)][arguments.warmup :]
    fields = {**summary(times), "steps": iteration.buffer.num_steps}
    fields["step_s"] = fields["total_s"] / fields["steps"]
    memory = {"start_rss_mb": start_rss, "peak_rss_mb": peak_rss_mb(), "peak_device_mb": peak_device_mb(device)}
    if arguments.profile:
        arguments.profile.write_text(profile(iteration))
    work, dtype = iteration.work(), getattr(torch, arguments.dtype)
    bandwidth = copy_rate(device) if device.type == "cuda" else None
    floor = floor_fields(work, arguments.method, fields["total_s"], matrix_rate(device, dtype), bandwidth, dtype)
    return {
        "benchmark": "outer_iteration",
        "implementation": "lightning_minillm",
        "method": arguments.method,
        **fields,
        "mean_length": work.num_targets / len(work.response_lengths),
        **memory,
        **floor,
        **setting_fields(arguments, workload),
        **machine(device),
    }


def profile(iteration: OuterIteration) -> str:
    """Return a table of the operations of one outer iteration, the longest first."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if iteration.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        iteration.run()
    key = "self_cuda_time_total" if iteration.device.type == "cuda" else "self_cpu_time_total"
    return recorded.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=48)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--method", choices=("minillm", "kd"), default="minillm")
    parser.add_argument("--micro-batch-size", type=int, default=None, help="rows of a pass (default: --batch-size)")
    parser.add_argument("--rollout-batch-size", type=int, default=64, help="rows that are sampled together")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a profile of one more iteration")
    parser.add_argument("--teacher-cache", choices=("hidden", "none"), default="hidden")
    arguments = parser.parse_args(argv)
    arguments.micro_batch_size = arguments.micro_batch_size or arguments.batch_size
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    warnings.filterwarnings("ignore", message=".*self.log.*trainer.*reference")
    print(json.dumps(rounded(measure(parse(argv)))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
