"""What ranks run: training of tiny models, each run a function of plain arguments."""

import logging
import runpy
import warnings
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_minillm.data import BatchOptions, DistillationDataModule, InstructionRecord, Lengths, PlainTemplate
from lightning_minillm.distributed.sharding import full_state_dict
from lightning_minillm.losses import ReverseKL
from lightning_minillm.models import load_causal_lm
from lightning_minillm.models.lora import add_lora
from lightning_minillm.modules import minillm, on_policy_kd
from lightning_minillm.rollout import AdaptiveReplay, SamplingConfig
from lightning_minillm.strategies import AtomicCheckpointIO, ShardedStrategy

for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore")
TINY = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"), run_name="tiny")
STRATEGIES = {
    "auto": lambda **_: "auto",
    "ddp": lambda **_: L.pytorch.strategies.DDPStrategy(),
    "fsdp": ShardedStrategy,
}


class Recorder(Callback):
    """Keeps the losses that were logged, and the rollouts of each phase as rows by their number."""

    def __init__(self):
        self.metrics, self.phases = [], {}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        buffer = module.phases.buffer
        rows = buffer.local_rows().tolist()
        ids, mask = buffer._rollouts.response_ids, buffer._rollouts.response_mask
        self.phases[buffer.phase] = {row: ids[i][mask[i]].tolist() for i, row in enumerate(rows)}


def make_records(count):
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 7, (count, 2), generator=generator).tolist()
    words = torch.randint(1, TINY["VOCAB_SIZE"], (count, 12), generator=generator).tolist()
    return [
        InstructionRecord(_words(row[:p]), "", (_words(row[6 : 6 + r]),))
        for (p, r), row in zip(lengths, words, strict=True)
    ]


def _words(numbers):
    return " ".join(f"w{number}" for number in numbers)


def make_data(tokenizer, batch_size, micro_batch_size):
    return DistillationDataModule(
        make_records(60),
        make_records(12),
        tokenizer=tokenizer,
        template=PlainTemplate(),
        lm_corpus="pairs",
        lengths=Lengths(max_length=24, max_prompt_length=12),
        batches=BatchOptions(batch_size, micro_batch_size, eval_batch_size=4),
    )


def build_lora(family):
    return add_lora(TINY["build_model"](family, seed=1), rank=4, target_modules="all-linear", dropout=0.0)


def train(
    strategy="auto",
    options=None,
    *,
    family="llama",
    steps=12,
    micro_batch_size=None,
    batch_size=12,
    devices=None,
    fit=None,
    callbacks=(),
    validate=True,
    module_options=None,
    max_new_tokens=8,
    optimizer="AdamW",
    export=None,
    lora=False,
    lr=1e-3,
    quantized_teacher=None,
    on_policy=None,
    load_first=False,
):
    """Train MiniLLM, or on-policy distillation where its options are given, for phases of four steps.

    Returns weights, metrics, and rollouts.
    """
    devices = devices or torch.distributed.get_world_size()
    made = STRATEGIES[strategy](**(options or {}))
    data_ranks = devices // (options or {}).get("tensor_parallel_size", 1)
    micro = micro_batch_size or batch_size // data_ranks
    tokenizer = TINY["build_word_tokenizer"]()
    build = TINY["build_model"]
    teacher = (
        partial(load_causal_lm, quantized_teacher, quantization="4bit")
        if quantized_teacher
        else partial(build, family, seed=2)
    )
    common = {
        "optimizer": partial(getattr(torch.optim, optimizer), lr=lr),
        "sampling": SamplingConfig(max_new_tokens=max_new_tokens, teacher_mix_alpha=0.2 if on_policy is None else 0.0),
        "validation_sampling": SamplingConfig(max_new_tokens=4, teacher_mix_alpha=0.0),
        "num_rollouts": 24,
        "ppo_epochs": 2,
        "rollout_batch_size": 4,
    }
    kind = minillm
    if on_policy is not None:
        kind = on_policy_kd
        common |= {"loss": ReverseKL(), "source": AdaptiveReplay(**on_policy), "loss_temperature": 1.0}
    module = kind(
        partial(build_lora, family) if lora else partial(build, family, seed=1),
        tokenizer,
        teacher=teacher,
        **TINY["group_options"](module_options or {}, common),
    )
    if load_first:
        module.configure_model()
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=made,
        max_steps=steps,
        accumulate_grad_batches=batch_size // (micro * data_ranks),
        gradient_clip_val=1.0,
        callbacks=[recorder, *callbacks],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        use_distributed_sampler=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        limit_val_batches=1.0 if validate else 0,
        log_every_n_steps=1,
    )
    trainer.fit(module, make_data(tokenizer, batch_size, micro), **(fit or {}))
    if export is not None:
        module.export(export)
    return {
        "weights": full_state_dict(module.student),
        "metrics": recorder.metrics,
        "last": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "phases": recorder.phases,
    }
