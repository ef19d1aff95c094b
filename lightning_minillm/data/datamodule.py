"""The Lightning data module: what every stage of a distillation reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_minillm.batch_sizes import BatchSizes, divide
from lightning_minillm.data.batches import EvaluationLoader, LMStream, TokenLoader
from lightning_minillm.data.corpus import DocumentSource, PackedCorpus
from lightning_minillm.data.encoding import EncodedInstructions
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.templates import AlpacaTemplate, PromptTemplate
from lightning_minillm.distributed.ranks import data_rank, data_world_size
from lightning_minillm.types import DeviceMovable, TrainLoaderBuilder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "validation", "test")
PAIRS = "pairs"


class RecordSource(Protocol):
    """Where records come from: ``InstructionSource``, ``SyntheticSource`` or your own."""

    def load(self) -> list[InstructionRecord]:
        """Return the records."""
        ...


Records = RecordSource | Callable[[], Sequence[InstructionRecord]] | Sequence[InstructionRecord]


class DistillationDataModule(LightningDataModule):
    """Instruction pairs for training, prompts with references for evaluation, and plain text beside them.

    Everything is read when it is first needed, and at the latest before a run begins. Batch sizes are global.

    Args:
        train: training records (a source, a callable that returns records, or the records), or ``None``.
        validation: likewise.
        test: likewise.
        tokenizer: of student and teacher.
        lm_corpus: documents for the pretraining loss (a ``CorpusSource``, a list of texts); ``"pairs"`` for the
            training pairs themselves, where teacher and student know no other text; or ``None``.
        template: makes prompts; the paper's by default.
        max_length: tokens of prompt and response together, at most.
        max_prompt_length: tokens of a prompt, at most; longer ones are dropped and counted.
        batch_size: rows of an optimiser step over all ranks.
        micro_batch_size: rows of a forward pass on one rank; ``None`` for ``batch_size / ranks``. The trainer's
            ``accumulate_grad_batches`` must be :attr:`accumulation`.
        eval_batch_size: rows of an evaluation batch on one rank, at most.
        lm_max_length: tokens of a block of plain text; ``max_length`` by default.
        lm_batch_size: blocks of plain text of an optimiser step over all ranks; ``batch_size`` by default.
        seed: of every order.
        cache_dir: folder for tokenised data; ``None`` tokenises every time.
        limits: at most so many records of a split, e.g. ``{"train": 1000}``.

    Raises:
        ValueError: when ``max_length`` leaves no room for a response, or a limit names no split.
    """

    def __init__(
        self,
        train: Records | None = None,
        validation: Records | None = None,
        test: Records | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        lm_corpus: DocumentSource | Sequence[str] | str | None = None,
        template: PromptTemplate | None = None,
        max_length: int = 512,
        max_prompt_length: int = 256,
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        eval_batch_size: int = 32,
        lm_max_length: int | None = None,
        lm_batch_size: int | None = None,
        seed: int = 0,
        cache_dir: str | Path | None = None,
        limits: Mapping[str, int | None] | None = None,
    ) -> None:
        super().__init__()
        if tokenizer is None:
            raise ValueError("DistillationDataModule needs the tokenizer of student and teacher: pass tokenizer=...")
        if max_length <= max_prompt_length:
            raise ValueError(
                f"max_length={max_length} must be greater than max_prompt_length={max_prompt_length}: it counts prompt "
                "and response together."
            )
        if isinstance(lm_corpus, str) and lm_corpus != PAIRS:
            raise ValueError(f"lm_corpus must be a source, a list of texts, {PAIRS!r} or null; got {lm_corpus!r}.")
        unknown = set(limits or ()) - set(SPLITS)
        if unknown:
            raise ValueError(f"limits names {', '.join(map(repr, sorted(unknown)))}: use {', '.join(SPLITS)}.")
        self.sources = {"train": train, "validation": validation, "test": test}
        self.tokenizer = tokenizer
        self.template = template or AlpacaTemplate()
        self.max_length = max_length
        self.max_prompt_length = max_prompt_length
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.lm_batch_size = lm_batch_size or batch_size
        self.lm_max_length = lm_max_length or max_length
        self.seed = seed
        self.cache_dir = cache_dir
        self.limits = dict(limits or {})
        self._micro_batch_size = micro_batch_size
        self._lm_corpus_source = lm_corpus

    # --- ranks and sizes --------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This process among those with data of their own; 0 without a trainer."""
        return data_rank(self.trainer) if self.trainer is not None else 0

    @property
    def world_size(self) -> int:
        """Number of processes with data of their own; 1 without a trainer."""
        return data_world_size(self.trainer) if self.trainer is not None else 1

    @property
    def sizes(self) -> BatchSizes:
        """Batch sizes of this run.

        Raises:
            ValueError: the batch size does not divide.
        """
        return BatchSizes.of(self.batch_size, self._micro_batch_size, self.world_size)

    @property
    def micro_batch_size(self) -> int:
        """Rows of a forward pass on one rank.

        Raises:
            ValueError: the batch size does not divide.
        """
        return self.sizes.micro_batch_size

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimiser step on one rank: the value for ``accumulate_grad_batches``.

        Raises:
            ValueError: the batch size does not divide.
        """
        return self.sizes.accumulation

    # --- data sets --------------------------------------------------------------------------------------------------

    @cached_property
    def train_set(self) -> EncodedInstructions:
        """Training pairs."""
        return self._encode("train")

    @cached_property
    def validation_set(self) -> EncodedInstructions:
        """Validation prompts with their references."""
        return self._encode("validation")

    @cached_property
    def test_set(self) -> EncodedInstructions:
        """Test prompts with their references."""
        return self._encode("test")

    @cached_property
    def lm_corpus(self) -> PackedCorpus | EncodedInstructions | None:
        """Blocks of plain text, or the training pairs, or ``None`` without a corpus."""
        if self._lm_corpus_source is None:
            return None
        if self._lm_corpus_source == PAIRS:
            return self.train_set
        return PackedCorpus(
            self._lm_corpus_source, self.tokenizer, max_length=self.lm_max_length, cache_dir=self.cache_dir
        )

    def _encode(self, split: str) -> EncodedInstructions:
        source = self.sources[split]
        if source is None:
            raise ValueError(f"The data module has no {split} records: pass {split}=... (a source, or records).")
        records = list(source.load() if hasattr(source, "load") else source() if callable(source) else source)
        limit = self.limits.get(split)
        encoded = EncodedInstructions(
            records[:limit],
            self.tokenizer,
            self.template,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            cache_dir=self.cache_dir,
        )
        if encoded.num_dropped:
            rank_zero_warn(
                f"{split}: {encoded.num_dropped} of {len(encoded) + encoded.num_dropped} prompts have more than "
                f"max_prompt_length={self.max_prompt_length} tokens and are left out."
            )
        rank_zero_info(
            f"{split}: {len(encoded)} records, {encoded.lengths.float().mean():.0f} tokens on average, "
            f"{encoded.num_truncated} responses cut at max_length={self.max_length}."
        )
        return encoded

    def prepare_data(self) -> None:
        """Read and tokenise on one process: errors show before work starts, and the others find the cache."""
        for split, source in self.sources.items():
            if source is not None:
                getattr(self, f"{split}_set")
        _ = self.lm_corpus

    def setup(self, stage: str) -> None:
        """Check the batch size against the ranks.

        Raises:
            ValueError: when it does not divide.
        """
        if stage == "fit":
            _ = self.accumulation

    # --- loaders ----------------------------------------------------------------------------------------------------

    @property
    def lm_stream(self) -> LMStream | None:
        """Endless stream of plain-text micro-batches, as many a step as :attr:`accumulation`; ``None`` without a
        corpus.

        Raises:
            ValueError: when ``lm_batch_size`` does not divide.
        """
        if self.lm_corpus is None:
            return None
        slots = self.world_size * self.accumulation
        micro_batch_size = divide(self.lm_batch_size, slots, "lm_batch_size", "devices x accumulated micro-batches")
        return LMStream(
            self.lm_corpus,
            self.lm_batch_size,
            micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.seed,
        )

    def pair_loader(self) -> TokenLoader:
        """Return the training pairs as this rank's micro-batches."""
        return TokenLoader(
            self.train_set,
            self.batch_size,
            self.micro_batch_size,
            rank=self.rank,
            world_size=self.world_size,
            seed=self.seed,
        )

    def train_dataloader(self) -> Iterable[DeviceMovable]:
        """Return the loader that the module builds if it is a ``TrainLoaderBuilder``, else the pairs."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        return module.build_train_loader(self) if isinstance(module, TrainLoaderBuilder) else self.pair_loader()

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Return this rank's validation batches; none without validation records."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """Return this rank's test batches; none without test records."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> EvaluationLoader | list[Any]:
        if self.sources[split] is None:
            return []
        return EvaluationLoader(
            getattr(self, f"{split}_set"), self.eval_batch_size, rank=self.rank, world_size=self.world_size
        )
