"""What a number was measured with: versions, commit, machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from metarun import __version__
from metarun.device import describe

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pillow", "scikit-learn")


def environment(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """One session of a run: when, what was typed, with which versions, on what machine, by how many processes."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.orig_argv[1:],
        "metarun": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "device": describe(device, processes),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that metarun runs from, `+` when it has changes; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", root, *args], capture_output=True, text=True, timeout=5, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain", "-uno").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None
