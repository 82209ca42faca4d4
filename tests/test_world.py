"""Which process this one is, as torchrun, Slurm and metarun itself say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.world import OWN, World, first_host, found

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-10]",
}


def test_alone() -> None:
    assert found({}, ["device=ddp"])[0] is None
    assert found(TORCHRUN | {"WORLD_SIZE": "1", "RANK": "0"}, [])[0] is None
    assert found({"RANK": "0", "WORLD_SIZE": "2"}, [])[0] is None  # somebody else's variables


def test_torchrun() -> None:
    assert found(TORCHRUN, []) == (World(5, 8, 1), {})


def test_metarun_itself() -> None:
    world = World(2, 3, 2, Path("/tmp/a:b/store"), 99)
    assert found({OWN: world.variable} | TORCHRUN, [])[0] == world


def test_slurm_where_ddp_is_asked_for() -> None:
    here, more = found(SLURM, ["train", "device=ddp"])
    assert here == World(5, 8, 1, own_gpu=True)
    assert more == {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "gpu07", "MASTER_PORT": "16234"}
    assert found(SLURM | {"MASTER_ADDR": "mine"}, ["device=ddp"])[1]["MASTER_ADDR"] == "mine"
    assert found(SLURM, ["train", "seed=5"])[0] is None  # one of eight runs of their own
    batch = {key: value for key, value in SLURM.items() if "STEP" not in key} | {"SLURM_NTASKS": "8"}
    assert found(batch, ["device=ddp"])[0] is None  # the batch script itself, not `srun`


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("one", "one"), ("a,b", "a"), ("gpu-a[003-007,010],gpu-b1", "gpu-a003"), ("r[1-2]n[3,4]-ib,x", "r1n3-ib")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
