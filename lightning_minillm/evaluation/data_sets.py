"""Data sets by name, their item numbers and their batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lightning_minillm.data import EncodedInstructions, FieldMap, InstructionSource, RecordSource
from lightning_minillm.files import digest


class ItemNumbers:
    """Numbers the rows of several data sets consecutively, one set after the other.

    Args:
        sizes: number of rows of each data set, by its name.

    Example:
        >>> numbers = ItemNumbers({"dolly": 3, "vicuna": 2})
        >>> numbers.number("vicuna", [0, 1]), numbers.find([3, 4])
        ([3, 4], ('vicuna', [0, 1]))
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._starts = {}
        self.total = 0
        """Number of rows of all data sets together."""
        for name, size in sizes.items():
            self._starts[name] = range(self.total, self.total + size)
            self.total += size

    def number(self, name: str, rows: Sequence[int]) -> list[int]:
        """Return the item numbers of rows of a data set."""
        return [self._starts[name][row] for row in rows]

    def find(self, items: Sequence[int]) -> tuple[str, list[int]]:
        """Return the data set and the rows of items, at least one.

        Raises:
            IndexError: the items belong to no data set, or to several.
        """
        for name, numbers in self._starts.items():
            if all(item in numbers for item in items):
                return name, [item - numbers.start for item in items]
        raise IndexError(f"items must be in [0, {self.total}), all of one data set; got {list(items)}")


def named_sources(
    files: Mapping[str, str] | None,
    otherwise: RecordSource,
    *,
    split: str = "test",
    fields: FieldMap | None = None,
    limit: int | None = None,
) -> dict[str, RecordSource]:
    """Return one source per file, or a single other source if there are no files.

    Args:
        files: paths by the name of the data set.
        otherwise: used if there are no files.
        split: name of that source.
        fields: column names of the files.
        limit: maximum number of records per file; ``None`` for all.
    """
    if not files:
        return {split: otherwise}
    return {name: InstructionSource(path, fields=fields or FieldMap(), limit=limit) for name, path in files.items()}


def digest_of_data(data: Mapping[str, EncodedInstructions]) -> str:
    """Return a digest of the prompts, responses and tasks of data sets."""
    texts = (
        text
        for name, rows in data.items()
        for row, record in enumerate(rows.records)
        for text in (name, rows.prompt_text(row), *record.responses, record.task)
    )
    return digest("evaluation", texts)


def require_data(evaluation: str, known: Collection[str], chosen: Collection[str]) -> None:
    """Raise ``ValueError`` if no data set of an evaluation (``known``) was given a path (``chosen``)."""
    if not chosen:
        first = next(iter(known), "NAME")
        raise ValueError(
            f"{evaluation} has no data: none of its data sets ({', '.join(known) or 'none'}) has a path; give at least"
            f" one, e.g. evaluation.{evaluation}.datasets.{first}.path=FILE"
        )


def batches_by_length(dataset: EncodedInstructions, batch_size: int) -> list[list[int]]:
    """Return all rows in batches of at most ``batch_size`` prompts of similar length, the longest first.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    lengths = dataset.prompt_lengths.tolist()
    rows = sorted(range(len(dataset)), key=lambda row: (-lengths[row], row))
    return [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
