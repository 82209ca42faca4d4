"""What picking a device does to the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import sys

import torch

from metarun.device import pick
from metarun.settings import DeviceSettings

if sys.argv[1] == "picked":
    pick(DeviceSettings(kind="cpu"))
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that the system hands out while 64 MB are taken for the tenth time."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that is told")
def test_a_run_on_the_cpu_keeps_the_memory_that_it_frees() -> None:
    assert faults("picked") < 100 < faults("not picked")
