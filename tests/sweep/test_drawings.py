"""The pictures of a sweep, by what is drawn in them: few trials and many, settings that some lack, errors that differ
by powers of ten."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from made_up import ACCURACY, LARGE, MSE, SMALL, sweep

from metarun.sweep.drawings import ABSENT, MOST, draw, history, parallel, slices
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Choice, Interval, Trial, ended


def drawn(figure: Any) -> Any:
    """Once it is drawn nothing is left to find out."""
    figure.draw_without_rendering()
    return figure


def line(axes: Any, label: str) -> list[tuple[float, float]]:
    (found,) = (each for each in axes.lines if each.get_label().startswith(label))
    return [(float(x), round(float(y), 9)) for x, y in zip(*found.get_data(), strict=True)]


def test_history() -> None:
    trials = [
        Trial(0, {}, COMPLETE, 0.5),
        Trial(1, {}, FAILED),
        Trial(2, {}, COMPLETE, 0.4),
        Trial(3, {}, PRUNED, reports={100: 0.1, 200: 0.3}),
        Trial(4, {}, COMPLETE, 0.7),
        Trial(5, {}),
    ]
    (axes,) = drawn(history(trials, {}, ACCURACY)).axes
    assert line(axes, "complete") == [(0, 50), (2, 40), (4, 70)]
    assert line(axes, "the best") == [(0, 50), (2, 50), (4, 70), (5, 70)]
    assert line(axes, "pruned") == [(3, 30)]
    assert [x for x, _ in line(axes, "failed")] == [1]
    assert axes.get_ylabel() == "accuracy, %"
    (axes,) = drawn(history(trials, {}, MSE)).axes
    assert [y for _, y in line(axes, "the best")] == [0.5, 0.4, 0.4, 0.4]


@pytest.mark.parametrize("wide", [False, True])
def test_errors_by_powers_of_ten(wide: bool) -> None:
    trials = [Trial(n, {"train.lr": 0.1 * n}, COMPLETE, 0.1 * (9.0 if wide else 1.5) ** n) for n in range(4)]
    space = {"train.lr": Interval(0, 1)}
    for picture in (history, slices):
        assert drawn(picture(trials, space, MSE)).axes[0].get_yscale() == ("log" if wide else "linear")
    drawn(parallel(trials, space, MSE))


def test_parallel_coordinates() -> None:
    space = {"algo": Choice(("maml", "protonet")), "algo.inner_lr": Interval(0.01, 1, log=True)}
    trials = [
        Trial(0, {"algo": "maml", "algo.inner_lr": 0.1}, COMPLETE, 0.5),
        Trial(1, {"algo": "protonet"}, COMPLETE, 0.9),
        Trial(2, {"algo": "maml", "algo.inner_lr": 1.0}, COMPLETE, 0.1),
        Trial(3, {"algo": "maml", "algo.inner_lr": 1.0}, PRUNED),
    ]
    (axes,) = drawn(parallel(trials, space, ACCURACY)).axes
    (lines,) = axes.collections
    at = [[float(y) for x, y in each if float(x).is_integer()] for each in lines.get_segments()]
    worst, middle, best = at  # the best is drawn over the others
    assert best[1:] == pytest.approx([ABSENT, 1])
    assert middle[1:] == pytest.approx([0.5, 0.5])
    assert worst[1:] == pytest.approx([1, 0])
    assert 0 < worst[0] < middle[0] < 0.5 < best[0] < 1  # maml below, protonet above
    strength = lines.get_colors()[:, 3]
    assert strength[2] > strength[1] > strength[0] > 0.05
    words = {text.get_text() for text in axes.texts}
    assert {"algo", "inner_lr", "accuracy, %", "maml", "protonet", "0.01", "0.1", "1", "has none"} <= words
    (axes,) = drawn(parallel(trials, space, MSE)).axes
    (lines,) = axes.collections
    assert [each[-1][1] for each in lines.get_segments()] == pytest.approx([0, 0.5, 1])  # the least error on top


def test_slices() -> None:
    trials = sweep(LARGE, 40)
    done = [trial for trial in trials if trial.state == COMPLETE]
    panels = {axes.get_title(): axes for axes in drawn(slices(trials, LARGE, ACCURACY)).axes if axes.get_title()}
    assert len(panels) == len(LARGE)
    crosses, dots = panels["inner_lr"].collections
    pruned = [trial for trial in ended(trials, PRUNED) if "algo.inner_lr" in trial.params]
    assert len(crosses.get_offsets()) == len(pruned) > 0
    those = [trial for trial in done if "algo.inner_lr" in trial.params]
    assert [*dots.get_offsets()[:, 1]] == pytest.approx([100 * (trial.value or 0) for trial in those])
    assert list(dots.get_array()) == [trial.number for trial in those]
    assert [text.get_text() for text in panels["inner_lr"].get_xticklabels()] == ["0.01", "0.1", "1"]
    assert [text.get_text() for text in panels["optimizer"].get_xticklabels()] == ["Adam", "SGD", "RMSprop"]
    _, dots = panels["optimizer"].collections
    places = dots.get_offsets()[:, 0] * 3
    options = ["Adam", "SGD", "RMSprop"]
    assert [options[int(place)] for place in places] == [trial.params["train.optimizer"] for trial in done]


def overlaps(axes: Any) -> list[str]:
    """Labels of an axis that lie on one another."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in axes.get_xticklabels() if text.get_text()]
    return [f"{a} {b}" for (a, one), (b, other) in pairwise(boxes) if one.x1 > other.x0]


def test_labels_do_not_lie_on_one_another() -> None:
    figure = drawn(slices(sweep(LARGE, 40), LARGE, ACCURACY))
    assert not [pair for axes in figure.axes for pair in overlaps(axes)]
    (axes,) = drawn(parallel(sweep(LARGE, 40), LARGE, ACCURACY)).axes
    heads = [text.get_window_extent() for text in axes.texts if text.xyann == (0, 8)]
    assert len(heads) == len(LARGE) + 1
    assert all(one.x1 < other.x0 for one, other in pairwise(heads))


@pytest.mark.parametrize("count, settings", [(300, 3), (1, 1), (60, 20)])
def test_any_number_of_trials_and_settings(tmp_path: Path, count: int, settings: int) -> None:
    names = [*SMALL, *(f"model.quite_a_long_name_{n}" for n in range(20))][:settings]
    space = {name: SMALL.get(name, Choice(("a", "b" * 40))) for name in names}
    trials = sweep({**SMALL, **space}, count)
    assert draw(tmp_path, trials, space, ACCURACY) == ["history.png", "parallel.png", "slices.png"]
    for name in ("history.png", "parallel.png", "slices.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    (axes,) = parallel(trials, space, ACCURACY).axes
    assert sum(text.xyann == (0, 8) for text in axes.texts) == min(settings, MOST) + 1


def test_without_a_complete_trial_there_is_only_history(tmp_path: Path) -> None:
    trials = [Trial(0, {"train.lr": 0.1}, FAILED), Trial(1, {"train.lr": 0.1}, COMPLETE, float("nan"))]
    assert draw(tmp_path, trials, {"train.lr": Interval(0, 1)}, ACCURACY) == ["history.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["history.png"]
    assert draw(tmp_path, [], {}, ACCURACY) == ["history.png"]


def test_values_outside_the_space_that_were_typed(tmp_path: Path) -> None:
    trials = sweep(SMALL, 5, whole=True)
    trials[0].params = {"algo.inner_lr": 3.0, "train.lr": 1e-6, "algo.inner_steps": 10}
    (axes,) = drawn(parallel(trials, SMALL, ACCURACY)).axes
    assert all(0 <= y <= 1 for each in axes.collections[0].get_segments() for _, y in each)
