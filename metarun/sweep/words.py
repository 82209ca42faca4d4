"""What settings and values of a sweep look like to a person, and as they are typed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from metarun.sweep.trial import Goal, Params, Value


def typed(value: Value, digits: int | None = None) -> str:
    """`null`, `true`, `0.0432`, a text as it is; a float in full, or with so many significant digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.{digits}g}" if digits and isinstance(value, float) else str(value)


def overrides(params: Params) -> list[str]:
    """["algo=maml", "train.lr=0.001"], in full: they compose to the same run."""
    return [f"{name}={typed(value)}" for name, value in params.items()]


def settings(params: Params, short: Mapping[str, str] | None = None, digits: int = 4) -> str:
    """`algo=maml train.lr=0.001`, numbers to so many digits, names as `short` has them."""
    return " ".join(f"{(short or {}).get(name, name)}={typed(value, digits)}" for name, value in params.items())


def short_names(names: Iterable[str]) -> dict[str, str]:
    """By name the shortest end of it that means no other: `inner_lr` for algo.inner_lr, but algo.lr and train.lr."""
    names = list(dict.fromkeys(names))
    return {name: _shortest(name, [other for other in names if other != name]) for name in names}


def _shortest(name: str, others: list[str]) -> str:
    parts = name.split(".")
    ends = (".".join(parts[start:]) for start in reversed(range(len(parts))))
    return next((end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)), name)


def amount(value: float, goal: Goal | None, digits: int = 1) -> str:
    """An accuracy in %, to so many decimals; anything else as it is."""
    accuracy = goal is not None and goal.name == "accuracy"
    return f"{100 * value:.{digits}f} %" if accuracy else f"{value:.4g}"


def cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def squeezed(name: str, width: int) -> str:
    """A name cut in its middle, for names that are alike differ at their ends."""
    if len(name) <= width:
        return name
    tail = (width - 1) // 2
    return f"{name[: width - 1 - tail]}…{name[len(name) - tail :]}"


def near(path: Path) -> Path:
    """As short as it can be typed from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
