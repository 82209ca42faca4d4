"""A run beside the paper: within, above, below, or not to be compared and why."""

from __future__ import annotations

from typing import Any

import pytest

from metarun.engine.evaluate import Score
from metarun.recipe import differences, judge
from metarun.report import Report, show

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
    verdict = judge(PAPER, RUN, score(percent))
    assert verdict.text == text
    assert (verdict.paper, verdict.paper_ci95) == (98.7, 0.4)
    assert verdict.ours == pytest.approx(percent)
    assert verdict.ci95 == pytest.approx(0.2)
    assert verdict.source == PAPER["source"]


def test_a_paper_without_an_interval() -> None:
    paper = PAPER | {"ci95": None}
    assert judge(paper, RUN, score(98.6)).text == "within"
    assert judge(paper, RUN, score(98.4)).text == "below by 0.3"


def test_another_protocol_is_not_compared_and_says_why() -> None:
    """However good the number."""
    run = RUN | {"dataset": RUN["dataset"] | {"split": "official"}, "train": RUN["train"] | {"iterations": 1500}}
    text = judge(PAPER, run, score(98.7)).text
    assert text == "not comparable: dataset.split official, not maml; train.iterations 1500, not 60000"
    text = judge(PAPER, RUN | {"dataset": {"name": "glyphs"}}, score(98.7)).text
    assert "dataset.split absent, not maml" in text


def test_only_what_the_protocol_names_counts() -> None:
    assert differences({}, RUN) == []
    assert differences({"train": {"lr": 1e-3}}, RUN | {"seed": 9}) == []
    assert differences({"train": {"schedule_args": {"gamma": 0.5}}}, RUN) == [
        "train.schedule_args.gamma absent, not 0.5"
    ]


def report(**changes: Any) -> Report:
    given: dict[str, Any] = {
        "score": score(98.7), "tree": RUN | {"paper": PAPER}, "folder": "run", "which": "best", "step": 59000,
        "trained": 60000, "split": "test", "inner_steps": 3, "statistics": "batch",
    }  # fmt: skip
    return Report(**given | changes)


def test_the_table_says_paper_ours_interval_verdict_within_80_columns() -> None:
    said: list[str] = []
    for shown in (report(), report(trained=1500), report(score=score(90.0))):
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
