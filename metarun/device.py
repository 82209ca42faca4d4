"""Which device a run computes on."""

from __future__ import annotations

import ctypes
import sys
import warnings
from functools import cache as once_each

import torch

from metarun import cache
from metarun.kernels import library
from metarun.settings import DeviceSettings
from metarun.types import InputError


def pick(settings: DeviceSettings) -> torch.device:
    """`auto` takes a GPU when there is one. Raises `InputError` for `cuda`, or what only CUDA has, without one."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    there = torch.cuda.is_available()
    if settings.kind == "cuda" and not there:
        raise InputError("device=cuda: torch sees no CUDA device here; use device=cpu or device=auto")
    if there and settings.kind != "cpu":
        allow_tf32(False)
        return torch.device("cuda")
    if settings.precision == "tf32":
        raise InputError("device.precision=tf32: is a GPU's, and this runs on the CPU; set device.precision=fp32")
    keep_memory()
    use_kernels(settings.kernels)
    return torch.device("cpu")


def use_kernels(wanted: bool | str) -> None:
    """Has this process use metarun's own kernels or not; "auto": where they can be had, with a warning where not.

    Raises `InputError` where they are wanted and cannot be had.
    """
    if wanted is False:
        library.unload()
        return
    try:
        library.load(cache.folder())
    except OSError as error:
        library.unload()
        if wanted is True:
            raise InputError(f"device.kernels=true: {error}") from None
        _warn(f"convolutions and norms are torch's, which are slower, as metarun's own cannot be had: {error}")


@once_each
def _warn(message: str) -> None:
    warnings.warn(f"{message}. device.kernels=false does without them, and without this line", stacklevel=3)


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of a GPU may take 10 bits of their factors' fractions; torch lets convolutions
    do so unless it is told. They always sum in single precision."""
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    torch.backends.cudnn.conv.fp32_precision = "tf32" if allowed else "ieee"  # pyright: ignore


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
