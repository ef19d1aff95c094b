from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from torch import Tensor

from lightning_minillm.losses import KDLoss
from lightning_minillm.modules import minillm
from lightning_minillm.rollout import SamplingConfig
from lightning_minillm.types import EvaluationBatch, PromptBatch, TokenBatch, TrainingData

VOCAB_SIZE = 37


class PromptSet:
    """A ``types.PromptSet``: given prompts, each with a random continuation as its pair."""

    def __init__(self, prompts: PromptBatch) -> None:
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts.indices)

    def prompt_batch(self, indices: Tensor) -> PromptBatch:
        return PromptBatch(self.prompts.input_ids[indices], self.prompts.attention_mask[indices], indices)

    def token_batch(self, indices: Tensor, normalizer: float) -> TokenBatch:
        return cut_tokens(random_tokens(len(self)), indices, normalizer)

    response_batch = token_batch


class Loader:
    """A sized loader over given batches; Lightning would take a list for several loaders."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class LMStream:
    """A ``types.TokenBatches`` of random blocks."""

    def __init__(self, micro_batch_size: int, accumulation: int) -> None:
        self.micro_batch_size, self.accumulation = micro_batch_size, accumulation

    def batch(self, step: int) -> TokenBatch:
        # cut from the batch of the whole optimiser step, so that micro-batches of any size hold the same rows
        optimiser_step, micro = divmod(step, self.accumulation)
        size = self.micro_batch_size * self.accumulation
        whole = random_tokens(size, seed=1000 + optimiser_step)
        rows = torch.arange(size)[micro * self.micro_batch_size :][: self.micro_batch_size]
        return cut_tokens(whole, rows, int(whole.target_mask.sum()) / self.accumulation)


class TinyData(LightningDataModule):
    """A ``types.TrainingData``: 20 prompts, their pairs, and a pretraining stream."""

    def __init__(
        self,
        prompts: PromptBatch,
        *,
        batch_size: int = 8,
        micro_batch_size: int = 8,
        lm: bool = True,
        validation: Iterable[EvaluationBatch] = (),
        train_batches: Iterable[TokenBatch] | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.accumulation = batch_size // micro_batch_size
        self.train_set = PromptSet(prompts)
        self.lm_stream = LMStream(micro_batch_size, self.accumulation) if lm else None
        self.validation, self.train_batches = list(validation), train_batches

    def pair_loader(self) -> list[TokenBatch]:
        rows = torch.arange(len(self.train_set)).split(self.micro_batch_size)
        return [self.train_set.token_batch(share, 1.0) for share in rows]

    def train_dataloader(self):
        if self.train_batches is not None:
            return Loader(self.train_batches)
        return self.trainer.lightning_module.build_train_loader(self)

    def val_dataloader(self):
        return Loader(self.validation[self.trainer.global_rank :: self.trainer.world_size])

    def test_dataloader(self):
        return self.val_dataloader()


def random_tokens(count: int, seed: int = 0, width: int = 9) -> TokenBatch:
    """Right-padded sequences, whose targets are all tokens after the second."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCAB_SIZE, (count, width), generator=generator)
    lengths = torch.randint(4, width + 1, (count, 1), generator=generator)
    mask = torch.arange(width) < lengths
    target_mask = mask & (torch.arange(width) > 1)
    ids = ids.masked_fill(~mask, 0)
    return TokenBatch(ids, mask, target_mask, torch.arange(count), float(target_mask.sum()))


def cut_tokens(batch: TokenBatch, rows: Tensor, normalizer: float) -> TokenBatch:
    return TokenBatch(
        batch.input_ids[rows], batch.attention_mask[rows], batch.target_mask[rows], batch.indices[rows], normalizer
    )


class Recorder(Callback):
    """Keeps what was logged at every step, the batches, and the buffer's rollouts."""

    def __init__(self):
        self.steps, self.batches, self.lr = [], [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.batches.append(batch)
        self.lr.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture(scope="session")
def make_tokens():
    """``make_tokens(count, seed=0)``."""
    return random_tokens


@pytest.fixture(scope="session")
def cut():
    """``cut(tokens, rows, normalizer)``."""
    return cut_tokens


@pytest.fixture(scope="session")
def make_data(make_prompts):
    """``make_data(batch_size=8, micro_batch_size=8, lm=True, ...)``: 20 prompts."""

    def make(**options: Any) -> TrainingData:
        lengths = torch.randint(1, 8, (20,), generator=torch.Generator().manual_seed(3)).tolist()
        return TinyData(make_prompts(lengths), **options)

    return make


@pytest.fixture(scope="session")
def make_evaluation(make_prompts, tokenizer):
    """``make_evaluation(lengths, exact=..., first_index=0)``: prompts, references and teacher-forced rows."""

    def make(lengths=(5, 3, 7, 1), exact=(True, False, True, False), seed=0, first_index=0):
        prompts = make_prompts(lengths, seed=seed, first_index=first_index)
        generator = torch.Generator().manual_seed(seed + 1)
        rows, references = [], []
        for ids, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True):
            answer = torch.randint(1, VOCAB_SIZE, (3,), generator=generator)
            rows.append((ids[mask], torch.cat([answer, torch.zeros(1, dtype=torch.int64)])))
            references.append((tokenizer.decode(answer), "w1 w2"))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask, target_mask = torch.zeros(2, len(rows), width, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.cat([prompt, answer])
            mask[row, :end] = True
            target_mask[row, len(prompt) : end] = True
        return EvaluationBatch(
            prompts=prompts,
            tokens=TokenBatch(ids, mask, target_mask, prompts.indices, float(target_mask.sum())),
            references=tuple(references),
            tasks=tuple("capital" if flag else "story" for flag in exact),
            exact=tuple(exact),
            prompt_texts=tuple(f"prompt {i}" for i in prompts.indices.tolist()),
        )

    return make


@pytest.fixture(scope="session")
def make_trainer(tmp_path_factory):
    """A quiet trainer on the CPU."""
    root = tmp_path_factory.mktemp("trainer")

    def make(**options):
        quiet = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": root,
        }
        return Trainer(**{**quiet, **options})

    return make


@pytest.fixture(scope="session")
def sgd():
    """``sgd(lr)``: an optimiser factory whose one step shows the gradient."""
    return lambda lr=1.0: partial(torch.optim.SGD, lr=lr)


@pytest.fixture(scope="session")
def adamw():
    """``adamw(lr)``: an optimiser factory."""
    return lambda lr=1e-2: partial(torch.optim.AdamW, lr=lr)


@pytest.fixture(scope="session")
def weights_of():
    """All weights of a model as one vector, copied."""
    return lambda model: torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


@pytest.fixture(scope="session")
def make_minillm(make_model, tokenizer, adamw, options_of):
    """A MiniLLM module of tiny models: phases of 16 rollouts, two passes."""

    def make(student="gpt2", teacher="gpt2", student_options=None, teacher_options=None, **options):
        defaults = {
            "teacher": make_model(teacher, seed=2, **(teacher_options or {})),
            "optimizer": adamw(),
            "sampling": SamplingConfig(max_new_tokens=8),
            "num_rollouts": 16,
            "ppo_epochs": 2,
            "rollout_batch_size": 5,
            "pretraining_loss": KDLoss(0.5),
            "validation_sampling": SamplingConfig(max_new_tokens=8, teacher_mix_alpha=0.0),
        }
        return minillm(
            make_model(student, seed=1, **(student_options or {})), tokenizer, **options_of(options, defaults)
        )

    return make


@pytest.fixture(scope="session")
def make_recorder():
    """A callback that keeps ``steps`` (what was logged), ``batches`` and ``lr``."""
    return Recorder
