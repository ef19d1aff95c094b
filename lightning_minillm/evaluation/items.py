"""Item numbers of evaluations with several data sets, and the names of their metrics and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from lightning_minillm.evaluation.base import Measure, Picture


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


def metric_name(name: str, data_set: str, data_sets: Iterable[str]) -> str:
    """Return the name of a metric: with the name of its data set if there are several data sets.

    Example:
        >>> metric_name("loss", "dolly", ["dolly"]), metric_name("loss", "dolly", ["dolly", "vicuna"])
        ('loss', 'dolly/loss')
    """
    return f"{data_set}/{name}" if len(list(data_sets)) > 1 else name


def measures_of_sets(measures: Mapping[str, Measure], data_sets: Iterable[str]) -> dict[str, Measure]:
    """Return how the metrics of each data set are shown, given how those of one are."""
    names = list(data_sets)
    return {metric_name(key, name, names): measure for name in names for key, measure in measures.items()}


def pictures_of_sets(pictures: Mapping[str, Picture], data_sets: Iterable[str]) -> dict[str, Picture]:
    """Return the pictures of each data set, given those of one; among several, titles name theirs."""
    names = list(data_sets)
    if len(names) == 1:
        return dict(pictures)
    return {
        metric_name(key, name, names): replace(picture, title=f"{name}: {picture.title}")
        for name in names
        for key, picture in pictures.items()
    }
