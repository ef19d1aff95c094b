"""Compare our numbers with those recorded from the official MiniLLM code.

Each file contains one run of the official implementation on fixed token ids: prompts, responses, the state dicts of
teacher and student, and the computed quantities. The script runs our code for rollouts and updates on the same ids and
prints one JSON line per file with the relative error ||ours - theirs|| / ||theirs|| of every recorded quantity. It
exits with 1 if an error exceeds the tolerance, except for two batch means that are only logged.

    python benchmarks/official_parity.py golden/*.safetensors
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lightning_minillm.functional.kl_estimators import k3
from lightning_minillm.functional.masking import lengths_to_mask
from lightning_minillm.functional.policy_gradient import importance_weights
from lightning_minillm.functional.returns import whiten, whitening_sums
from lightning_minillm.losses import LanguageModelingLoss, MiniLLMLoss, TeacherCrossEntropy
from lightning_minillm.models import SplitCausalLM
from lightning_minillm.rollout import AdvantageEstimator, SamplingConfig, score_responses
from lightning_minillm.rollout.scoring import rollout_sequences
from lightning_minillm.types import PromptBatch, RolloutBatch, TokenBatch

LOGGED_ONLY = ("mean_reward", "mean_rev_kl")
"""Reported only: batch means of ``rewards`` and ``rev_kl``, which the official code logs. Terms of both signs may
almost cancel in them, and then the rounding of float32 alone exceeds any relative bound."""


class Record:
    """One recorded run of the official code."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            self.tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.args: dict[str, Any] = json.loads(metadata["args"])
        self.architecture = metadata["architecture"]
        self.configs = {role: json.loads(metadata[f"{role}_config"]) for role in ("teacher", "student")}
        self.eos_token_id = int(metadata["eos_token_id"])

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def model(self, prefix: str) -> PreTrainedModel:
        """Build the model whose weights are recorded under ``prefix``."""
        config = dict(self.configs["teacher" if prefix == "teacher" else "student"])
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
        start = prefix + "."
        state = {key[len(start) :]: value for key, value in self.tensors.items() if key.startswith(start)}
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise ValueError(f"{prefix}: weights {sorted(set(missing) - tied)} missing, {unexpected} unexpected")
        model.tie_weights()
        return model

    @property
    def sampling(self) -> SamplingConfig:
        """Sampling options as the official arguments name them."""
        return SamplingConfig(
            max_new_tokens=self["response_ids"].shape[1],
            temperature=self.args["temperature"],
            teacher_mix_alpha=self.args["teacher_mixed_alpha"] or 0.0,
            teacher_reward_temperature=1.0,
        )

    @property
    def advantages(self) -> AdvantageEstimator:
        """The official advantages under the recorded arguments.

        Length normalisation is always on: in the official code, the flag changes only what is logged.
        """
        return AdvantageEstimator(
            gamma=self.args["gamma"],
            reward_scaling=self.args["reward_scaling"],
            reward_clip=self.args["cliprange_reward"],
            whiten="all",
        )

    def loss(self, *, single_step: bool = True) -> MiniLLMLoss:
        """Return the official loss under the recorded arguments."""
        return MiniLLMLoss(clip_range=self.args["cliprange"], single_step=single_step)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """||ours - theirs|| / ||theirs||; the absolute error where theirs is 0."""
    difference, norm = (ours.double() - theirs.double()).norm().item(), theirs.double().norm().item()
    return difference / norm if norm > 0 else difference


def worst_of(errors: dict[str, float]) -> float:
    """The largest error; NaN is larger than any number."""
    return max(errors.values(), key=lambda error: math.inf if math.isnan(error) else error)


def response_lengths(response_ids: Tensor, eos_token_id: int) -> Tensor:
    """Tokens ``[B]`` of each response ``[B, T]``, its first eos included; T for a response without eos."""
    is_end = response_ids == eos_token_id
    ended_before = is_end.cumsum(-1) - is_end.long() > 0
    return (~ended_before).sum(-1)


def rollouts_of(record: Record, key: str, student: SplitCausalLM, teacher: SplitCausalLM) -> RolloutBatch:
    """Our rollout-side code on recorded responses."""
    ids = record[key]
    prompts = PromptBatch(record["prompt_ids"], record["prompt_mask"].bool(), torch.arange(len(ids)))
    mask = lengths_to_mask(response_lengths(ids, record.eos_token_id), ids.shape[1])
    return score_responses(student, teacher, prompts, ids, mask, record.sampling)


def rollout_side(record: Record, rollouts: RolloutBatch, own: RolloutBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs (ours, theirs) of what the official sampler stores."""
    mask, advantages = rollouts.response_mask, record.advantages
    assert rollouts.reward_logprobs is not None
    assert own.reward_logprobs is not None
    returns = advantages.returns(rollouts)
    whitened = whiten(returns, whitening_sums(returns, mask, "all"))
    discounts = record.args["gamma"] ** torch.arange(mask.shape[1])
    reward = (advantages.rewards(rollouts) * discounts).sum(-1)
    reverse_kl = k3(own.student_logprobs, own.reward_logprobs).masked_fill(~own.response_mask, 0)
    reverse_kl_sum = reverse_kl.sum(-1)
    if record.args["length_norm"]:
        reward, reverse_kl_sum = reward / rollouts.lengths, reverse_kl_sum / own.lengths
    return {
        "logprobs": (rollouts.student_logprobs, record["rollout.logprobs"]),
        "teacher_logprobs": (rollouts.reward_logprobs, record["rollout.t_rewards"]),
        "w": (
            importance_weights(rollouts.student_logprobs, rollouts.mixture_logprobs, mask),
            record["rollout.w"],
        ),
        "rewards": (advantages.rewards(rollouts), record["rollout.rewards"]),
        "rev_kl": (reverse_kl, record["rollout.rev_kl"]),
        "mask": (mask, record["rollout.mask"]),
        "lens": (rollouts.lengths, record["rollout.lens"]),
        "s_lens": (own.lengths, record["rollout.s_lens"]),
        "update_mask": (mask, record["update.mask"]),
        "advantages_unwhitened": (returns, record["update.advantages_unwhitened"]),
        "advantages": (whitened, record["update.advantages"]),
        "mean_reward": (reward.mean(), record["stats.reward"]),
        "mean_rev_kl": (reverse_kl_sum.mean(), record["stats.rev_kl"]),
    }


def update_side(
    record: Record, rollouts: RolloutBatch, student: PreTrainedModel, teacher: SplitCausalLM
) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs (ours, theirs) of losses and gradients at the update."""
    mask, advantages = rollouts.response_mask, record.advantages
    returns = advantages.returns(rollouts)
    inputs = {
        "old_logprobs": rollouts.student_logprobs[mask],
        "advantages": whiten(returns, whitening_sums(returns, mask, advantages.whiten))[mask],
        "importance_weights": importance_weights(rollouts.student_logprobs, rollouts.mixture_logprobs, mask)[mask],
    }
    split = SplitCausalLM(student)
    batch = rollout_sequences(rollouts)
    states, ids = split.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
    teacher_states, _ = teacher.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
    output = record.loss()(states, ids, teacher_states, inputs, temperature=record.args["temperature"])
    pairs = {
        "pg": (output.parts["pg_loss"], record["stats.pg_loss"]),
        "reg": (output.parts["single_step_loss"], record["stats.reg_loss"]),
    }
    total = output.loss
    if not record.args["single_step_reg"]:
        plain = record.loss(single_step=False)
        total = plain(states, ids, None, inputs, temperature=record.args["temperature"]).loss
    pairs["rl"] = (total.detach(), record["stats.rl_loss"])
    if "lm_labels" in record and "stats.pt_loss" in record:
        pretraining, lm_pairs = pretraining_loss(record, split, teacher)
        total = total + record.args["lm_coef"] * pretraining
        pairs |= lm_pairs
    pairs["total"] = (total.detach(), record["stats.tot_loss"])
    total.backward()
    return pairs | gradient_pairs(record, student)


def pretraining_loss(
    record: Record, student: SplitCausalLM, teacher: SplitCausalLM
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Our LM + KD loss on the recorded pretraining batch, whose labels are already shifted."""
    ids, labels = record["lm_input_ids"], record["lm_labels"]
    # the last label has no token in input_ids: append the labels' last column to have every target as a token
    tokens = torch.cat([ids, labels[:, -1:].clamp_min(0)], dim=1)
    is_target = labels != -100
    targets = torch.cat([torch.zeros_like(is_target[:, :1]), is_target], dim=1)
    tokens[:, 1:] = torch.where(is_target, labels, tokens[:, 1:])
    attention = torch.cat([record["lm_attention_mask"].bool(), is_target[:, -1:]], dim=1)
    batch = TokenBatch(tokens, attention, targets, torch.arange(len(ids)), float(targets.sum()))
    states, target_ids = student.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
    teacher_states, _ = teacher.token_states(batch.input_ids, batch.attention_mask, batch.target_mask)
    lm = LanguageModelingLoss()(states, target_ids).loss
    kd = TeacherCrossEntropy()(states, target_ids, teacher_states).loss
    ratio = record.args["kd_ratio"]
    total = (1 - ratio) * lm + ratio * kd
    return total, {
        "lm": (lm.detach(), record["stats.lm_loss"]),
        "kd": (kd.detach(), record["stats.ds_loss"]),
        "pt": (total.detach(), record["stats.pt_loss"]),
    }


def gradient_pairs(record: Record, student: PreTrainedModel) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs (ours, theirs) of the gradient of every recorded parameter."""
    pairs = {}
    parameters = dict(student.named_parameters(remove_duplicate=False))
    for key in record.tensors:
        if key.startswith("grad."):
            gradient = parameters[key.removeprefix("grad.")].grad
            pairs[key] = (torch.zeros_like(record[key]) if gradient is None else gradient, record[key])
    return pairs


def compare(path: Path) -> dict[str, float]:
    """Return the relative error of every quantity of one file; gradients as the worst of all."""
    torch.manual_seed(0)
    record = Record(path)
    teacher = SplitCausalLM(record.model("teacher").requires_grad_(False))
    sampler = SplitCausalLM(record.model("student_at_rollout").requires_grad_(False))
    rollouts = rollouts_of(record, "response_ids", sampler, teacher)
    own = rollouts
    if record.args["teacher_mixed_alpha"] is not None and "student_response_ids" in record:
        own = rollouts_of(record, "student_response_ids", sampler, teacher)
    pairs = rollout_side(record, rollouts, own)
    pairs |= update_side(record, rollouts, record.model("student_at_update"), teacher)
    errors = {name: relative_error(ours.detach(), theirs) for name, (ours, theirs) in pairs.items()}
    gradients = {name: error for name, error in errors.items() if name.startswith("grad.")}
    rest = {name: error for name, error in errors.items() if name not in gradients}
    return {**rest, "grad_worst": worst_of(gradients)} if gradients else rest


def main() -> int:
    """Compare every file; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recorded runs (.safetensors)")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest relative error (default: %(default)s)")
    arguments = parser.parse_args()
    failed = False
    for path in arguments.files:
        errors = compare(path)
        worst = worst_of({name: error for name, error in errors.items() if name not in LOGGED_ONLY})
        agrees = worst <= arguments.tolerance
        failed |= not agrees
        print(json.dumps({"file": path.name, "agrees": agrees, "worst": worst, **errors}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
