"""Pictures as files. matplotlib is imported when one is drawn, without its global state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from metarun.files import write_atomic

DPI = 150


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of where it keeps its fonts
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    write_atomic(path, lambda file: figure.savefig(file, format="png"))
