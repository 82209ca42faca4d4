"""One meta-training step. The only `vmap` over tasks lives here; evaluation reuses it.

Nothing in a step waits for the device: metrics stay tensors until the loop reads them once per logging interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.profiler import record_function

from metarun.counter import Number, counted
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.eager import vmap
from metarun.engine.memory import in_portions
from metarun.engine.state import TrainState
from metarun.types import Algorithm, Episode, EpisodeBatch, Meta, Net, TaskLoss

Out = TypeVar("Out")
LOSSES, GRADIENT, UPDATE = "task losses", "meta-gradient", "outer update"
"""the phases of a step, as a profile has them"""
MOMENTUM = 0.1  # weight of the newest statistics in a moving average, as in torch.nn.BatchNorm2d


def per_task(f: Callable[[Episode], Out], episodes: EpisodeBatch) -> Out:
    """f of every task at once; every tensor of the result gets a leading task axis."""
    return vmap(f)(episodes)


class Ticketed(NamedTuple):
    """A task and the random number that what is random in its training (dropout) is drawn from."""

    episode: Episode
    ticket: Tensor


def in_chunks(batch: Ticketed, chunk: int | None, axis: int = 0) -> Iterator[Ticketed]:
    """The same tasks, at most `chunk` at a time (None: all). They lie along `axis`."""
    tasks = batch.ticket.shape[axis]
    size = chunk or tasks
    for first in range(0, tasks, size):
        ticket, *fields = (t.narrow(axis, first, min(size, tasks - first)) for t in (batch.ticket, *batch.episode))
        yield Ticketed(EpisodeBatch(*fields), ticket)


def task_loss(algorithm: Algorithm, net: Net, meta: Meta, running: Meta) -> Callable[[Ticketed], TaskLoss]:
    """The loss of ONE task, with the norm statistics that it met where the net tracks them."""

    def one(task: Ticketed) -> TaskLoss:
        episode, training = task.episode, net.at_train(running, task.ticket)
        out = algorithm.loss(training, meta, episode)
        if not net.tracks or out.moments:
            return out
        with torch.no_grad():
            return out._replace(moments=training.moments(meta, torch.cat([episode.support_x, episode.query_x])))

    return one


def add_shares(totals: Meta, values: Meta, tasks: int, axis: int = 0) -> None:
    """Adds to the means `totals` over so many `tasks` the share of those that `values` hold along `axis`."""
    for name, each in values.items():
        share = each.detach().sum(axis) / tasks
        totals[name] = totals[name] + share if name in totals else share


def as_it_comes(
    algorithm: Algorithm, net: Net, meta: Meta, running: Meta, part: Ticketed, tasks: int
) -> tuple[Meta, Meta]:
    """Adds to `.grad` what these of so many `tasks` have in the gradient of the mean loss.

    Returns the metrics and the norm statistics of each.
    """
    with record_function(LOSSES):
        out = vmap(task_loss(algorithm, net, meta, running))(part)
    with record_function(GRADIENT):
        (out.loss.sum() / tasks).backward()
    return out.metrics, out.moments


Portion = Callable[[Algorithm, Net, Meta, Meta, Ticketed, int], tuple[Meta, Meta]]
"""`as_it_comes`, or what does the same in another way"""


def meta_gradient(
    algorithm: Algorithm,
    net: Net,
    meta: Meta,
    episodes: EpisodeBatch,
    chunk: int | None = None,
    running: Meta | None = None,
    first_ticket: Number = 0,
    portion: Portion = as_it_comes,
) -> tuple[dict[str, Tensor], Meta]:
    """Adds the gradient of the mean task loss to `.grad` of every tensor in `meta`.

    Task i draws what is random in it from ticket `first_ticket + i`. Returns the task means of the metrics, and of the
    norm statistics where the net tracks them.
    """
    tasks = len(episodes.support_x)
    metrics: dict[str, Tensor] = {}
    moments: Meta = {}
    tickets = counted(first_ticket, tasks, episodes.query_x.device)
    for part in in_chunks(Ticketed(episodes, tickets), chunk):
        found, met = portion(algorithm, net, meta, running or {}, part, tasks)
        add_shares(metrics, found, tasks)
        add_shares(moments, met, tasks)
    return metrics, moments


def add_penalty(meta: Meta, l1: float, l2: float) -> None:
    """Adds the gradient of l1 * sum |w| + l2 * sum w^2 over the network's weight matrices and kernels.

    Biases, norms' weights and the method's own meta-parameters are left out.
    """
    with torch.no_grad():
        for name, w in meta.items():
            if w.dim() > 1 and w.grad is not None and not name.startswith("algo."):
                w.grad.add_(l1 * w.sign() + 2 * l2 * w)


def update(
    algorithm: Algorithm,
    net: Net,
    state: TrainState,
    episodes: EpisodeBatch,
    chunk: int | None = None,
    clip: float | None = None,
    penalty: tuple[float, float] = (0.0, 0.0),
    first_ticket: Number = 0,
    ranks: Ranks = ALONE,
    share: float = 1.0,
    say: Callable[[str], None] = lambda line: None,
    portion: Portion = as_it_comes,
    meanwhile: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """What the device does of a meta-update; returns the mean metrics, still there.

    `penalty` holds the weights of the L1 and L2 penalties on the outer loss; the reported loss is without them.
    `episodes` are the part `share` of the meta-batch; the rest is the other `ranks`', and all of them make this step.
    `say` is told when `chunk` tasks at a time are more than the memory holds, and fewer are taken from there on.
    `meanwhile` is what may be done while the ranks' gradients are on their way.
    """

    def gradient(chunk: int | None) -> tuple[dict[str, Tensor], Meta]:
        state.optimizer.zero_grad(set_to_none=True)
        return meta_gradient(algorithm, net, state.meta, episodes, chunk, state.running, first_ticket, portion)

    metrics, moments = in_portions(gradient, [state], algorithm, len(episodes.support_x), chunk, say)
    slopes = [w.grad for w in state.meta.values() if w.grad is not None]
    ranks.mean_([*slopes, *metrics.values(), *moments.values()], share, meanwhile)
    move(state, moments, clip, penalty)
    return metrics


def move(
    state: TrainState, moments: Meta, clip: float | None = None, penalty: tuple[float, float] = (0.0, 0.0)
) -> None:
    """Moves the weights by their gradients, and the moving averages towards `moments`; see `update`."""
    if any(penalty):
        add_penalty(state.meta, *penalty)
    with record_function(UPDATE), torch.no_grad():
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(list(state.meta.values()), clip)
        state.optimizer.step()
        for name, value in moments.items():
            state.running[name].lerp_(value, MOMENTUM)


def train_step(
    algorithm: Algorithm, net: Net, state: TrainState, episodes: EpisodeBatch, *args: Any, **more: Any
) -> dict[str, Tensor]:
    """Moves `state` one meta-update on (see `update`)."""
    metrics = update(algorithm, net, state, episodes, *args, **more)
    state.advance()
    return metrics
