"""Matching network: a query's class probabilities are the support labels, averaged by attention.

    p(c | x) = sum over the support examples i of class c of  a_i,   a = softmax_i of s * cos(f(x), g(x_i))
    loss     = -log p(class of x | x)

Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra 2016, eq. 1 and section 2.1.1, where s = 1. Predictions are log p.

f and g are the network's features; with full context embeddings (`fce`, appendix A) the support set moves both:

    g(x_i) = forward_i + backward_i + g'(x_i)     the states of an LSTM that reads g'(x_1), g'(x_2), ... both ways
    f(x) = h_K,  h_k = out_k + f'(x)              K steps of an LSTM that attends to the support set:
    out_k, cell_k = LSTM(f'(x), [h_{k-1}, r_{k-1}], cell_{k-1})
    r_k = sum over i of softmax_i(h_k . g(x_i)) g(x_i)

So with `fce` a prediction depends on the order of the support set (here shot by shot, as the sampler gives it); the
paper does not say in which order its set is read. It leaves open h_0 too, which is f'(x) here: out_0 and cell_0 are 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Generator, Tensor

from metarun.algorithms.embedding import EmbeddingBased, cosine, embedded, members
from metarun.algorithms.inner import own
from metarun.types import Episode, Meta, Net, TaskShape, register, setting


@register("algo", "matchingnet")
@dataclass(frozen=True)
class MatchingNet(EmbeddingBased):
    """`scale` is s, `read_steps` the paper's K."""

    scale: float = setting(1.0, above=0)
    fce: bool = setting(False)
    read_steps: int = setting(5, least=1)

    def check(self, net: Net, task: TaskShape) -> None:
        super().check(net, task)
        if self.fce and not task.balanced:
            raise ValueError(
                "full-context embeddings read the support set shot by shot, and these classes have unequal shots; "
                "algo.fce=false or task.balanced=true fits"
            )

    @property
    def in_turn(self) -> bool:
        return self.fce

    def init(self, net: Net, generator: Generator) -> Meta:
        meta = net.init(generator, head=False)
        if self.fce:
            size = prod(net.feature_shape)
            meta |= lstm_init("algo.context", 2, size, size, generator)
            meta |= lstm_init("algo.read", 1, size, 2 * size, generator)
        return meta

    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        support, query = embedded(net, meta, episode, moments)
        if self.fce:
            support = support + read_both_ways(own(meta, "context"), support)
            query = attend(own(meta, "read"), query, support, self.read_steps)
        log_a = (self.scale * cosine(query, support)).log_softmax(1)
        others = members(episode.support_y, net.outputs, support) == 0  # (support, way)
        return log_a[:, :, None].masked_fill(others, -torch.inf).logsumexp(1)


def lstm_init(name: str, lstms: int, size: int, state: int, generator: Generator) -> Meta:
    """Weights of LSTMs from (size,) to (size,) whose gates also read (state,), drawn as in torch.nn.LSTM.

    Their rows are the gates i, f, g, o, in this order.
    """

    def draw(*shape: int) -> Tensor:
        return torch.empty(lstms, 4 * size, *shape).uniform_(-(size**-0.5), size**-0.5, generator=generator)

    return {f"{name}.input": draw(size), f"{name}.state": draw(state), f"{name}.bias": draw()}


def step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4 size) gates before their nonlinearities, (..., size) cell -> the next output and cell"""
    i, f, g, o = gates.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def read_both_ways(w: Meta, x: Tensor) -> Tensor:
    """(n, size) -> (n, size) the sum of the outputs of an LSTM that reads forwards and of one that reads backwards."""
    both = torch.stack([x, x.flip(0)])
    told = both @ w["input"].mT + w["bias"][:, None]  # (2, n, 4 size)
    out = cell = torch.zeros_like(both[:, 0])
    outs = []
    for t in range(len(x)):
        gates = told[:, t] + (w["state"] @ out[:, :, None])[:, :, 0]
        out, cell = step(gates, cell)
        outs.append(out)
    forwards, backwards = torch.stack(outs, 1)
    return forwards + backwards.flip(0)


def attend(w: Meta, x: Tensor, support: Tensor, steps: int) -> Tensor:
    """(query, size) each query after `steps` looks at the support set, (n, size)"""
    (from_input, from_state, bias) = (w[name][0] for name in ("input", "state", "bias"))
    told = x @ from_input.T + bias
    h, cell = x, torch.zeros_like(x)
    for _ in range(steps):
        r = (h @ support.T).softmax(1) @ support
        out, cell = step(told + torch.cat([h, r], 1) @ from_state.T, cell)
        h = out + x
    return h
