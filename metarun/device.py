"""Which device a run computes on."""

from __future__ import annotations

import ctypes
import sys

import torch

from metarun.settings import DeviceSettings
from metarun.types import InputError


def pick(settings: DeviceSettings) -> torch.device:
    """`auto` takes a GPU when there is one. Raises `InputError` for `cuda` without one."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    there = torch.cuda.is_available()
    if settings.kind == "cuda" and not there:
        raise InputError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto")
    if there and settings.kind != "cpu":
        return torch.device("cuda")
    keep_memory()
    return torch.device("cpu")


def keep_memory() -> None:
    """Lets this process keep the memory that it frees, for what it takes next; where the C library is glibc.

    A step takes the same large tensors as the one before. By default each comes from the system anew, which clears it
    page by page: with 15 queries a class, a third of a MAML step.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_max = -1, -4  # as in malloc.h
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except AttributeError:
            return  # another C library
        mallopt(trim_threshold, -1)
        mallopt(mmap_max, 0)


def budget(settings: DeviceSettings, device: torch.device) -> int | None:
    """The bytes of a split's items that may lie on the device; None: any number, on a CPU, where files are mapped."""
    if settings.data_budget is not None:
        return int(settings.data_budget * 1e9)
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else None


def describe(device: torch.device, processes: int = 1) -> str:
    threads = torch.get_num_threads()
    cpu = f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    one = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return one if processes == 1 else f"{processes} processes, each {one}"
