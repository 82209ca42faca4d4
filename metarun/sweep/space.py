"""The search space, in the syntax that Hydra has for it: lists, ranges, intervals, `int(...)` and `tag(log, ...)`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, product
from math import isfinite, prod

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from metarun.sweep.trial import Choice, Dimension, Interval, Params, Space, Value
from metarun.sweep.words import typed
from metarun.types import InputError

MOST = 100_000
"""values of one setting, or settings of a grid: more than anybody runs, and few enough to hold"""


def split(typed: Sequence[str], parsed: Sequence[Override]) -> tuple[list[str], dict[str, Dimension]]:
    """The words that every trial has, and what is searched. Raises `InputError` for what is no space."""
    words: list[str] = []
    space: dict[str, Dimension] = {}
    wrong: list[str] = []
    for word, override in zip(typed, parsed, strict=True):
        if not override.is_sweep_override():
            words.append(word)
            continue
        key = override.get_key_element().lstrip("+")
        if key in space:
            wrong.append(f"{key}: is searched twice; say once what its values are")
        try:
            space[key] = dimension(override)
        except ValueError as e:
            wrong.append(f"{word.lstrip('+')}: {e}")
    if wrong:
        raise InputError("\n".join(wrong))
    return words, space


def dimension(override: Override) -> Dimension:
    """What an override would have tried. Raises `ValueError`, with the reason, for nothing at all."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value)
    if isinstance(value, RangeSweep) and all(isinstance(n, int) for n in (value.start, value.stop, value.step)):
        numbers = value.range()
        if len(numbers) > 1 and "log" not in value.tags:  # type: ignore[arg-type]
            low, high = sorted((numbers[0], numbers[-1]))  # type: ignore[index]
            return Interval(low, high, whole=True, step=abs(int(value.step)))
    options = tuple(islice(_options(override), MOST + 1))
    if not options:
        raise ValueError("this is no value at all, so there is nothing to run")
    if len(options) > MOST:
        raise ValueError(f"these are more than {MOST:,} values; give fewer, or an interval(LOW,HIGH)")
    if doubled := [option for n, option in enumerate(options) if option in options[:n]]:
        raise ValueError(f"{doubled[0]} is there twice; leave one out")
    return Choice(options)


def _interval(sweep: IntervalSweep) -> Interval:
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if low is None or high is None or not (isfinite(low) and isfinite(high)):
        raise ValueError("an interval needs two ends: interval(LOW,HIGH)")
    if low > high:
        raise ValueError(f"the interval is upside down; write interval({high:g},{low:g})")
    if low == high:
        raise ValueError(f"the interval holds nothing but {low:g}; write the value alone")
    if log and low <= 0:
        raise ValueError(f"a log interval must start above 0, and this starts at {low:g}")
    whole = "int" in sweep.tags or (isinstance(low, int) and isinstance(high, int))
    if whole and (low != int(low) or high != int(high)):
        raise ValueError("the ends of an interval of whole numbers must be whole")
    return Interval(int(low) if whole else low, int(high) if whole else high, log, whole)


def _options(override: Override) -> Iterator[Value]:
    if getattr(override._value, "shuffle", False):
        # In the order they were typed: the same words must mean the same sweep when it goes on.
        override = replace(override, _value=replace(override._value, shuffle=False))  # type: ignore[type-var]
    for value, text in override.sweep_iterator(lambda x: (x, Override._get_value_element_as_str(x))):  # type: ignore
        # Lists, mappings and what is quoted are kept as they would be typed.
        yield value if isinstance(value, (bool, int, float)) else text


def count(space: Space) -> int | None:
    """How many settings a space holds; None where an interval makes them endless."""
    numbers = [size(dimension) for dimension in space.values()]
    known = [n for n in numbers if n is not None]
    return prod(known) if len(known) == len(numbers) else None


def size(dimension: Dimension) -> int | None:
    if isinstance(dimension, Choice):
        return len(dimension.options)
    return int(dimension.high - dimension.low) // dimension.step + 1 if dimension.whole else None


def values(dimension: Dimension) -> Sequence[Value]:
    """All there are, in order. Raises `ValueError` for an interval, which holds too many."""
    if isinstance(dimension, Choice):
        return dimension.options
    if not dimension.whole:
        raise ValueError("holds endlessly many values")
    return range(int(dimension.low), int(dimension.high) + 1, dimension.step)


def grid(space: Space) -> Iterator[Params]:
    """Every setting of a space of lists, the last key moving fastest, as Hydra's own sweeper goes."""
    for combination in product(*(values(dimension) for dimension in space.values())):
        yield dict(zip(space, combination, strict=True))


def holds(dimension: Dimension, value: Value) -> bool:
    if isinstance(dimension, Choice):
        return value in dimension.options
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not dimension.low <= value <= dimension.high:
        return False
    return not dimension.whole or (value - dimension.low) % dimension.step == 0


def shown(dimension: Dimension) -> str:
    """As it would be typed."""
    if isinstance(dimension, Choice):
        return ",".join(map(typed, dimension.options))
    low, high = (f"{end:g}" for end in (dimension.low, dimension.high))
    if dimension.whole and dimension.step != 1:
        return f"range({low},{int(dimension.high) + 1},{dimension.step})"
    text = f"interval({low},{high})"
    text = f"int({text})" if dimension.whole else text
    return f"tag(log,{text})" if dimension.log else text
