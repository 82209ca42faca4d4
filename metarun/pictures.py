"""What a trained run makes of its first test tasks, as a picture: images completed, curves fitted.

A sampler says itself how its tasks are drawn, by what it has of `Shown`. One whose examples are one number each and
whose targets are too has curves without saying so. Where queries see one another, through the statistics of a norm,
those of the picture do. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from metarun.engine.step import per_task
from metarun.figures import new_figure, save
from metarun.types import Algorithm, Episode, EpisodeBatch, Meta, Net, Sampler

MOST = {"image": 6, "curve": 4}
"""tasks in a picture"""
UNKNOWN = (0.43, 0.48, 0.58)
"""the colour of pixels that are not given: a grey that no grey image has"""
POINTS = 200
"""of a curve, where its sampler does not say which"""
CELL = 1.3
"""inches that an image is wide"""
SMALL, MEDIUM, LARGE = 6.5, 7.5, 9
"""sizes of letters"""


class Shown(Protocol):
    """What a sampler may have, for its tasks to be drawn."""

    @property
    def shown(self) -> str | None:
        """`image`: an example is a pixel, its target the pixel's channels in [0, 1]; `curve`: a point on one; None"""
        ...

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width); of images only"""
        ...

    def whole(self, first: int, count: int) -> EpisodeBatch:
        """Tasks as the sampler gives them, but for the queries: all pixels row by row, or a curve's points from left to
        right. Curves may do without: then the task's own queries are drawn, and no line that the curve truly takes."""
        ...


def way_of_showing(episodes: Any) -> str | None:
    """A key of `MOST`, or None: not at all."""
    curve = episodes.item_shape == (1,) and episodes.outputs == 1
    said = getattr(episodes, "shown", "curve" if curve else None)
    return said if said in MOST else None


@dataclass(frozen=True)
class Gallery:
    """A trained method, and tasks to show it on."""

    algorithm: Algorithm
    net: Net
    meta: Meta
    episodes: Sampler

    def predictions(self, tasks: EpisodeBatch) -> Tensor:
        """(tasks, 2, query, *target) before and after adaptation; (tasks, 1, ...) for a method without inner steps"""

        def one(task: Episode) -> Tensor:
            each = self.algorithm.trajectory(self.net, self.meta, task)
            return torch.stack([each[0], each[-1]] if len(each) > 1 else each)

        with torch.no_grad():
            return per_task(one, tasks)

    def draw(self, path: Path, title: str, most: int) -> None:
        """Writes a PNG of the first tasks, of which there are `most`; none where they cannot be drawn. Their numbers
        go behind the title."""
        episodes: Any = self.episodes
        way = way_of_showing(episodes)
        if way is None:
            return
        count = min(MOST[way], most)
        tasks = whole(episodes, count)
        predicted, tasks = (
            self.predictions(tasks).float().cpu(),
            EpisodeBatch(*(field.float().cpu() for field in tasks)),
        )
        names = ["prediction"]
        if predicted.shape[1] > 1:
            steps = self.algorithm.eval_steps
            names = ["before adaptation", f"after {steps} step{'' if steps == 1 else 's'}"]
        if way == "image":
            figure = images(tasks, predicted, names, episodes.image_shape)
        else:
            figure = curves(tasks, predicted, names)
        figure.suptitle(f"{title} task 0" if count == 1 else f"{title} tasks 0 to {count - 1}", fontsize=LARGE)
        save(figure, path)


def write(gallery: Gallery, path: Path, title: str, most: int, say: Callable[[str], Any]) -> None:
    """`gallery.draw`; says so where nothing can be drawn for want of matplotlib."""
    try:
        gallery.draw(path, title, most)
    except ImportError as e:
        say(f"no {path.name}: {e}; pip install matplotlib")


def whole(episodes: Any, count: int) -> EpisodeBatch:
    """The first tasks as `Shown.whole` gives them. Where a curve is not known between queries its target is NaN."""
    if hasattr(episodes, "whole"):
        return episodes.whole(0, count)
    tasks = episodes(0, count)
    known = torch.cat([tasks.support_x, tasks.query_x], 1)
    low, high = known.amin(1, keepdim=True), known.amax(1, keepdim=True)
    between = low + (high - low) * torch.linspace(0, 1, POINTS).to(known)[:, None]
    x = torch.cat([tasks.query_x, between], 1)
    y = torch.cat([tasks.query_y, torch.full_like(between, torch.nan)], 1)
    order = x.argsort(1)
    return tasks._replace(query_x=x.gather(1, order), query_y=y.gather(1, order))


def error(predicted: Tensor, y: Tensor) -> float:
    """The mean squared error where y is known."""
    return float((predicted - y)[~y.isnan()].square().mean())


# Images


def images(tasks: EpisodeBatch, predicted: Tensor, names: list[str], shape: tuple[int, ...]) -> Any:
    """A row for each task: the pixels that are given, each prediction with its error, the truth.

    predicted: (tasks, len(names), pixels, channels)
    """
    given = tasks.support_x.shape[1]
    titles = [f"{given} of {shape[1] * shape[2]} pixels", *names, "truth"]
    rows, columns = len(tasks.query_x), len(titles)
    figure = new_figure(CELL * columns, (CELL * shape[1] / shape[2] + 0.1) * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    for t, cells in enumerate(grid):
        x, y = tasks.query_x[t], tasks.query_y[t]
        known = torch.cdist(tasks.support_x[t], x).argmin(1)  # where in the image each given pixel is
        context = torch.tensor(UNKNOWN).repeat(len(x), 1)
        context[known] = coloured(tasks.support_y[t])
        for cell, pixels in zip(cells, [context, *map(coloured, predicted[t]), coloured(y)], strict=True):
            cell.imshow(pixels.view(*shape[1:], 3).numpy(), interpolation="nearest")
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_linewidth(0.5)
        for cell, prediction in zip(cells[1:-1], predicted[t], strict=True):
            cell.set_xlabel(f"mse {error(prediction, y):.4f}", fontsize=SMALL, labelpad=2)
    for cell, name in zip(grid[0], titles, strict=True):
        cell.set_title(name, fontsize=MEDIUM)
    return figure


def coloured(pixels: Tensor) -> Tensor:
    """(n, channels) -> (n, 3) in [0, 1]: red, green and blue as they are, anything else as grey"""
    pixels = pixels if pixels.shape[1] == 3 else pixels.mean(1, keepdim=True).expand(-1, 3)
    return pixels.nan_to_num().clamp(0, 1)


# Curves


def curves(tasks: EpisodeBatch, predicted: Tensor, names: list[str]) -> Any:
    """A panel for each task: the curve, or the queries on it, the support points and each prediction.

    predicted: (tasks, len(names), points, 1)
    """
    count = len(tasks.query_x)
    columns = 1 if count == 1 else 2
    figure = new_figure(4 * columns, 2.6 * -(-count // columns) + 0.7)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False).flat
    styles = [{"linestyle": "--", "color": "tab:orange", "linewidth": 1.3}] * (len(names) - 1)
    styles += [{"linestyle": "-", "color": "tab:blue", "linewidth": 1.8}]
    for t, panel in enumerate(panels):
        if t >= count:
            panel.set_axis_off()
            continue
        x, y = tasks.query_x[t, :, 0].numpy(), tasks.query_y[t, :, 0].numpy()
        if tasks.query_y[t].isnan().any():
            panel.plot(x, y, linestyle="", marker="o", markersize=3, color="0.65", label="truth, at the queries")
        else:
            panel.plot(x, y, color="0.75", linewidth=4, label="truth")
        for name, style, line in zip(names, styles, predicted[t, :, :, 0], strict=True):
            panel.plot(x, line.numpy(), label=name, **style)
        support = tasks.support_x[t, :, 0].numpy(), tasks.support_y[t, :, 0].numpy()
        panel.plot(*support, linestyle="", marker="^", markersize=6, color="black", label="support")
        errors = " → ".join(f"{error(line, tasks.query_y[t]):.3g}" for line in predicted[t])
        panel.set_title(f"mse {errors}", fontsize=MEDIUM)
        panel.tick_params(labelsize=SMALL)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=MEDIUM)
    return figure
