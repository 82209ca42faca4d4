"""What the predictions of a task are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measure:
    """What the predictions of a task are judged by. An evaluation reports its mean over tasks.

    of      (prediction, query_y) of ONE task -> (), under `vmap`
    note    what a mean of it must be read with
    """

    name: str
    higher_is_better: bool
    of: Callable[[Tensor, Tensor], Tensor]
    note: str = ""

    def better(self, a: float, b: float) -> bool:
        """Whether a beats b."""
        return a > b if self.higher_is_better else a < b

    @property
    def worst(self) -> float:
        return -inf if self.higher_is_better else inf


def dcg(by: Tensor, gain: Tensor) -> Tensor:
    """(n,), (n,) -> () the sum of gain / log2(1 + place), the places given out by `by`, the highest first.

    Jarvelin & Kekalainen 2002, with every place discounted but the first (theirs spares the second too). Items that tie
    share their places evenly (McSherry & Najork 2008): nobody gains by the order that they come in.
    """
    above, tied = (by > by[:, None]).sum(1), (by == by[:, None]).sum(1)
    discount = torch.arange(2, len(by) + 2, device=by.device).double().log2().reciprocal()
    up_to = torch.cat([discount.new_zeros(1), discount.cumsum(0)])
    return (gain * (up_to[above + tied] - up_to[above]) / tied).sum()


def ndcg(prediction: Tensor, y: Tensor, zero: float = 0.0) -> Tensor:
    """() in [0, 1] how well predictions rank a task's queries: their DCG, as a part of the best that there is.

    The gain of a query is its target + `zero`, which must not be negative. It is 1 where no query has any.
    """
    gain = y.flatten().double() + zero
    best = dcg(gain, gain)
    return torch.where(best > 0, dcg(prediction.flatten(), gain) / best, 1.0)


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("accuracy", True, lambda logits, y: (logits.argmax(-1) == y).double().mean()),
        Measure("mse", False, lambda prediction, y: (prediction - y).square().mean()),
        Measure(
            "rmse",
            False,
            lambda prediction, y: (prediction - y).square().mean().sqrt(),
            "each task's own root mean squared error, averaged",
        ),
        Measure("mae", False, lambda prediction, y: (prediction - y).abs().mean()),
        Measure("ndcg", True, ndcg, "of all queries of a task; gain: the target, discount: log2(1 + rank)"),
    )
}
"""By name. Accuracy is a fraction in [0, 1], mse in the targets' units squared. A plugin's own goes in here as well."""
