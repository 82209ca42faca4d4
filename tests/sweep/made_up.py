"""Sweeps that never ran."""

from __future__ import annotations

import random
from math import log10

from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Choice, Dimension, Goal, Interval, Params, Trial

ACCURACY = Goal("val/accuracy", True)
MSE = Goal("val/mse", False)
SMALL: dict[str, Dimension] = {
    "algo.inner_lr": Interval(0.01, 1.0, log=True),
    "train.lr": Interval(1e-4, 1e-2, log=True),
    "algo.inner_steps": Choice((1, 3, 5)),
}
CONDITIONAL = "algo.inner_lr", "algo.inner_steps"
"""settings that protonet does not have"""
LARGE: dict[str, Dimension] = {
    "algo": Choice(("maml", "protonet")),
    **SMALL,
    "train.meta_batch": Interval(4, 64, whole=True, step=4),
    "train.optimizer": Choice(("Adam", "SGD", "RMSprop")),
    "train.clip": Choice((None, 1.0, 10.0)),
    "train.optimizer_args.weight_decay": Interval(1e-6, 1e-2, log=True),
    "augment.flip": Choice((True, False)),
    "model.filters": Choice((32, 64, 128)),
    "model.widths": Choice(("[64,64]", "[256,128,64,64]")),
    "augment.rotation": Interval(0.0, 45.0),
}


def drawn(space: dict[str, Dimension], rng: random.Random) -> Params:
    params: Params = {}
    for name, dim in space.items():
        if isinstance(dim, Choice):
            params[name] = rng.choice(dim.options)
        elif dim.whole:
            params[name] = rng.randrange(int(dim.low), int(dim.high) + 1, dim.step)
        elif dim.log:
            params[name] = 10 ** rng.uniform(log10(dim.low), log10(dim.high))
        else:
            params[name] = rng.uniform(dim.low, dim.high)
    if params.get("algo") == "protonet":
        for name in CONDITIONAL:
            params.pop(name, None)
    return params


def quality(params: Params) -> float:
    """An accuracy that algo.inner_lr decides, at its best at 0.3, and train.lr a little."""
    rate = params.get("algo.inner_lr", 0.05)
    assert isinstance(rate, float)
    other = params["train.lr"]
    assert isinstance(other, float)
    return 0.95 - 0.25 * log10(rate / 0.3) ** 2 - 0.02 * log10(other / 1e-3) ** 2


def sweep(space: dict[str, Dimension], count: int, seeds: int = 1, seed: int = 0, whole: bool = False) -> list[Trial]:
    """Trials with accuracies; of every ten one failed and three were pruned, unless they are all to be `whole`."""
    rng = random.Random(seed)
    trials = []
    for number in range(count):
        params = drawn(space, rng)
        values = [quality(params) + rng.gauss(0, 0.005) for _ in range(seeds)]
        trial = Trial(number, params, seconds=60 + rng.random())
        trial.reports = {step: values[0] * (1 - 50 / step) for step in (100, 200, 300)}
        if not whole and number % 10 == 4:
            trial.state, trial.reason, trial.reports = FAILED, "the loss is not finite", {}
        elif not whole and number % 10 in (3, 6, 8):
            trial.state = PRUNED
            trial.reports.pop(300)
        else:
            trial.state, trial.value, trial.measured = COMPLETE, sum(values) / seeds, dict(enumerate(values))
        trials.append(trial)
    return trials
