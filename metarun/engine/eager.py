"""torch's own transforms and optimizers without its compiler, whose import takes longer than torch's.

A run that compiles nothing still has `torch._dynamo` imported, 1,000 modules and 4 to 5 s before its first step: the
gradient of `torch.func` turns compiled autograd off around itself, and an optimizer marks its methods as not to be
compiled. Until something else has imported the compiler, there is nothing to turn off and nobody to read the marks.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch.optim import Optimizer

COMPILER = "torch._dynamo"
MARKED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""An optimizer's methods, beside `step`, that import the compiler in order to be left alone by it."""


class _Absent:
    """Stands at `torch._dynamo` while that is not imported. Asked for anything but the one thing, it imports it."""

    compiled_autograd = SimpleNamespace(_disable=nullcontext)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(COMPILER), name)


@contextmanager
def _without_compiler() -> Iterator[None]:
    if "_dynamo" in vars(torch):  # another has seen to it: a `vmap` around this one
        yield
        return
    stand_in: Any = _Absent()
    torch._dynamo = stand_in
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is stand_in:  # an import puts the module itself there
            del torch._dynamo


def vmap(f: Callable[..., Any], in_dims: Any = 0) -> Callable[..., Any]:
    """`torch.func.vmap(f, in_dims)`, in which `torch.func.grad` and the like need no compiler."""
    mapped = torch.func.vmap(f, in_dims)
    if torch.compiler.is_compiling() or COMPILER in sys.modules:
        return mapped

    def without(*args: Any) -> Any:
        with _without_compiler():
            return mapped(*args)

    return without


@cache
def plain(optimizer: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer, step by step the same numbers; its marks for the compiler are left out."""
    step = inspect.unwrap(optimizer.step)

    def plain_step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            return step(self, *args, **kwargs)

    unmarked = {name: inspect.unwrap(getattr(optimizer, name)) for name in MARKED}
    return type(optimizer.__name__, (optimizer,), unmarked | {"step": plain_step})
