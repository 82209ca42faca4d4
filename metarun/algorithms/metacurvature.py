"""Meta-curvature: MAML that learns a matrix to multiply its inner gradients with, in three factors for each layer.

    w <- w - a * MC(dL_support/dw)
    MC(G) = G x1 M_out x2 M_in x3 M_kernel      G: (out, in, kernel height * width), xk: matrix times the k-th dimension

Park & Oliva 2019, section 3.2: the matrix for all of G is the Kronecker product of the three, which start as
identities, where the method is MAML. A fully connected layer has M_out and M_in. Of vectors (biases, and norms'
weights) M_out is diagonal here, as in learn2learn's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.func import grad

from metarun.algorithms.inner import OWN, Given, GradientBased, own, repeated, support_loss, weights_of
from metarun.types import Episode, Meta, Net, register, setting

FACTORS = ("out", "in", "kernel")


@register("algo", "metacurvature")
@dataclass(frozen=True)
class MetaCurvature(GradientBased):
    inner_lr: float = setting(0.4, above=0)
    inner_steps: int = setting(1, least=1)
    eval_steps: int = setting(3, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        weights = net.init(generator)
        factors = {f"{factor}.{name}": m for name, w in weights.items() for factor, m in identities(w).items()}
        return weights | {f"{OWN}curvature.{name}": m for name, m in factors.items()}

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        def step(given: Given, weights: Meta, k: int) -> Meta:
            factors = {factor: own(given.meta, f"curvature.{factor}") for factor in FACTORS}
            slope = grad(partial(support_loss, given))(weights)
            return {name: w - self.inner_lr * curved(slope[name], factors, name) for name, w in weights.items()}

        return repeated(step, Given(net, meta, episode), weights_of(meta), steps, self.recompute)


def identities(w: Tensor) -> Meta:
    """The factors for one of the weights that change nothing: a diagonal for a vector, else a matrix per dimension."""
    if w.dim() == 1:
        return {"out": torch.ones_like(w)}
    sizes = (*w.shape[:2], *([w[0, 0].numel()] if w.dim() > 2 else []))
    return {factor: torch.eye(size, dtype=w.dtype) for factor, size in zip(FACTORS, sizes)}


def curved(slope: Tensor, factors: dict[str, Meta], name: str) -> Tensor:
    """MC(G), as products of small matrices: the Kronecker product is never formed."""
    out = factors["out"][name]
    if slope.dim() == 1:
        return out * slope
    by_out = (out @ slope.flatten(1)).unflatten(1, (slope.shape[1], -1))  # (out, in, kernel)
    by_in = factors["in"][name] @ by_out
    return (by_in @ factors["kernel"][name].T if slope.dim() > 2 else by_in).reshape(slope.shape)
