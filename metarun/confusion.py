"""Which classes were taken for which, over all queries of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Confusion:
    """`counts[true, predicted]` queries, where there are any; both number `names`."""

    names: tuple[str, ...]
    counts: dict[tuple[int, int], int]

    @classmethod
    def of(cls, names: tuple[str, ...], true: Tensor, predicted: Tensor) -> Confusion:
        """From the classes of all queries, in any shape."""
        pairs, times = torch.unique(true.flatten() * len(names) + predicted.flatten(), return_counts=True)
        return cls(names, {divmod(pair, len(names)): n for pair, n in zip(pairs.tolist(), times.tolist())})

    def rows(self) -> Iterator[tuple[str, str, int]]:
        """(true, predicted, count), class by class"""
        for (true, predicted), count in sorted(self.counts.items()):
            yield self.names[true], self.names[predicted], count

    def hardest(self, most: int = 5) -> list[dict[str, Any]]:
        """The classes that are recognised least, with what each is most often taken for; none that always are.

        Ordered by (right + 1) / (queries + 2): 0 of 1 right says less against a class than 2 of 10.
        """
        right, queries, taken_for = {}, {}, {}
        for (true, predicted), count in sorted(self.counts.items()):
            queries[true] = queries.get(true, 0) + count
            if predicted == true:
                right[true] = count
            elif count > taken_for.get(true, (0, 0))[1]:
                taken_for[true] = predicted, count
        order = sorted(taken_for, key=lambda c: ((right.get(c, 0) + 1) / (queries[c] + 2), c))
        return [
            {
                "class": self.names[c],
                "accuracy": right.get(c, 0) / queries[c],
                "queries": queries[c],
                "taken_for": self.names[taken_for[c][0]],
                "times": taken_for[c][1],
            }
            for c in order[:most]
        ]
