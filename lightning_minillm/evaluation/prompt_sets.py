"""The prompts that an evaluation lets models respond to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from lightning_minillm.data import EncodedInstructions, Lengths, PromptTemplate, RecordSource, encode_records
from lightning_minillm.evaluation.base import Measure, Picture, Record, join_sets, pictures_of_sets
from lightning_minillm.evaluation.data_sets import ItemNumbers, batches_by_length, digest_of_data
from lightning_minillm.rollout import SamplingConfig
from lightning_minillm.tokens import AddBos


@dataclass(frozen=True, eq=False)
class PromptSets:
    """Data sets of instructions, and how models respond to them; an item is one prompt with one sampling seed.

    Raises:
        ValueError: there is no data set or no seed, a seed occurs twice, sampling mixes in a teacher, or the lengths
            contradict each other.
    """

    sources: Mapping[str, RecordSource]
    """Instruction records by the name of the data set. With several data sets, its name begins those of metrics."""
    template: PromptTemplate | str | None
    """Makes the prompts."""
    sampling: SamplingConfig
    """How a model is sampled; ``teacher_mix_alpha`` must be 0."""
    _: KW_ONLY
    max_length: int = 512
    """Maximum number of tokens of prompt and reference; longer references are cut."""
    max_prompt_length: int = 256
    """Maximum number of tokens of a prompt; longer prompts are left out."""
    shorten_conversations: bool = False
    """Whether conversations with longer prompts lose their oldest turns instead."""
    batch_size: int = 64
    """Number of rows that one rank processes together."""
    seeds: Sequence[int] = (10, 20, 30, 40, 50)
    """Of sampling, at least one."""
    cache_dir: str | None = None
    """Folder for tokenised data; ``None`` tokenises every time."""
    data: dict[str, EncodedInstructions] = field(init=False, default_factory=dict)
    """The tokenised data sets by name; empty until :meth:`prepare`."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("there is no data set to respond to: name at least one")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(
                f"seeds must be different sampling seeds, at least one, such as [10, 20], got {list(self.seeds)}"
            )
        if self.sampling.teacher_mix_alpha != 0:
            raise ValueError(
                "every model is sampled on its own here: set teacher_mix_alpha=0, got"
                f" {self.sampling.teacher_mix_alpha}"
            )
        _ = self.lengths  # checks them

    @property
    def lengths(self) -> Lengths:
        """The limits as one object."""
        return Lengths(
            self.max_length,
            self.max_prompt_length,
            shorten_conversations=self.shorten_conversations,
            cache_dir=self.cache_dir,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the data sets."""
        return tuple(self.sources)

    @property
    def _numbers(self) -> ItemNumbers:
        return ItemNumbers({name: len(data) for name, data in self.data.items()})

    @property
    def num_rows(self) -> int:
        """Number of rows of all data sets together, which is the number of items per seed."""
        return self._numbers.total

    @property
    def num_dropped(self) -> int:
        """Number of prompts that were left out because they are too long."""
        return sum(data.num_dropped for data in self.data.values())

    def prepare(self, tokenizer: PreTrainedTokenizerBase, add_bos: AddBos = "auto") -> None:
        """Read and tokenise the data sets.

        Args:
            tokenizer: of the models.
            add_bos: what prompts begin with.

        Raises:
            ValueError: data is missing, is empty or lacks a field.
        """
        for name, source in self.sources.items():
            self.data[name] = encode_records(name, source, tokenizer, self.template, self.lengths, add_bos=add_bos)

    def batches(self) -> list[list[int]]:
        """Return all items, seed by seed, each data set's rows in batches of prompts of similar length."""
        numbers = self._numbers
        per_seed = [
            numbers.number(name, rows)
            for name, data in self.data.items()
            for rows in batches_by_length(data, self.batch_size)
        ]
        return [[place * self.num_rows + row for row in rows] for place in range(len(self.seeds)) for rows in per_seed]

    def find(self, items: Sequence[int]) -> tuple[int, str, list[int]]:
        """Return the sampling seed, the data set, and its row for each item of a batch.

        Raises:
            IndexError: the items belong to no seed, or not all to one data set and seed.
        """
        numbers = self._numbers
        place = items[0] // max(1, numbers.total)
        if not 0 <= place < len(self.seeds):
            raise IndexError(f"items must be in [0, {len(self.seeds) * numbers.total}), got {items[0]}")
        return self.seeds[place], *numbers.find([item - place * numbers.total for item in items])

    def identity(self) -> dict[str, Any]:
        """Return seeds, sampling, and a digest of prompts and references."""
        return {
            "seeds": list(self.seeds),
            "sampling": asdict(self.sampling),
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "max_prompt_length": self.max_prompt_length,
            "data": digest_of_data(self.data),
        }


class PromptItems:
    """What evaluations of responses share: their items are those of ``prompts``.

    Put it before :class:`~lightning_minillm.evaluation.Evaluation` among the bases, and call its constructor or set
    ``prompts``.

    Args:
        prompts: the data sets, and how models respond to them.
    """

    name: ClassVar[str]
    add_bos: AddBos
    measures_of_set: ClassVar[Mapping[str, Measure]] = {}
    """The ``measures`` of an evaluation of one data set."""
    pictures_of_set: ClassVar[Mapping[str, Picture]] = {}

    def __init__(self, prompts: PromptSets) -> None:
        self.prompts = prompts
        self.data_sets: Sequence[str] = prompts.names
        self.measures: Mapping[str, Measure] = join_sets(dict.fromkeys(prompts.names, self.measures_of_set))
        self.pictures: Mapping[str, Picture] = pictures_of_sets(self.pictures_of_set, prompts.names)

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise the data sets."""
        self.prompts.prepare(tokenizer, self.add_bos)

    def batches(self) -> list[list[int]]:
        """Return the batches of the prompts."""
        return self.prompts.batches()

    def file_name(self, record: Record, name: str) -> str:
        """Return the name of a file of :meth:`texts`: with that of the record's data set if there are several."""
        return f"{record['data_set']}_{name}" if len(self.data_sets) > 1 else name

    def identity(self) -> dict[str, Any]:
        """Return the name, and what determines the prompts and responses."""
        return {"name": self.name, **self.prompts.identity()}
