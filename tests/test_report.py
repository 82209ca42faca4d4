"""An evaluation on the terminal and in files: the numbers, class by class, task by task, step by step."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metarun import plots
from metarun.comparison import Seeds, Versus, alike
from metarun.confusion import Confusion
from metarun.engine.evaluate import Score, score
from metarun.report import Report, draw, show, write
from metarun.types import InputError

TREE: dict[str, Any] = {
    "task": {"way": 3, "shot": 1, "query": 1},
    "eval": {"episodes": 40, "way": 3, "shot": 1, "query": 2, "seed": 0},
    "algo": {"name": "maml", "inner_lr": 0.4, "eval_steps": 2},
    "model": {"name": "conv4"},
    "dataset": {"name": "glyphs", "seed": 0},
    "data": {"classes": None},
    "augment": {"flip": False},
    "train": {"iterations": 30, "lr": 1e-3, "log_every": 10},
    "seed": 0,
}
NAMES = ('an, odd "name"', "bé", "c", "d")


def curve(*means: float) -> list[Score]:
    return [Score(mean, 0.02, 40) for mean in means]


def made(values: list[float] | None = None, **changes: Any) -> Report:
    values = values or [0.5, 1.0] * 20
    given: dict[str, Any] = {
        "score": score(torch.tensor(values, dtype=torch.float64)), "tree": TREE, "folder": Path("outputs/train/x/0"),
        "which": "best", "step": 30, "trained": 30, "split": "test", "inner_steps": 2, "statistics": "batch",
        "transductive": True, "values": values, "curve": curve(0.2, 0.7, 0.75),
        "confusion": Confusion(NAMES, {(0, 0): 3, (0, 1): 2, (1, 1): 4}), "data": "01234567",
    }  # fmt: skip
    return Report(**given | changes)


def said_by(show: Any) -> list[str]:
    lines: list[str] = []
    show(lines.append)
    assert max(map(len, lines)) <= 80
    return lines


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


# Classes


def test_confusion_counts_every_query() -> None:
    generator = torch.Generator().manual_seed(0)
    true, predicted = torch.randint(0, 4, (2, 30, 6), generator=generator)
    expected = Counter(zip(true.flatten().tolist(), predicted.flatten().tolist()))
    found = Confusion.of(NAMES, true, predicted)
    assert found.counts == expected
    assert list(found.rows()) == [(NAMES[t], NAMES[p], n) for (t, p), n in sorted(expected.items())]
    assert sum(n for *_, n in found.rows()) == 180


def test_the_hardest_classes_are_those_recognised_least() -> None:
    counts = {(0, 0): 9, (0, 1): 1, (1, 0): 1, (2, 2): 2, (2, 0): 3, (2, 3): 5, (3, 3): 4}
    worst = Confusion(NAMES, counts).hardest(2)
    assert worst[0] == {"class": "c", "accuracy": 0.2, "queries": 10, "taken_for": "d", "times": 5}
    assert worst[1] == {"class": "bé", "accuracy": 0.0, "queries": 1, "taken_for": NAMES[0], "times": 1}
    assert [row["class"] for row in Confusion(NAMES, counts).hardest()] == ["c", "bé", NAMES[0]]
    assert Confusion(NAMES, {(0, 0): 4}).hardest() == []


# Files


def test_the_files_hold_the_numbers(tmp_path: Path) -> None:
    report = made()
    write(report, tmp_path, {"more": 1}, {"other": made([0.25] * 40)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["confusion.csv", "eval.json", "tasks.csv"]
    content = json.loads((tmp_path / "eval.json").read_text())
    assert content["mean"] == pytest.approx(0.75)
    assert content["tasks"] == 40
    assert content["protocol"]["transductive"] is True
    assert content["protocol"]["data"] == "01234567"
    assert content["curve"][1] == {"step": 1, "mean": 0.7, "ci95": 0.02}
    assert len(content["curve"]) == 3
    assert content["hardest"][0]["class"] == NAMES[0]
    assert content["more"] == 1
    tasks = rows(tmp_path / "tasks.csv")
    assert tasks[0] == ["index", "value", "other"]
    assert [[int(i), float(v), float(o)] for i, v, o in tasks[1:]] == [
        [i, value, 0.25] for i, value in enumerate(report.values)
    ]
    assert rows(tmp_path / "confusion.csv") == [
        ["true", "predicted", "count"], [NAMES[0], NAMES[0], "3"], [NAMES[0], NAMES[1], "2"], [NAMES[1], NAMES[1], "4"]
    ]  # fmt: skip


def test_regression_has_no_classes_and_a_diverged_error_no_number(tmp_path: Path) -> None:
    values = [0.5, float("inf")]
    report = made(values, metric="mse", confusion=None, curve=[Score(float("nan"), 0.1, 2), Score(0.5, 0.1, 2)])
    write(report, tmp_path)
    content = json.loads((tmp_path / "eval.json").read_text())
    assert (content["mean"], content["ci95"], content["curve"][0]["mean"]) == (None, None, None)
    assert "hardest" not in content
    assert [row[1] for row in rows(tmp_path / "tasks.csv")] == ["value", "0.5", "inf"]
    assert not (tmp_path / "confusion.csv").exists()
    draw(report, tmp_path, print)
    assert (tmp_path / "curve.png").exists()
    lines = said_by(lambda say: show(report, say))
    assert any("mse" in line and "inf" in line for line in lines)


RATINGS = {"metric": "rmse", "confusion": None, "notes": {"rmse": "each task's own root", "ndcg": "gain: the target"}}


def rated(mae: float = 0.5, **changes: Any) -> Report:
    also = {"mae": [mae, mae + 0.2] * 20, "ndcg": [0.8, 1.0] * 20}
    return made([1.0, 1.2] * 20, also=also, curve=(), **RATINGS | changes)


def test_other_measures_stand_beside_the_first(tmp_path: Path) -> None:
    report = rated()
    write(report, tmp_path, beside={"versus": rated(0.1)})
    content = json.loads((tmp_path / "eval.json").read_text())
    assert (content["metric"], content["mean"]) == ("rmse", pytest.approx(1.1))
    assert {name: each["mean"] for name, each in content["also"].items()} == pytest.approx({"mae": 0.6, "ndcg": 0.9})
    assert (
        content["also"]["mae"]["ci95"]
        == pytest.approx(content["also"]["ndcg"]["ci95"])
        == pytest.approx(score(torch.tensor(report.also["mae"])).ci95)
    )
    assert content["notes"] == RATINGS["notes"]
    header, first, *others = rows(tmp_path / "tasks.csv")
    assert header == ["index", "value", "mae", "ndcg", "versus", "versus mae", "versus ndcg"]
    assert [float(cell) for cell in first] == [0, 1.0, 0.5, 0.8, 1.0, 0.1, 0.8]
    assert len(others) == 39
    text = " ".join(" ".join(said_by(lambda say: show(report, say))).split())
    assert "rmse 1.1 ± 0.03139 (95 % interval over tasks; each task's own root)" in text
    assert "mae 0.6 ± 0.03139 (95 % interval over tasks)" in text
    assert "ndcg 0.9 ± 0.03139 (95 % interval over tasks; gain: the target)" in text
    assert "also" not in made().json() and "notes" not in made().json()


def test_a_method_without_steps_has_no_curve(tmp_path: Path) -> None:
    report = made(curve=(), inner_steps=0)
    assert "curve" not in report.json()
    draw(report, tmp_path, print)
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_drawn_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    said: list[str] = []
    draw(made(), tmp_path, said.append)
    assert len(said) == 1 and said[0].startswith("no curve.png: ")


# Pictures


def ink(path: Path) -> int:
    """Pixels that are not white."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == (960, 600)
        return sum(count for count, colour in image.convert("L").getcolors(256) or [] if colour < 250)


def test_a_curve_is_a_picture_of_its_numbers(tmp_path: Path) -> None:
    plots.curve(tmp_path / "flat.png", "title", "accuracy", {"": [Score(0.5, 0.0, 9)] * 5})
    plots.curve(tmp_path / "wide.png", "title", "accuracy", {"": [Score(0.5, 0.2, 9)] * 5})
    assert ink(tmp_path / "wide.png") > ink(tmp_path / "flat.png") + 50_000  # the interval
    lines = {"A": curve(0.2, 0.7, 0.9), "B": curve(0.5)}
    plots.curve(tmp_path / "both.png", "title", "accuracy", lines, [curve(0.1, 0.2, 0.3)])
    assert ink(tmp_path / "both.png") > 10_000
    plots.curve(tmp_path / "mse.png", "title", "mse", {"": curve(400.0, 3.0, 0.5)})
    assert ink(tmp_path / "mse.png") > 5_000


# On the terminal


def test_the_table_is_narrow_and_says_how_it_was_measured() -> None:
    text = "\n".join(said_by(lambda say: show(made(), say)))
    assert "75.00 ± 7.85 %  (95 % interval over tasks)" in text
    assert "40: 3-way 1-shot, 2 queries per class" in text
    assert "batch (transductive)" in text
    assert "(after 0, 1, 2: 20.00, 70.00, 75.00)" in text
    assert 'an, odd "name", 60.00 % of 5 queries right' in text
    text = "\n".join(said_by(lambda say: show(made(which=None, transductive=False, curve=()), say)))
    assert "none: nothing is trained" in text
    assert "transductive" not in text
    long = made(curve=curve(*(i / 60 for i in range(51))))
    assert "after 0, 10, 20, 30, 40, 50:" in " ".join(" ".join(said_by(lambda say: show(long, say))).split())


# Two runs


def pair(a: list[float], b: list[float], metric: str = "accuracy") -> Versus:
    return Versus(made(a, metric=metric), made(b, metric=metric, folder=Path("outputs/train/y/1")))


def test_the_difference_is_taken_task_by_task() -> None:
    """What is hard about a task for both falls out, and a difference shows that two intervals would hide."""
    a = torch.linspace(0, 1, 40, dtype=torch.float64)
    b = a - 0.01 + 0.001 * torch.arange(40).remainder(3)
    both = pair(a.tolist(), b.tolist())
    gap = a - b
    assert both.difference.mean == pytest.approx(float(gap.mean()))
    assert both.difference.ci95 == pytest.approx(1.96 * float(gap.std()) / 40**0.5)
    assert both.a.score.ci95 > 10 * both.difference.mean
    assert both.verdict == "A is better"
    content = both.json()["versus"]
    assert content["mean"] == pytest.approx(float(b.mean()))
    assert content["difference"]["mean"] == pytest.approx(float(gap.mean()))
    assert content["verdict"] == "A is better"
    assert content["protocol"]["run"] == "outputs/train/y/1"
    lines = said_by(both.show)
    assert any("A - B  +0.90 ± 0.03 points" in line for line in lines)
    assert any(line.strip() == "A is better" for line in lines)


def test_which_is_better_depends_on_the_metric() -> None:
    high, low = [0.9, 0.8] * 20, [0.2, 0.1] * 20
    assert pair(high, low).verdict == "A is better"
    assert pair(low, high).verdict == "B is better"
    assert pair(high, low, "mse").verdict == "B is better"
    assert pair(low, high, "mse").verdict == "A is better"
    assert pair(low, high, "rmse").verdict == "A is better"
    assert pair(high, low, "ndcg").verdict == "A is better"


def test_other_measures_are_compared_as_well() -> None:
    both = Versus(rated(0.1), rated(0.5))
    assert both.verdict == "no difference can be told"  # by the first measure, which is the same
    content = both.json()["versus"]
    assert content["also"]["mae"]["mean"] == pytest.approx(0.6)
    assert content["also"]["mae"]["difference"]["mean"] == pytest.approx(-0.4)
    assert content["also"]["ndcg"]["difference"] == {"mean": 0.0, "ci95": 0.0}
    lines = said_by(both.show)
    assert any("A - B  -0.4 ± " in line and line.endswith("of mae") for line in lines)
    assert "also" not in pair([0.5] * 3, [0.4] * 3).json()["versus"]


NONE = {
    "as often": ([0.5, 0.6] * 5, [0.6, 0.5] * 5),
    "equal": ([0.5] * 9, [0.5] * 9),
    "one task": ([1.0], [0.0]),
    "no number": ([float("nan")] * 3, [1.0] * 3),
}


@pytest.mark.parametrize(("a", "b"), NONE.values(), ids=NONE)
def test_no_difference_is_claimed_where_none_can_be_told(a: list[float], b: list[float]) -> None:
    assert pair(a, b).verdict == "no difference can be told"


# Many runs


def seeded(seed: int, values: list[float], folder: str) -> Report:
    return made(values, tree=TREE | {"seed": seed}, folder=Path(folder))


def test_runs_are_averaged_task_by_task_and_their_spread_is_told() -> None:
    each = [seeded(i, [0.1 * i, 0.5, 0.9], f"outputs/m/{i}") for i in range(3)]
    seeds = Seeds(each, made([0.1, 0.5, 0.9], step=None))
    means = torch.tensor([0.4667, 0.5, 0.5333], dtype=torch.float64)
    assert seeds.sd == pytest.approx(float(means.std()), abs=1e-4)
    content = seeds.json()
    assert content["protocol"]["run"] == [f"outputs/m/{i}" for i in range(3)]
    assert content["runs"]["count"] == 3
    assert content["runs"]["seed_sd"] == pytest.approx(seeds.sd)
    assert content["runs"]["least"] == pytest.approx(0.46667, abs=1e-4)
    assert [row["seed"] for row in content["runs"]["each"]] == [0, 1, 2]
    text = "\n".join(said_by(seeds.show))
    assert "3, sd over seeds 3.33, from 46.67 to 53.33" in text
    assert "0  seed 0" in text
    assert "best of each run" in text
    assert list(seeds.named) == ["seed 0", "seed 1", "seed 2"]


def test_one_run_has_no_spread_and_the_same_seed_twice_is_told() -> None:
    one = seeded(0, [0.5, 0.7], "outputs/m/0")
    assert "1, so nothing is known of how seeds differ" in "\n".join(said_by(Seeds([one], one).show))
    assert Seeds([one], one).json()["runs"]["seed_sd"] is None
    twin = seeded(0, [0.5, 0.7], "outputs/m/1")
    twins = Seeds([one, twin], one)
    assert "some have the same seed" in " ".join(" ".join(said_by(twins.show)).split())
    assert list(twins.named) == ["0", "1"]


def test_runs_that_differ_in_more_than_their_seed_are_refused() -> None:
    folders = [Path("a"), Path("b")]
    alike([TREE, TREE | {"seed": 1, "train": TREE["train"] | {"log_every": 3}}], folders)
    for node, setting, value in (("train", "lr", 0.5), ("algo", "eval_steps", 9), ("dataset", "seed", 4)):
        with pytest.raises(InputError, match=f"^runs: b is no other seed of a: {node}.{setting} {value}, not "):
            alike([TREE, TREE | {node: TREE[node] | {setting: value}}], folders)
    with pytest.raises(InputError, match=r"algo\.name protonet, not maml; name runs that"):
        alike([TREE, TREE | {"algo": {"name": "protonet"}}], folders)
