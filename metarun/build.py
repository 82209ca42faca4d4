"""From a checked plan to the objects of a run."""

from __future__ import annotations

from metarun.config import Plan, Tree
from metarun.types import Algorithm, Bank, HostSide, InputError, Meta, Net, Sampler, TaskShape


def sampler(plan: Plan, split: str, bank: Bank) -> Sampler:
    """Training episodes follow the run's seed; validation and test episodes are the same for every run."""
    if split != "train":
        return bank.episodes(plan.eval.way, plan.eval.shot, plan.eval.query, plan.eval.seed, split, "eval")
    if plan.algorithm.supervised:
        return bank.batches(plan.seed, split)
    return bank.episodes(plan.task.way, plan.task.shot, plan.task.query, plan.seed, split, "task")


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
