"""Which classes are for training, for validation and for tests: by a published list, by one's own, or by chance."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from metarun.types import SPLITS, InputError

Split = dict[str, list[str]]
"""train, val and test: their classes"""
RATIOS = (0.64, 0.16, 0.20)


@cache
def published(name: str) -> Split:
    """A list from `splits.json`: facts of the releases that it names."""
    text = Path(__file__).with_name("splits.json").read_text(encoding="utf-8")
    return json.loads(text)[name]["classes"]


def by_chance(names: Iterable[str], seed: int, ratios: Sequence[float] = RATIOS) -> Split:
    """The classes shuffled by `seed` and cut in the ratios of train, val and test, at least one for each.

    Raises `ValueError` for fewer than three classes, or ratios that are not three numbers above 0 that sum to 1.
    """
    names = sorted(names)
    check_ratios(ratios)
    if len(names) < 3:
        raise ValueError(f"{len(names)} classes cannot be split into train, val and test: 3 or more are needed")
    random.Random(seed).shuffle(names)
    n = len(names)
    test = min(max(1, round(ratios[2] * n)), n - 2)
    val = min(max(1, round(ratios[1] * n)), n - test - 1)
    return {"train": sorted(names[val + test :]), "val": sorted(names[:val]), "test": sorted(names[val : val + test])}


def check_ratios(ratios: Sequence[float]) -> None:
    if len(ratios) != 3 or min(ratios) <= 0 or abs(sum(ratios) - 1) > 1e-6:
        raise ValueError(f"ratios={list(ratios)}: give three numbers above 0 for train, val and test that sum to 1")


def listed(split: Mapping[str, Sequence[str]], there: Iterable[str], where: str) -> Split:
    """A split by name, checked against the classes that are there. Raises `InputError` for what does not fit."""
    known = set(there)
    if unknown := sorted(split.keys() - set(SPLITS)):
        raise InputError(f"{where}: '{unknown[0]}' is no split; train, val and test are")
    if gone := [s for s in SPLITS if not split.get(s)]:
        raise InputError(f"{where} names no classes for {gone[0]}; each of train, val and test needs some")
    check_disjoint(split, where)
    for name in SPLITS:
        if missing := [c for c in split[name] if c not in known]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise InputError(f"{where}: class '{missing[0]}'{more} of {name} is not in the data")
    return {name: list(split[name]) for name in SPLITS}


def check_disjoint(split: Mapping[str, Iterable[str]], where: str) -> None:
    """Raises `InputError` where two splits share a class: a test on it would test nothing."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := sorted({*split[one]} & {*split[other]}):
            which = f"class '{shared[0]}' is" if len(shared) == 1 else f"{len(shared)} classes, '{shared[0]}' one, are"
            raise InputError(f"{where}: {which} in both {one} and {other}: a class belongs in one split")
