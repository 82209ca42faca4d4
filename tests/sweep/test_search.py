"""What is tried next, and what is given up: the same by each sampler when a sweep has stopped and goes on."""

from __future__ import annotations

import math
from typing import Any

import pytest

from metarun.sweep.search import Search, serves
from metarun.sweep.settings import PRUNERS, SAMPLERS, SweepSettings
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Choice, Goal, Interval, Params, Space
from metarun.types import InputError

NUMBERS: Space = {"lr": Interval(1e-4, 1.0, log=True), "rate": Interval(0.0, 1.0), "steps": Interval(1, 5, whole=True)}
LISTS: Space = {"algo": Choice(("maml", "protonet")), "steps": Choice((1, 3, 5))}
MIXED: Space = {"lr": NUMBERS["lr"], "algo": LISTS["algo"], "rate": NUMBERS["rate"]}
MORE = Goal("val/accuracy", maximize=True)


def there(chosen: Params) -> set[str]:
    """Only maml has a rate and steps."""
    return {"lr", "rate", "steps"} if chosen.get("algo", "maml") == "maml" else {"lr"}


def search(space: Space, sampler: str = "random", validations: int = 10, **more: Any) -> Search:
    return Search(SweepSettings(sampler=sampler, startup=3, **more), space, MORE, ["algo"], there, validations)


def value(params: Params) -> float:
    """Best at lr = 1e-2."""
    lr, steps = params.get("lr", 1e-2), params.get("steps", 1)
    assert isinstance(lr, float) and isinstance(steps, (int, float))
    return 1 - abs(math.log10(lr) + 2) / 4 - 0.05 * abs(steps - 3)


def gone_through(one: Search, trials: int, events: list[dict[str, Any]]) -> list[Params]:
    """Asks, reports and ends `trials` times from where `events` stops, two trials at a time, adding to `events`."""
    first = sum("asked" in event for event in events)
    asked = [event["params"] for event in events if "asked" in event]
    for number in range(first, trials):
        params = one.ask(number)
        if params is None:
            break
        asked.append(params)
        events.append({"asked": number, "params": params})
        if number:  # the one before has run beside it
            before = number - 1
            one.reported(before, value(asked[before]))
            events.append({"reported": before, "step": 1, "value": value(asked[before])})
            state = FAILED if before == 2 else COMPLETE
            one.ended(before, state, value(asked[before]))
            events.append({"ended": before, "state": state, "value": value(asked[before])})
    return asked


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
def test_a_search_that_goes_on_asks_for_what_it_would_have_asked(sampler: str) -> None:
    trials = 9 if sampler == "gp" else 26
    whole = gone_through(search(NUMBERS, sampler), trials, [])
    events: list[dict[str, Any]] = []
    gone_through(search(NUMBERS, sampler), 6, events)
    again = search(NUMBERS, sampler)
    again.replay(events)
    assert gone_through(again, trials, events) == whole
    assert len({repr(params) for params in whole}) == trials
    for params in whole:
        assert 1e-4 <= params["lr"] <= 1 and params["steps"] in range(1, 6)  # type: ignore[operator]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes"])
def test_a_model_of_the_trials_finds_better_settings_than_chance(sampler: str) -> None:
    def found(name: str) -> float:
        asked = gone_through(search(NUMBERS, name), 16 if sampler == "gp" else 40, [])
        last = sorted(value(params) for params in asked[-8:])
        return sum(last) / len(last)

    assert found(sampler) > found("random") + 0.05


def test_another_seed_is_another_search() -> None:
    assert gone_through(search(NUMBERS, seed=1), 3, []) != gone_through(search(NUMBERS), 3, [])


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "gp"])
def test_a_setting_is_there_only_with_the_choice_that_has_it(sampler: str) -> None:
    asked = gone_through(search(MIXED, sampler), 12, [])
    assert {params["algo"] for params in asked} == {"maml", "protonet"}
    assert all(("rate" in params) == (params["algo"] == "maml") for params in asked)


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_no_setting_of_a_list_is_tried_twice(sampler: str) -> None:
    one = search(LISTS, sampler)
    asked = gone_through(one, 99, [])
    assert len(asked) == 4  # maml with each of the steps, protonet without any
    assert len({repr(sorted(params.items())) for params in asked}) == 4
    if sampler == "grid":
        assert [params.get("steps") for params in asked] == [1, 3, 5, None]


def test_known_settings_are_tried_first_and_the_rest_of_them_is_drawn() -> None:
    asked = gone_through(search(NUMBERS, "tpe", enqueue=[{"lr": 0.5}, {"lr": 1, "rate": 0.25, "steps": 2}]), 4, [])
    assert asked[0]["lr"] == 0.5 and asked[0]["steps"] in range(1, 6)
    assert asked[1] == {"lr": 1.0, "rate": 0.25, "steps": 2}


@pytest.mark.parametrize("pruner", [name for name in PRUNERS if name != "none"])
def test_a_pruner_ends_what_is_worse_and_not_what_is_best(pruner: str) -> None:
    one = search(NUMBERS, validations=9, pruner=pruner, warmup=1)
    ended: dict[int, int] = {}
    for number in range(9):
        one.ask(number)
    for validation in range(9):
        for number in range(9):
            if number not in ended and one.reported(number, 0.9 - 0.1 * number + 0.01 * validation):
                ended[number] = validation
                one.ended(number, PRUNED, None)
        if validation == 0 and pruner == "median":  # which needs five whole trials to compare with
            for number in range(9, 15):
                one.ask(number)
                for _ in range(9):
                    one.reported(number, 0.45)
                one.ended(number, COMPLETE, 0.45)
    assert ended and 0 not in ended
    assert all(validation < 8 for validation in ended.values()), "what has come to its end is not pruned"


def test_a_sampler_that_cannot_serve_a_space_is_refused() -> None:
    def refused(sampler: str, space: Space, conditional: set[str] = set()) -> str:  # noqa: B006
        with pytest.raises(InputError) as caught:
            serves(SweepSettings(sampler=sampler), space, conditional)
        return str(caught.value)

    assert "lr is an interval" in refused("grid", MIXED)
    assert "algo is a list of choices" in refused("cmaes", MIXED)
    assert "algo is a list of choices" in refused("qmc", MIXED)
    assert "rate is not there in every trial" in refused("cmaes", NUMBERS, {"rate"})
    assert "two settings or more" in refused("cmaes", {"lr": NUMBERS["lr"]})
    for sampler in ("random", "tpe", "nsga2", "gp"):
        serves(SweepSettings(sampler=sampler), MIXED, {"rate"})
