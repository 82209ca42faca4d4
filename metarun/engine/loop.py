"""The meta-training loop. It reads from top to bottom and knows no method, dataset, logger or file by name."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from metarun.counter import Number, mix
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.evaluate import Score
from metarun.engine.state import TrainState
from metarun.engine.step import Portion, as_it_comes, update
from metarun.measures import Measure
from metarun.settings import TrainSettings
from metarun.types import Algorithm, EpisodeBatch, Episodes, Net, TrainingError

Row = dict[str, Any]
EPISODES = "episodes"
"""the phase of a step in which they are drawn, as a profile has it"""


class Early:
    """The same episodes as `episodes`, of which some, before number `end`, can be drawn before they are asked for."""

    def __init__(self, episodes: Episodes, end: int) -> None:
        self._episodes, self._end = episodes, end
        self._ready: tuple[tuple[int, int], EpisodeBatch] | None = None

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        ready, self._ready = self._ready, None
        return ready[1] if ready is not None and ready[0] == (first, count) else self._episodes(first, count)

    def draw(self, first: int, count: int) -> None:
        """These will be asked for next."""
        if first < self._end:
            self._ready = (first, count), self._episodes(first, count)


def computed(
    algorithm: Algorithm,
    net: Net,
    state: TrainState,
    episodes: Episodes,
    settings: TrainSettings,
    first: Number,
    ticket: int,
    chunk: int | None,
    ranks: Ranks = ALONE,
    say: Callable[[str], None] = lambda line: None,
    portion: Portion = as_it_comes,
) -> dict[str, Tensor]:
    """What the device does of a step, episodes and all; its mean metrics, still there.

    `first` is the number of the meta-batch's first episode, `ticket` the run's first. `Early` episodes of the step
    after this one are drawn while the ranks' gradients are on their way.
    """
    part = ranks.part(settings.meta_batch)
    own, share = first + part.start, len(part) / settings.meta_batch
    with record_function(EPISODES):
        drawn = episodes(own, len(part))

    def meanwhile() -> None:
        if isinstance(episodes, Early):
            with record_function(EPISODES):
                episodes.draw(int(own) + settings.meta_batch, len(part))

    how = (chunk, settings.clip, (settings.l1, settings.l2), own + ticket, ranks, share, say, portion, meanwhile)
    return update(algorithm, net, state, drawn, *how)


Computed = Callable[..., dict[str, Tensor]]
"""`computed`, or what does the same in another way"""


class Course:
    """What a run does after each of its steps, whoever computes them: rows, validations, checkpoints, and its end.

    measure             what the validation score is a mean of
    log(row)            one row of metrics: {"step", "split": "train" or "val", ...}
    save(which, state)  `best` after a validation that beats all before it, `last` now and then and at the end
    tick(step)          after every step; must not wait for the device
    stop()              whether it is to end now, before its time

    `finished` is None while there are steps to take; then True, or False if `stop` ended it before.
    """

    def __init__(
        self,
        state: TrainState,
        settings: TrainSettings,
        *,
        measure: Measure,
        checkpoint_every: int,
        validate: Callable[[TrainState], Score],
        log: Callable[[Row], None],
        save: Callable[[str, TrainState], None],
        tick: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> None:
        self.state, self.settings = state, settings
        self._measure, self._checkpoint_every, self._validate = measure, checkpoint_every, validate
        self._log, self._save, self._tick, self._stop = log, save, tick, stop
        self.finished = True if state.step >= settings.iterations else None
        self.begin()

    def begin(self) -> None:
        """Steps are timed from here on."""
        self._mark, self._mark_step = monotonic(), self.state.step

    def take(self, metrics: dict[str, Tensor]) -> None:
        """A step has been made, with these mean metrics, which are still on the device.

        Raises `TrainingError` when the loss has stopped being finite; what was saved before stays as it was.
        """
        state, settings = self.state, self.settings
        state.add(metrics)
        step, ended, stopping = state.step, state.step == settings.iterations, self._stop()
        self._tick(step)

        if step % settings.log_every == 0 or ended:
            means = _finite(state)
            rate = (step - self._mark_step) / max(monotonic() - self._mark, 1e-9)
            self._log({"step": step, "split": "train", **means, "lr": state.lr, "rate": round(rate, 3)})
            state.forget()
            self._mark, self._mark_step = monotonic(), step
        if step % settings.val_every == 0 or ended:
            _finite(state)
            paused = monotonic()
            self._judge()
            self._mark += monotonic() - paused  # validation is not training time
        if step % self._checkpoint_every == 0 or ended or stopping:
            _finite(state)
            self._save("last", state)
        if ended or stopping:
            self.finished = ended

    def _judge(self) -> None:
        """A validation."""
        state, name = self.state, self._measure.name
        result = self._validate(state)
        # Adaptation may diverge on a validation task although training does not: the worst there is, but no end.
        reached = result.mean if isfinite(result.mean) else self._measure.worst
        better = not state.best or self._measure.better(reached, state.best[name])
        if better:
            state.best = {"step": state.step, name: reached}
        self._log({"step": state.step, "split": "val", name: reached, "ci95": result.ci95, "best": better})
        if better:
            self._save("best", state)


def fit(
    course: Course,
    algorithm: Algorithm,
    net: Net,
    episodes: Episodes,
    *,
    seed: int,
    chunk: int | None,
    net_at: Callable[[int], Net] | None = None,
    ranks: Ranks = ALONE,
    compute: Computed = computed,
    say: Callable[[str], None] = lambda line: None,
) -> bool:
    """Trains a run in place to the end of its `course`; False if it was ended before.

    net_at(step)        the network of a step (from 0), where it is not always `net`
    ranks               share each meta-batch; what the course is told must be the same on all of them
    compute             how the device does its part of a step
    say(line)           what a person should know; see `update`

    Raises `TrainingError` when the loss stops being finite; what was saved before stays as it was.
    """
    state, settings, ticket = course.state, course.settings, tickets(seed)
    if ranks.count > 1:
        episodes = Early(episodes, settings.iterations * settings.meta_batch)
    course.begin()
    while course.finished is None:
        net = net if net_at is None else net_at(state.step)
        course.take(meta_update(algorithm, net, state, episodes, settings, ticket, chunk, ranks, compute, say))
    return course.finished


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
    ranks: Ranks = ALONE,
    compute: Computed = computed,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Tensor]:
    """The next step of a run, episodes and all; its mean metrics, still on the device. `ticket`: the run's first."""
    first, now = state.step * settings.meta_batch, algorithm.at_step(state.step, settings.iterations)
    metrics = compute(now, net, state, episodes, settings, first, ticket, chunk, ranks, say)
    state.advance()
    return metrics


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
