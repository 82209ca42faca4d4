"""The meta-training loop. It reads from top to bottom and knows no method, dataset, logger or file by name."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from metarun.counter import mix
from metarun.engine.evaluate import Score
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.measures import Measure
from metarun.settings import TrainSettings
from metarun.types import Algorithm, Episodes, Net, TrainingError

Row = dict[str, Any]
EPISODES = "episodes"
"""the phase of a step in which they are drawn, as a profile has it"""


def fit(
    algorithm: Algorithm,
    net: Net,
    state: TrainState,
    episodes: Episodes,
    settings: TrainSettings,
    *,
    measure: Measure,
    seed: int,
    chunk: int | None,
    checkpoint_every: int,
    validate: Callable[[TrainState], Score],
    log: Callable[[Row], None],
    save: Callable[[str, TrainState], None],
    tick: Callable[[int], None],
    stop: Callable[[], bool],
    net_at: Callable[[int], Net] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Trains `state` in place to `settings.iterations`; False if `stop` ended it before.

    measure             what the validation score is a mean of
    log(row)            one row of metrics: {"step", "split": "train" or "val", ...}
    save(which, state)  `best` after a validation that beats all before it, `last` now and then and at the end
    net_at(step)        the network of a step (from 0), where it is not always `net`
    tick(step)          after every step; must not wait for the device
    say(line)           what a person should know; see `train_step`

    Raises `TrainingError` when the loss stops being finite; what was saved before stays as it was.
    """
    ticket = tickets(seed)
    mark, mark_step = monotonic(), state.step
    while state.step < settings.iterations:
        net = net if net_at is None else net_at(state.step)
        state.add(meta_update(algorithm, net, state, episodes, settings, ticket, chunk, say))
        step, ended, stopping = state.step, state.step == settings.iterations, stop()
        tick(step)

        if step % settings.log_every == 0 or ended:
            means = _finite(state)
            rate = (step - mark_step) / max(monotonic() - mark, 1e-9)
            log({"step": step, "split": "train", **means, "lr": state.lr, "rate": round(rate, 3)})
            state.forget()
            mark, mark_step = monotonic(), step
        if step % settings.val_every == 0 or ended:
            _finite(state)
            paused = monotonic()
            result = validate(state)
            # Adaptation may diverge on a validation task although training does not: the worst there is, but no end.
            reached = result.mean if isfinite(result.mean) else measure.worst
            better = not state.best or measure.better(reached, state.best[measure.name])
            if better:
                state.best = {"step": step, measure.name: reached}
            log({"step": step, "split": "val", measure.name: reached, "ci95": result.ci95, "best": better})
            if better:
                save("best", state)
            mark += monotonic() - paused  # validation is not training time
        if step % checkpoint_every == 0 or ended or stopping:
            _finite(state)
            save("last", state)
        if stopping and not ended:
            return False
    return True


def tickets(seed: int) -> int:
    """Where a run's random numbers start."""
    return int(mix(torch.tensor(seed)))


def meta_update(
    algorithm: Algorithm,
    net: Net,
    state: TrainState,
    episodes: Episodes,
    settings: TrainSettings,
    ticket: int,
    chunk: int | None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """The next step of a run, episodes and all; its mean metrics, still on the device. `ticket`: the run's first."""
    first = state.step * settings.meta_batch
    with record_function(EPISODES):
        drawn = episodes(first, settings.meta_batch)
    now = algorithm.at_step(state.step, settings.iterations)
    penalty = settings.l1, settings.l2
    return train_step(now, net, state, drawn, chunk, settings.clip, penalty, ticket + first, say)


def _finite(state: TrainState) -> dict[str, float]:
    means = state.means()
    broken = [f"{name} = {value}" for name, value in means.items() if not isfinite(value)]
    # A finite loss can have a gradient that is not: the weights tell before the next loss does.
    if not torch.stack([w.isfinite().all() for w in state.meta.values()]).all():
        broken.append("weights that are not finite")
    if broken:
        raise TrainingError(
            f"training diverged by step {state.step}: {', '.join(broken)}. "
            "Lower train.lr or algo.inner_lr, or set train.clip=10"
        )
    return means
