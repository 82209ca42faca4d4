"""What to try next, and what to give up: Optuna's samplers and pruners behind a few plain functions.

Optuna's study lives in memory and is made anew from the sweep's own record, so that nothing that lies in a folder is
ever unpickled, and what a sampler draws for trial n depends on the seed, n and the trials before alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

from metarun.sweep.settings import SweepSettings
from metarun.sweep.space import count, grid, size
from metarun.sweep.study import Event
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Choice, Goal, Params, Space
from metarun.types import InputError

NUMBERS_ONLY = ("cmaes", "qmc")
"""samplers that draw numbers, and all of them for every trial"""
WITH_STATE = ("cmaes", "qmc", "nsga2")
"""samplers that must have asked for a trial themselves to go on from it"""
ENUMERABLE = 10_000
"""settings of a space that are told apart, to try none of them twice"""
ATTEMPTS = 20


class Search:
    """The trials of a sweep as a sampler sees them, by number.

    groups      the config groups among the space's keys, which decide what other keys there are
    there       the keys of the space that a choice of the groups has
    validations that a trial makes in all
    """

    def __init__(
        self,
        settings: SweepSettings,
        space: Space,
        goal: Goal,
        groups: Sequence[str],
        there: Callable[[Params], Collection[str]],
        validations: int,
    ) -> None:
        self._settings, self._space, self._there = settings, space, there
        self._groups = [key for key in space if key in groups]
        self._rest = [key for key in space if key not in groups]
        self._goal, self._validations = goal, validations
        self._trials: dict[int, Any] = {}
        self._reports: dict[int, int] = {}
        self._made = self._study()
        self._plan = [self._typed(params) for params in settings.enqueue]
        finite = count(space)
        told = finite is not None and (finite <= ENUMERABLE or settings.sampler == "grid")
        self._left = self._every() if told else None
        self.size = None if self._left is None else len(self._left)
        """how many settings there are; None: more than are told apart"""

    def ask(self, number: int) -> Params | None:
        """The setting of the next trial; None: there is none that was not tried."""
        if number < len(self._plan):
            return self._take(number, self._plan[number])
        if self._left is not None and not self._left:
            return None
        if self._settings.sampler != "grid":
            for attempt in range(ATTEMPTS):
                if (params := self._take(number, None, attempt)) is not None:
                    return params
        # Nearly all were tried: the sampler would be long in finding one that was not.
        return self._take(number, next(iter((self._left or {}).values())))

    def replay(self, events: Sequence[Event]) -> None:
        """Goes through what has been, to go on from there."""
        for event in events:
            if "asked" in event:
                self._asked(event["asked"], event["params"])
            elif "reported" in event:
                self.reported(event["reported"], event["value"])
            elif "ended" in event:
                self.ended(event["ended"], event["state"], event["value"])

    def _asked(self, number: int, params: Params) -> None:
        if self._settings.sampler in WITH_STATE:
            if self.ask(number) == params:
                return
            self.ended(number, FAILED, None)  # another version drew it: it counts, but not as this one's own
        self._take(number, params)

    def reported(self, number: int, value: float) -> bool:
        """Takes the next validation's value; whether the trial is to be given up."""
        trial = self._trials[number]
        done = self._reports[number] = self._reports.get(number, 0) + 1
        trial.report(value, done)
        return done < self._validations and trial.should_prune()

    def ended(self, number: int, state: str, value: float | None) -> None:
        from optuna.trial import TrialState

        trial = self._trials[number]
        if state == COMPLETE and value is not None:
            self._made.tell(trial, value)
        else:
            self._made.tell(trial, state=TrialState.PRUNED if state == PRUNED else TrialState.FAIL)

    def _take(self, number: int, params: Params | None, attempt: int = 0) -> Params | None:
        """Makes trial `number` with `params`, or with what the sampler draws; None for a setting that was tried."""
        self._made.sampler = _sampler(self._settings, _mixed(self._settings.seed, number, attempt))
        if params is not None:
            self._made.enqueue_trial(params)
        trial = self._made.ask()
        drawn: Params = {key: self._draw(trial, key) for key in self._groups}
        there = self._there(drawn)
        drawn |= {key: self._draw(trial, key) for key in self._rest if key in there}
        drawn = {key: drawn[key] for key in self._space if key in drawn}
        if params is None and self._left is not None and _key(drawn) not in self._left:
            from optuna.trial import TrialState

            self._made.tell(trial, state=TrialState.FAIL)
            return None
        self._trials[number] = trial
        if self._left is not None:
            self._left.pop(_key(drawn), None)
        return drawn

    def _draw(self, trial: Any, key: str) -> Any:
        dimension = self._space[key]
        if isinstance(dimension, Choice):
            return trial.suggest_categorical(key, dimension.options)
        low, high = dimension.low, dimension.high
        if dimension.whole:
            return trial.suggest_int(key, int(low), int(high), step=dimension.step, log=dimension.log)
        return trial.suggest_float(key, low, high, log=dimension.log)

    def _every(self) -> dict[tuple[Any, ...], Params]:
        """All settings in order, those once that differ in what they do not have."""
        found: dict[tuple[Any, ...], Params] = {}
        for params in grid(self._space):
            there = self._there({key: params[key] for key in self._groups})
            kept = {key: value for key, value in params.items() if key in there or key in self._groups}
            found.setdefault(_key(kept), kept)
        return found

    def _typed(self, params: Params) -> Params:
        """With values of the very types of the space, as 1 and 1.0 are one to read and two to tell apart."""
        out = {}
        for key, value in params.items():
            dimension = self._space[key]
            if isinstance(dimension, Choice):
                out[key] = next(option for option in dimension.options if option == value)
            else:
                out[key] = int(value) if dimension.whole else float(value)  # type: ignore[arg-type]
        return out

    def _study(self) -> Any:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", module="optuna")
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        direction = "maximize" if self._goal.maximize else "minimize"
        pruner = _pruner(self._settings, self._validations)
        return optuna.create_study(study_name="sweep", direction=direction, pruner=pruner)


def serves(settings: SweepSettings, space: Space, conditional: Collection[str]) -> None:
    """Raises `InputError` for a sampler that cannot search this space, saying which can."""
    sampler = settings.sampler
    if sampler == "grid" and (endless := [key for key in space if size(space[key]) is None]):
        raise InputError(f"sweep=grid: {endless[0]} is an interval, which has no end; give a list, or sweep=random")
    if sampler not in NUMBERS_ONLY:
        return
    if lists := [key for key, dimension in space.items() if isinstance(dimension, Choice)]:
        raise InputError(
            f"sweep={sampler}: searches numbers, and {lists[0]} is a list of choices; "
            "give an interval(LOW,HIGH) or range(FIRST,END), or take sweep=tpe"
        )
    if conditional:
        raise InputError(f"sweep={sampler}: {min(conditional)} is not there in every trial; take sweep=tpe")
    if sampler == "cmaes" and len(space) < 2:
        raise InputError("sweep=cmaes: needs two settings or more to search; take sweep=tpe")


def _key(params: Params) -> tuple[Any, ...]:
    return tuple(sorted((key, repr(value)) for key, value in params.items()))


def _mixed(*numbers: int) -> int:
    from numpy.random import SeedSequence

    return int(SeedSequence(numbers).generate_state(1)[0])


def _sampler(settings: SweepSettings, seed: int) -> Any:
    from optuna import samplers

    make = {
        "tpe": lambda: samplers.TPESampler(
            n_startup_trials=settings.startup, multivariate=True, group=True, constant_liar=True, seed=seed
        ),
        "cmaes": lambda: samplers.CmaEsSampler(seed=seed),
        "qmc": lambda: samplers.QMCSampler(scramble=True, seed=settings.seed),
        "nsga2": lambda: samplers.NSGAIISampler(seed=seed, population_size=NSGA_POPULATION),
        "gp": lambda: samplers.GPSampler(seed=seed, n_startup_trials=settings.startup),
    }
    return make.get(settings.sampler, lambda: samplers.RandomSampler(seed))()


NSGA_POPULATION = 20
"""settings of a generation: Optuna's 50 are for cheaper trials than these"""


def _pruner(settings: SweepSettings, validations: int) -> Any:
    from optuna import pruners

    warmup = settings.warmup or max(1, round(validations / 10))
    if settings.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(warmup, settings.reduction)
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(warmup, max(validations, warmup), settings.reduction)
    if settings.pruner == "median":
        return pruners.MedianPruner(n_warmup_steps=warmup - 1)
    return pruners.NopPruner()
