"""Pictures of a sweep: its history, all trials across their settings, and the metric against each setting."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import isfinite, log10
from pathlib import Path
from typing import Any

from metarun.figures import new_figure, save
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Choice, Goal, Interval, Space, Trial, ended, ranked
from metarun.sweep.words import short_names, squeezed, typed

MOST = 12
"""settings in a picture: the first, in the order they were typed"""
COLUMNS = 4
"""small pictures beside one another"""
SMALL, MEDIUM = 6.5, 8
"""sizes of letters"""
ABSENT = -0.12
"""where on an axis from 0 to 1 a trial is that does not have the setting"""
STRONG = 25
"""lines of which all can be strong"""
LABEL = 14
"""letters of a value or a name"""


def draw(sweep: Path, trials: list[Trial], space: Space, goal: Goal) -> list[str]:
    """Writes history.png, and of complete trials parallel.png and slices.png; their names. Raises `ImportError`."""
    pictures: dict[str, Callable[[list[Trial], Space, Goal], Any]] = {"history.png": history}
    if space and any(map(_value, ended(trials, COMPLETE))):
        pictures |= {"parallel.png": parallel, "slices.png": slices}
    for name, picture in pictures.items():
        save(picture(trials, space, goal), sweep / name)
    return list(pictures)


def _value(trial: Trial) -> bool:
    return trial.value is not None and isfinite(trial.value)


def _last_reports(trials: list[Trial]) -> list[tuple[Trial, float]]:
    """Of pruned trials, those with one."""
    last = [(trial, trial.reports[max(trial.reports)]) for trial in ended(trials, PRUNED) if trial.reports]
    return [(trial, value) for trial, value in last if isfinite(value)]


def _scale(goal: Goal) -> float:
    return 100 if goal.name == "accuracy" else 1


def _label(goal: Goal) -> str:
    return f"{goal.name}, %" if goal.name == "accuracy" else goal.name


def _is_wide(values: list[float], goal: Goal) -> bool:
    """Whether an error is better told by its powers of ten."""
    return not goal.maximize and bool(values) and max(values) > 30 * min(values) > 0


# History


def history(trials: list[Trial], space: Space, goal: Goal) -> Any:
    """Each trial's value by its number, and the best so far."""
    figure = new_figure(6.4, 4.0)
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import blended_transform_factory

    axes, scale = figure.subplots(), _scale(goal)
    done = sorted((trial for trial in ended(trials, COMPLETE) if _value(trial)), key=lambda trial: trial.number)
    size = 5 if len(trials) <= 60 else 3
    points = [(trial.number, scale * (trial.value or 0.0)) for trial in done]
    cut_off = [(trial.number, scale * value) for trial, value in _last_reports(trials)]
    style = {"linestyle": "", "markersize": size}
    if cut_off:
        axes.plot(*zip(*cut_off, strict=True), marker="x", color="0.65", label="pruned, its last report", **style)
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", color="tab:blue", label="complete", **style)
        best = [points[0][1]]
        for _, value in points[1:]:
            best.append(value if goal.better(value, best[-1]) else best[-1])
        last = max(trial.number for trial in trials)
        numbers = [*(number for number, _ in points), last]
        axes.plot(numbers, [*best, best[-1]], drawstyle="steps-post", color="tab:orange", label="the best so far")
    if failed := ended(trials, FAILED):
        at = blended_transform_factory(axes.transData, axes.transAxes)
        numbers = [trial.number for trial in failed]
        axes.plot(
            numbers,
            [0.02] * len(failed),
            marker="|",
            color="tab:red",
            transform=at,
            label="failed",
            clip_on=False,
            **style,
        )
    if _is_wide([value for _, value in [*points, *cut_off]], goal):
        axes.set_yscale("log")
    axes.set_xlim(-0.5 - 0.01 * len(trials), max((trial.number for trial in trials), default=0) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial")
    axes.set_ylabel(_label(goal))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if points or cut_off or failed:
        figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=MEDIUM)
    return figure


# Where a value is


class Scale:
    """Values of a setting as places from 0 to 1, and which of them have a name.

    Numbers that were typed and lie outside an interval widen it. Of those that go `down` the least is at 1.
    """

    def __init__(self, dim: Choice | Interval, values: list[Any], down: bool = False) -> None:
        self.down = down
        self.options: list[str] = []
        self.low = self.high = 0.0
        self.log = False
        if isinstance(dim, Choice):
            self.options = list(dict.fromkeys(map(typed, [*dim.options, *values])))
            self.ticks = [(self(text), squeezed(text, LABEL)) for text in self.options]
            return
        low, high = min([dim.low, *values]), max([dim.high, *values])
        self.log = dim.log and low > 0
        self.low, self.high = (log10(low), log10(high)) if self.log else (float(low), float(high))
        self.ticks = self._numbers()

    def __call__(self, value: Any) -> float:
        if self.options:
            return (self.options.index(typed(value)) + 0.5) / len(self.options)
        at = log10(value) if self.log else float(value)
        place = 0.5 if self.high == self.low else (at - self.low) / (self.high - self.low)
        return 1 - place if self.down else place

    @property
    def room(self) -> float:
        """How far those of one choice may lie from one another."""
        return 0.5 / len(self.options) if self.options else 0.0

    def _numbers(self) -> list[tuple[float, str]]:
        """Round numbers, few; powers of ten where there are two of them."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        ends = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        locator = LogLocator(numticks=6) if self.log and self.high - self.low >= 1 else MaxNLocator(4)
        inside = [float(v) for v in locator.tick_values(*ends)]
        found = [(self(v), f"{v:.4g}") for v in inside if v > 0 or not self.log]
        return [(at, text) for at, text in found if -1e-9 <= at <= 1 + 1e-9]


def _scales(trials: list[Trial], space: Space) -> dict[str, Scale]:
    names = list(space)[:MOST]
    return {
        name: Scale(space[name], [trial.params[name] for trial in trials if name in trial.params]) for name in names
    }


# Parallel coordinates


def parallel(trials: list[Trial], space: Space, goal: Goal) -> Any:
    """A line for each complete trial, across an axis for each setting to its value; the best are the strongest.

    The best are on top: of the metric, and of those of one choice, which lie beside one another.
    """
    order = ranked(trials, goal)
    order = [trial for trial in order if _value(trial)]
    scales, short = _scales(order, space), short_names(space)
    width = max(6.4, 1.15 * (len(scales) + 1) + 0.6)
    figure = new_figure(width, 4.6)
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    axes = figure.subplots()
    values = [_scale(goal) * (trial.value or 0.0) for trial in order]
    outcome = Scale(Interval(min(values), max(values), log=_is_wide(values, goal)), [], down=not goal.maximize)
    across = len(scales)
    absent = False
    lines, colours, widths = [], [], []
    for rank, (trial, value) in enumerate(zip(order, values, strict=True)):
        good = 1 - rank / max(len(order) - 1, 1)  # 1 for the best, 0 for the worst
        places = [
            scale(trial.params[name]) + scale.room * (good - 0.5) if name in trial.params else ABSENT
            for name, scale in scales.items()
        ]
        absent = absent or ABSENT in places
        lines.append(_smooth([*places, outcome(value)]))
        r, g, b, _ = colormaps["viridis_r"](0.15 + 0.85 * good)
        colours.append((r, g, b, 0.1 + 0.85 * good ** max(len(order) / STRONG, 1)))
        widths.append(0.7 + 1.6 * good**8)
    axes.add_collection(LineCollection(lines[::-1], colors=colours[::-1], linewidths=widths[::-1]))
    for x, (scale, name) in enumerate([*((s, short[n]) for n, s in scales.items()), (outcome, _label(goal))]):
        axes.plot([x, x], [0, 1], color="0.25", linewidth=1)
        axes.annotate(squeezed(name, LABEL), (x, 1), (0, 8), textcoords="offset points", ha="center", fontsize=MEDIUM)
        side = 1 if x == across else -1
        for at, text in scale.ticks:
            axes.plot([x, x], [at - scale.room / 2, at + scale.room / 2], color="0.25", linewidth=3)
            axes.plot([x, x + 0.03 * side], [at, at], color="0.25", linewidth=1)
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
            ha = "left" if x == across else "right"
            axes.annotate(
                text, (x, at), (5 * side, 0), textcoords="offset points", ha=ha, va="center", fontsize=SMALL, bbox=box
            )
    if absent:
        axes.annotate(
            "has none", (0, ABSENT), (-12, 0), textcoords="offset points", ha="right", va="center", fontsize=SMALL
        )
        axes.axhline(ABSENT, color="0.8", linewidth=0.7, linestyle=":", zorder=0)
    axes.set_xlim(-0.5, across + 0.5)
    axes.set_ylim(ABSENT - 0.04 if absent else -0.04, 1.04)
    axes.set_axis_off()
    return figure


def _smooth(places: list[float]) -> list[tuple[float, float]]:
    """The points of a line that leaves and meets each axis level, so that lines can be followed through it."""
    steps = [i / 30 for i in range(30)]
    points = [(x + t, a + (b - a) * (3 * t**2 - 2 * t**3)) for x, (a, b) in enumerate(pairwise(places)) for t in steps]
    return [*points, (float(len(places) - 1), places[-1])]


# Slices


def slices(trials: list[Trial], space: Space, goal: Goal) -> Any:
    """The value of complete trials against each setting, the later a trial, the darker; crosses: the last of pruned."""
    done = [trial for trial in ended(trials, COMPLETE) if _value(trial)]
    cut_off = _last_reports(trials)
    scales, short = _scales([*done, *(trial for trial, _ in cut_off)], space), short_names(space)
    columns = min(len(scales), COLUMNS)
    rows = -(-len(scales) // columns)
    figure = new_figure(max(2.3 * columns + 0.9, 3.6), 2.2 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    last = max((trial.number for trial in trials), default=0)
    dots: Any = None
    for n, (panel, (name, scale)) in enumerate(zip(panels, scales.items(), strict=False)):
        crosses = [(trial, value) for trial, value in cut_off if name in trial.params]
        panel.scatter(
            [scale(trial.params[name]) + _aside(trial, scale) for trial, _ in crosses],
            [_scale(goal) * value for _, value in crosses],
            marker="x",
            color="0.7",
            s=14,
            linewidths=0.8,
        )
        those = [trial for trial in done if name in trial.params]
        x = [scale(trial.params[name]) + _aside(trial, scale) for trial in those]
        y = [_scale(goal) * (trial.value or 0.0) for trial in those]
        dots = panel.scatter(
            x,
            y,
            c=[trial.number for trial in those],
            cmap="Blues",
            vmin=-0.4 * max(last, 1),
            vmax=max(last, 1),
            s=22 if len(done) <= 60 else 9,
            edgecolors="0.35",
            linewidths=0.3,
        )
        panel.set_xlim(-0.06, 1.06)
        panel.set_xticks([at for at, _ in scale.ticks], [text for _, text in scale.ticks], fontsize=SMALL)
        if scale.options and sum(len(text) + 2 for _, text in scale.ticks) > 30:
            panel.tick_params("x", rotation=20)
        panel.set_title(squeezed(short[name], 2 * LABEL), fontsize=MEDIUM)
        if n % columns == 0:
            panel.set_ylabel(_label(goal), fontsize=MEDIUM)
        panel.tick_params("y", labelsize=SMALL)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if _is_wide([*(trial.value or 0.0 for trial in done), *(value for _, value in cut_off)], goal):
            panel.set_yscale("log")
    for panel in list(panels)[len(scales) :]:
        panel.set_axis_off()
    if last:
        bar = figure.colorbar(dots, ax=figure.axes, fraction=0.03, pad=0.01)
        bar.ax.set_ylim(0, last)
        bar.set_label("trial", fontsize=MEDIUM)
        bar.ax.tick_params(labelsize=SMALL)
    return figure


def _aside(trial: Trial, scale: Scale) -> float:
    """Trials of one choice beside one another, by their number, always the same way."""
    return ((trial.number * 0.618) % 1 - 0.5) * scale.room
