"""`metarun eval` as it is typed: one run, two on the same tasks, several seeds, classifiers, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from commandline import TINY, Said, files, only_run, typed

Metarun = Callable[..., Said]


def tiny(algo: str, dataset: str = "glyphs") -> list[str]:
    own = [word for word in TINY if not word.startswith(("algo=", "dataset="))]
    return [*own, f"algo={algo}", f"dataset={dataset}"]


MAML = [*tiny("maml"), "algo.eval_steps=2"]
CURVES = [*tiny("maml", "sinusoid"), "algo.eval_steps=2", "model.norm=none"]
CLASSICAL = [*tiny("classical"), "algo.classifier=nearest_centroid"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of four tiny runs: MAML with two seeds, ProtoNet, and MAML on curves. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    lines = {
        "maml0": MAML,
        "maml1": [*MAML, "seed=1"],
        "protonet": tiny("protonet"),
        "curves": CURVES,
        "threeway": [*MAML, "task.way=3"],
        "other": [*tiny("protonet"), "dataset.seed=1"],
    }
    for name, words in lines.items():
        said = typed(folder, "train", *words, f"hydra.run.dir=r/{name}")
        assert said.code == 0, said.err
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> Path:
    """The same runs in this test's own folder."""
    shutil.copytree(trained / "r", tmp_path / "r")
    return tmp_path


def written(said: Said, folder: Path) -> Path:
    """The folder that an evaluation was written to."""
    assert said.code == 0, said.err
    assert max(len(line) for line in said.out.splitlines() if "eval: " not in line) <= 80
    return (folder / said.out.splitlines()[-1].removeprefix("eval: ")).parent


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "eval.json").read_text())


def tasks(folder: Path) -> dict[str, list[float]]:
    with (folder / "tasks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row.pop("index") for row in rows] == [str(i) for i in range(len(rows))]
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def half_width(values: list[float]) -> float:
    return 1.96 * stdev(values) / math.sqrt(len(values))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# One run


def test_the_test_at_the_end_of_training_leaves_all_there_is_to_know(trained: Path) -> None:
    run = trained / "r" / "maml0"
    assert names(run) >= {"eval.json", "tasks.csv", "confusion.csv", "curve.png"}
    found, values = content(run), tasks(run)["value"]
    assert found["mean"] == pytest.approx(mean(values))
    assert found["ci95"] == pytest.approx(half_width(values))
    assert [point["step"] for point in found["curve"]] == [0, 1, 2]
    assert found["curve"][-1]["mean"] == found["mean"]
    assert found["curve"][-1]["ci95"] == found["ci95"]
    with (run / "confusion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    counts = [int(row["count"]) for row in rows]
    assert sum(counts) == 4 * 5
    assert sum(n for row, n in zip(rows, counts) if row["true"] == row["predicted"]) == round(sum(values) * 5)
    assert all(row["true"].startswith("alphabet") for row in rows)
    assert len(found["hardest"]) <= 5
    assert "curve.png" not in names(trained / "r" / "protonet")
    assert "curve" not in content(trained / "r" / "protonet")


def test_eval_finds_the_same_again_and_more_steps(metarun: Metarun, here: Path) -> None:
    again = written(metarun("eval", "run=r/maml0"), here)
    assert names(again) == {"eval.json", "tasks.csv", "confusion.csv", "curve.png"}
    first = content(here / "r" / "maml0")
    found = content(again)
    assert found == first | {"protocol": first["protocol"] | {"run": "r/maml0"}}
    longer = content(written(metarun("eval", "run=r/maml0", "eval.steps=4"), here))
    assert longer["curve"][:3] == found["curve"]
    assert len(longer["curve"]) == 5
    none = written(metarun("eval", "run=r/maml0", "eval.steps=0"), here)
    assert content(none)["mean"] == found["curve"][0]["mean"]
    assert "curve.png" not in names(none)


def test_eval_writes_where_it_is_told_and_over_nothing(metarun: Metarun, here: Path) -> None:
    said = metarun("eval", "run=r/maml0", "hydra.run.dir=found")
    assert written(said, here) == here / "found"
    assert not (here / "outputs").exists()
    for words in (["versus=r/maml1"], ["eval.episodes=9"]):
        assert written(metarun("eval", "run=r/maml0", "hydra.run.dir=found", *words), here) != here / "found"
    assert content(here / "found")["tasks"] != 9
    assert metarun("eval", "run=r/nothing", "hydra.run.dir=empty").code == 2
    assert not (here / "empty").exists()


def test_many_evaluations_are_kept_together(metarun: Metarun, here: Path) -> None:
    assert metarun("eval", "-m", "run=r/maml0,r/maml1", "eval.episodes=9", "hydra.sweep.dir=many").code == 0
    assert [content(here / "many" / job)["tasks"] for job in "01"] == [9, 9]


def test_what_is_said_of_the_norms_is_what_was_used(metarun: Metarun, here: Path) -> None:
    for statistics, transductive in (("batch", True), ("support", False)):
        said = metarun("eval", "run=r/maml0", f"eval.statistics={statistics}")
        protocol = content(written(said, here))["protocol"]
        assert (protocol["statistics"], protocol["transductive"]) == (statistics, transductive)
        assert ("(transductive)" in said.out) == transductive


def test_regression_is_judged_by_its_error(metarun: Metarun, here: Path) -> None:
    said = metarun("eval", "run=r/curves", "eval.steps=3")
    folder = written(said, here)
    found = content(folder)
    assert names(folder) == {"eval.json", "tasks.csv", "curve.png", "tasks.png"}
    assert found["metric"] == "mse"
    assert found["mean"] == pytest.approx(mean(tasks(folder)["value"]))
    assert len(found["curve"]) == 4
    assert "hardest" not in found


# Two runs


def test_two_runs_are_compared_on_the_same_tasks(metarun: Metarun, here: Path) -> None:
    line = "eval run=r/maml0 versus=r/protonet eval.episodes=30 eval.query=3 eval.steps=1"
    said = metarun(*line.split())
    folder = written(said, here)
    found, columns = content(folder), tasks(folder)
    other = found["versus"]
    alone = written(metarun("eval", "run=r/protonet", "eval.episodes=30", "eval.query=3"), here)
    assert columns["versus"] == tasks(alone)["value"]
    assert other["mean"] == content(alone)["mean"]
    gaps = [a - b for a, b in zip(columns["value"], columns["versus"], strict=True)]
    assert other["difference"]["mean"] == pytest.approx(mean(gaps))
    assert other["difference"]["ci95"] == pytest.approx(half_width(gaps))
    told = abs(mean(gaps)) > half_width(gaps)
    assert other["verdict"] == (f"{'A' if mean(gaps) > 0 else 'B'} is better" if told else "no difference can be told")
    assert other["verdict"] in said.out
    assert found["protocol"]["inner_steps"] == 1
    assert other["protocol"]["algo"]["name"] == "protonet"
    for key in ("way", "shot", "query", "split", "episode_seed", "data"):
        assert found["protocol"][key] == other["protocol"][key]
    assert "curve.png" in names(folder)


def test_the_other_run_keeps_its_own_steps_and_statistics(metarun: Metarun, here: Path) -> None:
    """So that a run can be compared with itself."""
    line = "eval run=r/maml0 versus=r/maml0 eval.steps=0 eval.statistics=support eval.episodes=8"
    found = content(written(metarun(*line.split()), here))
    own, other = found["protocol"], found["versus"]["protocol"]
    assert (own["inner_steps"], own["statistics"]) == (0, "support")
    assert (other["inner_steps"], other["statistics"]) == (2, "batch")
    same = content(written(metarun("eval", "run=r/maml0", "versus=r/maml0"), here))["versus"]
    assert same["difference"] == {"mean": 0.0, "ci95": 0.0}
    assert same["verdict"] == "no difference can be told"


# Several seeds


def test_runs_are_averaged_and_their_spread_is_told(metarun: Metarun, here: Path) -> None:
    said = metarun("eval", "runs=r/maml?", "eval.episodes=20")
    folder = written(said, here)
    each = [written(metarun("eval", f"run=r/maml{i}", "eval.episodes=20"), here) for i in range(2)]
    values = [tasks(one)["value"] for one in each]
    columns = tasks(folder)
    assert columns["seed 0"] == values[0] and columns["seed 1"] == values[1]
    average = [mean(pair) for pair in zip(*values, strict=True)]
    assert columns["value"] == pytest.approx(average)
    found = content(folder)
    assert found["mean"] == pytest.approx(mean(average))
    assert found["ci95"] == pytest.approx(half_width(average))
    means = [content(one)["mean"] for one in each]
    assert found["runs"]["seed_sd"] == pytest.approx(stdev(means))
    assert (found["runs"]["least"], found["runs"]["most"]) == (min(means), max(means))
    assert [row["run"] for row in found["runs"]["each"]] == found["protocol"]["run"] == ["r/maml0", "r/maml1"]
    curves = [content(one)["curve"] for one in each]
    assert [p["mean"] for p in found["curve"]] == pytest.approx([mean(p["mean"] for p in ps) for ps in zip(*curves)])
    with (folder / "confusion.csv").open(newline="") as file:
        assert sum(int(row["count"]) for row in csv.DictReader(file)) == 2 * 20 * 5
    assert "sd over seeds" in said.out


def test_runs_may_be_listed_and_each_counts_once(metarun: Metarun, here: Path) -> None:
    for runs in ("runs=[r/maml1,r/maml0]", "runs=[r/maml0,r/maml?,./r/maml1]", f"runs={here}/r/maml*"):
        found = content(written(metarun("eval", runs), here))
        assert [row["seed"] for row in found["runs"]["each"]] == [0, 1]


def test_one_run_is_no_spread(metarun: Metarun, here: Path) -> None:
    said = metarun("eval", "runs=r/maml0")
    assert content(written(said, here))["runs"]["seed_sd"] is None
    assert "nothing is known of how seeds differ" in said.out


# Classifiers, and what has nothing to train


def test_a_classifier_has_nothing_to_train(metarun: Metarun, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    said = metarun("train", *CLASSICAL)
    assert said.code == 0, said.err
    assert said.out.splitlines()[1] == "classical has nothing to train; its test:"
    assert "step 4/4" not in said.out
    run = only_run(tmp_path)
    assert names(run) >= {"config.yaml", "environment.json", "eval.json", "tasks.csv", "confusion.csv", "log.txt"}
    assert "checkpoints" not in names(run)
    found = content(run)
    assert (found["protocol"]["checkpoint"], found["protocol"]["transductive"]) == (None, False)
    assert found["protocol"]["statistics"] == "none"
    again = content(written(metarun("eval", "run=latest"), tmp_path))
    assert (again["mean"], again["ci95"]) == (found["mean"], found["ci95"])
    other = content(written(metarun("eval", "run=latest", "eval.classifier=svm", "eval.shot=3"), tmp_path))
    assert other["protocol"]["algo"] == {"name": "classical", "classifier": "svm", "features": "pixels"}
    resumed = metarun("train", f"resume={run}")
    assert resumed.code == 0, resumed.err
    assert content(run)["mean"] == found["mean"]


def test_seeds_of_a_classifier_and_random_features(metarun: Metarun, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for seed in (0, 1):
        said = metarun("train", *CLASSICAL, "algo.features=network", f"seed={seed}", f"hydra.run.dir=r/{seed}")
        assert said.code == 0, said.err
    found = content(written(metarun("eval", "runs=r/*", "eval.episodes=30"), tmp_path))
    assert found["runs"]["seed_sd"] > 0
    assert found["protocol"]["transductive"] is True


def test_a_classifier_on_the_features_of_a_trained_run(metarun: Metarun, here: Path) -> None:
    """For nearest centroids that is what ProtoNet does, however it came by its features."""
    pytest.importorskip("sklearn")
    line = "eval.episodes=30 eval.query=3 eval.shot=2"
    said = metarun("eval", "run=r/protonet", "eval.classifier=nearest_centroid", *line.split())
    found = content(written(said, here))
    itself = content(written(metarun("eval", "run=r/protonet", *line.split()), here))
    assert found["mean"] == pytest.approx(itself["mean"])
    assert found["protocol"]["algo"] == {"name": "classical", "classifier": "nearest_centroid", "features": "network"}
    assert found["protocol"]["trained_by"]["name"] == "protonet"
    assert found["protocol"]["checkpoint"] == "best"
    assert "nearest_centroid on the features that protonet learned" in said.out
    # A head is not needed, and so the way is free.
    assert metarun("eval", "run=r/maml0", "eval.classifier=logistic", "eval.way=7").code == 0
    both = metarun("eval", "run=r/maml0", "versus=r/maml0", "eval.classifier=logistic", "eval.episodes=8")
    assert content(written(both, here))["versus"]["protocol"]["algo"]["name"] == "maml"


FROZEN = """
from dataclasses import dataclass
import torch
from metarun.algorithms.protonet import squared_distance
from metarun.types import Algorithm, register

@register("algo", "frozen")
@dataclass(frozen=True)
class Frozen(Algorithm):
    def init(self, net, generator):
        return {}
    def loss(self, net, meta, episode):
        raise AssertionError("there is nothing to train")
    def predict(self, net, meta, episode):
        return -squared_distance(episode.query_x.flatten(1), episode.support_x.flatten(1))
"""


def test_any_method_may_have_nothing_to_train(metarun: Metarun, tmp_path: Path) -> None:
    """Whether it has is its own to say: the meta-parameters that it starts from."""
    (tmp_path / "frozen.py").write_text(FROZEN)
    (tmp_path / "conf" / "algo").mkdir(parents=True)
    (tmp_path / "conf" / "algo" / "frozen.yaml").write_text("name: frozen")
    said = metarun("train", "--config-dir=conf", *tiny("frozen"), "plugins=[frozen]", "hydra.run.dir=run")
    assert said.code == 0, said.err
    assert "frozen has nothing to train" in said.out
    again = content(written(metarun("eval", "run=run", "plugins=[frozen]"), tmp_path))
    assert again["mean"] == content(tmp_path / "run")["mean"] > 0.2


# What is refused

REFUSED = {
    "": "metarun eval needs run=PATH or run=latest, or runs='PATTERN'",
    "runs=": "metarun eval needs run=PATH or run=latest, or runs='PATTERN'",
    "run=r/maml0 runs=r/*": "run= and runs= are both given: ",
    "versus=r/maml0": "versus= compares a run with run=; metarun eval needs run=PATH",
    "runs=r/* versus=r/maml0": "versus= compares one run with run=; leave it out",
    "runs=q/*": "runs=q/*: matches nothing; ",
    "runs=r/*/*": "runs=r/*/*: matches no run folder; ",
    "runs=r": "runs=r: r has no config.yaml, so it is not a run folder; ",
    "runs=[r/maml0,q]": "runs=q: q does not exist; ",
    "runs=7": "runs=7: 7 does not exist; ",
    "runs=true": "runs=true: must be text or a list, each text or null",
    "runs=r/*": "runs: r/maml0 is no other seed of r/curves: ",
    "runs=[r/maml0,r/protonet]": "runs: r/protonet is no other seed of r/maml0: algo.name protonet, not maml; ",
    "runs=[r/protonet,r/other]": "runs: r/other is no other seed of r/protonet: dataset.seed 1, not 0; ",
    "run=r/maml0 versus=r": "versus=r: r has no config.yaml, so it is not a run folder; ",
    "run=r/maml0 versus=r/curves": "versus=r/curves: its tasks are regression, those of run=r/maml0 classification; ",
    "run=r/maml0 versus=r/other": "versus=r/other: its test data is not that of run=r/maml0; ",
    "run=r/maml0 versus=r/threeway": "versus=r/threeway: checkpoint r/threeway/checkpoints/best.pt does not fit",
    "run=r/maml0 eval.classifier=logisitc": "eval.classifier=logisitc: must be one of nearest_centroid, logistic, svm",
    "run=r/maml0 eval.classifier=svm eval.steps=3": "eval.steps=3: svm takes no inner steps at test time",
    "run=r/curves eval.classifier=svm": "algo=classical: needs classes, and these tasks are regression; ",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused(metarun: Metarun, here: Path, line: str) -> None:
    before = files(here)
    said = metarun("eval", *line.split())
    assert (said.code, said.out) == (2, "")
    assert len(said.errors) == 1
    assert said.errors[0].startswith(REFUSED[line])
    assert files(here) == before


def test_classical_needs_classes_and_scikit_learn(
    metarun: Metarun, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(here)
    said = metarun("train", *tiny("classical", "sinusoid"))
    assert said.code == 2
    assert said.errors == [
        "algo=classical: needs classes, and these tasks are regression; r2d2, maml, anil, reptile fit"
    ]
    monkeypatch.setattr("metarun.algorithms.classical.find_spec", lambda name: None)
    way_out = "scikit-learn is not installed here: pip install 'metarun[classical]'"
    for words in (["train", *CLASSICAL], ["eval", "run=r/maml0", "eval.classifier=svm"]):
        said = metarun(*words)
        assert (said.code, said.errors) == (2, [way_out])
    assert files(here) == before


def test_what_a_method_of_ones_own_trained_may_be_no_features(metarun: Metarun, here: Path) -> None:
    import torch

    path = here / "r" / "maml0" / "checkpoints" / "best.pt"
    saved = torch.load(path, weights_only=True)
    saved["meta"].pop("linear0.weight")
    torch.save(saved, path)
    said = metarun("eval", "run=r/maml0", "eval.classifier=svm")
    assert said.code == 2
    assert said.errors[0].startswith("eval.classifier=svm: maml has trained no 'linear0.weight', without which")


def test_help_is_narrow_and_shows_what_can_be_asked(metarun: Metarun) -> None:
    said = metarun("eval", "--help")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    for word in ("versus=PATH", "runs='outputs/multirun/TIME/*'", "eval.classifier=logistic", "curve.png"):
        assert word in said.out
