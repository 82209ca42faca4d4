"""Meta-LSTM: an LSTM makes the updates; its cell state is the network's weights.

    w_t = f_t w_{t-1} - i_t g_t         g_t, l_t = gradient and loss of the support set at w_{t-1}
    f_t = sigmoid(a . [h_t, w_{t-1}, f_{t-1}] + b)        how much of the weight to keep
    i_t = sigmoid(c . [h_t, w_{t-1}, i_{t-1}] + d)        the learning rate
    h_t = a plain LSTM's output for (g_t, l_t), squashed as in `squash`

for every weight by itself, with one and the same a, b, c, d and LSTM for all. These are learned, and so is w_0, the
weights that each task starts from. Ravi & Larochelle 2017, section 3: g_t and l_t count as constants in the
meta-gradient, so it is of first order.

Differences: every update is made from the whole support set (versions of the authors' code take smaller batches of it
for five shots). The authors' code hands the gates on before their sigmoid and divides the gradient by the batch size
once more; here they are as in the paper's equations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import exp, log

import torch
from torch import Generator, Tensor
from torch.func import grad_and_value

from metarun.algorithms.inner import OWN, Given, GradientBased, detached, repeated, support_loss, weights_of
from metarun.types import Episode, Meta, Net, register, setting

Memory = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""The weights as one vector; h, c; f, i"""
P = 10
SMALL = 0.01  # the bound of what the gates' weights and the LSTM start from, as in the authors' code


@register("algo", "metalstm")
@dataclass(frozen=True)
class MetaLSTM(GradientBased):
    """`forget_gate` and `input_gate` are f and i before any training: nearly all is kept, and a small learning rate."""

    hidden: int = setting(20, least=1)
    forget_gate: float = setting(0.99, above=0, below=1)
    input_gate: float = setting(0.01, above=0, below=1)
    inner_steps: int = setting(12, least=1)
    eval_steps: int = setting(12, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        rows, seen = 4 * self.hidden, self.hidden + 2
        shapes = {"lstm.weight": (rows, self.hidden + 4), "lstm.bias": (rows,)}
        shapes |= {"forget.weight": (seen,), "input.weight": (seen,)}
        own = {name: torch.empty(shape).uniform_(-SMALL, SMALL, generator=generator) for name, shape in shapes.items()}
        own |= {"forget.bias": logit(self.forget_gate), "input.bias": logit(self.input_gate)}
        return net.init(generator) | {f"{OWN}{name}": w for name, w in own.items()}

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        weights = weights_of(meta)

        def step(given: Given, state: Memory, k: int) -> Memory:
            w, h, c, forget, rate = state
            slope, loss = grad_and_value(partial(support_loss, given))(detached(like(weights, w)))
            g = flat(slope)
            h, c = lstm(given.meta, torch.cat([squash(g), squash(loss)[:, None].expand(2, len(g))]), h, c)
            forget = gate(given.meta, "forget", h, w, forget)
            rate = gate(given.meta, "input", h, w, rate)
            return forget * w - rate * g, h, c, forget, rate

        w = flat(weights)
        empty, closed = w.new_zeros(self.hidden, len(w)), torch.zeros_like(w)
        start = w, empty, empty, closed, closed
        states = repeated(step, Given(net, meta, episode), start, steps, self.recompute)
        return (like(weights, w) for w, *_ in states)


def squash(x: Tensor) -> Tensor:
    """(...) -> (2, ...): log |x| and the sign of x, where |x| is not tiny (Andrychowicz et al. 2016, appendix A).

    The papers have two cases, (log |x| / p, sign x) for |x| >= exp(-p) and (-1, exp(p) x) below: clamps do the same.
    """
    return torch.stack([x.abs().clamp_min(exp(-P)).log() / P, (exp(P) * x).clamp(-1, 1)])


def lstm(meta: Meta, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM for each column: x: (4, n) -> h, c: (hidden, n).

    Its gates come in the order of `torch.nn.LSTMCell`. Columns, as each gate then is one piece of memory.
    """
    gates = meta["algo.lstm.weight"] @ torch.cat([h, x]) + meta["algo.lstm.bias"][:, None]
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gate(meta: Meta, name: str, h: Tensor, w: Tensor, before: Tensor) -> Tensor:
    """(n,) in (0, 1), of the LSTM's output, the weight itself and the gate's last value"""
    weight = meta[f"algo.{name}.weight"]
    return (weight[:-2] @ h + w * weight[-2] + before * weight[-1] + meta[f"algo.{name}.bias"]).sigmoid()


def logit(p: float) -> Tensor:
    return torch.tensor([log(p / (1 - p))])


def flat(weights: Meta) -> Tensor:
    return torch.cat([w.flatten() for w in weights.values()])


def like(weights: Meta, vector: Tensor) -> Meta:
    """The vector cut into the names and shapes of `weights`."""
    parts = vector.split([w.numel() for w in weights.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(weights.items(), parts)}
