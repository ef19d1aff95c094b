"""Where instruction records come from: files, folders and the Hugging Face hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from random import Random
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_info

from lightning_minillm.data.records import FieldMap, InstructionRecord, to_record
from lightning_minillm.data.rows import Paths, check_limit, find_split, is_hub_name, iterate_rows


class RecordSource(Protocol):
    """Where records come from: ``InstructionSource``, ``SyntheticSource`` or your own."""

    def load(self) -> Sequence[InstructionRecord]:
        """Return the records."""


@dataclass(frozen=True)
class InstructionSource:
    """A place to read instruction records from.

    Raises:
        ValueError: ``path`` is empty, or ``limit`` is not a whole number of at least 1.
    """

    path: Paths
    """A file (JSONL, JSON, CSV or TSV, gzipped or not, or Parquet), a folder of such files, a folder written by
    ``Dataset.save_to_disk``, or the name of a hub data set; or a list of these."""
    fields: FieldMap = field(default_factory=FieldMap)
    """Field names of each part of a record; the default covers Alpaca, Dolly and Self-Instruct."""
    split: str | None = None
    """Of a folder, the files named ``<split>.*`` or ``<split>-*``; of a hub data set, its split; ``None`` for a single
    file, and for all files of a folder that are not named after different splits."""
    limit: int | None = None
    """Number of records to read, at least 1; ``None`` reads all."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("there is no path to read records from: give a file, a folder or a data set on the hub")
        check_limit(self.limit)

    def load(self) -> list[InstructionRecord]:
        """Return the records, in the order of the data, at least one.

        Null and NaN are no input; a number is read as its digits, and how many there were is said.

        Raises:
            FileNotFoundError: the path or split does not exist.
            ValueError: a row that cannot be read (:func:`iterate_rows`), lacks a field, or holds something other than
                text in it; a blank instruction or response; or no rows at all. The message names file and line.
        """
        numbers: Counter[str] = Counter()
        is_part = self.limit is not None
        rows = iterate_rows(self.path, self.split, name=self.name, revision=self.revision, streaming=is_part)
        records = [to_record(row, self.fields, where, numbers) for where, row in islice(rows, self.limit)]
        place = f"the split {self.split!r} of {str(self.path)!r}" if self.split else repr(str(self.path))
        if not records:
            raise ValueError(f"{place} contains no records")
        if numbers:
            counts = ", ".join(f"{count} of {name!r}" for name, count in numbers.items())
            rank_zero_info(f"{place}: numbers are read as text ({counts})")
        return records


def load_instructions(
    path: Paths,
    split: str | None = None,
    fields: FieldMap | None = None,
    limit: int | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> list[InstructionRecord]:
    """Read instruction records: :meth:`InstructionSource.load` of a source with these arguments."""
    return InstructionSource(path, fields or FieldMap(), split, limit, name, revision).load()


@dataclass(frozen=True)
class Shares:
    """Shares of the training records that become the splits which a data set does not have.

    Raises:
        ValueError: a share is not in [0, 1), or nothing is left for training.
    """

    validation: float = 0.05
    test: float = 0.05
    """0 for no such split."""
    seed: int = 0
    """Decides which records are taken."""

    def __post_init__(self) -> None:
        if not (0 <= self.validation < 1 and 0 <= self.test < 1 and self.validation + self.test < 1):
            raise ValueError(
                f"shares must be in [0, 1) and together less than 1, got validation={self.validation} and "
                f"test={self.test}"
            )


@dataclass(frozen=True)
class SplitSource:
    """The records of one split of a data set, wherever the data set keeps them.

    A split is read from its own place, if it has one, else from the files of a folder that are named after it
    (``train.*``, ``dev-*``), or from a hub data set's split of this name. A validation or test split that the data set
    does not have is a share of the training records, and what was taken for it is said.

    Raises:
        ValueError: there is nothing to read from, an unknown split, or ``sources`` that are not described as they
            should be.
    """

    split: str
    """``train``, ``validation`` or ``test``."""
    path: Paths | None = None
    """The data set: a folder, a file, several of them (all for training), or the name of a hub data set."""
    places: Mapping[str, Paths | None] = field(default_factory=dict)
    """Places of single splits, by ``train``, ``validation`` and ``test``."""
    sources: Mapping[str, Mapping[str, Any]] | None = None
    """Places of the training records by a name of your own, each a mapping with ``path``, and, where needed,
    ``weight``, ``split``, ``limit``, ``name``, ``revision`` and ``fields``. Weights are shares of the rows that are
    trained on, in proportion to each other; without them, each record counts once per epoch."""
    splits: Mapping[str, str | None] = field(default_factory=dict)
    """What a folder or a hub data set calls its splits, if not as usual."""
    limits: Mapping[str, int | None] = field(default_factory=dict)
    """Number of records to read of each split."""
    shares: Shares = field(default_factory=Shares)
    """What becomes of training records if the data set has no validation or test split."""
    fields: FieldMap = field(default_factory=FieldMap)
    """Field names of each part of a record."""
    name: str | None = None
    """Configuration of a hub data set that has several."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation", "test"):
            raise ValueError(f"split must be train, validation or test, got {self.split!r}")
        if not (self.path or self.places.get(self.split) or self.sources):
            raise ValueError("there is no path to read records from: give a file, a folder or a data set on the hub")
        for limit in self.limits.values():
            check_limit(limit)
        known = ("path", "weight", "split", "limit", "name", "revision", "fields")
        for name, options in (self.sources or {}).items():
            if not isinstance(options, Mapping) or not options.get("path") or set(options) - set(known):
                raise ValueError(
                    f"sources.{name} must be a mapping with a path and may have {', '.join(known[1:])}, got {options!r}"
                )
        if self.sources and self.limits.get("train") is not None:
            raise ValueError("sources have limits of their own: give sources.NAME.limit instead of limits.train")
        _ = self.weights

    @property
    def weights(self) -> dict[str, float] | None:
        """Weights of the sources by name, ``None`` if each record counts once."""
        weights = {name: options.get("weight") for name, options in (self.sources or {}).items()}
        if self.split != "train" or all(weight is None for weight in weights.values()):
            return None
        for name, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise ValueError(f"sources.{name}.weight must be above 0 (or no source has one), got {weight!r}")
        return {name: float(weight) for name, weight in weights.items() if weight is not None}

    def load(self) -> list[InstructionRecord]:
        """Return the records, in the order of the data, at least one.

        Raises:
            FileNotFoundError: a path or split does not exist.
            ValueError: a row that cannot be used (:meth:`InstructionSource.load`), or too few records to share.
        """
        shared = [
            split for split in ("validation", "test") if vars(self.shares)[split] > 0 and not self._sources_of(split)
        ]
        if not shared or self.split not in ("train", *shared):
            sources = self._sources_of(self.split)
            if not sources:
                raise FileNotFoundError(f"{str(self.path)!r} has no {self.split} split, and its share is 0")
            return self._read(sources, self.limits.get(self.split))
        return self._share(shared)

    def _sources_of(self, split: str) -> dict[str, InstructionSource]:
        """Return where a split's own records are, by name of the source; nothing if it has none."""
        if split == "train" and self.sources:
            return {name: self._named_source(options) for name, options in self.sources.items()}
        given = self.places.get(split)
        place, own = given or self.path, self.splits.get(split)
        if not place:
            return {}
        if isinstance(place, str | Path) and (Path(place).expanduser().is_dir() or is_hub_name(place)):
            own = own or find_split(place, split, self.name, self.revision)
        if not (given or own or split == "train"):
            return {}
        return {"": InstructionSource(place, self.fields, own, name=self.name, revision=self.revision)}

    def _named_source(self, options: Mapping[str, Any]) -> InstructionSource:
        fields = options.get("fields") or self.fields
        others = {key: options.get(key) for key in ("split", "limit", "name", "revision")}
        return InstructionSource(
            options["path"], FieldMap(**fields) if isinstance(fields, Mapping) else fields, **others
        )

    def _read(self, sources: Mapping[str, InstructionSource], limit: int | None) -> list[InstructionRecord]:
        if not self.sources:
            return replace(sources[""], limit=limit).load()
        return [replace(record, source=name) for name, source in sources.items() for record in source.load()]

    def _share(self, shared: Sequence[str]) -> list[InstructionRecord]:
        """Return this split's part of the training records, from which those of the ``shared`` splits are taken."""
        limits = {split: self.limits.get(split) for split in (*shared, "train")}
        known = [limit for limit in limits.values() if limit is not None]
        most = sum(known) if len(known) == len(limits) else None  # reads no more than is asked for
        records = self._read(self._sources_of("train"), most)
        counts = [max(1, round(vars(self.shares)[split] * len(records))) for split in shared]
        if len(records) == most:
            counts = known[:-1]
        if sum(counts) >= len(records):
            raise ValueError(
                f"{len(records)} training records are too few to take a {' and a '.join(shared)} split from: give the "
                "split a file of its own"
            )
        order = Random(self.shares.seed).sample(range(len(records)), len(records))
        bounds = [*accumulate(counts, initial=0), len(records)]
        rows = dict(zip((*shared, "train"), (sorted(order[a:b]) for a, b in pairwise(bounds)), strict=True))
        taken = ", ".join(f"{count} for {split}" for split, count in zip(shared, counts, strict=True))
        kept = rows[self.split][: self.limits.get(self.split)]
        rank_zero_info(
            f"{self.split}: {len(kept)} of {len(records)} training records; {taken} are taken from them with "
            f"split_seed={self.shares.seed}, because there is no file for it"
        )
        return [records[row] for row in kept]
