"""Time one whole outer iteration: collect rollouts, then all optimiser steps on them. Prints one JSON line.

    python benchmarks/make_workload.py work --vocabulary 8192
    python benchmarks/outer_iteration.py --student work/student --teacher work/teacher --prompts work/prompts.json \
        --rollouts 64 --batch-size 16 --ppo-epochs 4 --max-prompt-length 64 --max-length 128 --teacher-mix-alpha 0.2 \
        --lm --threads 2 --seed 0

The benchmark fits ``modules.minillm`` with Lightning's ``Trainer`` for one epoch, that is one phase, and a callback
takes the times. The trainer has no logger, checkpoints or validation; it clips gradients to norm 1, and the optimiser
is AdamW. Each repeat starts from the weights in the folder with the same seed, so that all repeats do the same work.
``--method kd`` times the optimiser steps of word-level KD (``KDModule``) on the same sequences, which are sampled once
beforehand.

Fields: ``rollout_s`` (from the start of the epoch to the first batch), ``update_s`` (from there to the end of the
epoch) and ``total_s`` of the fastest repeat; ``..._median`` over all repeats; ``steps`` (optimiser steps); ``step_s`` =
total_s / steps; ``mean_length`` (response tokens, eos included); ``start_rss_mb`` and ``peak_rss_mb`` (resident memory
of this process before the first iteration, with both models loaded, and at its peak); ``peak_device_mb`` (tensors on
the GPU); ``floor_s`` with its parts (see arithmetic.py) and ``floor_ratio`` = total_s / floor_s. ``--profile FILE``
runs one more iteration under torch's profiler and writes how long each operation took.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from arithmetic import ModelShape, Work, floor_fields
from lightning import Callback, LightningDataModule, LightningModule, Trainer
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
from lightning_minillm.models import load_causal_lm, shared_vocabulary
from lightning_minillm.modules import CausalLMModule, KDModule, TrainingOptions, minillm
from lightning_minillm.rollout import RolloutBuffer, RolloutOptions, SamplingConfig, TeacherOptions
from lightning_minillm.types import DeviceMovable, PromptBatch, RolloutBatch, TokenBatch, TrainLoaderBuilder

TRAINING = TrainingOptions(optimizer=partial(torch.optim.AdamW, **OPTIMIZER), dropout=False)


class TokenRows:
    """Rows of token ids as a data set: a ``types.PromptSet``.

    Args:
        rows: token ids, at least 2 per row that is trained on.
        prompt_lengths: tokens of each row that are its prompt; the others are targets.
        pad_token_id: fills shorter rows of a batch.
    """

    def __init__(self, rows: Sequence[list[int]], prompt_lengths: Sequence[int], pad_token_id: int) -> None:
        self._rows = rows
        self._prompt_lengths = torch.tensor(prompt_lengths)
        self._pad_token_id = pad_token_id
        self.lengths = torch.tensor([len(row) for row in rows])
        self.target_counts = self.lengths - self._prompt_lengths

    def __len__(self) -> int:
        return len(self._rows)

    def prompt_batch(self, indices: Tensor) -> PromptBatch:
        """Return prompts padded on the left."""
        prompts = [self._rows[index][: int(self._prompt_lengths[index])] for index in indices.tolist()]
        return PromptBatch(*pad_rows(prompts, self._pad_token_id, left=True), indices)

    def token_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        """Return rows padded on the right."""
        ids, mask = pad_rows([self._rows[index] for index in indices.tolist()], self._pad_token_id, left=False)
        targets = mask & (torch.arange(ids.shape[1]) >= self._prompt_lengths[indices][:, None])
        return TokenBatch(ids, mask, targets, indices, normalizer)

    response_batch = token_batch  # the response is all that is learned from


class WorkloadData(LightningDataModule):
    """A workload as a data module: a ``types.TrainingData``.

    Args:
        train_set: prompts, or pairs for KD.
        lm_rows: pretraining rows; ``None`` for none.
        arguments: see :func:`parse`.
    """

    def __init__(self, train_set: TokenRows, lm_rows: TokenRows | None, arguments: argparse.Namespace) -> None:
        super().__init__()
        self.train_set = train_set
        self.batch_size: int = arguments.batch_size
        self.micro_batch_size: int = arguments.micro_batch_size
        self._seed = arguments.seed
        sizes = (self.batch_size, self.micro_batch_size)
        self.lm_stream = None if lm_rows is None else LMStream(lm_rows, *sizes, seed=self._seed)

    def pair_loader(self) -> TokenLoader:
        """Return the pairs as micro-batches."""
        return TokenLoader(self.train_set, self.batch_size, self.micro_batch_size, seed=self._seed)

    def train_dataloader(self) -> Iterable[DeviceMovable]:
        """Return the loader that the module builds, or the pairs."""
        assert self.trainer is not None
        module = self.trainer.lightning_module
        return module.build_train_loader(self) if isinstance(module, TrainLoaderBuilder) else self.pair_loader()


class PhaseClock(Callback):
    """Takes the times of a fit: when it starts, when the first batch is there, and when it ends."""

    def __init__(self) -> None:
        self._times: list[float] = []

    @property
    def times(self) -> Times:
        """Seconds until the first batch, and from there to the end."""
        started, collected, *_, ended = self._times
        return Times(collected - started, ended - collected)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time before the module samples."""
        self._times.append(clock(pl_module.device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the time of the first batch of an epoch."""
        if batch_idx == 0:
            self._times.append(clock(pl_module.device))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the time after the last step."""
        self._times.append(clock(pl_module.device))


class OuterIteration:
    """The package's modules around one workload.

    Args:
        arguments: see :func:`parse`.
        workload: token ids.
    """

    def __init__(self, arguments: argparse.Namespace, workload: Workload) -> None:
        self.arguments = arguments
        self.workload = workload
        self.device = torch.device(arguments.device)
        tokenizer: Any = SimpleNamespace(eos_token_id=workload.eos_token_ids, pad_token_id=workload.pad_token_id)
        self.module: CausalLMModule = minillm(
            partial(load_causal_lm, arguments.student),
            tokenizer,
            teacher=partial(load_causal_lm, arguments.teacher, dtype=arguments.dtype),
            rollouts=RolloutOptions(
                SamplingConfig(workload.max_new_tokens, teacher_mix_alpha=arguments.teacher_mix_alpha),
                num_rollouts=arguments.rollouts,
                ppo_epochs=arguments.ppo_epochs,
                batch_size=arguments.rollout_batch_size,
                seed=arguments.seed,
            ),
            teacher_use=TeacherOptions(cache=arguments.teacher_cache),
            training=TRAINING,
        )
        self.module.configure_model()
        assert self.module.student is not None
        self.initial = {name: value.cpu().clone() for name, value in self.module.student.state_dict().items()}
        lengths = [len(ids) for ids in workload.prompts]
        prompts = TokenRows(workload.prompts, lengths, workload.pad_token_id)
        lm_rows = None
        if workload.lm and arguments.method == "minillm":
            lm_rows = TokenRows(workload.lm, [1] * len(workload.lm), workload.pad_token_id)
        self.data = WorkloadData(prompts, lm_rows, arguments)
        self.response_lengths: list[int] = []
        if arguments.method == "kd":
            self._prepare_kd(tokenizer)

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimiser step."""
        return int(self.arguments.batch_size // self.arguments.micro_batch_size)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of an outer iteration."""
        return int(self.arguments.ppo_epochs * self.arguments.rollouts // self.arguments.batch_size)

    def fit(self, *callbacks: Callback, max_steps: int = -1) -> Trainer:
        """Fit from the initial weights: one phase, or for KD the same number of passes over its pairs."""
        assert self.module.student is not None
        self.module.student.load_state_dict(self.initial)
        trainer = Trainer(
            accelerator=self.arguments.device,
            devices=1,
            precision="bf16-mixed" if self.arguments.dtype == "bfloat16" else "32-true",
            max_epochs=self.arguments.ppo_epochs if isinstance(self.module, KDModule) else 1,
            max_steps=max_steps,
            gradient_clip_val=GRADIENT_CLIP,
            accumulate_grad_batches=self.accumulation,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(self.module, datamodule=self.data)
        return trainer

    def run(self) -> Times:
        """Do one outer iteration and return how long it took."""
        phase_clock = PhaseClock()
        trainer = self.fit(phase_clock)
        if isinstance(self.module, KDModule):
            return Times(0.0, phase_clock.times.total)
        self.response_lengths = collected(trainer).lengths.tolist()
        return phase_clock.times

    def _prepare_kd(self, tokenizer: Any) -> None:
        """Sample the responses that KD learns from, and change to its module."""
        rollouts = collected(self.fit(max_steps=1))
        self.response_lengths = rollouts.lengths.tolist()
        prompts = [self.workload.prompts[index] for index in rollouts.indices.tolist()]
        responses = [
            ids[mask].tolist() for ids, mask in zip(rollouts.response_ids, rollouts.response_mask, strict=True)
        ]
        rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        lengths = [len(prompt) for prompt in prompts]
        self.data = WorkloadData(TokenRows(rows, lengths, self.workload.pad_token_id), None, self.arguments)
        assert self.module.student is not None
        assert self.module.teacher is not None
        self.module = KDModule(self.module.student, tokenizer, teacher=self.module.teacher, training=TRAINING)
        self.module.configure_model()

    def work(self) -> Work:
        """Return what the last iteration had to do."""
        lm_lengths = []
        if self.data.lm_stream is not None:
            batches = (self.data.lm_stream.batch(number) for number in range(self.num_steps * self.accumulation))
            lm_lengths = [length for batch in batches for length in batch.attention_mask.sum(-1).tolist()]
        student, teacher = self.module.student, self.module.teacher
        assert student is not None
        assert teacher is not None
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


def collected(trainer: Trainer) -> RolloutBatch:
    """Return the rollouts of a fit."""
    buffer = trainer.train_dataloader
    assert isinstance(buffer, RolloutBuffer)
    assert buffer.content is not None
    return buffer.content[0]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the warm-up and the repeats; return the fields of the JSON line."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    workload = load_workload(arguments)
    iteration = OuterIteration(arguments, workload)
    device = iteration.device
    start_rss = rss_mb()
    times = [iteration.run() for _ in range(arguments.warmup + arguments.repeats)][arguments.warmup :]
    fields = {**summary(times), "steps": iteration.num_steps}
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
    table: str = recorded.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=48)
    return table


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
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(json.dumps(rounded(measure(parse(argv)))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
