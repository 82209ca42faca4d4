"""A recipe's protocol: its own settings, at full length in the run's config, whatever else is typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from commandline import Said, only_run

Metarun = Callable[..., Said]

RECIPE = """\
# @package _global_
# ProtoNet on glyphs, tiny
defaults:
  - override /dataset: glyphs
  - override /algo: protonet
  - override /model: mlp
model: {widths: [8]}
train: {iterations: 4, meta_batch: 2, val_every: 2, val_episodes: 4, lr: 0.01, optimizer_args: {eps: 1e-7}}
eval: {episodes: 4}
paper:
  accuracy: 50
  source: nowhere
"""
HOW = ("logger=none", "device=cpu", "device.threads=1", "device.eval_batch=3", "checkpoint.every=1")
"""Where and how it runs: no part of a protocol."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe of one's own; more can be added to its end."""
    path = tmp_path / "mine" / "experiment" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(RECIPE)
    return path


def train(metarun: Metarun, *words: str) -> Said:
    return metarun("train", "--config-dir", "mine", "experiment=tiny", *HOW, *words)


def verdict(said: Said) -> str:
    """From the table: all that stands in its last column."""
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("verdict"))
    start = lines[first].index("verdict")
    until = next(i for i, line in enumerate(lines) if "paper: nowhere" in line)
    return " ".join(line[start:].strip() for line in lines[first + 1 : until])


def paper_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())["paper"]


def test_the_recipe_as_it_is_keeps_to_its_protocol(metarun: Metarun, tiny: Path, tmp_path: Path) -> None:
    assert "not comparable" not in verdict(train(metarun, "seed=3", "eval.seed=1", "train.val_every=3"))
    paper = paper_of(only_run(tmp_path))
    assert paper["protocol"].keys() == {"task", "eval", "algo", "model", "dataset", "data", "augment", "train"}
    assert paper["protocol"]["train"]["lr"] == 0.01
    assert paper["protocol"]["eval"] == {"episodes": 4, "way": 5, "shot": 1, "query": 1}
    assert "not comparable" not in verdict(metarun("eval", "run=latest", "device=cpu"))


def test_whatever_departs_from_it_is_named(metarun: Metarun, tiny: Path) -> None:
    """By `metarun eval` too, which knows nothing of the recipe."""
    words = ("train.iterations=2", "train.lr=0.1", "train.optimizer_args.weight_decay=0.5", "model.widths=[9]")
    departs = [
        "eval.query 2, not 1",
        "model.widths [9], not [8]",
        "train.iterations 2, not 4",
        "train.lr 0.1, not 0.01",
        "train.optimizer_args.weight_decay 0.5, not absent",
    ]
    assert verdict(train(metarun, *words, "eval.query=2")) == f"not comparable: {'; '.join(departs)}"
    tiny.unlink()
    said = metarun("eval", "run=latest", "eval.shot=2", "device=cpu")
    assert verdict(said) == f"not comparable: {'; '.join(['eval.shot 2, not 1', *departs])}"


def test_a_recipe_may_say_what_the_paper_has_otherwise_and_what_it_leaves_open(metarun: Metarun, tiny: Path) -> None:
    tiny.write_text(f"{RECIPE}  protocol: {{eval: {{episodes: 9}}}}\n  free: [train.iterations, train.lr]\n")
    words = ("train.iterations=2", "train.lr=0.1")
    assert verdict(train(metarun, *words)) == "not comparable: eval.episodes 4, not 9"
    assert "not comparable" not in verdict(train(metarun, *words, "eval.episodes=9"))
    assert "train.lr" in verdict(train(metarun, *words, "paper.free=[train.iterations]"))
    refused = train(metarun, "paper.free=[train.lrr]")
    assert refused.errors == ["paper.free: 'train.lrr' is no setting of this recipe's protocol; take it out"]


def test_each_job_of_a_multirun_has_its_own_recipes_protocol(metarun: Metarun, tiny: Path, tmp_path: Path) -> None:
    """Also where the recipe builds on another."""
    (tiny.parent / "other.yaml").write_text(
        "# @package _global_\n# tiny, two shots\ndefaults:\n  - tiny\ntask: {shot: 2}\npaper: {accuracy: 60}\n"
    )
    said = metarun("train", "--config-dir", "mine", "-m", "experiment=tiny,other", "train.lr=0.1,0.01", *HOW)
    assert said.code == 0, said.err
    papers = [paper_of(tmp_path / "outputs" / "multirun" / day / str(n)) for day in days(tmp_path) for n in range(4)]
    assert [p["accuracy"] for p in papers] == [50, 50, 60, 60]
    assert [p["protocol"]["eval"]["shot"] for p in papers] == [1, 1, 2, 2]
    assert [p["protocol"]["train"]["lr"] for p in papers] == [0.01] * 4
    logs = [path.read_text() for path in sorted((tmp_path / "outputs" / "multirun").glob("*/*/log.txt"))]
    assert ["train.lr 0.1, not 0.01" in log for log in logs] == [True, False, True, False]


def days(folder: Path) -> list[str]:
    return [path.name for path in (folder / "outputs" / "multirun").iterdir()]


def test_resuming_keeps_the_protocol(metarun: Metarun, tiny: Path, tmp_path: Path) -> None:
    """Of the run as it began, with and without the recipe typed, and however the recipe has changed."""
    train(metarun, "train.iterations=2")
    run = only_run(tmp_path)
    before = paper_of(run)
    said = train(metarun, f"resume={run}", "train.iterations=3")
    assert "not comparable: train.iterations 3, not 4" in verdict(said)
    tiny.write_text(f"{RECIPE}  ci95: 1\n  free: [train.lr]\n")
    assert "not comparable" not in verdict(train(metarun, f"resume={run}", "train.iterations=4"))
    assert paper_of(run) == before
    assert metarun("train", f"resume={run}").code == 0


def test_the_composed_config_is_the_recipe_as_written(metarun: Metarun, tiny: Path) -> None:
    said = metarun("train", "--config-dir", "mine", "experiment=tiny", "--cfg", "job")
    assert yaml.safe_load(said.out)["paper"] == {"accuracy": 50, "source": "nowhere"}
