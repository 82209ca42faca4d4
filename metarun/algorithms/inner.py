"""What methods share: losses by the kind of target, gradient descent on a task, and the family that adapts that way."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import grad
from torch.profiler import record_function

from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss

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


def descend(loss: Callable[[Meta], Tensor], weights: Meta, lr: float | Tensor | Meta, steps: int) -> Iterator[Meta]:
    """The weights before and after each of `steps` plain gradient steps; differentiable through all of them.

    `lr` is one rate, or one for each of the weights by name.
    """
    yield weights
    for _ in range(steps):
        with record_function(STEP):
            slope = grad(loss)(weights)
            rate = lr if isinstance(lr, dict) else dict.fromkeys(weights, lr)
            weights = {name: w - rate[name] * slope[name] for name, w in weights.items()}
        yield weights


def support_loss(net: Net, episode: Episode) -> Callable[[Meta], Tensor]:
    """The loss of the support set as a function of all weights"""
    return lambda fast: objective(net(fast, episode.support_x), episode.support_y)


def last(steps: Iterator[Meta]) -> Meta:
    *_, end = steps
    return end


class GradientBased(Algorithm):
    """A method that adapts weights to the support set step by step and answers with the ones it ends at."""

    inner_steps: int

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
