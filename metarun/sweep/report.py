"""What a sweep has found: its leaderboard, what mattered, and how to go on from there."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from statistics import stdev
from textwrap import wrap
from typing import Any

from metarun.files import write_csv
from metarun.sweep import best, drawings
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Choice, Dimension, Goal, Space, Trial, ended, ranked
from metarun.sweep.words import amount, cut, short_names, squeezed, typed

WIDTH = 80
TOP = 10
"""trials that a leaderboard on a terminal has"""
BARS, BAR = 6, 24
"""parameters whose importance is shown, and columns of the longest bar"""
LONGEST, NAME = 18, 36
"""columns of one setting, and of its full name"""
LEAST = 4
"""complete trials from which on something may be said of importance"""
ABOVE = 5
"""complete trials that count as good ones, at the least, unless that were more than half of them"""
LEADERBOARD = "leaderboard.csv"
Say = Callable[[str], Any]


# The leaderboard


def leaderboard(trials: list[Trial], space: Space, goal: Goal, most: int | None = TOP) -> list[dict[str, str]]:
    """The complete trials as they are shown, the best first: rank, trial, the metric, its sd over seeds, settings.

    A setting that a trial does not have is `-`. Columns are of one name, the shortest that means no other.
    """
    best_ones = ranked(trials, goal)[:most]
    short = short_names(space)
    seeds = any(len(trial.values) > 1 for trial in best_ones)
    rows = []
    for rank, trial in enumerate(best_ones, 1):
        row = {"rank": str(rank), "trial": str(trial.number), goal.name: amount(trial.value or 0.0, goal, 2)}
        if seeds:
            spread = stdev(trial.values) if len(trial.values) > 1 else None
            row["sd"] = "-" if spread is None else amount(spread, goal, 2)
        own = {short[name]: typed(trial.params[name], 4) if name in trial.params else "-" for name in space}
        rows.append(row | {name: text for name, text in own.items() if name not in row})
    return rows


def table(rows: list[dict[str, str]], first: Sequence[str] = (), width: int = WIDTH) -> list[str]:
    """Rows below one another under their names; of the settings those that fit, the ones named `first` before others.

    What does not fit is named in a last line.
    """
    if not rows:
        return []
    names = list(rows[0])
    fixed = names[: names.index("sd" if "sd" in names else names[2]) + 1]
    columns = {name: min(max(len(name), *(len(row[name]) for row in rows)), LONGEST) for name in names}
    taken, room = set(fixed), width - sum(columns[name] + 2 for name in fixed)
    for name in [*(name for name in first if name in columns), *names]:
        if name not in taken and columns[name] + 2 <= room:
            taken.add(name)
            room -= columns[name] + 2
    shown = [name for name in names if name in taken]
    lines = [
        "".join(f"  {squeezed(row[name], columns[name]):>{columns[name]}}" for name in shown)
        for row in [dict(zip(names, names, strict=True)), *rows]
    ]
    if hidden := [name for name in names if name not in taken]:
        lines.append(cut(f"  not shown: {', '.join(hidden)}", width))
    return lines


def write_leaderboard(path: Path, trials: list[Trial], space: Space, goal: Goal) -> None:
    """Every trial, the best first and those without a rank after them: numbers as they are, accuracy in [0, 1].

    Columns: rank, trial, state, value, value_0, value_1, ... of each seed, every setting by its full name, reason,
    seconds.
    """
    order = ranked(trials, goal)
    numbers = {trial.number for trial in order}
    rest = sorted((trial for trial in trials if trial.number not in numbers), key=lambda trial: trial.number)
    settings = list(dict.fromkeys([*space, *(name for trial in trials for name in trial.params)]))
    seeds = max((len(trial.values) for trial in trials), default=0)
    header = ["rank", "trial", "state", "value", *(f"value_{n}" for n in range(seeds)), *settings, "reason", "seconds"]
    rows = [
        [
            place if place <= len(order) else "",
            trial.number,
            trial.state,
            "" if trial.value is None else trial.value,
            *trial.values,
            *[""] * (seeds - len(trial.values)),
            *(typed(trial.params[name]) if name in trial.params else "" for name in settings),
            " ".join(trial.reason.split()),
            round(trial.seconds, 3),
        ]
        for place, trial in enumerate([*order, *rest], 1)
    ]
    write_csv(path, header, rows)


# Importance


def importances(trials: list[Trial], space: Space, goal: Goal) -> dict[str, float]:
    """How much each setting decided whether a trial was among the best, the most first; together 1.

    Of the complete trials alone; a setting that not all of them have is judged among those that do. Empty where less
    than four trials are complete, all have the same value, or there are not two settings to compare.

    Conditional PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255; 2601.20800) as Optuna has it. The best are a tenth of
    the trials, but five of them where that is no more than half.
    """
    done = [trial for trial in ended(trials, COMPLETE) if trial.value is not None and isfinite(trial.value)]
    found = {name: [trial.params[name] for trial in done if name in trial.params] for name in space}
    compared = [name for name, values in found.items() if len(set(map(typed, values))) > 1]
    if len(done) < LEAST or len({trial.value for trial in done}) < 2 or len(compared) < 2:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    quantile = max(0.1, min(0.5, ABOVE / len(done)))
    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that few trials have
            study = optuna.create_study(direction="maximize" if goal.maximize else "minimize")
            for trial in done:
                own = {name: trial.params[name] for name in compared if name in trial.params}
                where = {name: _distribution(space[name], found[name]) for name in own}
                values = {name: _coded(space[name], value) for name, value in own.items()}
                study.add_trial(optuna.create_trial(params=values, distributions=where, value=trial.value))
            evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
            out = get_param_importances(study, evaluator=evaluator, params=compared, normalize=False)
    finally:
        optuna.logging.set_verbosity(loud)
    total = sum(out.values())
    ordered = sorted(out, key=lambda name: (-out[name], compared.index(name)))
    return {name: out[name] / total for name in ordered} if total > 0 else {}


def _distribution(dim: Dimension, values: list[Any]) -> Any:
    """As Optuna has it, wide enough for values that were typed and lie outside."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dim, Choice):
        return CategoricalDistribution(tuple(dict.fromkeys(map(typed, [*dim.options, *values]))))
    low, high = min([dim.low, *values]), max([dim.high, *values])
    log = dim.log and low > 0
    if dim.whole:
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _coded(dim: Dimension, value: Any) -> Any:
    if isinstance(dim, Choice):
        return typed(value)
    return int(value) if dim.whole else float(value)


# The end


def write_end(
    sweep: Path,
    trials: list[Trial],
    space: Space,
    goal: Goal,
    words: Sequence[str],
    say: Say,
    seeds: int = 1,
) -> list[str]:
    """All that a sweep's folder holds of its end: leaderboard.csv, experiment/best.yaml, pictures; their names.

    words   what all trials share, as it was typed

    What cannot be written for a reason of its own is said and left out.
    """
    write_leaderboard(sweep / LEADERBOARD, trials, space, goal)
    names = [LEADERBOARD]
    if order := ranked(trials, goal):
        try:
            names.append(str(best.write_best(sweep, words, order[0], goal, seeds).relative_to(sweep)))
        except ValueError as e:
            say(f"no best.yaml: {e}")
    try:
        names += drawings.draw(sweep, trials, space, goal)
    except ImportError as e:
        say(f"no pictures: {e}; pip install matplotlib")
    return names


def show_end(
    sweep: Path,
    trials: list[Trial],
    space: Space,
    goal: Goal,
    say: Say,
    files: Sequence[str] = (),
    config_dir: str | None = None,
) -> None:
    """What is printed after the last trial, in less than 30 lines of 80 columns.

    files       what `write_end` has written
    config_dir  that of the command line
    """
    matter = importances(trials, space, goal)
    short = short_names(space)
    say("")
    for line in wrap(_counted(trials), WIDTH - 2):
        say(f"  {line}")
    if not ranked(trials, goal):
        say("")
        return
    say("")
    for line in table(leaderboard(trials, space, goal), [short[name] for name in matter]):
        say(line)
    if matter:
        say("")
        for line in _bars(trials, matter):
            say(line)
    say("")
    for line in wrap(f"{', '.join(files)} in {sweep}", WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        say(f"  {line}")
    if any(Path(name).stem == best.NAME for name in files):
        say("  and to run the best again:")
        say(f"  {best.command(sweep, config_dir)}")
    say("")


def _counted(trials: list[Trial]) -> str:
    """`24 trials: 14 complete, 7 pruned, 3 failed (2 the loss is not finite; 1 not enough memory)`"""
    counts = [(len(ended(trials, state)), state) for state in (COMPLETE, PRUNED, FAILED)]
    parts = [f"{count} {state}" for count, state in counts if count]
    reasons = Counter(" ".join(trial.reason.split()) for trial in ended(trials, FAILED))
    told = [f"{count} {cut(reason, 60)}" for reason, count in reasons.most_common(3) if reason]
    why = f" ({'; '.join(told)})" if told else ""
    return f"{len(trials)} trial{'' if len(trials) == 1 else 's'}: {', '.join(parts) or 'none has ended'}{why}"


def _bars(trials: list[Trial], matter: dict[str, float]) -> list[str]:
    """What mattered, the most first: a bar for each setting."""
    shown = list(matter.items())[:BARS]
    width, longest = max(len(squeezed(name, NAME)) for name, _ in shown), shown[0][1]
    done = ended(trials, COMPLETE)
    some = any(name not in trial.params for name, _ in shown for trial in done)
    head = f"what decided who is among the best of {len(done)} trials" + (", where one has it" if some else "")
    return [
        f"  {head}",
        *(
            f"  {squeezed(name, NAME):<{width}}  {100 * share:3.0f} %  {'█' * round(BAR * share / longest)}".rstrip()
            for name, share in shown
        ),
    ]
