"""What a run looks like on its first tasks: which tasks can be drawn, and that a picture shows what was predicted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metarun.data.bank import ClassBank
from metarun.data.completion import Pixels, PixelSampler
from metarun.data.sinusoid import CurveSampler, Sinusoid
from metarun.engine.evaluate import Score
from metarun.figures import DPI
from metarun.pictures import UNKNOWN, Gallery, curves, images, way_of_showing, whole
from metarun.registry import known
from metarun.report import Report, draw
from metarun.types import Episode, EpisodeBatch, Place


def bank(channels: int = 1, height: int = 6, width: int = 8) -> ClassBank:
    items = torch.randint(0, 256, (5, channels, height, width), generator=torch.Generator().manual_seed(0))
    return ClassBank(items.to(torch.uint8), torch.tensor([0, 5]), ("a",))


def pixels(channels: int = 1, shot: int = 12) -> PixelSampler:
    return Pixels(bank(channels)).episodes(1, shot, 20, 0, "test")


def points(query: int = 5) -> CurveSampler:
    return Sinusoid().load("test", Place(Path())).episodes(1, 4, query, 0, "test")


class Slope:
    """Predicts `factor` * steps times the first number of an example."""

    def __init__(self, eval_steps: int = 2, factor: float = 0.5) -> None:
        self.eval_steps, self.factor = eval_steps, factor

    def trajectory(self, net: Any, meta: Any, episode: Episode) -> list[Tensor]:
        line = self.factor * episode.query_x[:, :1].expand(-1, episode.support_y.shape[1])
        return [step * line for step in range(self.eval_steps + 1)] if self.eval_steps else [line]


def gallery(episodes: Any, algorithm: Any = None) -> Gallery:
    nothing: Any = None
    return Gallery(algorithm or Slope(), nothing, {}, episodes)


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return image.size


def drawn(episodes: Any, tmp_path: Path, most: int = 100, algorithm: Any = None) -> tuple[int, int]:
    """The size of the picture."""
    gallery(episodes, algorithm).draw(tmp_path / "tasks.png", "a title", most)
    return size(tmp_path / "tasks.png")


# Which tasks


class Own:
    """A sampler of someone's own."""

    def __init__(self, item_shape: tuple[int, ...], outputs: int, **more: Any) -> None:
        self.item_shape, self.outputs = item_shape, outputs
        vars(self).update(more)


def test_a_sampler_says_how_its_tasks_are_drawn() -> None:
    assert way_of_showing(pixels()) == "image"
    assert way_of_showing(points()) == "curve"
    assert way_of_showing(Own((1,), 1)) == "curve"
    assert way_of_showing(Own((2,), 1, shown="image")) == "image"
    assert way_of_showing(Own((1,), 1, shown=None)) is None
    assert way_of_showing(Own((1,), 1, shown="song")) is None
    for shape in (((2,), 1), ((1,), 2), ((1, 28, 28), 5)):
        assert way_of_showing(Own(*shape)) is None


def test_tasks_that_cannot_be_drawn_leave_no_picture(tmp_path: Path) -> None:
    gallery(Own((1, 28, 28), 5)).draw(tmp_path / "tasks.png", "", 4)
    assert list(tmp_path.iterdir()) == []


# Images


def cells(figure: Any) -> list[np.ndarray]:
    """The images of a figure, (height, width, 3) each, row by row."""
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_has_the_given_pixels_the_predictions_and_the_truth(channels: int) -> None:
    episodes = pixels(channels)
    tasks = whole(episodes, 2)
    predicted = gallery(episodes).predictions(tasks)
    assert predicted.shape == (2, 2, 48, channels)
    figure = images(tasks, predicted, ["first", "last"], episodes.image_shape)
    shown = cells(figure)
    assert len(shown) == 2 * 4
    assert [axes.get_title() for axes in figure.axes[:4]] == ["12 of 48 pixels", "first", "last", "truth"]
    assert not any(axes.get_title() for axes in figure.axes[4:])
    for t in range(2):
        given, before, after, truth = shown[4 * t : 4 * t + 4]
        image = tasks.query_y[t].view(6, 8, channels).expand(-1, -1, 3).numpy()
        np.testing.assert_allclose(truth, image)
        known = ~np.isclose(given, UNKNOWN).all(-1)
        assert known.sum() == 12
        np.testing.assert_allclose(given[known], image[known])
        assert {tuple(x) for x in tasks.support_x[t].tolist()} == {
            tuple(x) for x in tasks.query_x[t][torch.from_numpy(known.ravel())].tolist()
        }
        assert not before.any()
        down = np.linspace(-1, 1, 6).clip(0, 1)[:, None, None]
        np.testing.assert_allclose(after, np.broadcast_to(down, after.shape), atol=1e-6)
    mse = (predicted[0, 1] - tasks.query_y[0]).square().mean()
    assert figure.axes[2].get_xlabel() == f"mse {mse:.4f}"


def test_what_has_other_channels_is_drawn_in_grey() -> None:
    episodes = pixels(2)
    tasks = whole(episodes, 1)
    shown = cells(images(tasks, gallery(episodes).predictions(tasks), ["first", "last"], episodes.image_shape))
    np.testing.assert_allclose(shown[-1][..., 0].ravel(), tasks.query_y[0].mean(1), atol=1e-6)


def test_a_picture_has_a_row_for_each_task_and_a_column_for_what_there_is(tmp_path: Path) -> None:
    width, height = drawn(pixels(), tmp_path)
    assert drawn(pixels(), tmp_path, most=2)[1] < height / 2
    assert drawn(pixels(), tmp_path, algorithm=Slope(0))[0] < width - DPI
    assert drawn(pixels(), tmp_path, most=1)[0] == width


# Curves


def test_a_curve_is_predicted_everywhere_and_known_at_the_queries() -> None:
    episodes = points()
    tasks, own = whole(episodes, 3), episodes(0, 3)
    assert tasks.query_x.shape == tasks.query_y.shape == (3, 205, 1)
    assert bool((tasks.query_x.diff(dim=1) >= 0).all())
    for t in range(3):
        known = ~tasks.query_y[t].isnan()
        assert {*tasks.query_x[t][known].tolist()} == {*own.query_x[t].flatten().tolist()}
        assert {*tasks.query_y[t][known].tolist()} == {*own.query_y[t].flatten().tolist()}
    every = torch.cat([own.support_x, own.query_x], 1)
    torch.testing.assert_close(tasks.query_x[:, [0, -1]], torch.stack([every.amin(1), every.amax(1)], 1))


class Dense:
    """Curves that say what they are everywhere."""

    item_shape, outputs = (1,), 1

    def whole(self, first: int, count: int) -> EpisodeBatch:
        x = torch.linspace(-1, 1, 50).repeat(count, 1)[..., None]
        return EpisodeBatch(x[:, ::10], x[:, ::10].square(), x, x.square())


@pytest.mark.parametrize(("episodes", "truth"), [(points(), "truth, at the queries"), (Dense(), "truth")])
def test_a_panel_has_the_truth_the_support_points_and_the_predictions(episodes: Any, truth: str) -> None:
    tasks = whole(episodes, 3)
    figure = curves(tasks, gallery(episodes).predictions(tasks), ["before", "after"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [truth, "before", "after", "support"]
    panels = [axes for axes in figure.axes if axes.lines]
    assert len(panels) == 3
    for t, panel in enumerate(panels):
        lines = {line.get_label(): line.get_xydata() for line in panel.lines}
        x, y = tasks.query_x[t], tasks.query_y[t]
        np.testing.assert_allclose(lines[truth], torch.cat([x, y], 1))
        np.testing.assert_allclose(lines["after"], torch.cat([x, x], 1))
        assert not lines["before"][:, 1].any()
        np.testing.assert_allclose(lines["support"], torch.cat([tasks.support_x[t], tasks.support_y[t]], 1))
        known = ~y.isnan()
        errors = y[known].square().mean(), (x - y)[known].square().mean()
        assert panel.get_title() == "mse {:.3g} → {:.3g}".format(*map(float, errors))


def test_curves_are_drawn_four_at_most(tmp_path: Path) -> None:
    width, height = drawn(points(), tmp_path)
    assert (width, height) == drawn(points(), tmp_path, most=3)
    assert drawn(points(), tmp_path, most=2)[1] < height
    assert drawn(points(), tmp_path, most=1)[0] < width


# In a run


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("episodes", [pixels(), points()], ids=["image", "curve"])
def test_what_diverged_is_drawn_all_the_same(episodes: Any, factor: float, tmp_path: Path) -> None:
    drawn(episodes, tmp_path, algorithm=Slope(factor=factor))


@pytest.mark.parametrize("name", ["maml", "cnp"])
@pytest.mark.parametrize("episodes", [pixels(), points()], ids=["image", "curve"])
def test_methods_are_drawn_as_they_predict(name: str, episodes: Any, tmp_path: Path) -> None:
    net = known("model")["mlp"](item_shape=episodes.item_shape, outputs=1, widths=[8], norm="none")
    algorithm = known("algo")[name]()
    shown = Gallery(algorithm, net, algorithm.init(net, torch.Generator().manual_seed(0)), episodes)
    tasks = whole(episodes, 3)
    predicted = shown.predictions(tasks)
    assert not predicted.requires_grad
    each = algorithm.trajectory(net, shown.meta, Episode(*(field[2] for field in tasks)))
    torch.testing.assert_close(predicted[2, 0], each[0])
    torch.testing.assert_close(predicted[2, -1], each[-1])
    assert predicted.shape[1] == (1 if name == "cnp" else 2)
    shown.draw(tmp_path / "tasks.png", "a title", 3)
    assert min(size(tmp_path / "tasks.png")) > 300


def report(**changes: Any) -> Report:
    tree = {"algo": {"name": "maml"}, "dataset": {"name": "mine"}, "eval": {"way": 1, "shot": 4}}
    given: dict[str, Any] = {
        "score": Score(0.5, 0.1, 9), "tree": tree, "folder": Path("x"), "which": "best", "step": 1, "trained": 1,
        "split": "test", "inner_steps": 2, "statistics": "none", "metric": "mse", "gallery": gallery(points()),
    }  # fmt: skip
    return Report(**given | changes)


def test_one_run_has_a_picture_of_its_tasks(tmp_path: Path) -> None:
    draw(report(), tmp_path, print)
    assert [path.name for path in tmp_path.iterdir()] == ["tasks.png"]


def test_runs_that_are_compared_or_averaged_have_none(tmp_path: Path) -> None:
    draw(report(), tmp_path, print, {"A": report(), "B": report()})
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_drawn_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said: list[str] = []
    draw(report(), tmp_path, said.append)
    assert len(said) == 1
    assert said[0].startswith("no tasks.png: ")
    assert list(tmp_path.iterdir()) == []
