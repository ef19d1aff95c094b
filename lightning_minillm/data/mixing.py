"""The rows of a data set that is mixed from several sources by weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Mixture:
    """Rows of each source, and how many of them an epoch takes.

    Example:
        >>> Mixture.of(["a", "a", "a", "b"], {"a": 1, "b": 1}).counts
        (2, 2)
    """

    names: tuple[str, ...]
    rows: tuple[Tensor, ...]
    """Row numbers of each source, ``[rows]`` int64, at least one."""
    counts: tuple[int, ...]
    """Rows that each source gives to an epoch; their sum is the number of rows of the data set."""

    @classmethod
    def of(cls, sources: Sequence[str], weights: Mapping[str, float]) -> Mixture:
        """Return the mixture of rows.

        Args:
            sources: name of the source of each row.
            weights: by name, above 0; the shares of an epoch are in proportion to them.

        Raises:
            ValueError: a source has no rows.
        """
        rows = {name: [row for row, source in enumerate(sources) if source == name] for name in weights}
        for name, found in rows.items():
            if not found:
                raise ValueError(f"no record of the source {name!r} is left: remove it, or raise max_prompt_length")
        exact = [len(sources) * weight / sum(weights.values()) for weight in weights.values()]
        counts = [int(share) for share in exact]
        # The rows that are left by rounding down go to the largest remainders.
        by_remainder = sorted(range(len(exact)), key=lambda place: counts[place] - exact[place])
        for place in by_remainder[: len(sources) - sum(counts)]:
            counts[place] += 1
        return cls(tuple(weights), tuple(torch.tensor(found) for found in rows.values()), tuple(counts))

    def __str__(self) -> str:
        total = sum(self.counts)
        return "; ".join(
            f"{len(rows)} records of {name} are {count / total:.1%} of an epoch ({count / len(rows):.2g} times each)"
            for name, rows, count in zip(self.names, self.rows, self.counts, strict=True)
        )
