"""One meta-training step. The only `vmap` over tasks lives here; evaluation reuses it.

Nothing in a step waits for the device: metrics stay tensors until the loop reads them once per logging interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap

from metarun.engine.state import TrainState
from metarun.types import Algorithm, Episode, EpisodeBatch, Meta, Net, TaskLoss

Out = TypeVar("Out")
MOMENTUM = 0.1  # weight of the newest statistics in a moving average, as in torch.nn.BatchNorm2d


def per_task(f: Callable[[Episode], Out], episodes: EpisodeBatch) -> Out:
    """f of every task at once; every tensor of the result gets a leading task axis."""
    return vmap(f)(episodes)


def in_chunks(episodes: EpisodeBatch, chunk: int | None) -> Iterator[EpisodeBatch]:
    """The same tasks, at most `chunk` at a time (None: all)."""
    tasks = len(episodes.support_x)
    size = chunk or tasks
    for first in range(0, tasks, size):
        yield EpisodeBatch(*(field[first : first + size] for field in episodes))


def meta_gradient(
    algorithm: Algorithm, net: Net, meta: Meta, episodes: EpisodeBatch, chunk: int | None = None
) -> tuple[dict[str, Tensor], Meta]:
    """Adds the gradient of the mean task loss to `.grad` of every tensor in `meta`.

    Returns the task means of the metrics, and of the norm statistics where the net tracks them.
    """
    tasks = len(episodes.support_x)
    metrics: dict[str, Tensor] = {}
    moments: Meta = {}

    def one(episode: Episode) -> TaskLoss:
        out = algorithm.loss(net, meta, episode)
        if not net.tracks or out.moments:
            return out
        with torch.no_grad():
            return out._replace(moments=net.moments(meta, torch.cat([episode.support_x, episode.query_x])))

    for part in in_chunks(episodes, chunk):
        out = per_task(one, part)
        (out.loss.sum() / tasks).backward()
        for totals, parts in ((metrics, out.metrics), (moments, out.moments)):
            for name, values in parts.items():
                share = values.detach().sum(0) / tasks
                totals[name] = totals[name] + share if name in totals else share
    return metrics, moments


def train_step(
    algorithm: Algorithm, net: Net, state: TrainState, episodes: EpisodeBatch, chunk: int | None, clip: float | None
) -> dict[str, Tensor]:
    """Moves `state` one meta-update on; returns the mean metrics, still on the device."""
    state.optimizer.zero_grad(set_to_none=True)
    metrics, moments = meta_gradient(algorithm, net, state.meta, episodes, chunk)
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(list(state.meta.values()), clip)
    state.optimizer.step()
    if state.scheduler is not None:
        state.scheduler.step()
    with torch.no_grad():
        for name, value in moments.items():
            state.running[name].lerp_(value, MOMENTUM)
    state.step += 1
    return metrics
