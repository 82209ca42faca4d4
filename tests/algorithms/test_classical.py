"""Classical classifiers: scikit-learn's own answers on the same tasks, wherever they are fitted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from contract.small import STATISTICS, WAY, make_episodes, make_meta, make_net, one_by_one
from torch import Tensor

from metarun.engine.evaluate import Pool, outcomes, queries_see_one_another
from metarun.engine.host import answer
from metarun.measures import MEASURES
from metarun.types import Episode, EpisodeBatch, InputError, TaskShape

sklearn = pytest.importorskip("sklearn", reason="the extra 'classical' is not installed")

from sklearn.ensemble import BaggingClassifier, GradientBoostingClassifier, RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.neighbors import NearestCentroid  # noqa: E402
from sklearn.svm import SVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

from metarun.algorithms.classical import CLASSIFIERS, Classical  # noqa: E402

ACCURACY = MEASURES["accuracy"]
OWN: dict[str, Any] = {
    "nearest_centroid": lambda seed: NearestCentroid(),
    "logistic": lambda seed: LogisticRegression(max_iter=1000),
    "svm": lambda seed: SVC(),
    "random_forest": lambda seed: RandomForestClassifier(random_state=seed),
    "gradient_boosting": lambda seed: GradientBoostingClassifier(random_state=seed),
    "bagging": lambda seed: BaggingClassifier(random_state=seed),
    "decision_tree": lambda seed: DecisionTreeClassifier(random_state=seed),
}
SHAPE = TaskShape("classification", WAY, 2, 2)
ALL = make_episodes(tasks=6, query=4)


class Listed:
    """A sampler of `ALL`; label c is class 10 + c of the bank."""

    item_shape, outputs = (), WAY

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        return EpisodeBatch(*(field[first : first + count] for field in ALL))

    def classes(self, first: int, count: int) -> Tensor:
        return torch.arange(10, 10 + WAY).expand(count, -1)


def by_sklearn(make: Any, task: Episode, seed: int) -> np.ndarray:
    x, query = task.support_x.flatten(1).numpy(), task.query_x.flatten(1).numpy()
    with warnings.catch_warnings(action="ignore"):
        return make(seed).fit(x, task.support_y.numpy()).predict(query)


def test_all_classifiers_are_looked_at() -> None:
    assert OWN.keys() == set(CLASSIFIERS)


class Noted(Classical):
    """Notes what its classifiers are to draw from."""

    seeds: ClassVar[list[int]] = []

    def make(self, seed: int) -> Any:
        self.seeds.append(seed)
        return super().make(seed)


@pytest.fixture
def seeds() -> list[int]:
    Noted.seeds.clear()
    return Noted.seeds


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_answers_are_scikit_learns_on_the_same_tasks(name: str, seeds: list[int]) -> None:
    found = outcomes(Noted(name), make_net(), {}, Listed(), 6, 4, [ACCURACY], workers=1)
    right = []
    for i, task in enumerate(one_by_one(ALL)):
        labels = torch.from_numpy(by_sklearn(OWN[name], task, seeds[i]))
        assert found.predicted is not None and found.true is not None
        assert torch.equal(found.predicted[i], 10 + labels), i
        assert torch.equal(found.true[i], 10 + task.query_y)
        right.append(float((labels == task.query_y).double().mean()))
    assert found.values.tolist() == [[value] for value in right]
    assert len({*right}) > 1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_is_what_it_is_called(name: str) -> None:
    ours, theirs = Classical(name).make(7), OWN[name](7)
    assert type(ours) is type(theirs)
    assert ours.get_params() == theirs.get_params()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_predict_alone_says_what_the_classifier_says(name: str) -> None:
    task = next(one_by_one(ALL))
    logits = Classical(name).predict(make_net(), {}, task)
    assert logits.shape == (len(task.query_y), WAY)
    assert logits.argmax(1).tolist() == by_sklearn(OWN[name], task, 0).tolist()


def test_where_tasks_are_fitted_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, in others, in portions: the same answers, though a tree draws among equal splits."""
    from metarun.engine import evaluate

    algorithm, net = Classical("decision_tree"), make_net()
    alone = outcomes(algorithm, net, {}, Listed(), 6, 50, [ACCURACY], workers=1, seed=3)
    monkeypatch.setattr(evaluate, "Pool", lambda workers: Pool(workers, patience=0))
    apart = outcomes(algorithm, net, {}, Listed(), 6, 4, [ACCURACY], workers=2, seed=3)
    for a, b in zip(alone, apart, strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]
    other = outcomes(algorithm, net, {}, Listed(), 6, 50, [ACCURACY], workers=1, seed=4)
    assert not torch.equal(alone.values, other.values)


def test_random_numbers_are_each_tasks_and_each_seeds_own(seeds: list[int]) -> None:
    for batch in (50, 4):
        outcomes(Noted("nearest_centroid"), make_net(), {}, Listed(), 6, batch, [ACCURACY], workers=1, seed=3)
    assert seeds[:6] == seeds[6:]
    outcomes(Noted("nearest_centroid"), make_net(), {}, Listed(), 6, 50, [ACCURACY], workers=1, seed=4)
    assert len({*seeds}) == 12
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_pool_starts_processes_only_once_it_is_worth_it() -> None:
    class Slow:  # local, and so sent as it is: nothing need be imported there
        def fit(self, x: Any, y: Any) -> Any:
            return self

        def predict(self, x: Any) -> Any:
            import os
            import time

            time.sleep(0.02)
            return x, os.getpid()

    tasks = [(Slow(), None, None, i) for i in range(6)]
    here = Pool(2, patience=1e9)(tasks)
    assert here == Pool(1, patience=0)(tasks) == [(i, os.getpid()) for i in range(6)]
    pool = Pool(2, patience=0.03)
    spread, until = pool(tasks[:4]), time.monotonic() + 60
    assert [said for said, _ in spread] == [0, 1, 2, 3] and spread[0] == here[0]
    while len({process for _, process in spread}) < 2:
        assert time.monotonic() < until, "all is done here"
        spread += (more := pool(tasks[4:]))
        assert [said for said, _ in more] == [4, 5]


KILLED = """
from metarun.engine.host import Pool

def main():
    class Endless:
        def fit(self, x, y): return self
        def predict(self, x):
            import os, time
            os.write(x, f"{os.getpid()} ".encode())
            time.sleep(60)
    Pool(2, patience=0)([(Endless(), None, None, 1)] * 2)

if __name__ == "__main__":
    main()
"""


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Though it is killed, and they are at work."""
    (tmp_path / "killed.py").write_text(KILLED)
    parent = subprocess.Popen([sys.executable, "killed.py"], cwd=tmp_path, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    told = b""
    while told.count(b" ") < 2:
        told += os.read(parent.stdout.fileno(), 100)
    assert all(alive(int(process)) for process in told.split())
    parent.kill()
    parent.wait()
    patience = time.monotonic() + 20
    while any(alive(int(process)) for process in told.split()):
        assert time.monotonic() < patience
        time.sleep(0.1)
    parent.stdout.close()


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_process_for_fitting_needs_no_torch() -> None:
    script = "import sys, metarun.engine.host; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_one_example_of_a_class_is_no_reason_to_warn() -> None:
    task = next(one_by_one(make_episodes(tasks=1)))
    x, y = task.support_x[:WAY].flatten(1).numpy(), np.arange(WAY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = [answer(Classical(name).make(0), x, y, x) for name in ("nearest_centroid", "logistic", "svm")]
    assert all(labels.tolist() == y.tolist() for labels in said)


# Features


@pytest.mark.parametrize("statistics", STATISTICS)
def test_on_a_networks_features(statistics: str) -> None:
    """Support and queries embedded together, by the weights there are."""
    algorithm, net = Classical("nearest_centroid", "network"), make_net(statistics=statistics)
    meta = make_meta(algorithm, net)
    assert meta.keys() == net.init(torch.Generator(), head=False).keys()
    running = {n: w.double() for n, w in algorithm.fresh_running(net).items()}
    found = outcomes(algorithm, net.at_test(running), meta, Listed(), 6, 4, [ACCURACY], workers=1)
    for i, task in enumerate(one_by_one(ALL)):
        both = torch.cat([task.support_x, task.query_x])
        features = net.at_test(running).features(meta, both, support=task.support_x).detach()
        support, query = features.split([len(task.support_y), len(task.query_y)])
        centre = torch.stack([support[task.support_y == c].mean(0) for c in range(WAY)])
        assert found.predicted is not None
        assert torch.equal(found.predicted[i], 10 + torch.cdist(query, centre).argmin(1))
    assert algorithm.statistics_used(net) == statistics
    assert queries_see_one_another(algorithm, net.at_test(running), meta, Listed()) == (statistics == "batch")


def test_pixels_are_as_they_are() -> None:
    algorithm, net = Classical(), make_net()
    assert algorithm.init(net, torch.Generator()) == {}
    assert algorithm.statistics_used(net) == "none"
    assert not queries_see_one_another(algorithm, net, {}, Listed())
    task = next(one_by_one(ALL))
    support, query = algorithm.embed(net, {}, task)
    assert torch.equal(support, task.support_x.flatten(1)) and torch.equal(query, task.query_x.flatten(1))


# What it cannot do


def test_regression_is_refused() -> None:
    Classical().check(make_net(), SHAPE)
    with pytest.raises(ValueError, match="needs classes, and these tasks are regression"):
        Classical().check(make_net(), TaskShape("regression", 1, 5, 5))


def test_without_scikit_learn_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metarun.algorithms.classical.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"scikit-learn is not installed here: pip install 'metarun\[classical\]'"):
        Classical().check(make_net(), SHAPE)


def test_there_is_nothing_to_train() -> None:
    with pytest.raises(NotImplementedError, match="Classical has nothing to train"):
        Classical().loss(make_net(), {}, next(one_by_one(ALL)))
