"""Numbers of items where an evaluation reads several data sets, and names of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class ItemNumbers:
    """Numbers the rows of several data sets through, one set after the other.

    Args:
        sizes: rows of each data set, by its name.

    Example:
        >>> numbers = ItemNumbers({"dolly": 3, "vicuna": 2})
        >>> numbers.number("vicuna", [0, 1]), numbers.find([3, 4])
        ([3, 4], ('vicuna', [0, 1]))
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._starts = {}
        self.total = 0
        """Rows of all data sets together."""
        for name, size in sizes.items():
            self._starts[name] = range(self.total, self.total + size)
            self.total += size

    def number(self, name: str, rows: Sequence[int]) -> list[int]:
        """Return the numbers of a data set's rows."""
        return [self._starts[name][row] for row in rows]

    def find(self, items: Sequence[int]) -> tuple[str, list[int]]:
        """Return which rows of which data set items are.

        Args:
            items: at least one, all of one data set.

        Raises:
            IndexError: items of no data set, or of several.
        """
        for name, numbers in self._starts.items():
            if all(item in numbers for item in items):
                return name, [item - numbers.start for item in items]
        raise IndexError(f"items must lie in [0, {self.total}), all of one data set; got {list(items)}")


def metric_name(name: str, data_set: str, data_sets: Mapping[str, object]) -> str:
    """Return the name of a metric: with its data set's where there are several."""
    return name if len(data_sets) == 1 else f"{data_set}/{name}"


def picture_title(title: str, data_set: str, data_sets: Mapping[str, object]) -> str:
    """Return the title of a picture: with its data set's where there are several."""
    return title if len(data_sets) == 1 else f"{data_set}: {title}"
