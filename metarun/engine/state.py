"""Everything a run is, between two steps. What is here is what a checkpoint holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from metarun.types import Meta


@dataclass
class TrainState:
    """A run after `step` meta-updates.

    meta        trained tensors, leaves of the outer graph
    running     moving averages of norm statistics; empty unless the net tracks them
    totals      metrics summed over the `count` steps since the last logged row
    best        {"step", the measure's name} of the best validation so far; empty before the first
    chunk       tasks at a time that the memory holds; None: as many as are asked for
    """

    meta: Meta
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    running: Meta = field(default_factory=dict)
    step: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    chunk: int | None = None

    def advance(self) -> None:
        """What the host does of a meta-update."""
        if self.scheduler is not None:
            self.scheduler.step()
        self.step += 1

    def add(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            self.totals[name] = self.totals[name] + value if name in self.totals else value
        self.count += 1

    def means(self) -> dict[str, float]:
        """The metrics' means since the last call of `forget`. Waits for the device."""
        return {name: float(total) / self.count for name, total in self.totals.items()}

    def forget(self) -> None:
        self.totals, self.count = {}, 0

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])
