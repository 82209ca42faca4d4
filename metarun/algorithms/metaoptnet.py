"""MetaOptNet: a linear classifier of learned features that is the solution of a convex problem, differentiated through.

    head svm     Crammer & Singer's multi-class support vector machine, C = `regularisation`
    head ridge   W that minimises |X W - Y|^2 + `regularisation` * |W|^2, Y one-hot
    logits = s * f(query) W,   s learned

Lee, Maji, Ravichandran & Soatto 2019, section 3. The implicit function theorem at the solution gives the gradient. The
authors solve the SVM with OptNet, which knows nothing of the problem; `svm.py` does. Their ridge head is twice ours,
which s makes up for. `label_smoothing` moves that share of a query's target evenly to the other classes, as in the
authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metarun.algorithms.embedding import EmbeddingBased, embedded, members
from metarun.algorithms.inner import accuracy
from metarun.algorithms.r2d2 import ridge
from metarun.algorithms.svm import crammer_singer
from metarun.types import Episode, Meta, Net, TaskLoss, register, setting

SCALE = "algo.scale"


@register("algo", "metaoptnet")
@dataclass(frozen=True)
class MetaOptNet(EmbeddingBased):
    """`regularisation` None: the authors', 0.1 for svm and 50 for ridge. `scale` is where s starts."""

    head: str = setting("svm", choices=("svm", "ridge"))
    regularisation: float | None = setting(None, above=0)
    scale: float = setting(1.0, above=0)
    label_smoothing: float = setting(0.0, least=0, below=1)
    solver_steps: int = setting(15, least=1)

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator, head=False) | {SCALE: torch.tensor(self.scale)}

    def judged(self, prediction: Tensor, y: Tensor) -> TaskLoss:
        way = prediction.shape[1]
        kept, given = 1 - self.label_smoothing, self.label_smoothing / (way - 1)
        target = given + (kept - given) * members(y, way, prediction)
        loss = -(target * prediction.log_softmax(1)).sum(1).mean()
        return TaskLoss(loss, {"loss": loss.detach(), "accuracy": accuracy(prediction.detach(), y)})

    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        support, query = embedded(net, meta, episode, moments)
        member = members(episode.support_y, net.outputs, support)
        if self.head == "ridge":
            w = ridge(support, member, self._regularisation)
        else:
            x = support.double()  # the solver cannot have a kernel that rounding has made indefinite
            a = crammer_singer(x @ x.T, member, self._regularisation, self.solver_steps)
            w = (x.T @ a).to(query.dtype)
        return meta[SCALE] * (query @ w)

    @property
    def _regularisation(self) -> float:
        return self.regularisation if self.regularisation is not None else 0.1 if self.head == "svm" else 50.0
