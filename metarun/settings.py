"""The plain nodes of a config, and what their values may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metarun.types import setting


@dataclass(frozen=True)
class TaskSettings:
    """A training episode; `way` is 1 in regression, and 2 or more where there are classes."""

    way: int = setting(5, least=1)
    shot: int = setting(1, least=1)
    query: int = setting(1, least=1)


@dataclass(frozen=True)
class TrainSettings:
    """The outer loop. `lr`, `optimizer` and `schedule` are those of the meta-update."""

    iterations: int = setting(1000, least=1)
    meta_batch: int = setting(32, least=1)
    lr: float = setting(1e-3, above=0)
    optimizer: str = setting("Adam")
    optimizer_args: dict[str, Any] = setting({})
    schedule: str = setting("constant")
    schedule_args: dict[str, Any] = setting({})
    clip: float | None = setting(None, above=0)
    l1: float = setting(0.0, least=0)
    l2: float = setting(0.0, least=0)
    log_every: int = setting(10, least=1)
    val_every: int = setting(100, least=1)
    val_episodes: int = setting(200, least=1)


@dataclass(frozen=True)
class EvalSettings:
    """Validation and test episodes: the first `episodes` of a list fixed by `seed`, whatever the run's own seed."""

    episodes: int = setting(600, least=1)
    way: int = setting(5, least=1)
    shot: int = setting(1, least=1)
    query: int = setting(1, least=1)
    seed: int = setting(0, least=0)


@dataclass(frozen=True)
class CheckpointSettings:
    every: int = setting(100, least=1)


@dataclass(frozen=True)
class DeviceSettings:
    """Where and in what portions to compute. Nothing here changes what is computed.

    `chunk` tasks of the meta-batch at a time (None: all); `eval_batch` test tasks at a time; `threads` on the CPU.
    """

    kind: str = setting("auto", choices=("auto", "cpu", "cuda"))
    chunk: int | None = setting(None, least=1)
    eval_batch: int = setting(50, least=1)
    threads: int | None = setting(None, least=1)
