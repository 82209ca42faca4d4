"""From a checked config to the parts of a run, with nothing written yet. Who runs them is `run` and those beside it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from metarun import config
from metarun.build import as_trained, frugal, network, sampler, serves, training, trains
from metarun.config import Plan, Tree
from metarun.device import budget, pick
from metarun.engine.optim import make_optimizer, make_scheduler
from metarun.engine.state import TrainState
from metarun.loggers.sink import Logger
from metarun.measures import Measure
from metarun.schema import Complaints
from metarun.types import SPLITS, InputError, Net, Sampler


@dataclass(frozen=True)
class Session:
    """A run's parts, built and checked; nothing has been written yet."""

    plan: Plan
    device: torch.device
    net: Net
    test_net: Net
    state: TrainState | None
    """None: there is nothing to train"""
    train: Sampler
    val: Sampler
    measure: Measure
    logger: Logger
    digests: dict[str, str]
    """what tells the data of each split from other data"""
    data_bytes: int
    """of items that lie on the device while it trains"""


def fresh_state(plan: Plan, net: Net, device: torch.device) -> TrainState | None:
    """Step 0: weights drawn on the CPU from the run's seed, so that every device starts from the same ones.

    None for a method that has nothing to train.
    """
    drawn = plan.algorithm.init(net, torch.Generator().manual_seed(plan.seed))
    if not trains(plan.algorithm, drawn):
        return None
    meta = {name: w.to(device).requires_grad_() for name, w in drawn.items()}
    running = {name: value.to(device) for name, value in plan.algorithm.fresh_running(net).items()}
    train = plan.train
    optimizer = make_optimizer(train.optimizer, meta.values(), train.lr, train.optimizer_args)
    scheduler = make_scheduler(train.schedule, optimizer, train.iterations, train.schedule_args)
    return TrainState(meta, optimizer, scheduler, running)


class Once:
    """What runs that are prepared one after another have in common: made for the first of them."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}

    def __call__(self, what: Hashable, make: Callable[..., Any], *given: Any) -> Any:
        if what not in self._made:
            self._made[what] = make(*given)
        return self._made[what]


def prepare(tree: Tree, once: Once | None = None) -> Session:
    """Everything a run needs. Raises `InputError` for all that a person can get wrong, before anything is written.

    `once`: of the runs before, whose data and tasks are the same but for their seed; it is given their parts too.
    """
    plan, once = frugal(config.read(tree), tree), once or Once()
    logger = config.component("logger", tree)
    device = pick(plan.device)
    banks = {split: once(split, plan.dataset.load, split, plan.place) for split in SPLITS}
    chosen = plan.seed if (plan.data.classes, plan.data.images) != (None, None) else None
    banks["train"] = once(("training", chosen), training, plan, banks["train"])
    digests = {split: once(("digest", id(bank)), bank.digest) for split, bank in banks.items()}
    wrong = Complaints()
    room = budget(plan.device, device)
    there = {split: once(("there", id(banks[split])), banks[split].to, device, room) for split in ("train", "val")}
    train = wrong.about(lambda: once(("episodes", plan.seed), sampler, plan, "train", there["train"]))
    val = wrong.about(lambda: once("validation", sampler, plan, "val", there["val"]))
    wrong.about(lambda: sampler(plan, "test", banks["test"]))  # evaluation's alone; here for whether it can be done
    wrong.end()
    net, test_net = as_trained(plan, network(plan, train)), network(plan, val)
    wrong.about(lambda: serves(plan, tree, net, banks["train"].kind, "task"))
    wrong.about(lambda: serves(plan, tree, test_net, banks["val"].kind, "eval"))
    wrong.end()
    state = fresh_state(plan, net, device)
    if state is not None and (missing := _misfits(state, plan, test_net)):
        raise InputError(missing)
    measure = banks["train"].measures[0]
    sizes = [getattr(banks[split], "bytes", 0) for split in ("train", "val")]  # curves are made as they are needed
    on_device = sum(size for size in sizes if room is None or size <= room)
    return Session(plan, device, net, test_net, state, train, val, measure, logger, digests, on_device)


def _misfits(state: TrainState, plan: Plan, test_net: Net) -> str:
    """Why the trained weights could not be evaluated, or nothing: a head is for one way."""
    wanted = plan.algorithm.at_test(plan.algorithm.init(test_net, torch.Generator()))
    for name, w in plan.algorithm.at_test(state.meta).items():
        if name not in wanted or wanted[name].shape != w.shape:
            return (
                f"eval.way={plan.eval.way}: '{name}' is trained for {plan.task.most_way} classes and fits no other; "
                f"set eval.way={plan.task.most_way}"
            )
    return ""
