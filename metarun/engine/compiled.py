"""The gradient of some tasks, taken apart once into the operations it is made of and then done from that list.

The nested transforms and autograd's graphs are gone from it, and what is computed for nothing is left out. On a CPU the
list is written down in one of the run's own steps (`metarun.engine.recording`). On a GPU torch's compiler makes kernels
of it, that pass over memory less often, and torch's own tracer makes the list for it, which takes 5 to 15 seconds; on a
CPU such kernels took two minutes to make and were slower than torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from metarun.engine.memory import is_about_memory
from metarun.engine.recording import NotRecordableError, recorded
from metarun.engine.step import Ticketed, as_it_comes, in_chunks
from metarun.types import Algorithm, EpisodeBatch, Meta, Net

MOST = 8
"""lists; a method that is another at every step has as many as steps, and its later ones are computed as they come"""
WARM = 2
"""portions of a kind that a run computes as they come before it has a list made, unless it was told to have one: those
that come no more often need none"""

Flat = list[Tensor]
Found = list[Meta]
"""of a portion: gradients, metrics and norm statistics, by name"""


@dataclass
class Kind:
    """Portions that one list serves."""

    net: Net
    others: tuple[Any, ...]
    """what else it is made of: the method, the number of tasks and how all tensors lie"""
    taken: int = 0
    replay: Callable[[Flat], Found] | None = None
    proved: bool = False
    """whether the list gave the same as the code with other tensors than those that it was made with"""
    over: bool = False
    """whether it is known that there is to be no list"""


class Compiled:
    """A `metarun.engine.step.Portion` from such a list: on a CPU to the bits of `as_it_comes`.

    say         is told why there is no list, and how long a compiler took
    warm        portions of a kind that are computed as they come before its list is made
    compiler    makes another function of a list; that is then as exact as the compiler is
    at_once     tells how many tasks are done at a time where there is a list: few, which take little memory and from a
                list hardly longer. None: all that it is given.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        warm: int = 0,
        compiler: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        at_once: Callable[[EpisodeBatch, Meta], int] | None = None,
    ) -> None:
        self._say, self._warm, self._compiler, self._at_once = say, warm, compiler, at_once
        self._kinds: list[Kind] = []

    def __call__(
        self, algorithm: Algorithm, net: Net, meta: Meta, running: Meta, part: Ticketed, tasks: int
    ) -> tuple[Meta, Meta]:
        chunk = None if self._at_once is None else self._at_once(part.episode, meta)
        found: list[tuple[Meta, Meta]] = []
        done = 0
        for some in in_chunks(part, chunk):
            if (one := self._from_list(algorithm, net, meta, running, some, tasks)) is None:
                rest = Ticketed(EpisodeBatch(*(t[done:] for t in part.episode)), part.ticket[done:])
                found.append(as_it_comes(algorithm, net, meta, running, rest, tasks))
                break
            found.append(one)
            done += len(some.ticket)
        return joined([metrics for metrics, _ in found]), joined([moments for _, moments in found])

    def _from_list(
        self, algorithm: Algorithm, net: Net, meta: Meta, running: Meta, part: Ticketed, tasks: int
    ) -> tuple[Meta, Meta] | None:
        """None: there is none."""
        given = [t.detach() for t in (*meta.values(), *running.values(), *part.episode, part.ticket)]
        kind = self._kind(net, (algorithm, tasks, [(t.shape, t.stride(), t.dtype, t.device) for t in given]))
        if kind is None or kind.over or kind.taken < self._warm:
            if kind is not None:
                kind.taken += 1
            return None
        try:
            slopes, metrics, moments = self._found(kind, flat(algorithm, net, meta, running, tasks), given)
        except Exception as e:
            if is_about_memory(e):
                raise
            kind.replay, kind.over = None, True
            why = " ".join(str(e).split())[:120] or type(e).__name__
            self._say(f"steps are computed as they come, for they could not be compiled: {why}")
            return None
        add_gradient(meta, slopes)
        return metrics, moments

    def _kind(self, net: Net, others: tuple[Any, ...]) -> Kind | None:
        for kind in self._kinds:
            if kind.net is net and kind.others == others:
                return kind
        if len(self._kinds) == MOST:
            return None
        self._kinds.append(Kind(net, others))
        return self._kinds[-1]

    def _found(self, kind: Kind, f: Callable[[Flat], Found], given: Flat) -> Found:
        """`f(given)`. The first time the list is made, and the second time it must give the same as the code."""
        if kind.replay is None and self._compiler is None:
            found, kind.replay = recorded(f, given)
            return found
        if kind.replay is None:
            kind.replay, kind.proved = self._compiled(f, given), True
        expected = None if kind.proved else f(given)
        with torch.no_grad():
            found = kind.replay(given)
            if expected is not None and not same(found, expected):
                raise NotRecordableError("what they compute depends on more than tensors")
        kind.proved = True
        return found

    def _compiled(self, f: Callable[[Flat], Found], given: Flat) -> Callable[[Flat], Found]:
        began = perf_counter()
        replay = self._compiler(traced(f, given)) if self._compiler is not None else f
        with torch.no_grad():
            replay(given)  # compilers work when they are first needed
        self._say(f"a step was compiled in {perf_counter() - began:.0f} s")
        return replay


def joined(parts: list[Meta]) -> Meta:
    """One tensor of each name, for the tasks of all parts."""
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def add_gradient(meta: Meta, slopes: Meta) -> None:
    """Adds to `.grad` what `backward` would."""
    with torch.no_grad():
        for name, slope in slopes.items():
            w = meta[name]
            # A copy, as two weights may have been given one tensor, or a tensor all of whose places are one.
            w.grad = torch.empty_like(w).copy_(slope) if w.grad is None else w.grad.add_(slope)


def same(one: Found, other: Found) -> bool:
    """Number for number."""
    return [[*each] for each in one] == [[*each] for each in other] and all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for mine, yours in zip(one, other)
        for a, b in zip(mine.values(), yours.values())
    )


def flat(algorithm: Algorithm, net: Net, meta: Meta, running: Meta, tasks: int) -> Callable[[Flat], Found]:
    """What a portion gives, of its tensors one after another."""
    names, kept = [*meta], [*running]

    def f(given: Flat) -> Found:
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


def traced(f: Callable[[Flat], Found], given: Flat) -> Callable[[Flat], Found]:
    """`f` as a list that torch's compiler can read, for tensors of the same shapes."""
    from torch.fx.experimental.proxy_tensor import make_fx  # imports the symbolic algebra of torch's compiler

    module = make_fx(f, tracing_mode="fake")(given)
    for node in reversed(module.graph.nodes):
        if getattr(node.target, "namespace", "") == "profiler":  # the phases that a profile has
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
