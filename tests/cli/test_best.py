"""The best setting of a sweep as a recipe: it composes the run that its trial was."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import TINY, Said, typed

from metarun import app
from metarun.manual import groups
from metarun.sweep import best
from metarun.sweep.best import write_best
from metarun.sweep.trial import COMPLETE, Goal, Params, Trial, run_folder
from metarun.sweep.words import overrides

CONF = Path(app.__file__).parents[1] / "conf"
ACCURACY = Goal("val/accuracy", True)


def composed(folder: Path, *words: str) -> dict[str, Any]:
    said = typed(folder, "train", *words, "--cfg", "job")
    assert said.code == 0, said.err
    return yaml.safe_load(said.out)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return composed(tmp_path_factory.mktemp("default"))


def best_of(folder: Path, words: list[str], params: Params) -> Path:
    place = folder / "my sweep"
    place.mkdir(exist_ok=True)
    write_best(place, words, Trial(7, params, COMPLETE, 0.934), ACCURACY)
    return place


SAME = {
    "settings": (["dataset=omniglot", "train.iterations=500"], {"algo.inner_lr": 1e-05, "train.clip": None}),
    "nothing typed": ([], {"algo.inner_steps": 3, "augment.flip": True}),
    "groups": (["dataset=glyphs", "logger=none", "device=cpu"], {"algo": "protonet", "algo.distance": "cosine"}),
    "a dataset that brings its model": (["dataset=sinusoid"], {"algo.inner_lr": 0.01, "model.widths": "[8,8]"}),
    "a dataset and another model": (["dataset=sinusoid", "model=conv4"], {"model.filters": 8}),
    "a recipe with another method": (["experiment=omniglot_maml_5w1s"], {"algo": "anil", "algo.inner_lr": 0.1}),
    "recipes": (["seed=3"], {"experiment": "omniglot_protonet_5w1s", "train.schedule_args.gamma": 0.1}),
    "a recipe's mapping, replaced": (
        ["experiment=omniglot_protonet_5w1s", "train.schedule=ExponentialLR", "train.schedule_args={gamma: 0.1}"],
        {"train.lr": 0.01},
    ),
    "a recipe's mapping, emptied": (
        ["experiment=omniglot_protonet_5w1s", "train.schedule=constant", "train.schedule_args={}"],
        {"train.lr": 0.01},
    ),
    "what Hydra makes of the words": (
        ["train.schedule_args=null", "++train.schedule_args={gamma: 0.5}", "++train.schedule_args.last_epoch=-1"],
        {"train.schedule": "ExponentialLR"},
    ),
    "later words win": (
        ["train.lr=1", "algo=anil", "algo=maml", "train.lr=2", "task={way: 7, shot: 2}", "train.optimizer_args.eps=1"],
        {"train.lr": 3.0, "task.shot": 5, "train.optimizer_args": "{weight_decay:0.1}"},
    ),
    "text": (["data_root='a b, \"c\" #d: 1e-3'", "plugins=[]", "eval.shot=${task.shot}"], {"task.shot": 3}),
}


@pytest.mark.parametrize("case", SAME)
def test_it_composes_what_was_typed(tmp_path: Path, default: dict[str, Any], case: str) -> None:
    words, params = SAME[case]
    place = best_of(tmp_path, words, params)
    head, what = (place / "experiment" / "best.yaml").read_text().splitlines()[:2]
    assert (head, what) == (
        "# @package _global_",
        "# the best setting of my sweep: trial 7, val/accuracy 93.40 %",
    )
    wanted = composed(tmp_path, *words, *overrides(params))
    assert composed(tmp_path, "--config-dir", "my sweep", "experiment=best") == wanted
    assert wanted != default


def test_where_a_run_is_does_not_go_along(tmp_path: Path) -> None:
    place = best_of(tmp_path, ["hydra.run.dir=somewhere", "train.lr=0.5"], {"seed": 4})
    assert yaml.safe_load((place / "experiment" / "best.yaml").read_text()) == {
        "defaults": ["_self_"],
        "train": {"lr": 0.5},
        "seed": 4,
    }


def test_groups_are_those_that_train_has() -> None:
    assert {*best.GROUPS, best.RECIPE} == {*groups(CONF, "train")}


RECIPE = """\
# @package _global_
# ProtoNet on glyphs, tiny
defaults:
  - override /dataset: glyphs
  - override /algo: protonet
  - override /model: mlp
model: {widths: [8]}
train: {iterations: 4, meta_batch: 2, val_every: 2, val_episodes: 4, lr: 0.01, log_every: 2}
eval: {episodes: 4}
paper: {accuracy: 50, source: nowhere, free: [train.meta_batch]}
"""


def verdict(said: Said) -> str:
    """What is not comparable, in the table that a run ends with."""
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("verdict"))
    until = next(i for i, line in enumerate(lines) if "paper: nowhere" in line)
    return " ".join(line[lines[first].index("verdict") :].strip() for line in lines[first + 1 : until])


def test_a_recipe_that_was_changed_is_not_its_own_protocol(tmp_path: Path) -> None:
    """What departs from the paper departs from it when the best is run again, by whatever name."""
    params: Params = {"algo": "matchingnet", "train.lr": 0.05, "train.meta_batch": 3}
    path = tmp_path / "mine" / "experiment" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(RECIPE)
    place = tmp_path / "sweep"
    run = run_folder(place, 3, 0, 2)
    how = ("logger=none", "device=cpu", "device.threads=1")
    words = ("experiment=tiny", *how)
    first = typed(
        tmp_path, "train", "--config-dir", "mine", *words, *overrides(params), "seed=9", f"hydra.run.dir={run}"
    )
    assert "algo.name matchingnet, not protonet" in verdict(first)
    assert "train.lr 0.05, not 0.01" in verdict(first)
    write_best(place, words, Trial(3, params, COMPLETE, 0.5), ACCURACY, seeds=2)
    again = shlex.split(best.command(place, str(tmp_path / "mine")))
    assert again[:2] == ["metarun", "train"]
    assert verdict(typed(tmp_path, *again[1:], "seed=9")) == verdict(first)


def test_the_best_runs(tmp_path: Path) -> None:
    place = best_of(tmp_path, list(TINY), {"algo.scale": 2.0})
    said = typed(tmp_path, "train", "--config-dir", str(place), "experiment=best")
    assert said.code == 0, said.err
    (config,) = tmp_path.glob("outputs/train/*/*/config.yaml")
    assert yaml.safe_load(config.read_text())["algo"]["scale"] == 2.0
