"""CAVIA: all that adapts to a task is a small context vector; what it does to the network the outer loop learns.

    p = 0, then p <- p - a * dL_support/dp        min over w, W of  sum over tasks of  L_query(w, W, p)

Zintgraf, Shiarlis, Kurin, Hofmann & Whiteson 2019, algorithm 1. The context p enters at one layer, through linear maps:

    a norm           FiLM: its output h becomes (1 + W1 p) h + W2 p, channel by channel (the paper's image experiments)
    any other layer  its bias b becomes b + W2 p, which for a fully connected first layer is the same as p beside the
                     layer's input (the paper's regression)

Differences: the paper's factor is W1 p + c and its shift W2 p + d. Here c = 1 and d = 0, which are the same functions,
since the norm has a factor and a shift of its own; a fresh network then computes what it would without a context. FiLM
comes before a block's max-pooling, in the authors' code after it, which is the same unless the factor is negative. The
head starts from weights as large as in the authors' code, not from the network's own small ones: no inner step ever
changes it, and the context's gradient comes through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Generator, Tensor

from metarun.algorithms.inner import OWN, Given, GradientBased, descend, own, support_loss, weights_of
from metarun.types import Episode, Meta, Net, TaskShape, register, setting


@register("algo", "cavia")
@dataclass(frozen=True)
class CAVIA(GradientBased):
    context: int = setting(100, least=1)
    layer: str | None = setting(None)
    inner_lr: float = setting(1.0, above=0)
    inner_steps: int = setting(2, least=1)
    eval_steps: int = setting(2, least=0)

    def check(self, net: Net, task: TaskShape) -> None:
        able = [*net.norm_names, *biased(net.init(Generator()))]
        if not able:
            raise ValueError("needs a layer with a bias or a norm, and this network has none; maml, anil fit")
        if self.layer is not None and self.layer not in able:
            raise ValueError(f"layer={self.layer}: not among the network's layers with a bias: {', '.join(able)}")

    def init(self, net: Net, generator: Generator) -> Meta:
        def uniform(rows: int, columns: int, variance: float) -> Tensor:
            bound = (3 * variance) ** 0.5
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

        meta = net.init(generator)
        layer, size = self._layer(net, meta), prod(net.feature_shape)
        meta["head.weight"] = uniform(net.outputs, size, 1 / size)
        channels, inputs = len(meta[f"{layer}.bias"]), meta[f"{layer}.weight"][0].numel()
        film = layer in net.norm_names
        variance = 1 / self.context if film else 1 / (3 * (inputs + self.context))  # as in the authors' code
        names = ["scale", "shift"] if film else ["shift"]
        return meta | {f"{OWN}context.{layer}.{name}": uniform(channels, self.context, variance) for name in names}

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        zero = torch.zeros_like(next(iter(own(meta, "context").values()))[0])
        contexts = descend(of_context, Given(net, meta, episode), {"p": zero}, self.inner_lr, steps, self.recompute)
        return (conditioned(meta, context) for context in contexts)

    def _layer(self, net: Net, meta: Meta) -> str:
        """Where the context enters: by default two thirds of the way in, at the third norm of four, else at once."""
        if self.layer is not None:
            return self.layer
        norms = net.norm_names
        return norms[(len(norms) - 1) * 2 // 3] if norms else biased(meta)[0]


def biased(meta: Meta) -> list[str]:
    """The layers that have a weight matrix or kernel and a bias, from input to output."""
    layers = [name.removesuffix(".bias") for name in meta if name.endswith(".bias")]
    return [layer for layer in layers if meta.get(f"{layer}.weight", meta[f"{layer}.bias"]).dim() > 1]


def of_context(given: Given, context: Meta) -> Tensor:
    """The loss of the support set under a context."""
    return support_loss(given, conditioned(given.meta, context))


def conditioned(meta: Meta, context: Meta) -> Meta:
    """The network's weights under a context, {"p": (context,)}"""
    weights = weights_of(meta)
    return weights | under(own(meta, "context"), weights, context["p"])


def under(maps: Meta, weights: Meta, context: Tensor) -> Meta:
    """The weights of the layer that the context enters, under that context."""
    layer = next(iter(maps)).rpartition(".")[0]
    bias, changed = weights[f"{layer}.bias"], {}
    if f"{layer}.scale" in maps:
        factor = 1 + maps[f"{layer}.scale"] @ context
        bias, changed = bias * factor, {f"{layer}.weight": weights[f"{layer}.weight"] * factor}
    return changed | {f"{layer}.bias": bias + maps[f"{layer}.shift"] @ context}
