"""The work that the benchmarks do: two Hugging Face folders and a file of token ids, and the options that go with them.

The file is JSON: ``{"prompts": [[ids], ...], "lm": [[ids], ...]}``; ``lm`` may be missing. The folders need weights and
config.json; no tokenizer is read. ``make_workload.py`` writes all of this with random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig

OPTIMIZER: dict[str, Any] = {"lr": 5e-6, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 1e-6}
"""AdamW as in conf/optimizer/adamw.yaml and in the official code."""
GRADIENT_CLIP = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that all benchmarks of an outer iteration share."""
    parser.add_argument("--student", type=Path, required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--prompts", type=Path, required=True, metavar="FILE.json", help="token ids, see workload.py")
    parser.add_argument("--rollouts", type=int, default=64, help="of the outer iteration (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="rollouts of an optimiser step; divides --rollouts")
    parser.add_argument("--ppo-epochs", type=int, default=4, help="passes over the rollouts (default: %(default)s)")
    parser.add_argument("--max-prompt-length", type=int, default=64, help="tokens; longer prompts are left out")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of prompt and response, and of an lm row")
    parser.add_argument("--teacher-mix-alpha", type=float, default=0.2, help="of sampling (default: %(default)s)")
    parser.add_argument(
        "--lm", action=argparse.BooleanOptionalAction, help="pretraining batch (default: where the file has rows)"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3, help="outer iterations that are measured")
    parser.add_argument("--warmup", type=int, default=1, help="outer iterations before them")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of teacher and arithmetic; the student's own weights are float32, as in training with bf16-mixed",
    )
    parser.add_argument("--eos-token-id", type=int, default=None, help="where no config names one")


@dataclass(frozen=True)
class Workload:
    """Token ids of one outer iteration."""

    prompts: list[list[int]]
    """One a rollout; prompts of the file, over again where there are fewer."""
    lm: list[list[int]]
    """Pretraining rows of at least 2 tokens; empty for none."""
    eos_token_ids: list[int]
    """Each ends a response."""
    pad_token_id: int
    max_new_tokens: int


def load_workload(arguments: argparse.Namespace) -> Workload:
    """Read and check the file of token ids.

    Raises:
        ValueError: no prompt that is short enough, an id outside the vocabulary, or lengths that leave no response.
    """
    content = json.loads(arguments.prompts.read_text())
    folders = (arguments.student, arguments.teacher)
    vocabulary = min(AutoConfig.from_pretrained(folder).get_text_config().vocab_size for folder in folders)
    max_new_tokens = arguments.max_length - arguments.max_prompt_length
    if max_new_tokens < 1:
        raise ValueError(f"--max-length {arguments.max_length} leaves no token after --max-prompt-length")
    if arguments.rollouts < 1 or arguments.rollouts % arguments.batch_size:
        raise ValueError(f"--rollouts {arguments.rollouts} must be a multiple of --batch-size {arguments.batch_size}")
    if min(arguments.ppo_epochs, arguments.repeats) < 1 or arguments.warmup < 0:
        raise ValueError("--ppo-epochs and --repeats must be at least 1, and --warmup at least 0")
    prompts = [ids for ids in content["prompts"] if 0 < len(ids) <= arguments.max_prompt_length]
    if len(prompts) < len(content["prompts"]):
        print(f"{len(content['prompts']) - len(prompts)} prompts are empty or too long: left out", file=sys.stderr)
    if not prompts:
        raise ValueError(f"{arguments.prompts} has no prompt of 1 to {arguments.max_prompt_length} tokens")
    lm = [ids[: arguments.max_length] for ids in content.get("lm") or [] if len(ids) > 1]
    if arguments.lm and not lm:
        raise ValueError(f"--lm needs rows of at least 2 tokens under 'lm' in {arguments.prompts}")
    highest = max(max(ids) for ids in prompts + lm)
    if highest >= vocabulary:
        raise ValueError(f"{arguments.prompts} has the id {highest}, and the models know {vocabulary}")
    eos = _eos_token_ids(arguments, vocabulary)
    return Workload(
        prompts=list(islice(cycle(prompts), arguments.rollouts)),
        lm=[] if arguments.lm is False else lm,
        eos_token_ids=eos,
        pad_token_id=next((token for token in eos if token < vocabulary), 0),
        max_new_tokens=max_new_tokens,
    )


def _eos_token_ids(arguments: argparse.Namespace, vocabulary: int) -> list[int]:
    """The option's, else the first that a config or generation config names and the models can sample."""
    named = [arguments.eos_token_id]
    for folder in (arguments.student, arguments.teacher):
        named.append(getattr(AutoConfig.from_pretrained(folder).get_text_config(), "eos_token_id", None))
        if (folder / "generation_config.json").exists():
            named.append(GenerationConfig.from_pretrained(folder).eos_token_id)
    found = [[ids] if isinstance(ids, int) else list(ids) for ids in named if ids is not None and ids != []]
    if not found:
        raise ValueError(f"neither {arguments.student} nor {arguments.teacher} names its eos: pass --eos-token-id")
    usable = [ids for ids in found if min(ids) < vocabulary]
    if not usable:
        print(f"eos {found[0]} is outside the vocabulary: no response ends before its last token", file=sys.stderr)
    return (usable or found)[0]


def pad_rows(
    rows: list[list[int]], pad_token_id: int, *, left: bool, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return ids ``[B, L]`` int64 and mask ``[B, L]`` bool, L = ``width`` or the longest row."""
    width = width or max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_token_id)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row)
        mask[number, place] = True
    return ids, mask


def setting_fields(arguments: argparse.Namespace, workload: Workload) -> dict[str, Any]:
    """Return the options that a result depends on."""
    names = ("rollouts", "batch_size", "ppo_epochs", "max_prompt_length", "max_length", "teacher_mix_alpha", "seed")
    return {
        **{name: getattr(arguments, name) for name in names},
        "lm": bool(workload.lm),
        "device": arguments.device,
        "dtype": arguments.dtype,
    }
