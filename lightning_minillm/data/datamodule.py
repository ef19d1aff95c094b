"""The Lightning data module, which every stage of a distillation reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_minillm.batch_sizes import BatchSizes, divide
from lightning_minillm.data.batches import EvaluationLoader, LMStream, TokenLoader
from lightning_minillm.data.chat import Targets, check_targets
from lightning_minillm.data.contents import contents_of_corpus, contents_of_records, describe_change
from lightning_minillm.data.corpus import DocumentSource, PackedCorpus
from lightning_minillm.data.encoding import EncodedInstructions, Lengths
from lightning_minillm.data.reading import encode_records
from lightning_minillm.data.records import InstructionRecord
from lightning_minillm.data.sources import RecordSource
from lightning_minillm.data.templates import PromptTemplate, as_template, bind_template
from lightning_minillm.data.token_rows import RowEncoder
from lightning_minillm.distributed.placement import placement_of
from lightning_minillm.tokens import AddBos, begin_ids
from lightning_minillm.types import DeviceMovable, TrainLoaderBuilder

PAIRS = "pairs"
Records = RecordSource | Sequence[InstructionRecord]


@dataclass(frozen=True)
class BatchOptions:
    """Numbers of rows per batch."""

    batch_size: int = 64
    """Rows of an optimiser step over all ranks."""
    micro_batch_size: int | None = None
    """Rows of a forward pass on one rank; ``None`` for ``batch_size / ranks``."""
    eval_batch_size: int = 32
    """Most rows of an evaluation batch on one rank."""
    lm_batch_size: int | None = None
    """Blocks of plain text of an optimiser step over all ranks; ``None`` for ``batch_size``."""
    seed: int = 0
    """Seed of every order."""


class DistillationDataModule(LightningDataModule):
    """Instruction pairs for training, prompts with references for evaluation, and plain text for the pretraining loss.

    Data is read when it is first needed, and before a run begins. The trainer's ``accumulate_grad_batches`` must be
    :attr:`accumulation`.

    Args:
        train: training records (a source or a list), or ``None``.
        validation: validation records (a source or a list), or ``None``.
        test: test records (a source or a list), or ``None``.
        tokenizer: of student and teacher.
        lm_corpus: documents for the pretraining loss (a ``CorpusSource`` or a list of texts); ``"pairs"`` for the
            training pairs, if no plain text fits the teacher; or ``None``.
        template: makes the prompts, as an object or by name (:func:`~lightning_minillm.data.as_template`). By default
            conversations take the tokenizer's chat format, if it has one, and everything else the paper's template.
        targets: which turns of the assistant in a conversation are learned from: ``"all"``, or the ``"last"`` alone.
        add_bos: what prompts and documents begin with: what the tokenizer puts before texts (``"auto"``), its begin
            token (``True``) or nothing (``False``).
        lengths: limits on prompts, pairs and blocks of plain text, and where token ids are kept.
        batches: numbers of rows per batch, and the seed of their order.

    Raises:
        ValueError: ``lm_corpus`` is a string other than ``"pairs"``, or there is no such template.
    """

    def __init__(
        self,
        train: Records | None = None,
        validation: Records | None = None,
        test: Records | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        lm_corpus: DocumentSource | Sequence[str] | str | None = None,
        template: PromptTemplate | str | None = None,
        targets: Targets = "all",
        add_bos: AddBos = "auto",
        lengths: Lengths | None = None,
        batches: BatchOptions | None = None,
    ) -> None:
        super().__init__()
        if isinstance(lm_corpus, str) and lm_corpus != PAIRS:
            raise ValueError(f"lm_corpus must be a source, a list of texts, {PAIRS!r} or null, got {lm_corpus!r}")
        self.sources = {"train": train, "validation": validation, "test": test}
        self.tokenizer = tokenizer
        self.template = as_template(template)
        self.targets = check_targets(targets)
        self.add_bos = add_bos
        begin_ids(tokenizer, add_bos)  # checks it
        self.lengths = lengths or Lengths()
        self.batches = batches or BatchOptions()
        self._lm_corpus_source = lm_corpus
        self._encoded: dict[str, EncodedInstructions] = {}
        self._teacher: RowEncoder | None = None

    def use_teacher_template(
        self, template: PromptTemplate | str, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Show the teacher prompts of its own, with the same responses.

        Args:
            template: as for the data module.
            tokenizer: the teacher's, whose chat format a chat template takes; ``None`` for that of the data.

        Raises:
            ValueError: there is no such template, or data were read already.
        """
        if self._encoded:
            raise ValueError("the data were read already: call use_teacher_template before")
        tokenizer = tokenizer or self.tokenizer
        self._teacher = RowEncoder(bind_template(template, tokenizer), tokenizer, "last", self.add_bos)

    # --- ranks and sizes --------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """Number of this process among those with data of their own; 0 without a trainer."""
        return placement_of(self.trainer).data_rank

    @property
    def world_size(self) -> int:
        """Number of processes with data of their own; 1 without a trainer."""
        return placement_of(self.trainer).data_world_size

    @property
    def sizes(self) -> BatchSizes:
        """The global batch divided over ranks and micro-batches, or ``ValueError`` if it does not divide."""
        return BatchSizes.of(self.batches.batch_size, self.batches.micro_batch_size, self.world_size)

    @property
    def batch_size(self) -> int:
        """Rows of an optimiser step over all ranks."""
        return self.batches.batch_size

    @property
    def micro_batch_size(self) -> int:
        """Rows of a forward pass on one rank."""
        return self.sizes.micro_batch_size

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimiser step on one rank: the value for ``accumulate_grad_batches``."""
        return self.sizes.accumulation

    # --- data sets --------------------------------------------------------------------------------------------------

    @property
    def train_set(self) -> EncodedInstructions:
        """Training pairs."""
        return self._data_set("train")

    @property
    def validation_set(self) -> EncodedInstructions:
        """Validation prompts with their references."""
        return self._data_set("validation")

    @property
    def test_set(self) -> EncodedInstructions:
        """Test prompts with their references."""
        return self._data_set("test")

    def _data_set(self, split: str) -> EncodedInstructions:
        if split not in self._encoded:
            source = self.sources[split]
            if source is None:
                raise ValueError(f"the data module has no {split} records: pass {split}=... (a source or a list)")
            arguments = (self.tokenizer, self.template, self.lengths, self.targets, self.add_bos, self._teacher)
            self._encoded[split] = encode_records(split, source, *arguments)
        return self._encoded[split]

    @cached_property
    def lm_corpus(self) -> PackedCorpus | EncodedInstructions | None:
        """Blocks of plain text, or the training pairs, or ``None`` without a corpus."""
        if self._lm_corpus_source is None:
            return None
        if isinstance(self._lm_corpus_source, str):
            return self.train_set
        max_length = self.lengths.lm_max_length or self.lengths.max_length
        return PackedCorpus(
            self._lm_corpus_source,
            self.tokenizer,
            max_length=max_length,
            cache_dir=self.lengths.cache_dir,
            add_bos=self.add_bos,
        )

    def longest_rows(self) -> dict[str, tuple[int, int]]:
        """Return the tokens of the longest prompt, and of the longest pair, of every split that was read.

        They are those of the student or of the teacher, whichever are more.
        """
        return {
            split: (int(torch.maximum(data.prompt_lengths, data.teacher_lengths).max()), int(data.longest.max()))
            for split, data in self._encoded.items()
        }

    def rows_with(self, token_ids: Sequence[int]) -> dict[str, list[int]]:
        """Return the training and validation rows and the blocks of the corpus that have any of these ids."""
        data: dict[str, EncodedInstructions | PackedCorpus] = dict(self._encoded)
        data.pop("test", None)  # read in tests alone
        if isinstance(self.lm_corpus, PackedCorpus):
            data["corpus"] = self.lm_corpus
        return {name: rows for name, found in data.items() if (rows := found.rows_with(token_ids))}

    def prepare_data(self) -> None:
        """Read and tokenise on one process, so that errors show early and the other processes find the cache."""
        for split, source in self.sources.items():
            if source is not None:
                self._data_set(split)
        _ = self.lm_corpus

    @cached_property
    def contents(self) -> dict[str, dict[str, Any]]:
        """Numbers and digests of training and validation records and of the corpus, as far as there are any."""
        splits = [split for split in ("train", "validation") if self.sources[split] is not None]
        found = {split: contents_of_records(self._data_set(split).records) for split in splits}
        corpus = self.lm_corpus
        return found | ({"corpus": contents_of_corpus(corpus)} if isinstance(corpus, PackedCorpus) else {})

    def state_dict(self) -> dict[str, Any]:
        """Return the contents, by which a resumed run recognises its data."""
        return {"contents": self.contents}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare the data with those of a checkpoint.

        Raises:
            ValueError: training records or corpus have changed, so that positions in them mean something else.
        """
        before = state.get("contents", {})
        changes = {name: describe_change(before[name], now) for name, now in self.contents.items() if name in before}
        if validation := changes.pop("validation", ""):
            rank_zero_warn(
                f"validation data have changed since the checkpoint: {validation}; metrics are not comparable"
            )
        if found := [f"{name}: {change}" for name, change in changes.items() if change]:
            raise ValueError(
                f"the data have changed since the checkpoint ({'; '.join(found)}): resume with the data that it was "
                "made with, or start again with resume=never or a different output_dir"
            )

    def setup(self, stage: str) -> None:
        """Check that the batch size divides over the ranks."""
        if stage == "fit":
            _ = self.sizes

    # --- loaders ----------------------------------------------------------------------------------------------------

    @property
    def lm_stream(self) -> LMStream | None:
        """Endless stream of plain-text micro-batches, :attr:`accumulation` per step; ``None`` without a corpus.

        Raises:
            ValueError: ``lm_batch_size`` does not divide.
        """
        if self.lm_corpus is None:
            return None
        batch_size = self.batches.lm_batch_size or self.batches.batch_size
        shares = self.world_size * self.accumulation
        micro_batch_size = divide(batch_size, shares, "lm_batch_size", "devices x accumulated micro-batches")
        return LMStream(self.lm_corpus, batch_size, micro_batch_size, **self._place, seed=self.batches.seed)

    @property
    def _place(self) -> dict[str, int]:
        return {"rank": self.rank, "world_size": self.world_size}

    def pair_loader(self) -> TokenLoader:
        """Return the training pairs as this rank's micro-batches."""
        return TokenLoader(
            self.train_set, self.batch_size, self.micro_batch_size, **self._place, seed=self.batches.seed
        )

    def train_dataloader(self) -> Iterable[DeviceMovable]:
        """Return the loader that the module builds if it is a ``TrainLoaderBuilder``, else the pairs."""
        module = self.trainer.lightning_module if self.trainer is not None else None
        return module.build_train_loader(self) if isinstance(module, TrainLoaderBuilder) else self.pair_loader()

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Return this rank's validation batches; an empty list without validation records."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """Return this rank's test batches; an empty list without test records."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> EvaluationLoader | list[Any]:
        if self.sources[split] is None:
            return []
        return EvaluationLoader(self._data_set(split), self.batches.eval_batch_size, **self._place)
