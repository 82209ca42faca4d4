"""From a checked plan to the objects of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache

from metarun.config import Plan, Tree
from metarun.data.ahead import Ahead
from metarun.data.augment import Augment, Augmented
from metarun.data.bank import ClassBank, subset, with_turns
from metarun.data.sampler import EpisodeSampler
from metarun.data.varied import Shapes, VariedSampler
from metarun.types import Algorithm, Bank, HostSide, InputError, Meta, Net, Sampler, TaskShape


def sampler(plan: Plan, split: str, bank: Bank) -> Sampler:
    """Training episodes follow the run's seed; validation and test episodes are the same for every run."""
    if split != "train":
        episodes = bank.episodes(plan.eval.way, plan.eval.shot, plan.eval.query, plan.eval.seed, split, "eval")
    elif plan.algorithm.supervised:
        episodes = bank.batches(plan.seed, split)
    else:
        task = plan.task
        episodes = bank.episodes(task.most_way, task.most_shot, task.query, plan.seed, split, "task")
        if (made := shapes(plan)) is not None:
            episodes = varied(plan, episodes, made)
    if split == "train":
        episodes = augmented(plan, episodes)
    return Ahead(episodes) if bank.ahead else episodes


def shapes(plan: Plan) -> Shapes | None:
    """The way and shot of each meta-batch, where they are not always the same."""
    task = plan.task
    if plan.algorithm.supervised or not task.varies:
        return None
    return Shapes((task.way, task.most_way), (task.shot, task.most_shot), plan.train.meta_batch, plan.seed)


def varied(plan: Plan, largest: Sampler, made: Shapes) -> Sampler:
    if not isinstance(largest, EpisodeSampler):
        raise InputError("task.way_to, task.shot_to, task.balanced: this dataset has no classes; leave them out")
    if largest.bank.groups is not None and not plan.task.balanced:
        raise InputError("task.balanced=false: not of images in groups, which are kept apart; set task.balanced=true")
    return VariedSampler(largest, made, plan.task.balanced)


def networks(plan: Plan, net: Net) -> Callable[[int], Net]:
    """The network of each training step: where the way varies, one that puts out as many classes as there are."""
    made = shapes(plan)
    if made is None:
        return lambda step: net

    @cache
    def of_way(way: int) -> Net:
        return as_trained(plan, plan.model(item_shape=net.item_shape, outputs=way))

    return lambda step: of_way(made.at(step * made.batch)[0])


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


def as_trained(plan: Plan, net: Net) -> Net:
    """A network in the precision that training has."""
    return net.in_bf16() if plan.device.precision == "bf16" else net


def serves(plan: Plan, tree: Tree, net: Net, kind: str, node: str) -> None:
    """Raises `InputError` where the method cannot serve the tasks that a config node asks for, with this network."""
    task = plan.task if node == "task" else plan.eval
    try:
        balanced = node == "eval" or plan.task.balanced
        plan.algorithm.check(net, TaskShape(kind, task.way, task.shot, task.query, balanced))
    except ValueError as e:
        raise InputError(f"algo={tree['algo']['name']}: {e}") from None


def frugal(plan: Plan, tree: Tree) -> Plan:
    """The plan with a method that takes its inner steps again for their gradient, where that is asked for."""
    if not plan.device.checkpoint_inner:
        return plan
    try:
        return replace(plan, algorithm=plan.algorithm.recomputing())
    except ValueError as e:
        raise InputError(f"device.checkpoint_inner=true: of no use to algo={tree['algo']['name']}: {e}") from None


def trains(algorithm: Algorithm, meta: Meta) -> bool:
    """Whether there is anything to train. `meta` is what the method starts from."""
    return bool(meta) and not isinstance(algorithm, HostSide)
