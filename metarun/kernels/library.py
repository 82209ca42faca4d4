"""The compiled kernels: made by the machine's own C++ compiler when they are first wanted, and kept.

They are compiled for the very processor, so a folder that several machines share has one library for each kind.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.files import write_atomic

KINDS = {torch.float32: "f32", torch.float64: "f64"}
"""what the names of functions for such numbers end with"""
SOURCES = ("conv.cpp", "norm.cpp", "pool.cpp")
HEADERS = ("lanes.hpp",)
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")
COMPILERS = ("g++", "c++")
PATIENCE = 120.0
"""seconds that compiling may take; it takes 5"""
HERE = Path(__file__).parent


class State:
    """Of this process."""

    library: ctypes.CDLL | None = None
    """None: torch's own operations are used"""


def load(folder: Path) -> None:
    """Has the kernels used from here on; compiles them into `folder` if they are not there.

    Raises `OSError` that says why they cannot be had.
    """
    if State.library is None:
        path = folder / f"kernels-{_key()}.so"
        State.library = _kept(path) or _compiled(path)


def unload() -> None:
    State.library = None


def loaded() -> bool:
    return State.library is not None


def takes(*given: Tensor) -> bool:
    """Whether there are kernels for such tensors: on a CPU, of one precision."""
    dtype = given[0].dtype
    return loaded() and dtype in KINDS and all(t.device.type == "cpu" and t.dtype == dtype for t in given)


def function(name: str, dtype: torch.dtype, arguments: tuple[Any, ...]) -> Any:
    """`metarun_NAME` for such numbers, which takes arguments of these types."""
    found = getattr(State.library, f"metarun_{name}_{KINDS[dtype]}")
    if found.argtypes is not arguments:
        found.argtypes, found.restype = arguments, None
    return found


@lru_cache(maxsize=1024)
def numbers(*given: int) -> ctypes.Array[ctypes.c_long]:
    """As a function takes many at once; not to be written to."""
    return (ctypes.c_long * len(given))(*given)


def _key() -> str:
    """Of all that makes the library what it is."""
    digest = hashlib.sha256(" ".join((*FLAGS, platform.machine())).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((HERE / name).read_bytes())
    digest.update(_processor())
    return digest.hexdigest()[:16]


def _processor() -> bytes:
    """Its model and what it can do: of the first core, but for its frequency."""
    try:
        first = Path("/proc/cpuinfo").read_bytes().split(b"\n\n")[0]
    except OSError:
        return b""
    told = (b"model name", b"flags", b"Features", b"CPU implementer", b"CPU part")
    return b"\n".join(line for line in first.splitlines() if line.startswith(told))


def _kept(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # there is none, or a damaged one
        return None


def _compiled(path: Path) -> ctypes.CDLL:
    """Kept at `path` if that can be written."""
    if sys.platform != "linux":
        raise OSError(f"they are for Linux, and this is {platform.system()}")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise OSError("there is no C++ compiler here; install g++, or name yours in CXX")
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder, f"{name}.o")) for name in SOURCES]
        library = Path(folder, "kernels.so")
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, ([compiler, *FLAGS, "-c", str(HERE / n), "-o", o] for n, o in zip(SOURCES, objects))))
        # Without -fopenmp: its symbols are found in torch, so that there is one set of threads in the process.
        _run([compiler, "-shared", *objects, "-o", str(library)])
        loaded, content = ctypes.CDLL(str(library)), library.read_bytes()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: file.write(content))
    return loaded


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        raise OSError(f"there is no {command[0]}, which CXX names") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} took longer than {PATIENCE:.0f} s") from None
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise OSError(f"{command[0]} failed: {said}")
