"""What takes long to make is made once and kept: one file for each thing, named after what it was made from."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metarun.files import write_atomic
from metarun.types import InputError


def folder() -> Path:
    """`$METARUN_CACHE`, else `$XDG_CACHE_HOME/metarun`, else `~/.cache/metarun`. It need not exist."""
    if own := os.environ.get("METARUN_CACHE"):
        return Path(own).expanduser()
    # The XDG rules: a relative path there is to be ignored.
    if (shared := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        return shared / "metarun"
    try:
        return Path.home() / ".cache" / "metarun"
    except RuntimeError as error:
        raise InputError(
            f"no folder for the cache: {error}; set METARUN_CACHE to a folder that can be written"
        ) from error


def cached(name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The dict that `make` makes from what `key` says: tensors, lists of str, numbers. From the cache if it is there.

    `key` must say everything that the result depends on. Tensors that come from the cache are mapped from its file,
    so only the parts that are used take memory; writing to them never reaches the file. A damaged file is made again;
    a folder that cannot be written is a warning, not an error. Raises what `make` raises, and then keeps nothing.
    """
    path = folder() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    if (kept := _read(path, key)) is not None:
        return kept
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: torch.save({"key": key, "value": made}, file))
    except OSError as error:
        message = f"{path} cannot be written ({error}), so {name} is made anew every time: set METARUN_CACHE"
        warnings.warn(message, stacklevel=2)
    return made


def _read(path: Path, key: str) -> dict[str, Any] | None:
    """What `cached` kept at `path` for `key`; None if there is nothing, or nothing that can be trusted."""
    try:
        # `torch.load` checks no checksums: a flipped bit would become part of the data. Python's zipfile does.
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return None
        kept = torch.load(path, weights_only=True, mmap=True)
        return kept["value"] if kept["key"] == key else None
    except Exception:
        # Whatever is wrong with it, the answer is the same: it is made again. Damage has no single exception.
        return None
