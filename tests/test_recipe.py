"""A run beside the paper: within, above, below, or not to be compared and why."""

from __future__ import annotations

from typing import Any

import pytest

from metarun.engine.evaluate import Score
from metarun.recipe import Verdict, differences, judge, protocol
from metarun.report import Report, show
from metarun.types import InputError

RUN: dict[str, Any] = {
    "dataset": {"name": "omniglot", "split": "maml"},
    "train": {"iterations": 60000, "lr": 0.001, "schedule_args": {}},
    "eval": {"episodes": 600, "way": 5, "shot": 1, "query": 1, "seed": 0},
    "algo": {"name": "maml"},
    "model": {"name": "conv4"},
}
PAPER: dict[str, Any] = {
    "accuracy": 98.7,
    "ci95": 0.4,
    "source": "Finn, Abbeel & Levine 2017, Table 1",
    "protocol": {"dataset": {"name": "omniglot", "split": "maml"}, "train": {"iterations": 60000}},
}


def score(percent: float, ci95: float = 0.2) -> Score:
    return Score(percent / 100, ci95 / 100, 600)


def judged(paper: dict[str, Any], run: dict[str, Any], ours: Score, metric: str = "accuracy") -> Verdict:
    verdict = judge(paper, run, ours, metric)
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("percent", "text"),
    [
        (98.7, "within"),
        (98.15, "within"),  # the two intervals meet
        (99.25, "within"),
        (97.2, "below by 1.5"),
        (99.5, "above"),
    ],
)
def test_verdicts(percent: float, text: str) -> None:
    verdict = judged(PAPER, RUN, score(percent))
    assert verdict.text == text
    assert (verdict.paper, verdict.paper_ci95) == (98.7, 0.4)
    assert verdict.ours == pytest.approx(percent)
    assert verdict.ci95 == pytest.approx(0.2)
    assert verdict.source == PAPER["source"]


def test_a_paper_without_an_interval() -> None:
    paper = PAPER | {"ci95": None}
    assert judged(paper, RUN, score(98.6)).text == "within"
    assert judged(paper, RUN, score(98.4)).text == "below by 0.3"


@pytest.mark.parametrize(("mse", "text"), [(0.35, "within"), (0.37, "within"), (0.2, "below"), (0.5, "above by 0.15")])
def test_an_error_is_better_the_smaller(mse: float, text: str) -> None:
    paper = {"mse": 0.35, "ci95": None, "source": "", "protocol": PAPER["protocol"]}
    assert judged(paper, RUN, Score(mse, 0.03, 600), "mse").text == text


def test_a_number_of_another_kind_is_none_to_compare_with() -> None:
    assert judge({"accuracy": None, "mse": 0.35}, RUN, score(98.7)) is None
    assert judge({}, RUN, score(98.7)) is None


def test_another_protocol_is_not_compared_and_says_why() -> None:
    """However good the number."""
    run = RUN | {"dataset": RUN["dataset"] | {"split": "official"}, "train": RUN["train"] | {"iterations": 1500}}
    text = judged(PAPER, run, score(98.7)).text
    assert text == "not comparable: dataset.split official, not maml; train.iterations 1500, not 60000"
    text = judged(PAPER, RUN | {"dataset": {"name": "glyphs"}}, score(98.7)).text
    assert text == "not comparable: dataset.name glyphs, not omniglot"


def test_only_what_the_protocol_names_counts() -> None:
    assert differences({}, RUN) == []
    assert differences({"train": {"lr": 1e-3}}, RUN | {"seed": 9}) == []
    assert differences({"train": {"schedule_args": {"gamma": 0.5}}}, RUN) == [
        "train.schedule_args.gamma absent, not 0.5"
    ]
    assert differences({"device": {"kind": "cpu"}}, RUN) == ["device.kind absent, not cpu"]


def test_a_mapping_that_the_protocol_names_counts_whole() -> None:
    run = RUN | {"train": {"schedule_args": {"gamma": 0.5, "step_size": 9}, "clip": None}}
    assert differences({"train": {"schedule_args": {"gamma": 0.5}, "clip": 0.25}}, run) == [
        "train.schedule_args.step_size 9, not absent",
        "train.clip null, not 0.25",
    ]


# What a recipe stands for

OWN: dict[str, Any] = {
    "task": {"way": 5},
    "eval": {"episodes": 600, "seed": 7},
    "algo": {"name": "maml", "inner_lr": 0.4},
    "model": {"name": "conv4", "readout": "flatten"},
    "dataset": {"name": "omniglot", "split": "official", "split_seed": 4, "download": True},
    "data": {"offline": True, "skip_broken": False, "images": None},
    "augment": {"flip": True},
    "train": {"iterations": 900, "lr": 1e-3, "log_every": 1, "val_every": 2, "val_episodes": 3},
    "device": {"kind": "cpu"}, "checkpoint": {"every": 5}, "logger": {"name": "none"}, "seed": 1, "data_root": "data",
}  # fmt: skip


def test_a_protocol_is_the_recipes_own_settings_that_are_measured() -> None:
    assert protocol(OWN, {}) == {
        "task": {"way": 5},
        "eval": {"episodes": 600},
        "algo": {"name": "maml", "inner_lr": 0.4},
        "model": {"name": "conv4", "readout": "flatten"},
        "dataset": {"name": "omniglot", "split": "official"},
        "data": {"images": None},
        "augment": {"flip": True},
        "train": {"iterations": 900, "lr": 1e-3},
    }
    assert differences(protocol(OWN, {}), OWN) == []
    assert OWN["eval"]["seed"] == 7, "the config itself stays as it is"


def test_a_paper_has_some_settings_otherwise_and_others_it_leaves_open() -> None:
    said = {"protocol": {"dataset": {"split": "maml"}}, "free": ["train.iterations", "model.readout"]}
    got = protocol(OWN, said)
    assert got["dataset"] == {"name": "omniglot", "split": "maml"}
    assert got["train"] == {"lr": 1e-3}
    assert differences(got, OWN | {"train": OWN["train"] | {"iterations": 3}}) == ["dataset.split official, not maml"]
    got = protocol(OWN, {"protocol": {"train": {"lr": 9}}, "free": ["train", "task"]})
    assert (got["train"], got["task"]) == ({"lr": 9}, {})


@pytest.mark.parametrize("key", ["train.iteration", "trian.iterations", "trian", "eval.seed.x"])
def test_a_misspelt_free_setting_is_told(key: str) -> None:
    with pytest.raises(InputError, match=rf"^paper\.free: '{key}' is no setting of this recipe's protocol"):
        protocol(OWN, {"free": [key]})


def test_a_protocol_is_made_of_nodes() -> None:
    with pytest.raises(InputError, match=r"^paper\.protocol\.train=3: must be a mapping"):
        protocol(OWN, {"protocol": {"train": 3}})


# In the report


def report(**changes: Any) -> Report:
    given: dict[str, Any] = {
        "metric": "accuracy", "score": score(98.7), "tree": RUN | {"paper": PAPER}, "folder": "run", "which": "best",
        "step": 59000, "trained": 60000, "split": "test", "inner_steps": 3, "statistics": "batch",
    }  # fmt: skip
    return Report(**given | changes)


def test_the_table_says_paper_ours_interval_verdict_within_80_columns() -> None:
    said: list[str] = []
    long = RUN | {"paper": PAPER | {"source": "Vinyals et al. 2016, Table 1, as quoted by Finn, Abbeel & Levine 2017"}}
    for shown in (report(tree=long), report(trained=1500), report(score=score(90.0))):
        show(shown, said.append)
    assert max(map(len, said)) <= 80
    text = "\n".join(said)
    assert "98.7 ± 0.4" in text
    assert "within" in text
    assert "train.iterations 1500, not 60000" in " ".join(text.split())
    assert "below by 8.7" in text
    assert "Finn, Abbeel & Levine 2017, Table 1" in text


def test_the_verdict_is_in_the_json_too() -> None:
    assert report().json()["paper"]["text"] == "within"
    assert "paper" not in report(tree=RUN | {"paper": None}).json()


def test_validation_classes_are_not_the_papers() -> None:
    assert report(split="val").verdict is None
    assert report(tree=RUN).verdict is None
