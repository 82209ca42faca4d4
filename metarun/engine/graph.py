"""Meta-updates recorded once on the device and replayed: a step then costs the host one launch.

All of a step is in the recording: episodes, augmentation, inner loop, outer gradient, optimizer. What differs from step
to step is read from tensors that are always in the same place: the weights, the number of the step's first episode, the
learning rate. What a step decides from Python numbers is in the recording as it was; so each method, as it is at a step
(`Algorithm.at_step`), and each network has a recording of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from metarun.counter import Number
from metarun.engine import stacked
from metarun.engine.loop import Computed
from metarun.engine.state import TrainState
from metarun.types import Algorithm, Net

WARM = 3
"""steps of a kind before its recording: what is set up once (workspaces, the optimizer's state) is then there"""
MOST = 8
"""recordings; each holds the memory of a step. What comes after is computed step by step"""

Body = Callable[[], dict[str, Tensor]]


class Recording(Protocol):
    """Work on the device that can be done again on what its tensors hold by then."""

    def warm(self, work: Body) -> dict[str, Tensor]:
        """The work done as it comes, where it will be recorded."""
        ...

    def record(self, work: Body) -> dict[str, Tensor]:
        """What the work puts out, in the place where every replay puts it; nothing is computed yet."""
        ...

    def replay(self) -> None: ...


class CudaGraph:
    def __init__(self) -> None:
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def warm(self, work: Body) -> dict[str, Tensor]:
        # On the recording's own stream: autograd remembers on which one a weight's gradient is added.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            out = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return out

    def record(self, work: Body) -> dict[str, Tensor]:
        with torch.cuda.graph(self._graph, stream=self._stream):
            return work()

    def replay(self) -> None:
        self._graph.replay()


@dataclass
class Kind:
    """Steps of one network and method."""

    net: Net
    others: tuple[Any, ...]
    """what else they are computed from"""
    recording: Recording
    taken: int = 0
    metrics: dict[str, Tensor] | None = None
    """what the recording puts out; None: there is none"""


class Replay:
    """Takes steps, the first few as they come, the others from a recording. Same weights, to the device's bits.

    Where recording fails, steps are computed as they come: `say` tells why, once, and the run goes on.
    """

    def __init__(
        self, device: torch.device, say: Callable[[str], None], recording: Callable[[], Recording] = CudaGraph
    ) -> None:
        self._say, self._new = say, recording
        self._kinds, self._failed = list[Kind](), False
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._rates: list[Tensor] = []

    def take(
        self,
        net: Net,
        others: tuple[Any, ...],
        optimizers: Sequence[Optimizer],
        first: int,
        compute: Callable[[Number], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """`compute(first)`, where `first` is the number of the step's first episode, and `net` and `others` are what
        else it is computed from. The optimizers are the same at every step."""
        kind = self._kind(net, others)
        kind.taken += 1
        if kind.metrics is None and kind.taken > WARM and not self._failed and self._room():
            self._record(kind, lambda: compute(self._first), optimizers)
        if kind.metrics is None:
            with on_device(optimizers):
                return kind.recording.warm(lambda: compute(first))
        self._first.fill_(first)
        for rate, group in zip(self._rates, _groups(optimizers), strict=True):
            rate.fill_(group["lr"])
        kind.recording.replay()
        return {name: value.clone() for name, value in kind.metrics.items()}

    def _kind(self, net: Net, others: tuple[Any, ...]) -> Kind:
        for kind in self._kinds:
            if kind.net is net and kind.others == others:
                return kind
        # A method that is another at every step has as many kinds as steps: only the latest may yet be recorded.
        self._kinds = [kind for kind in self._kinds if kind.metrics is not None or len(self._kinds) < 2 * MOST]
        self._kinds.append(Kind(net, others, self._new()))
        return self._kinds[-1]

    def _room(self) -> bool:
        return sum(kind.metrics is not None for kind in self._kinds) < MOST

    def _record(self, kind: Kind, work: Body, optimizers: Sequence[Optimizer]) -> None:
        if not self._rates:
            rates = [float(group["lr"]) for group in _groups(optimizers)]
            self._rates = list(torch.tensor(rates, device=self._first.device).unbind())
        try:
            with on_device(optimizers, self._rates):
                kind.metrics = kind.recording.record(work)
        except Exception as error:
            self._failed = True
            why = " ".join(str(error).split())[:120]
            self._say(f"each step is computed as it comes, for none could be recorded: {why}")


class Recorded:
    """`compute` (as `metarun.engine.loop.computed`), recorded."""

    def __init__(
        self,
        compute: Computed,
        device: torch.device,
        say: Callable[[str], None],
        recording: Callable[[], Recording] = CudaGraph,
    ) -> None:
        self._compute, self._replay = compute, Replay(device, say, recording)

    def __call__(
        self, algorithm: Algorithm, net: Net, state: TrainState, episodes: Any, settings: Any, first: int, *more: Any
    ) -> dict[str, Tensor]:
        def compute(first: Number) -> dict[str, Tensor]:
            return self._compute(algorithm, net, state, episodes, settings, first, *more)

        return self._replay.take(net, (algorithm, *more), [state.optimizer], first, compute)


class RecordedTogether:
    """`compute` (as `metarun.engine.stacked.computed`), recorded; anew when there are other runs than before."""

    def __init__(
        self,
        compute: stacked.Computed,
        device: torch.device,
        say: Callable[[str], None],
        recording: Callable[[], Recording] = CudaGraph,
    ) -> None:
        self._compute, self._new = compute, lambda: Replay(device, say, recording)
        self._members, self._replay = list[stacked.Member](), self._new()

    def __call__(self, members: Sequence[stacked.Member], first: int, *more: Any) -> dict[str, Tensor]:
        if self._members != list(members):
            self._members, self._replay = list(members), self._new()  # what was recorded before is let go
        net, methods = members[0].net_at(members[0].state.step), [member.now for member in members]
        optimizers = [member.state.optimizer for member in members]
        return self._replay.take(
            net, (methods, *more), optimizers, first, lambda first: self._compute(members, first, *more)
        )


def recordable(optimizer: Optimizer, schedules: bool) -> bool:
    """Whether the optimizer's step keeps all that it counts on the device. SGD counts nothing, but reads its rate."""
    if isinstance(optimizer, SGD):
        return not schedules
    return all("capturable" in group for group in optimizer.param_groups)


@contextmanager
def on_device(optimizers: Sequence[Optimizer], rates: list[Tensor] | None = None) -> Iterator[None]:
    """Lets the optimizers count their steps on the device meanwhile and, with `rates`, read their learning rates there.

    Outside, their settings are those of any device, for a checkpoint to hold.
    """
    groups = _groups(optimizers)
    before = [{name: group[name] for name in ("lr", "capturable", "fused") if name in group} for group in groups]
    try:
        for i, group in enumerate(groups):
            if group["params"][0].device.type != "cpu":
                group.update({name: True for name in ("capturable", "fused") if name in group})
            if rates is not None and "capturable" in group:
                group["lr"] = rates[i]
        for optimizer in optimizers:
            for w, kept in optimizer.state.items():
                if "step" in kept and kept["step"].device != w.device:  # of a run that is resumed
                    kept["step"] = kept["step"].to(w.device, torch.float32)
        yield
    finally:
        for group, settings in zip(groups, before, strict=True):
            group.update(settings)


def _groups(optimizers: Sequence[Optimizer]) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]
