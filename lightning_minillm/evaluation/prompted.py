"""The base of evaluations in which models respond to the prompts of data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from lightning_minillm.evaluation.base import Evaluation, Measure, Picture
from lightning_minillm.evaluation.data_sets import batches_by_length, encode_source
from lightning_minillm.evaluation.items import ItemNumbers, metric_name, picture_title
from lightning_minillm.files import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lightning_minillm.data import EncodedInstructions, PromptTemplate, RecordSource
    from lightning_minillm.rollout import SamplingConfig


class PromptedEvaluation(Evaluation):
    """Reads data sets of instructions; an item is one prompt with one sampling seed.

    Args:
        sources: of instruction records, by the name of the data set. With one, metrics have plain names; with several,
            the data set's before theirs.
        template: makes the prompts.
        sampling: how a model is sampled (``teacher_mix_alpha`` must be 0).
        max_length: tokens of prompt and reference together, at most; longer references are cut.
        max_prompt_length: tokens of a prompt, at most; longer ones are left out.
        batch_size: rows that advance together on one rank.
        seeds: of sampling, at least one.
        cache_dir: folder for tokenised data; ``None`` tokenises every time.

    Raises:
        ValueError: no data set, no seed, the same seed twice, or sampling that mixes in a teacher.
    """

    measures_of_a_set: Mapping[str, Measure]
    """How the metrics of one data set are shown."""
    pictures_of_a_set: Mapping[str, Picture] = {}
    """The pictures of one data set."""

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
            raise ValueError(f"{self.name} has no data set to respond to: name at least one")
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(
                f"seeds is empty or names one twice; give sampling seeds such as [10, 20], got {list(seeds)}"
            )
        if sampling.teacher_mix_alpha != 0:
            raise ValueError(f"{self.name} samples every model by itself: set teacher_mix_alpha=0")
        self.sources = dict(sources)
        self.template = template
        self.sampling = sampling
        self.lengths = {"max_length": max_length, "max_prompt_length": max_prompt_length}
        self.batch_size = batch_size
        self.seeds = tuple(seeds)
        self.cache_dir = cache_dir
        self.data: dict[str, EncodedInstructions] = {}
        self._rows = ItemNumbers({})
        self.measures = {
            metric_name(key, name, sources): measure
            for name in sources
            for key, measure in self.measures_of_a_set.items()
        }
        self.pictures = {
            metric_name(key, name, sources): replace(picture, title=picture_title(picture.title, name, sources))
            for name in sources
            for key, picture in self.pictures_of_a_set.items()
        }

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise the data sets."""
        for name, source in self.sources.items():
            self.data[name] = encode_source(
                name, source, tokenizer, self.template, cache_dir=self.cache_dir, **self.lengths
            )
        self._rows = ItemNumbers({name: len(data) for name, data in self.data.items()})

    @property
    def num_rows(self) -> int:
        """Rows of all data sets together: what one seed asks for."""
        return self._rows.total

    def batches(self) -> list[list[int]]:
        """Return, seed after seed, each data set's rows in batches of prompts of like length."""
        of_a_seed = [
            self._rows.number(name, rows)
            for name, data in self.data.items()
            for rows in batches_by_length(data, self.batch_size)
        ]
        count = self.num_rows
        return [[place * count + row for row in rows] for place in range(len(self.seeds)) for rows in of_a_seed]

    def find(self, items: Sequence[int]) -> tuple[int, str, list[int]]:
        """Return which seed (its place among them), data set and rows the items of a batch are.

        Raises:
            IndexError: items of no seed, or not all of one data set and seed.
        """
        place = items[0] // max(1, self.num_rows)
        if not 0 <= place < len(self.seeds):
            raise IndexError(f"items must lie in [0, {len(self.seeds) * self.num_rows}), got {items[0]}")
        return place, *self._rows.find([item - place * self.num_rows for item in items])

    def identity(self) -> dict[str, Any]:
        """Return seeds, sampling and a digest of prompts and references."""
        texts = (
            text
            for name, data in self.data.items()
            for record in data.records
            for text in (name, self.template.format(record.instruction, record.input), *record.responses)
        )
        return {
            "name": self.name,
            "seeds": list(self.seeds),
            "sampling": asdict(self.sampling),
            "batch_size": self.batch_size,
            **self.lengths,
            "data": digest({}, texts),
        }
