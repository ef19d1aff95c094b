"""Time the same outer iteration as outer_iteration.py with the schedule of the official code. Prints one JSON line.

    python benchmarks/reference_schedule.py --student work/student --teacher work/teacher --prompts work/prompts.json \
        --rollouts 64 --batch-size 16 --ppo-epochs 4 --max-prompt-length 64 --max-length 128 --teacher-mix-alpha 0.2 \
        --lm --threads 2 --seed 0

This is the baseline: the same models, prompts, mathematics, optimiser and clipping, written with plain transformers.

- Rollouts, 16 prompts at a time (``--chunk-size``), padded to the maximum prompt length: ``generate``, with the teacher
  (and its own key-value cache) in a logits processor that mixes the two distributions.
- Then one pass of the student and one of the teacher over prompt and response, with the logits of all positions.
- A second generation from the student alone, with two passes of its own, whose reverse KL is only logged
  (``--no-second-generation`` skips it).
- An optimiser step: student and teacher over sequences padded to the maximum length, with the logits of all positions,
  and log-softmax over the whole of them; the pretraining batch in the same way.

The official code makes more passes than these; in case of doubt, the cheaper way was chosen. Its arithmetic is
that of ``loss=minillm_official``: a test compares the policy loss with that of
``modules.minillm``. Fields are those of
outer_iteration.py, without the floor.

``--peer trl`` times TRL's DistillationTrainer instead, where TRL is installed; see trl_schedule.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import trl_schedule
from measure import Times, clock, machine, peak_device_mb, peak_rss_mb, rounded, rss_mb, summary
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessor, PreTrainedModel
from workload import GRADIENT_CLIP, OPTIMIZER, Workload, add_arguments, load_workload, pad_rows, setting_fields

from lightning_minillm.functional.returns import discounted_returns, token_rewards, whiten, whitening_sums
from lightning_minillm.models import load_causal_lm, shared_vocabulary

GAMMA, REWARD_SCALING, REWARD_CLIP, CLIP_RANGE, KD_RATIO = 0.95, 0.5, 100.0, 0.2, 0.5


@dataclass(frozen=True)
class Rollouts:
    """Rows padded to the maximum: P prompt and T response tokens; the last four are ``[B, T]``."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    response_mask: Tensor
    student_logprobs: Tensor
    teacher_logprobs: Tensor
    importance_weights: Tensor
    returns: Tensor

    def rows(self, indices: Tensor) -> Rollouts:
        """Return some of the rows."""
        return Rollouts(**{name: value[indices] for name, value in vars(self).items()})


class TeacherMixture(LogitsProcessor):
    """Mixes the teacher's next-token distribution into the student's; runs the teacher with its own cache.

    Args:
        teacher: the teacher.
        attention_mask: ``[B, P]`` of the prompts.
        alpha: the teacher's part.
        vocabulary: leading ids that both models know.
    """

    def __init__(self, teacher: PreTrainedModel, attention_mask: Tensor, alpha: float, vocabulary: int) -> None:
        self._teacher = teacher
        self._mask = attention_mask.long()
        self._alpha = alpha
        self._vocabulary = vocabulary
        self._cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return log((1 - alpha) q + alpha p) ``[B, V]``."""
        fresh = input_ids if self._cache is None else input_ids[:, -1:]
        grown = input_ids.shape[1] - self._mask.shape[1]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(input_ids), grown)], dim=1)
        positions = (self._mask.cumsum(-1) - 1).clamp_min(0)[:, -fresh.shape[1] :]
        output = self._teacher(
            input_ids=fresh,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        teacher = output.logits[:, -1, : self._vocabulary].float().softmax(-1)
        mixed = (1 - self._alpha) * scores[:, : self._vocabulary].float().softmax(-1) + self._alpha * teacher
        return torch.full_like(scores, -torch.inf).index_copy(
            1, torch.arange(self._vocabulary, device=scores.device), mixed.log()
        )


class ReferenceSchedule:
    """The official code's order of work around one workload.

    Args:
        arguments: see :func:`parse`.
        workload: token ids.
    """

    def __init__(self, arguments: argparse.Namespace, workload: Workload) -> None:
        self.arguments = arguments
        self.workload = workload
        self.device = torch.device(arguments.device)
        self.student = load_causal_lm(arguments.student).to(self.device).eval()
        self.teacher = load_causal_lm(arguments.teacher, dtype=arguments.dtype).to(self.device).eval()
        self.teacher.requires_grad_(False)
        self.vocabulary = shared_vocabulary(self.student, self.teacher)
        self.lengths: list[int] = []
        self._initial = {name: value.cpu().clone() for name, value in self.student.state_dict().items()}

    @property
    def num_steps(self) -> int:
        """Optimiser steps of an outer iteration."""
        return self.arguments.ppo_epochs * self.arguments.rollouts // self.arguments.batch_size

    def run(self) -> Times:
        """Do one outer iteration from the initial weights."""
        self.student.load_state_dict(self._initial)
        torch.manual_seed(self.arguments.seed)
        optimizer = torch.optim.AdamW(self.student.parameters(), **OPTIMIZER)
        started = clock(self.device)
        rollouts = self.collect()
        collected = clock(self.device)
        self._update(rollouts, optimizer)
        ended = clock(self.device)
        self.lengths = rollouts.response_mask.sum(-1).tolist()
        return Times(collected - started, ended - collected)

    # --- rollouts ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self) -> Rollouts:
        """Sample a response to every prompt, and score it."""
        chunks = []
        for start in range(0, self.arguments.rollouts, self.arguments.chunk_size):
            rows = self.workload.prompts[start : start + self.arguments.chunk_size]
            ids, mask = pad_rows(rows, self.workload.pad_token_id, left=True, width=self.arguments.max_prompt_length)
            ids, mask = ids.to(self.device), mask.to(self.device)
            chunks.append(self._chunk(ids, mask, self.arguments.teacher_mix_alpha))
            if self.arguments.second_generation:
                own = self._chunk(ids, mask, alpha=0.0)
                self.logged_reverse_kl = ((own.student_logprobs - own.teacher_logprobs) * own.response_mask).sum()
        return Rollouts(**{name: torch.cat([vars(chunk)[name] for chunk in chunks]) for name in vars(chunks[0])})

    def _chunk(self, ids: Tensor, mask: Tensor, alpha: float) -> Rollouts:
        response, response_mask = self._generate(ids, mask, alpha)
        log_q, log_p = (
            self._logprobs(model, ids, mask, response, response_mask) for model in (self.student, self.teacher)
        )
        mixture = torch.logaddexp(log_q + _log(1 - alpha), log_p + _log(alpha))
        weights = (log_q - mixture).exp().masked_fill(~response_mask, 1)
        rewards = token_rewards(log_p, log_q, response_mask, REWARD_SCALING, REWARD_CLIP)
        returns = discounted_returns(rewards, response_mask, GAMMA)
        return Rollouts(ids, mask, response, response_mask, log_q, log_p, weights, returns)

    def _generate(self, ids: Tensor, mask: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        """Return response ids and mask ``[B, T]``, T the maximum."""
        width = self.workload.max_new_tokens
        output = self.student.generate(
            input_ids=ids,
            attention_mask=mask.long(),
            do_sample=True,
            top_k=0,
            max_new_tokens=width,
            eos_token_id=self.workload.eos_token_ids,
            pad_token_id=self.workload.pad_token_id,
            logits_processor=[TeacherMixture(self.teacher, mask, alpha, self.vocabulary)] if alpha > 0 else [],
        )
        response = F.pad(output[:, ids.shape[1] :], (0, width - (output.shape[1] - ids.shape[1])))
        is_eos = torch.isin(response, torch.tensor(self.workload.eos_token_ids, device=ids.device))
        response_mask = is_eos.cumsum(-1) - is_eos.long() == 0
        response_mask[:, output.shape[1] - ids.shape[1] :] = False
        return response, response_mask

    def _logits(
        self, model: PreTrainedModel, ids: Tensor, mask: Tensor, response: Tensor, response_mask: Tensor
    ) -> Tensor:
        """Logits that predict the response tokens ``[B, T, V]``, out of those of all positions."""
        every_mask = torch.cat([mask, response_mask], dim=1).long()
        positions = (every_mask.cumsum(-1) - 1).clamp_min(0)
        output = model(input_ids=torch.cat([ids, response], 1), attention_mask=every_mask, position_ids=positions)
        return output.logits[:, ids.shape[1] - 1 : -1, : self.vocabulary].float()

    def _logprobs(
        self, model: PreTrainedModel, ids: Tensor, mask: Tensor, response: Tensor, response_mask: Tensor
    ) -> Tensor:
        logits = self._logits(model, ids, mask, response, response_mask)
        return logits.log_softmax(-1).gather(-1, response[..., None]).squeeze(-1)

    # --- update -----------------------------------------------------------------------------------------------------

    def _update(self, rollouts: Rollouts, optimizer: torch.optim.Optimizer) -> None:
        generator = torch.Generator().manual_seed(self.arguments.seed)
        step = 0
        for _ in range(self.arguments.ppo_epochs):
            order = torch.randperm(self.arguments.rollouts, generator=generator)
            for rows in order.split(self.arguments.batch_size):
                batch = rollouts.rows(rows.to(self.device))
                sums = whitening_sums(batch.returns, batch.response_mask, "all")
                loss = self.policy_loss(batch, whiten(batch.returns, sums))
                if self.workload.lm:
                    loss = loss + self._lm_loss(step)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.student.parameters(), GRADIENT_CLIP)
                optimizer.step()
                optimizer.zero_grad()
                step += 1

    def policy_loss(self, batch: Rollouts, advantages: Tensor) -> Tensor:
        """Clipped surrogate and single-step reverse KL, each the mean over response tokens.

        Args:
            batch: rows of an optimiser step.
            advantages: ``[B, T]``, whitened returns.
        """
        tensors = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.response_mask)
        log_q = self._logits(self.student, *tensors).log_softmax(-1)
        with torch.no_grad():
            log_p = self._logits(self.teacher, *tensors).log_softmax(-1)
        chosen = log_q.gather(-1, batch.response_ids[..., None]).squeeze(-1)
        ratio = (chosen - batch.student_logprobs).exp() * batch.importance_weights
        clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
        surrogate = torch.maximum(-advantages * ratio, -advantages * clipped)
        single_step = (log_q.exp() * (log_q - log_p)).sum(-1)
        mask = batch.response_mask
        return ((surrogate + single_step) * mask).sum() / mask.sum()

    def _lm_loss(self, step: int) -> Tensor:
        """Cross-entropy on the corpus, half of it to the teacher's distribution."""
        size, rows = self.arguments.batch_size, self.workload.lm
        chosen = [rows[number % len(rows)] for number in range(step * size, (step + 1) * size)]
        ids, mask = pad_rows(chosen, self.workload.pad_token_id, left=False, width=self.arguments.max_length)
        ids, mask = ids.to(self.device), mask.to(self.device)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        log_q = self.student(**inputs).logits[:, :-1, : self.vocabulary].float().log_softmax(-1)
        with torch.no_grad():
            teacher = self.teacher(**inputs).logits[:, :-1, : self.vocabulary].float().softmax(-1)
        targets = mask[:, 1:]
        hard = -log_q.gather(-1, ids[:, 1:, None]).squeeze(-1)
        soft = -(teacher * log_q).sum(-1)
        return (((1 - KD_RATIO) * hard + KD_RATIO * soft) * targets).sum() / targets.sum()


def _log(value: float) -> Tensor:
    return torch.tensor(value).log()


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark.

    Returns:
        The fields that are printed, see the top of this file.
    """
    torch.set_num_threads(arguments.threads)
    workload = load_workload(arguments)
    schedule = ReferenceSchedule(arguments, workload)
    start_rss = rss_mb()
    times = [schedule.run() for _ in range(arguments.warmup + arguments.repeats)][arguments.warmup :]
    fields = {**summary(times), "steps": schedule.num_steps}
    fields["step_s"] = fields["total_s"] / fields["steps"]
    return {
        "benchmark": "outer_iteration",
        "implementation": "reference schedule",
        "method": "minillm",
        **fields,
        "mean_length": sum(schedule.lengths) / len(schedule.lengths),
        "start_rss_mb": start_rss,
        "peak_rss_mb": peak_rss_mb(),
        "peak_device_mb": peak_device_mb(schedule.device),
        "second_generation": arguments.second_generation,
        **setting_fields(arguments, workload),
        **machine(schedule.device),
    }


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--chunk-size", type=int, default=16, help="prompts generated together (default: %(default)s)")
    parser.add_argument("--peer", choices=("trl",), default=None, help="time a peer's trainer instead")
    parser.add_argument("--second-generation", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    arguments = parse(argv)
    result = trl_schedule.measure(arguments) if arguments.peer == "trl" else measure(arguments)
    print(json.dumps(rounded(result)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
