"""R2-D2: a ridge regression from features to targets, in closed form for every task and differentiated through.

    W = X' (X X' + l I)^-1 Y  =  (X' X + l I)^-1 X' Y,   prediction = a * [f(query), 1] W

with a row [f(x_i), 1] / sqrt(n) of X and y_i / sqrt(n) of Y for each of the n support examples; y_i is one-hot for a
class, whose predictions are logits, and the target itself in regression. l > 0 (its logarithm) and a are learned.

Bertinetto, Henriques, Torr & Vedaldi 2019, section 3. The left form (Woodbury's) solves a system of n equations, the
right one of as many as there are features; the smaller is taken. That rows are divided by sqrt(n), so that l means the
same whatever the shots, is from the authors' code. The paper also adds a learned b to all predictions: logits do not
change by it, so it is there in regression only. l and a start at 1 and 10, which makes logits of one-hot targets; the
authors' code starts them at 50 and, by data set, between 0.0001 and 10, and by default leaves l as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Generator, Tensor

from metarun.algorithms.embedding import EmbeddingBased, embedded, members, needs_classes
from metarun.types import Episode, Meta, Net, TaskShape, register, setting

LOG_L, A, B = "algo.log_regularisation", "algo.scale", "algo.shift"


@register("algo", "r2d2")
@dataclass(frozen=True)
class R2D2(EmbeddingBased):
    """`regularisation` and `scale` are where l and a start; `scale` None: 10, and 1 in regression."""

    regularisation: float = setting(1.0, above=0)
    scale: float | None = setting(None, above=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        curves = net.outputs == 1  # there are 2 classes or more where there are classes
        scale = self.scale if self.scale is not None else 1.0 if curves else 10.0
        meta = net.init(generator, head=False)
        meta |= {LOG_L: torch.tensor(log(self.regularisation)), A: torch.tensor(scale)}
        return meta | {B: torch.tensor(0.0)} if curves else meta

    def check(self, net: Net, task: TaskShape) -> None:
        if task.kind != "regression":
            needs_classes(task)

    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        support, query = (with_one(x) for x in embedded(net, meta, episode, moments))
        y = episode.support_y
        y = y if y.is_floating_point() else members(y, net.outputs, support)
        w = ridge(support, y, len(support) * meta[LOG_L].exp())
        return meta[A] * (query @ w) + meta.get(B, 0)


def with_one(x: Tensor) -> Tensor:
    """(n, d) -> (n, d + 1)"""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def ridge(x: Tensor, y: Tensor, weight: Tensor | float) -> Tensor:
    """(n, d), (n, k) -> (d, k) the W that minimises |x W - y|^2 + weight * |W|^2

    Solved in double precision: features that are long beside the weight leave single precision few digits or none.
    """
    dtype, few = x.dtype, len(x) < x.shape[1]
    x, y = x.double(), y.double()
    gram = x @ x.T if few else x.T @ x
    regular = gram + weight * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    # _ex: without its wait for the device, to learn of a singular matrix that cannot be.
    solved = torch.linalg.solve_ex(regular, y if few else x.T @ y).result
    return (x.T @ solved if few else solved).to(dtype)
