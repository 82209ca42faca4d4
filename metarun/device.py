"""Which device a run computes on."""

from __future__ import annotations

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
    return torch.device("cuda" if there and settings.kind != "cpu" else "cpu")


def budget(settings: DeviceSettings, device: torch.device) -> int | None:
    """The bytes of a split's items that may lie on the device; None: any number, on a CPU, where files are mapped."""
    if settings.data_budget is not None:
        return int(settings.data_budget * 1e9)
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else None


def describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'s' if threads > 1 else ''}"
