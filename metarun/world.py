"""Which of the processes that were started together this one is, as the environment says it.

Light: every call of metarun asks, torch is not needed to answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

OWN = "METARUN_RANK"
"""`RANK/COUNT:PARENT:STORE`, in the processes that metarun itself starts"""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ASKED = "device=ddp"


@dataclass(frozen=True)
class World:
    """Process `rank` of `count`, number `local` on its machine.

    store       the file through which the processes find one another; None: by torch's own environment variables
    parent      the process that started this one and that it must end with; None: it is another program's
    own_gpu     whether each process may have been given a GPU of its own, which is then number 0 of one to it
    """

    rank: int
    count: int
    local: int
    store: Path | None = None
    parent: int | None = None
    own_gpu: bool = False

    @property
    def variable(self) -> str:
        return f"{self.rank}/{self.count}:{self.parent}:{self.store}"


def found(env: Mapping[str, str], words: Sequence[str]) -> tuple[World | None, dict[str, str]]:
    """The world that metarun, torchrun or Slurm's `srun` has started, and variables that torch needs beside it.

    None where there is one process. Slurm also starts many runs that have nothing to do with one another, so of its
    processes only those are together on whose command line `device=ddp` stands.
    """
    if own := re.fullmatch(r"(\d+)/(\d+):(\d+):(.+)", env.get(OWN, "")):
        rank, count, parent = map(int, own.groups()[:3])
        return World(rank, count, rank, Path(own[4]), parent), {}
    if all(env.get(name) for name in TORCHRUN):
        rank, count, local = (int(env[name]) for name in TORCHRUN[:3])
        return (World(rank, count, local) if count > 1 else None), {}
    if ASKED in words and int(env.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        rank, count, local = (int(env[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID"))
        nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
        port = 15_000 + (int(env["SLURM_JOB_ID"]) + int(env.get("SLURM_STEP_ID", 0))) % 15_000
        meeting = {"MASTER_ADDR": first_host(nodes), "MASTER_PORT": str(port)}
        more = {"RANK": str(rank), "WORLD_SIZE": str(count)}
        return World(rank, count, local, own_gpu=True), more | {k: env.get(k) or v for k, v in meeting.items()}
    return None, {}


def first_host(nodes: str) -> str:
    """`gpu-a[003-007,010],gpu-b1` -> `gpu-a003`"""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first[0]) if first else nodes
