"""The prompts that an evaluation lets models respond to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from lightning_minillm.data import EncodedInstructions, Lengths, PromptTemplate, RecordSource, encode_records
from lightning_minillm.evaluation.data_sets import batches_by_length, digest_of_data
from lightning_minillm.evaluation.items import ItemNumbers
from lightning_minillm.rollout import SamplingConfig


class PromptSets:
    """Data sets of instructions, and how models respond to them; an item is one prompt with one sampling seed.

    Args:
        sources: of instruction records, by the name of the data set. With one data set, metrics have plain names; with
            several, its name comes first.
        template: makes the prompts.
        sampling: how a model is sampled; ``teacher_mix_alpha`` must be 0.
        max_length: maximum number of tokens of prompt and reference; longer references are cut.
        max_prompt_length: maximum number of tokens of a prompt; longer prompts are left out.
        batch_size: number of rows that one rank processes together.
        seeds: of sampling, at least one.
        cache_dir: folder for tokenised data; ``None`` tokenises every time.

    Attributes:
        data: the tokenised data sets by name; empty until :meth:`prepare`.

    Raises:
        ValueError: there is no data set or no seed, a seed occurs twice, sampling mixes in a teacher, or the lengths
            contradict each other.
    """

    def __init__(
        self,
        sources: Mapping[str, RecordSource],
        template: PromptTemplate,
        sampling: SamplingConfig,
        *,
        max_length: int = 512,
        max_prompt_length: int = 256,
        batch_size: int = 64,
        seeds: Sequence[int] = (10, 20, 30, 40, 50),
        cache_dir: str | None = None,
    ) -> None:
        if not sources:
            raise ValueError("there is no data set to respond to: name at least one")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"seeds must be different sampling seeds, at least one, such as [10, 20], got {list(seeds)}"
            )
        if sampling.teacher_mix_alpha != 0:
            raise ValueError(
                f"every model is sampled on its own here: set teacher_mix_alpha=0, got {sampling.teacher_mix_alpha}"
            )
        self.sources = dict(sources)
        self.template = template
        self.sampling = sampling
        self.lengths = Lengths(max_length, max_prompt_length)
        self.batch_size = batch_size
        self.seeds = tuple(seeds)
        self.cache_dir = cache_dir
        self.data: dict[str, EncodedInstructions] = {}
        self._numbers = ItemNumbers({})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(self.sources)

    @property
    def num_rows(self) -> int:
        """Number of rows of all data sets together, which is the number of items per seed."""
        return self._numbers.total

    @property
    def num_dropped(self) -> int:
        """Number of prompts that were left out because they are too long."""
        return sum(data.num_dropped for data in self.data.values())

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise the data sets.

        Raises:
            ValueError: data is missing, is empty or lacks a field.
        """
        for name, source in self.sources.items():
            self.data[name] = encode_records(name, source, tokenizer, self.template, self.lengths, self.cache_dir)
        self._numbers = ItemNumbers({name: len(data) for name, data in self.data.items()})

    def batches(self) -> list[list[int]]:
        """Return all items, seed by seed, each data set's rows in batches of prompts of similar length."""
        per_seed = [
            self._numbers.number(name, rows)
            for name, data in self.data.items()
            for rows in batches_by_length(data, self.batch_size)
        ]
        return [[place * self.num_rows + row for row in rows] for place in range(len(self.seeds)) for rows in per_seed]

    def find(self, items: Sequence[int]) -> tuple[int, str, list[int]]:
        """Return the sampling seed, the data set, and its row for each item of a batch.

        Raises:
            IndexError: the items belong to no seed, or not all to one data set and seed.
        """
        place = items[0] // max(1, self.num_rows)
        if not 0 <= place < len(self.seeds):
            raise IndexError(f"items must be in [0, {len(self.seeds) * self.num_rows}), got {items[0]}")
        return self.seeds[place], *self._numbers.find([item - place * self.num_rows for item in items])

    def identity(self) -> dict[str, Any]:
        """Return seeds, sampling, and a digest of prompts and references."""
        return {
            "seeds": list(self.seeds),
            "sampling": asdict(self.sampling),
            "batch_size": self.batch_size,
            "max_length": self.lengths.max_length,
            "max_prompt_length": self.lengths.max_prompt_length,
            "data": digest_of_data(self.data, self.template),
        }


class PromptItems:
    """What evaluations of responses share: their items are those of ``prompts``.

    Put it before :class:`~lightning_minillm.evaluation.Evaluation` among the bases, and set ``prompts``.
    """

    name: ClassVar[str]
    prompts: PromptSets

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise the data sets."""
        self.prompts.prepare(tokenizer)

    def batches(self) -> list[list[int]]:
        """Return the batches of the prompts."""
        return self.prompts.batches()

    def identity(self) -> dict[str, Any]:
        """Return the name, and what determines the prompts and responses."""
        return {"name": self.name, **self.prompts.identity()}
