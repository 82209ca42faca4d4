"""What memory there is, and what a piece of work takes of it: measured, not worked out."""

from __future__ import annotations

import contextlib
import ctypes
import re
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from metarun.engine.memory import SHARE, fitting, is_about_memory

CGROUPS = (  # the newer and the older kind: limit, used, and what of that the system would give up
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def at_a_time(gradient: Callable[[int], None], tasks: int, device: torch.device, scale: float = 1.0) -> int | None:
    """How many of `tasks` tasks the memory of `device` holds at a time; None: all, or it cannot be told here.

    `gradient(n)` takes that of n tasks and keeps nothing; `scale`: how much larger the largest tasks of the run are.
    """
    free = free_bytes(device)
    if tasks < 2 or free is None:
        return None
    try:
        # The first time much is loaded that counts once, so this is more than a task takes: mostly it fits even so.
        first = taken(lambda: gradient(1), device)
        if first is None or scale * first * tasks <= SHARE * free:
            return None
        one, two = (taken(lambda n=n: gradient(n), device) for n in (1, 2))
        if one is not None and two is not None and two <= one:
            two = taken(lambda: gradient(2), device)  # some of it was taken again unseen
        free = free_bytes(device)
    except (RuntimeError, MemoryError) as e:
        if not is_about_memory(e):
            raise
        return 1  # which the run will try, and tell of
    if one is None or two is None or free is None:
        return None
    found = fitting(tasks, scale * one, scale * two, free)
    return None if found == tasks else found


def free_bytes(device: torch.device) -> int | None:
    """What this process can still take; None where the system does not say."""
    if device.type == "cuda":
        own = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + own
    limits = [free for free in (_of_machine(), *map(_of_cgroup, CGROUPS), _of_process()) if free is not None]
    return max(min(limits), 0) if limits else None


def taken(work: Callable[[], None], device: torch.device) -> int | None:
    """The most bytes that `work` had at once beyond those before it; None where that cannot be told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # What the C library keeps of what was freed would be taken again unseen, so it gives that back first.
    _give_back()
    before = resident("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    work()
    after = resident("VmHWM")
    return None if after is None or before is None else max(after - before, 0)


def peak(device: torch.device) -> int | None:
    """The most bytes at once since the last `taken`: of the GPU's memory, or of this process's."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")


def resident(which: str) -> int | None:
    """`VmRSS`: bytes of memory that this process has now, `VmHWM`: that it had at most; None except on Linux."""
    return _number("/proc/self/status", which)


def _give_back() -> None:
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _of_machine() -> int | None:
    return _number("/proc/meminfo", "MemAvailable")


def _of_cgroup(files: tuple[str, str, str, str]) -> int | None:
    limit, used, stat, name = files
    most, now = _number(limit), _number(used)
    return None if most is None or now is None else most - now + (_number(stat, name) or 0)


def _of_process() -> int | None:
    """What `ulimit -v` leaves."""
    most, now = resource.getrlimit(resource.RLIMIT_AS)[0], resident("VmSize")
    return None if most == resource.RLIM_INFINITY or now is None else most - now


def _number(file: str, name: str = "") -> int | None:
    """Bytes: what stands after `name` at the start of a line."""
    try:
        text = Path(file).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    found = re.search(rf"^{name}:?\s*(\d+)( kB)?", text, re.M)
    return int(found[1]) * (1024 if found[2] else 1) if found else None
