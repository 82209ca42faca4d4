"""What is searched, read from what is typed."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metarun.sweep.space import count, grid, holds, shown, split
from metarun.sweep.trial import Choice, Interval
from metarun.sweep.words import typed
from metarun.types import InputError


def parsed(*words: str) -> tuple[list[str], dict[str, Choice | Interval]]:
    return split(words, OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("train.lr=interval(0,1)", Interval(0.0, 1.0)),
        ("train.lr=tag(log,interval(1e-4,1))", Interval(1e-4, 1.0, log=True)),
        ("algo.inner_steps=int(interval(1,5))", Interval(1, 5, whole=True)),
        ("model.filters=tag(log,int(interval(8,64)))", Interval(8, 64, log=True, whole=True)),
        ("seed=range(1,10,4)", Interval(1, 9, whole=True, step=4)),
        ("train.lr=range(0,1,0.5)", Choice((0.0, 0.5))),
        ("algo=maml,protonet", Choice(("maml", "protonet"))),
        ("algo.inner_steps=1,3,5", Choice((1, 3, 5))),
        ("task.balanced=true,false", Choice((True, False))),
        ("model.widths=[4],[6,5]", Choice(("[4]", "[6,5]"))),
        ("++train.optimizer_args={eps:1e-8},{}", Choice(("{eps:1e-08}", "{}"))),
        ("eval.seed=shuffle(3,1,2)", Choice((3, 1, 2))),
    ],
)
def test_each_form_of_hydra_s_is_understood(word: str, dimension: Choice | Interval) -> None:
    words, space = parsed("seed.fixed=1", word)
    assert words == ["seed.fixed=1"]
    assert list(space.values()) == [dimension]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("a=interval(1,0)", "write interval(0,1)"),
        ("a=interval(1,1)", "holds nothing but 1"),
        ("a=tag(log,interval(0,1))", "must start above 0"),
        ("a=range(3,3)", "nothing to run"),
        ("a=1,2,1", "1 is there twice"),
        ("a=range(0,1000000,0.5)", "more than 100,000 values"),
    ],
)
def test_what_is_no_space_is_refused_with_the_way_out(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(").replace(")", r"\)")):
        parsed(word)


def test_a_setting_is_searched_once() -> None:
    with pytest.raises(InputError, match="searched twice"):
        parsed("a=1,2", "a=3,4")


def test_a_grid_is_every_combination_the_last_moving_fastest() -> None:
    _, space = parsed("a=1,2", "b=x,y")
    assert [tuple(params.values()) for params in grid(space)] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert count(space) == 4
    assert count({**space, "c": Interval(0.0, 1.0)}) is None
    assert count({"c": Interval(1, 9, whole=True, step=4)}) == 3


def test_what_is_shown_means_the_same_when_it_is_typed() -> None:
    _, space = parsed(
        "a=tag(log,interval(1e-4,1))", "b=int(interval(1,5))", "c=range(1,10,4)", "d=true,null,x", "e=1,2"
    )
    assert parsed(*(f"{key}={shown(dimension)}" for key, dimension in space.items()))[1] == space
    values = [True, None, 1e-05, 0.1 + 0.2, 3, "maml", "[4]"]
    read = [o.value() for o in OverridesParser.create().parse_overrides([f"a={typed(value)}" for value in values])]
    assert read == [*values[:-1], [4]]


def test_a_value_is_in_a_space_or_not() -> None:
    assert holds(Interval(1, 9, whole=True, step=4), 5) and not holds(Interval(1, 9, whole=True, step=4), 4)
    assert holds(Interval(0.0, 1.0), 1) and not holds(Interval(0.0, 1.0), 1.5) and not holds(Interval(0.0, 1.0), "x")
    assert holds(Choice(("a", 1)), "a") and not holds(Choice(("a", 1)), 2)
