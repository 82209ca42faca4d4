"""The gradient of some tasks, taken apart once into the operations it is made of and then done from that list.

The nested transforms and autograd's graphs are gone from it, and what is computed for nothing is left out. On a GPU the
list is compiled as well, by torch's own compiler, into kernels that pass over memory less often; on a CPU those took
two minutes to make and were slower than torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from metarun.engine.memory import is_about_memory
from metarun.engine.step import Ticketed, as_it_comes
from metarun.types import Algorithm, EpisodeBatch, Meta, Net

MOST = 8
"""lists; a method that is another at every step has as many as steps, and its later ones are computed as they come"""
EARNED = 900.0
"""seconds that a run has left to go where a list is worth its while: it takes 5 to 15, and saves a tenth at most"""
WARM = 2
"""portions of a kind that are computed before the next is timed"""
ROUNDS = 5
"""of a list that must be worth its while: it and what it is to replace, in turns, and the faster stays"""

Flat = list[Tensor]


@dataclass
class Kind:
    """Portions that one list serves."""

    net: Net
    others: tuple[Any, ...]
    """what else it is made of: the method, the number of tasks and all shapes"""
    taken: int = 0
    seconds: float = 0.0
    """that the last one took as it came"""
    replay: Callable[[Flat], list[Meta]] | None = None
    rivals: tuple[list[float], list[float]] | None = None
    """seconds as it comes and from the list, while the two are compared"""
    over: bool = False
    """whether it is known that there is to be no list"""


class Compiled:
    """A `metarun.engine.step.Portion` from such a list: on a CPU to the bits of `as_it_comes`.

    say         is told how long a list was in the making, or why there is none
    left        how many steps the run still takes, where a list must be worth its while; None: it is in any case
    compiler    makes another function of a list; that is then as exact as the compiler is
    """

    def __init__(
        self,
        say: Callable[[str], None],
        left: Callable[[], int] | None = None,
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self._say, self._left, self._compiler, self._kinds = say, left, compiler, list[Kind]()

    def __call__(
        self, algorithm: Algorithm, net: Net, meta: Meta, running: Meta, part: Ticketed, tasks: int
    ) -> tuple[Meta, Meta]:
        given = [*meta.values(), *running.values(), *part.episode, part.ticket]
        kind = self._kind(net, (algorithm, tasks, [(t.shape, t.dtype, t.device) for t in given]))
        if kind is None:
            return as_it_comes(algorithm, net, meta, running, part, tasks)
        if kind.replay is None and not kind.over and self._worth(kind, len(part.ticket), tasks):
            self._make(kind, flat(algorithm, net, meta, running, tasks), given)
        began = perf_counter()
        turn = kind.rivals is not None and len(kind.rivals[0]) <= len(kind.rivals[1])  # of what it is to replace
        if kind.replay is None or turn:
            out = as_it_comes(algorithm, net, meta, running, part, tasks)
        else:
            out = replayed(kind.replay, meta, given)
        kind.taken, kind.seconds = kind.taken + 1, perf_counter() - began
        if kind.rivals is not None:
            kind.rivals[not turn].append(kind.seconds)
            self._compare(kind, *kind.rivals)
        return out

    def _kind(self, net: Net, others: tuple[Any, ...]) -> Kind | None:
        for kind in self._kinds:
            if kind.net is net and kind.others == others:
                return kind
        if len(self._kinds) == MOST:
            return None
        self._kinds.append(Kind(net, others))
        return self._kinds[-1]

    def _worth(self, kind: Kind, at_once: int, tasks: int) -> bool:
        if self._left is None:
            return True
        return kind.taken > WARM and self._left() * kind.seconds * -(-tasks // at_once) > EARNED

    def _make(self, kind: Kind, f: Callable[[Flat], list[Meta]], given: Flat) -> None:
        began = perf_counter()
        try:
            replay = traced(f, given)
            if self._compiler is not None:
                replay = self._compiler(replay)
                with torch.no_grad():
                    replay([t.detach() for t in given])  # compilers work when they are first needed
            kind.replay = replay
        except Exception as e:
            if is_about_memory(e):
                raise
            kind.over = True
            why = " ".join(str(e).split())[:120] or type(e).__name__
            self._say(f"steps are computed as they come, for they could not be compiled: {why}")
        else:
            kind.rivals = None if self._left is None else ([], [])
            self._say(f"a step was compiled in {perf_counter() - began:.0f} s")

    def _compare(self, kind: Kind, before: list[float], listed: list[float]) -> None:
        if len(listed) < ROUNDS:
            return
        kind.rivals = None
        if median(listed) >= median(before):
            kind.replay, kind.over = None, True
            self._say("it is no faster so; steps are computed as they come")


def replayed(replay: Callable[[Flat], list[Meta]], meta: Meta, given: Flat) -> tuple[Meta, Meta]:
    """What `as_it_comes` does and gives, from a list."""
    with torch.no_grad():
        slopes, metrics, moments = replay([t.detach() for t in given])
        for name, slope in slopes.items():
            w = meta[name]
            # A copy, as two weights may have been given one tensor, or a tensor all of whose places are one.
            w.grad = torch.empty_like(w).copy_(slope) if w.grad is None else w.grad.add_(slope)
    return metrics, moments


def flat(algorithm: Algorithm, net: Net, meta: Meta, running: Meta, tasks: int) -> Callable[[Flat], list[Meta]]:
    """What a portion puts out, [gradients, metrics, moments], of its tensors one after another."""
    names, kept = [*meta], [*running]

    def f(given: Flat) -> list[Meta]:
        rest = iter(given)
        weights = {name: next(rest).detach().requires_grad_() for name in names}
        averages = {name: next(rest) for name in kept}
        *episode, ticket = rest
        with torch.enable_grad():
            part = Ticketed(EpisodeBatch(*episode), ticket)
            metrics, moments = as_it_comes(algorithm, net, weights, averages, part, tasks)
        slopes = {name: w.grad for name, w in weights.items() if w.grad is not None}
        return [{name: t.detach() for name, t in each.items()} for each in (slopes, metrics, moments)]

    return f


def traced(f: Callable[[Flat], list[Meta]], given: Flat) -> Callable[[Flat], list[Meta]]:
    """`f` as the list of what it did with `given`, for tensors of the same shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx  # imports the symbolic algebra of torch's compiler

    module = make_fx(f, tracing_mode="fake")([t.detach() for t in given])
    for node in reversed(module.graph.nodes):
        if getattr(node.target, "namespace", "") == "profiler":  # the phases that a profile has
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
