"""What methods share: losses by the kind of target, gradient descent on a task, and the family that adapts that way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import grad
from torch.profiler import record_function

from metarun.algorithms.recompute import recomputed
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss

State = TypeVar("State")
OWN = "algo."
"""What the names of a method's own meta-parameters start with; the network's weights have the other names."""


STEP = "inner step"
"""the phase of a task's losses that takes one, as a profile has it"""


def objective(prediction: Tensor, y: Tensor) -> Tensor:
    """() cross-entropy of logits where y holds class ids, mean squared error where it holds real targets"""
    if y.is_floating_point():
        return F.mse_loss(prediction, y)
    # Written down, as torch's own has no rule for vmap: it is taken apart by code that imports the compiler.
    return -F.log_softmax(prediction, -1).gather(-1, y[:, None]).mean()


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """() fraction right, in [0, 1]"""
    return (logits.argmax(-1) == y).to(logits.dtype).mean()


def outcome(prediction: Tensor, y: Tensor) -> TaskLoss:
    """The loss of the queries, with what there is to report."""
    loss = objective(prediction, y)
    told = {"mse": loss.detach()} if y.is_floating_point() else {"accuracy": accuracy(prediction.detach(), y)}
    return TaskLoss(loss, {"loss": loss.detach(), **told})


def detached(meta: Meta) -> Meta:
    return {name: w.detach() for name, w in meta.items()}


def own(meta: Meta, prefix: str) -> Meta:
    """{"algo.rate.head.bias": w} -> {"head.bias": w} for the prefix `rate`"""
    start = f"{OWN}{prefix}."
    return {name.removeprefix(start): w for name, w in meta.items() if name.startswith(start)}


def weights_of(meta: Meta) -> Meta:
    """The network's weights among the meta-parameters."""
    return {name: w for name, w in meta.items() if not name.startswith(OWN)}


def is_head(name: str) -> bool:
    return name.startswith("head.")


class Given(NamedTuple):
    """What an inner step may read beside the state that it moves."""

    net: Net
    meta: Meta
    episode: Episode


def repeated(
    step: Callable[[Given, State, int], State], given: Given, state: State, steps: int, recompute: bool = False
) -> Iterator[State]:
    """`state` before and after each of `steps` times `state = step(given, state, k)`, k from 0; differentiable.

    With `recompute` the gradient keeps the states alone and takes each step again, unless there is but one, whose work
    is needed at once. `step` must then read no tensors but those it is given, and a state be made of tensors in dicts,
    lists and tuples.
    """
    recompute = recompute and steps > 1
    yield state
    for k in range(steps):

        def once(net: Net, meta: Meta, episode: Episode, state: Any, k: int = k) -> Any:
            return step(Given(net, meta, episode), state, k)

        with record_function(STEP):
            state = recomputed(once, *given, state) if recompute else once(*given, state)
        yield state


def moved(w: Tensor, rate: float | Tensor, slope: Tensor) -> Tensor:
    """w - rate * slope"""
    if isinstance(rate, Tensor):
        return w - rate * slope
    return torch.add(w, slope, alpha=-rate)  # two passes over all tasks' weights less, here and in its gradient


def descend(
    loss: Callable[[Given, Meta], Tensor],
    given: Given,
    weights: Meta,
    lr: float | Callable[[Meta], Meta],
    steps: int,
    recompute: bool = False,
) -> Iterator[Meta]:
    """The weights before and after each of `steps` plain gradient steps on `loss(given, weights)`; see `repeated`.

    `lr` is one rate, or reads one for each of the weights, by name, from the meta-parameters.
    """

    def step(given: Given, weights: Meta, k: int) -> Meta:
        slope = grad(partial(loss, given))(weights)
        rate = lr(given.meta) if callable(lr) else dict.fromkeys(weights, lr)
        return {name: moved(w, rate[name], slope[name]) for name, w in weights.items()}

    return repeated(step, given, weights, steps, recompute)


def support_loss(given: Given, fast: Meta) -> Tensor:
    """The loss of the support set under the weights `fast`"""
    return objective(given.net(fast, given.episode.support_x), given.episode.support_y)


def last(steps: Iterator[Meta]) -> Meta:
    *_, end = steps
    return end


@dataclass(frozen=True)
class GradientBased(Algorithm):
    """A method that adapts weights to the support set step by step and answers with the ones it ends at."""

    inner_steps: int = 1
    recompute: bool = field(default=False, kw_only=True)
    """whether the meta-gradient takes inner steps again in place of keeping what they computed (see `repeated`)"""

    def recomputing(self) -> Algorithm:
        return replace(self, recompute=True)

    @abstractmethod
    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        """The network's weights after 0, 1, ..., `steps` inner updates."""

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        fast = last(self.adapt(net, meta, episode, self.inner_steps))
        return outcome(net(fast, episode.query_x, support=episode.support_x), episode.query_y)

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        fast = last(self.adapt(net, meta, episode, self.eval_steps))
        return net(fast, episode.query_x, support=episode.support_x)

    def trajectory(self, net: Net, meta: Meta, episode: Episode) -> list[Tensor]:
        each = self.adapt(net, meta, episode, self.eval_steps)
        return [net(fast, episode.query_x, support=episode.support_x) for fast in each]
