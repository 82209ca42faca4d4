"""Runs of one process, trained as one: each folder is as if its run had been trained by itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import TINY, only_run, typed

from metarun import checkpoint, config, run, runs
from metarun.algorithms.maml import MAML
from metarun.data.glyphs import Glyphs
from metarun.run import HALTED, Watch, carry_on
from metarun.together import alike, carry_on_together
from metarun.types import REGISTRY, InputError, setting

Tree = dict[str, Any]
Rows = list[dict[str, Any]]
CLOSE = 1e-4
"""what single precision leaves of being the same"""
QUIET = Watch(halt=lambda: False, objective=lambda: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The whole config of a small MAML run."""
    folder = tmp_path_factory.mktemp("base")
    said = typed(folder, "train", *TINY, "algo=maml", "train.iterations=1", "eval.episodes=1", "train.val_episodes=1")
    assert said.code == 0, said.err
    return config.load_tree(only_run(folder) / "config.yaml") | {"seed": 0}


def tree_with(base: Tree, **changes: Any) -> Tree:
    """`tree_with(base, train__lr=0.1)`"""
    out = deepcopy(base)
    for key, value in {"train__iterations": 6, "train__val_episodes": 4, **changes}.items():
        node, _, name = key.rpartition("__")
        (out[node] if node else out)[name] = value
    return out


SETTINGS: list[Tree] = [
    {"algo__inner_lr": 0.1, "train__lr": 0.01},
    {"algo__inner_lr": 0.4, "train__l2": 0.01, "train__clip": 1.0, "seed": 1},
    {"algo__inner_lr": 0.05, "train__lr": 0.003, "train__clip": 0.1},
]


@pytest.fixture
def trees(base: Tree) -> list[Tree]:
    """Three runs, two of them of one seed."""
    return [tree_with(base, **{"train__clip": 5.0, **settings}) for settings in SETTINGS]


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str, Sequence[Tree]], list[Path]]:
    """`folders("alone", trees)`: one for each, with its config."""

    def make(name: str, trees: Sequence[Tree]) -> list[Path]:
        out = [tmp_path / name / str(i) for i in range(len(trees))]
        for folder, tree in zip(out, trees, strict=True):
            folder.mkdir(parents=True)
            runs.write_config(folder, tree)
        return out

    return make


def together(folders: Sequence[Path], watches: Sequence[Watch] | None = None) -> list[tuple[int, int]]:
    """Which runs were over, in order, and their codes."""
    over: list[tuple[int, int]] = []
    carry_on_together(folders, watches or [QUIET] * len(folders), lambda i, code: over.append((i, code)))
    return over


def rows(folder: Path) -> Rows:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in row.items() if key != "rate"} for row in found]


def weights(folder: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / "checkpoints" / f"{which}.pt")["meta"]


def same(ours: Path, alone: Path) -> None:
    """But for rounding, and where and when they were."""
    assert [row.keys() for row in rows(ours)] == [row.keys() for row in rows(alone)]
    for mine, its in zip(rows(ours), rows(alone), strict=True):
        for key, value in its.items():
            assert mine[key] == (pytest.approx(value, rel=CLOSE, abs=CLOSE) if isinstance(value, float) else value), key
    files = [{path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} for folder in (ours, alone)]
    assert files[0] == files[1]
    for which in ("last", "best"):
        theirs = weights(alone, which)
        assert all(torch.allclose(w, theirs[name], atol=CLOSE) for name, w in weights(ours, which).items())
    assert runs.read_config(ours) == runs.read_config(alone)


def halting(folder: Path, step: int) -> Watch:
    """A sweep that has seen enough of a run after its validation at `step`."""
    return Watch(lambda: any(row["step"] == step and row["split"] == "val" for row in rows(folder)), lambda: None)


def ending(number: int, asked: int) -> Watch:
    """A signal that comes when the run has asked for it so many times: once a step."""
    counted = iter(range(1, 10**6))

    def halt() -> bool:
        if next(counted) == asked:
            os.kill(os.getpid(), number)
        return False

    return Watch(halt, lambda: None)


@pytest.fixture
def one_thread() -> Iterator[None]:
    yield


def test_each_folder_is_that_of_the_run_alone(trees: list[Tree], folders: Any) -> None:
    ours, alone = folders("ours", trees), folders("alone", trees)
    assert together(ours) == [(0, 0), (1, 0), (2, 0)]
    for mine, its in zip(ours, alone, strict=True):
        assert carry_on(its, QUIET) == 0
        same(mine, its)
        assert not (mine / "eval.json").exists()
    assert len({rows(folder)[-1]["accuracy"] for folder in ours} | {rows(ours[0])[0]["loss"]}) > 1
    losses = [rows(folder)[-2]["loss"] for folder in ours]
    assert len(set(losses)) == 3


def test_one_that_is_halted_leaves_the_others_as_they_were(trees: list[Tree], folders: Any) -> None:
    ours, alone = folders("ours", trees), folders("alone", trees)
    watches = [QUIET, halting(ours[1], 2), QUIET]
    assert together(ours, watches) == [(1, HALTED), (0, 0), (2, 0)]
    assert "ended at step 3 by its sweep" in (ours[1] / "log.txt").read_text()
    assert carry_on(alone[1], halting(alone[1], 2)) == HALTED
    for i in (0, 2):
        assert carry_on(alone[i], QUIET) == 0
    for mine, its in zip(ours, alone, strict=True):
        same(mine, its)


def test_one_that_diverges_says_why_and_leaves_the_others(trees: list[Tree], folders: Any) -> None:
    trees[0]["train"] |= {"lr": 1e30, "clip": 1e30}
    ours, alone = folders("ours", trees), folders("alone", trees)
    assert together(ours) == [(0, 1), (1, 0), (2, 0)]
    log = (ours[0] / "log.txt").read_text().splitlines()
    assert "error: training diverged by step 2" in log[-1] and "train.lr" in log[-1]
    for i in (1, 2):
        assert carry_on(alone[i], QUIET) == 0
        same(ours[i], alone[i])


def test_a_signal_ends_all_and_they_go_on_to_the_same_bits(trees: list[Tree], folders: Any) -> None:
    ours, straight = folders("ours", trees), folders("straight", trees)
    together(straight)
    assert together(ours, [QUIET, ending(signal.SIGTERM, 3), QUIET]) == [(0, 143), (1, 143), (2, 143)]
    for folder in ours:
        assert "stopped at step 4" in (folder / "log.txt").read_text()
    assert together(ours) == [(0, 0), (1, 0), (2, 0)]
    for mine, its in zip(ours, straight, strict=True):
        assert rows(mine) == rows(its)
        assert all(torch.equal(w, weights(its)[name]) for name, w in weights(mine).items())
        assert f"resumed at step 4 of {trees[0]['train']['iterations']}" in (mine / "log.txt").read_text()


def test_each_goes_on_from_its_own_checkpoint(trees: list[Tree], folders: Any) -> None:
    """As after a kill: one had not saved yet, another had ended."""
    ours, alone = folders("ours", trees), folders("alone", trees)
    for mine, its in zip(ours, alone, strict=True):
        carry_on(its, QUIET)
        runs.write_config(mine, runs.read_config(its))
    carry_on(ours[0], halting(ours[0], 2))
    carry_on(ours[2], QUIET)
    before = (ours[2] / "metrics.jsonl").read_text()
    assert together(ours) == [(2, 0), (0, 0), (1, 0)]
    assert (ours[2] / "metrics.jsonl").read_text() == before
    for mine, its in zip(ours, alone, strict=True):
        same(mine, its)


def test_one_that_cannot_begin_says_why_and_leaves_the_others(trees: list[Tree], folders: Any) -> None:
    ours = folders("ours", [*trees, tree_with(trees[0], algo__inner_steps=2)])
    (ours[1] / "checkpoints").mkdir()
    (ours[1] / "checkpoints" / "last.pt").write_bytes(b"damaged")
    assert together(ours) == [(1, 2), (3, 2), (0, 0), (2, 0)]
    assert "error: checkpoint" in (ours[1] / "log.txt").read_text()
    assert "differs in more than" in (ours[3] / "log.txt").read_text()


def test_a_folder_is_free_and_its_files_whole_when_its_run_is_over(trees: list[Tree], folders: Any) -> None:
    """So that whoever is told may do with it as they like."""
    ours = folders("ours", trees)
    ends: dict[int, Rows] = {}

    def ended(i: int, code: int) -> None:
        runs.lock(ours[i]).close()
        ends[i] = rows(ours[i])

    carry_on_together(ours, [QUIET, halting(ours[1], 2), QUIET], ended)
    assert {i: found[-1]["step"] for i, found in ends.items()} == {1: 2, 0: 6, 2: 6}


def test_data_is_loaded_once(trees: list[Tree], folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    usual = Glyphs.load

    def load(self: Glyphs, split: str, place: Any) -> Any:
        loaded.append(split)
        return usual(self, split, place)

    monkeypatch.setattr(Glyphs, "load", load)
    assert [code for _, code in together(folders("ours", trees))] == [0, 0, 0]
    assert sorted(loaded) == ["test", "train", "val"]


def test_each_seed_chooses_its_own_classes(base: Tree, folders: Any) -> None:
    trees = [tree_with(base, data__classes=7, seed=seed) for seed in (0, 1)]
    ours, alone = folders("ours", trees), folders("alone", trees)
    assert together(ours) == [(0, 0), (1, 0)]
    for mine, its in zip(ours, alone, strict=True):
        carry_on(its, QUIET)
        same(mine, its)
    data = [json.loads((folder / "environment.json").read_text())["sessions"][0]["data"] for folder in ours]
    assert data[0]["train"] != data[1]["train"] and data[0]["val"] == data[1]["val"]


def test_what_the_memory_holds_is_measured_with_all(
    trees: list[Tree], folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def at_a_time(gradient: Callable[[int], None], tasks: int, *more: Any) -> int:
        gradient(tasks)
        measured.append(tasks)
        return 1

    ours, alone = folders("ours", trees), folders("alone", trees)
    with monkeypatch.context() as patch:
        patch.setattr(run, "at_a_time", at_a_time)
        assert together(ours) == [(0, 0), (1, 0), (2, 0)]
    assert measured == [2]
    for mine, its in zip(ours, alone, strict=True):
        assert "the memory holds 1 of 2 tasks at a time" in (mine / "log.txt").read_text()
        assert checkpoint.load(mine / "checkpoints" / "last.pt")["chunk"] == 1
        carry_on(its, QUIET)
        same(mine, its)


def test_runs_with_nothing_to_train_are_taken_one_by_one(base: Tree, folders: Any) -> None:
    trees = [
        config.whole(tree_with(base, seed=seed) | {"algo": {"name": "classical", "classifier": "nearest_centroid"}})
        for seed in (0, 1)
    ]
    ours = folders("ours", trees)
    assert together(ours) == [(0, 0), (1, 0)]
    assert [row["split"] for row in rows(ours[1])] == ["val"]


# What is alike


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5},
        {"algo__inner_lr": 0.01},
        {"train__lr": 0.1, "train__l1": 0.1, "train__l2": 0.2},
        {"train__clip": 2.0},
        {"train__optimizer_args": {"betas": [0.8, 0.99], "amsgrad": True}},
        {"logger": {"name": "wandb"}},
    ],
)
def test_numbers_and_seeds_may_differ(base: Tree, changes: Tree) -> None:
    args = {"train__clip": 1.0, "train__optimizer_args": {"betas": [0.9, 0.999], "amsgrad": True}}
    assert alike(tree_with(base, **args)) == alike(tree_with(base, **args | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"algo__inner_steps": 2},
        {"algo__eval_steps": 2},
        {"train__meta_batch": 3},
        {"train__iterations": 7},
        {"train__optimizer": "SGD"},
        {"train__optimizer_args": {"amsgrad": True}},
        {"train__clip": 1.0},
        {"train__val_every": 3},
        {"train__log_every": 3},
        {"checkpoint__every": 3},
        {"model__widths": [9]},
        {"model__dropout": 0.1},
        {"augment__erase": 0.1},
        {"dataset__seed": 1},
        {"device__precision": "bf16"},
        {"task__shot": 2},
        {"eval__seed": 2},
    ],
)
def test_all_else_must_be_the_same(base: Tree, changes: Tree) -> None:
    assert alike(tree_with(base)) != alike(tree_with(base, **changes))


def test_where_each_seed_has_its_own_shapes_it_must_be_the_same(base: Tree) -> None:
    assert alike(tree_with(base, task__shot_to=3)) != alike(tree_with(base, task__shot_to=3, seed=1))


def test_inner_steps_that_are_taken_again_have_one_rate(base: Tree) -> None:
    again = {"device__checkpoint_inner": True}
    assert alike(tree_with(base, **again)) != alike(tree_with(base, **again, algo__inner_lr=0.01))
    assert alike(tree_with(base, **again)) == alike(tree_with(base, **again, train__lr=0.01, seed=1))


def test_a_number_that_may_be_left_out_must_be_there_in_all(base: Tree) -> None:
    protonet = [
        config.whole(base | {"algo": {"name": "protonet", "scale": scale, "distance": "cosine"}})
        for scale in (None, 5.0, 7.0)
    ]
    assert alike(protonet[0]) != alike(protonet[1]) == alike(protonet[2])


@dataclass(frozen=True)
class Choosy(MAML):
    """Decides by numbers in Python, and says so of one of them."""

    said: float = setting(0.5, apart=True)
    unsaid: float = setting(0.5)

    def loss(self, net: Any, meta: Any, episode: Any) -> Any:
        out = super().loss(net, meta, episode)
        return out if self.said < self.unsaid else out._replace(loss=2 * out.loss)


def test_a_method_may_keep_a_number_to_itself(base: Tree, folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY["algo"], "choosy", Choosy)

    def choosy(**settings: float) -> Tree:
        return config.whole(tree_with(base) | {"algo": {"name": "choosy", **settings}})

    assert alike(choosy(said=0.1)) != alike(choosy(said=0.2))
    assert alike(choosy(unsaid=0.1)) == alike(choosy(unsaid=0.2))
    ours = folders("ours", [choosy(unsaid=0.1), choosy(unsaid=0.2)])
    assert together(ours) == [(0, 1), (1, 1)]
    for folder in ours:
        log = (folder / "log.txt").read_text()
        assert "error: runs with other values of algo.unsaid cannot be trained together" in log


def test_runs_of_many_processes_are_refused(base: Tree) -> None:
    with pytest.raises(InputError, match=r"device\.processes=2.*device\.processes=1"):
        alike(tree_with(base, device__processes=2))
