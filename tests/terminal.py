"""Terminals to be written to, and what then stands on them."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

SIZE = {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(patch: pytest.MonkeyPatch, kind: str = "xterm", screen: Terminal | None = None) -> Terminal:
    """What this process writes to from here on, 80 columns wide."""
    for name, value in (SIZE | {"TERM": kind}).items():
        patch.setenv(name, value)
    screen = Terminal() if screen is None else screen
    patch.setattr(sys, "stdout", screen)
    return screen


def lines(text: str) -> list[str]:
    """What stood on the screen at one time or another."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))


def on_a_real_one(script: str, folder: Path) -> list[str]:
    """The same of a terminal that a Python script has for itself in `folder`; it must end well."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=folder, env=os.environ | SIZE)
    os.close(theirs)
    seen = b""
    try:
        while part := os.read(ours, 65536):
            seen += part
    except OSError:
        pass  # Linux's way to say that the other end is closed
    os.close(ours)
    assert process.wait(30) == 0, seen.decode()
    return lines(seen.decode())
