"""Time TRL's DistillationTrainer on the prompts of a workload: ``reference_schedule.py --peer trl`` comes here.

What TRL does and what it does not: responses from the student alone (``--teacher-mix-alpha 0``), one optimiser step a
batch of them (``--ppo-epochs 1``), no pretraining batch; its loss is the reverse KL of every prefix, which is MiniLLM's
single-step term alone. Generation and update are not told apart: only ``total_s`` is measured, the time of ``train``.
TRL reads text; a tokenizer whose words are ``<0>``, ``<1>``, ... gives it the ids of the file.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from measure import Times, clock, machine, peak_device_mb, peak_rss_mb, rss_mb, summary
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from workload import GRADIENT_CLIP, OPTIMIZER, Workload, load_workload, setting_fields


def check(arguments: argparse.Namespace) -> None:
    """Say what TRL cannot do, before anything is loaded.

    Raises:
        ValueError: TRL is missing, or options that its trainer does not have.
    """
    if find_spec("trl") is None:
        raise ValueError("--peer trl needs TRL, which is not installed: pip install trl")
    if arguments.teacher_mix_alpha or arguments.ppo_epochs != 1 or arguments.lm:
        raise ValueError(
            "TRL samples from the student alone, once an optimiser step, without a pretraining batch: add"
            " --teacher-mix-alpha 0 --ppo-epochs 1 --no-lm"
        )


def tokenizer_of_numbers(vocabulary: int, workload: Workload) -> PreTrainedTokenizerFast:
    """Return a tokenizer for which token 17 is the word "<17>"; none is part of another, as "1" is of "17"."""
    words = Tokenizer(models.WordLevel({f"<{number}>": number for number in range(vocabulary)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    eos, pad = f"<{workload.eos_token_ids[0]}>", f"<{workload.pad_token_id}>"
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=eos, pad_token=pad, unk_token="<0>")


def as_text(ids: list[int]) -> str:
    """Return the text that the tokenizer reads as ``ids``.

    Example:
        >>> as_text([5, 17])
        '<5> <17>'
    """
    return " ".join(f"<{number}>" for number in ids)


def _train(arguments: argparse.Namespace, workload: Workload, folder: str) -> Times:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    student = AutoModelForCausalLM.from_pretrained(arguments.student)
    teacher = AutoModelForCausalLM.from_pretrained(arguments.teacher, dtype=arguments.dtype)
    config = DistillationConfig(
        output_dir=folder,
        per_device_train_batch_size=arguments.batch_size,
        max_steps=arguments.rollouts // arguments.batch_size,
        max_completion_length=workload.max_new_tokens,
        learning_rate=OPTIMIZER["lr"],
        adam_beta1=OPTIMIZER["betas"][0],
        adam_beta2=OPTIMIZER["betas"][1],
        adam_epsilon=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weight_decay"],
        max_grad_norm=GRADIENT_CLIP,
        beta=1.0,  # the reverse KL
        gradient_checkpointing=False,
        bf16=arguments.dtype == "bfloat16",
        use_cpu=arguments.device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        seed=arguments.seed,
    )
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": as_text(ids)} for ids in workload.prompts]),
        processing_class=tokenizer_of_numbers(student.config.vocab_size, workload),
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for the result
    device = torch.device(arguments.device)
    started = clock(device)
    trainer.train()
    return Times(0.0, clock(device) - started)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark; fields as in reference_schedule.py, ``rollout_s`` and ``update_s`` ``None``.

    Raises:
        ValueError: see :func:`check`.
    """
    check(arguments)
    torch.set_num_threads(arguments.threads)
    arguments.lm = False
    workload = load_workload(arguments)
    device = torch.device(arguments.device)
    start_rss = rss_mb()
    with tempfile.TemporaryDirectory() as folder:
        times = [_train(arguments, workload, folder) for _ in range(arguments.warmup + arguments.repeats)]
    fields = summary(times[arguments.warmup :])
    unknown = {name: None for name in fields if name.startswith(("rollout_s", "update_s"))}
    steps = arguments.rollouts // arguments.batch_size
    return {
        "benchmark": "outer_iteration",
        "implementation": f"trl {version('trl')} DistillationTrainer",
        "method": "on-policy reverse KL",
        **fields,
        **unknown,
        "steps": steps,
        "step_s": fields["total_s"] / steps,
        "start_rss_mb": start_rss,
        "peak_rss_mb": peak_rss_mb(),
        "peak_device_mb": peak_device_mb(device),
        **setting_fields(arguments, workload),
        **machine(device),
    }
