"""Pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path

from metarun.engine.evaluate import Score
from metarun.figures import new_figure, save

Curve = Sequence[Score]
SIZE = 6.4, 4.0


def curve(path: Path, title: str, metric: str, lines: Mapping[str, Curve], faint: Sequence[Curve] = ()) -> None:
    """Writes a PNG of each line's mean and 95 % interval after 0, 1, ... inner steps; of the faint ones the mean."""
    figure = new_figure(*SIZE)
    from matplotlib.ticker import MaxNLocator

    scale = 100 if metric == "accuracy" else 1
    axes = figure.subplots()
    for n, points in enumerate(faint):
        axes.plot([scale * p.mean for p in points], color="0.7", linewidth=1, label="each run" if not n else None)
    longest = max(map(len, lines.values()))
    for label, points in lines.items():
        stepless = len(points) < 2
        points = [*points] * longest if stepless else points
        mean = [scale * p.mean for p in points]
        marker, style = ("", "--") if stepless else ("o" if longest <= 30 else "", "-")
        (line,) = axes.plot(mean, marker=marker, markersize=4, linestyle=style, label=label)
        low, high = ([scale * (p.mean + side * p.ci95) for p in points] for side in (-1, 1))
        axes.fill_between(range(len(points)), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    means = [p.mean for points in lines.values() for p in points if isfinite(p.mean)]
    if metric != "accuracy" and means and max(means) > 30 * min(means) > 0:
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("inner steps")
    axes.set_ylabel("accuracy, %" if metric == "accuracy" else metric)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) + len(faint) > 1:
        axes.legend(frameon=False)
    save(figure, path)
