"""The outer optimizer and its learning-rate schedule, by their names in `torch.optim`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from metarun.engine.eager import plain
from metarun.hints import did_you_mean
from metarun.types import InputError

REHEARSED = 200_000
"""steps, a few seconds' worth and longer than any published run, after which a schedule is believed to go on"""
TIED_TO_LENGTH = ("linear", "cosine")
"""Schedules that end with the run: they reach zero at `train.iterations`."""

_NEED_MORE = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}  # a closure, sparse gradients, matrices only, abstract
_NEED_OBJECTS = {
    "LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "ReduceLROnPlateau", "SWALR"
}  # fmt: skip


def _named(module: Any, base: type, without: set[str]) -> dict[str, Any]:
    found = vars(module).items()
    return {n: c for n, c in found if isinstance(c, type) and issubclass(c, base) and n not in without and n[0] != "_"}


def make_optimizer(name: str, weights: Iterable[Tensor], lr: float, args: dict[str, Any]) -> Optimizer:
    """`torch.optim.NAME(weights, lr=lr, **args)`. Raises `InputError` for an unknown name or argument."""
    known: dict[str, Any] = {n: plain(c) for n, c in _named(torch.optim, Optimizer, _NEED_MORE).items()}
    if name not in known:
        raise InputError(f"train.optimizer: no optimizer '{name}' in torch.optim; {did_you_mean(name, known)}")
    if "lr" in args:
        raise InputError(f"train.optimizer_args: holds lr={args['lr']}, which is train.lr's to say; set train.lr")
    try:
        return known[name](list(weights), lr=lr, **args)
    except (TypeError, ValueError, RuntimeError) as e:
        raise InputError(f"train.optimizer_args: torch.optim.{name} refuses {args}: {e}") from None


def make_scheduler(name: str, optimizer: Optimizer, iterations: int, args: dict[str, Any]) -> LRScheduler | None:
    """`constant`, `linear` or `cosine` (both to 0 at `iterations`), or a class of `torch.optim.lr_scheduler`."""
    if args and name in ("constant", *TIED_TO_LENGTH):
        raise InputError(f"train.schedule_args={args}: schedule '{name}' takes none; leave them out, or set it to null")
    if name == "constant":
        return None
    if name == "linear":
        return lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=iterations)
    if name == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, T_max=iterations)
    known = _named(lr_scheduler, LRScheduler, _NEED_OBJECTS)
    if name not in known:
        raise InputError(
            f"train.schedule: no schedule '{name}'; {did_you_mean(name, ['constant', *TIED_TO_LENGTH, *known])}"
        )
    try:
        _rehearse(known[name], optimizer, iterations, args)
        return known[name](optimizer, **args)
    except Exception as e:
        reason = str(e) or type(e).__name__
        raise InputError(f"train.schedule_args: torch.optim.lr_scheduler.{name} refuses {args}: {reason}") from None


def _rehearse(schedule: Any, optimizer: Optimizer, iterations: int, args: dict[str, Any]) -> None:
    """Steps a schedule through the run on a copy: some arguments (`step_size: 0`, `total_steps: 10`) fail only then."""
    rehearsal = schedule(deepcopy(optimizer), **args)
    with warnings.catch_warnings(action="ignore"):  # of a schedule stepped before its optimizer
        for _ in range(min(iterations, REHEARSED)):
            rehearsal.step()
