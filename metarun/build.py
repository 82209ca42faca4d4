"""From a checked plan to the objects of a run."""

from __future__ import annotations

from dataclasses import asdict

from metarun.config import Plan, Tree
from metarun.data.ahead import Ahead
from metarun.data.augment import Augment, Augmented
from metarun.data.bank import ClassBank, subset, with_turns
from metarun.types import Algorithm, Bank, HostSide, InputError, Meta, Net, Sampler, TaskShape


def sampler(plan: Plan, split: str, bank: Bank) -> Sampler:
    """Training episodes follow the run's seed; validation and test episodes are the same for every run."""
    if split != "train":
        episodes = bank.episodes(plan.eval.way, plan.eval.shot, plan.eval.query, plan.eval.seed, split, "eval")
    elif plan.algorithm.supervised:
        episodes = bank.batches(plan.seed, split)
    else:
        episodes = bank.episodes(plan.task.way, plan.task.shot, plan.task.query, plan.seed, split, "task")
    if split == "train":
        episodes = augmented(plan, episodes)
    return Ahead(episodes) if bank.ahead else episodes


def augmented(plan: Plan, episodes: Sampler) -> Sampler:
    """Training episodes as `augment` would have them."""
    settings = asdict(plan.augment)
    settings.pop("turn_classes")
    if Augment(**settings) == Augment():
        return episodes
    if len(episodes.item_shape) != 3:
        raise InputError(f"augment: changes images, and this dataset's items are {episodes.item_shape}; leave it out")
    return Augmented(episodes, Augment(**settings), plan.seed, "train")


def training(plan: Plan, bank: Bank) -> Bank:
    """What of the training split a run trains on: all of it, unless `data` or `augment` say otherwise."""
    data, turns = plan.data, plan.augment.turn_classes
    if data.classes is None and data.images is None and not turns:
        return bank
    if not isinstance(bank, ClassBank):
        raise InputError("data.classes, data.images, augment.turn_classes: this dataset has no classes; leave them out")
    try:
        bank = subset(bank, data.classes, data.images, plan.seed)
        return with_turns(bank) if turns else bank
    except ValueError as e:
        raise InputError(str(e)) from None


def network(plan: Plan, episodes: Sampler) -> Net:
    return plan.model(item_shape=episodes.item_shape, outputs=episodes.outputs)


def serves(plan: Plan, tree: Tree, net: Net, kind: str, node: str) -> None:
    """Raises `InputError` where the method cannot serve the tasks that a config node asks for, with this network."""
    task = plan.task if node == "task" else plan.eval
    try:
        plan.algorithm.check(net, TaskShape(kind, task.way, task.shot, task.query))
    except ValueError as e:
        raise InputError(f"algo={tree['algo']['name']}: {e}") from None


def trains(algorithm: Algorithm, meta: Meta) -> bool:
    """Whether there is anything to train. `meta` is what the method starts from."""
    return bool(meta) and not isinstance(algorithm, HostSide)
