"""Item numbers of evaluations with several data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


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
