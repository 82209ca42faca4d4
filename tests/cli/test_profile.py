"""`metarun profile`: the phases of a step and its operators, told and written; nothing trained is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Said, files

Metarun = Callable[..., Said]
MAML = [*(word for word in TINY if not word.startswith("algo")), "algo=maml", "algo.inner_steps=3", "algo.eval_steps=3"]


def test_a_step_is_taken_apart(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("profile", *MAML, "profile.steps=4", "profile.operators=5", "hydra.run.dir=seen")
    assert said.code == 0, said.err
    assert files(tmp_path / "seen") == {"config.yaml", "profile.json", "trace.json"}
    found = json.loads((tmp_path / "seen/profile.json").read_text())
    phases = {part["name"]: part for part in found["phases"]}
    assert list(phases) == ["episodes", "task losses", "inner step", "meta-gradient", "outer update"]
    assert {name: part["calls"] for name, part in phases.items()} == dict.fromkeys(phases, 1) | {"inner step": 3}
    assert 0 < phases["inner step"]["seconds"] < phases["task losses"]["seconds"]
    own = [part["seconds"] for part in found["operators"]]
    assert own == sorted(own, reverse=True)
    outer = sum(phases[name]["seconds"] for name in phases if name != "inner step")
    assert outer / 20 < sum(own) < 1.2 * outer, "nearly all operators are in phases, and Python is between them"
    assert any("mm" in part["name"] for part in found["operators"])
    assert found["step_seconds"] > 0 and found["apart_seconds"] > 0 and found["peak_bytes"] is None
    named = {event.get("name") for event in json.loads((tmp_path / "seen/trace.json").read_text())["traceEvents"]}
    assert {"task losses", "inner step", "aten::mm"} <= named
    lines = said.out.splitlines()
    assert lines[0] == "glyphs-maml-5w1s on cpu, 1 thread, 16 steps"
    assert lines[1].endswith(" ms a step (median)") and " ms where it is taken apart" in lines[2]
    shares = {words[0]: float(words[-2]) for line in lines if len(words := line.split()) > 2 and words[-1] == "%"}
    assert sum(shares[name] for name in ("episodes", "task", "meta-gradient", "outer")) == pytest.approx(100, abs=0.3)
    assert len([line for line in lines if line.endswith(" %")]) == 5 + 5
    assert max(map(len, lines[:-1])) <= 80, "the last one has the folder, as long as it is"


def test_what_has_no_step_is_refused(metarun: Metarun, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra 'classical' is not installed")
    said = metarun("profile", "dataset=glyphs", "algo=classical")
    assert said.code == 2 and "has nothing to train" in said.errors[0]
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("profile.steps=0", "profile.steps=0: must be at least 1"),
        ("profile.step=3", "profile.step: no such setting; did you mean profile.steps?"),
        ("resume=latest", "resume=latest: goes on with a run, which is metarun train's"),
        ("train.lr=fast", "train.lr=fast: must be a finite number"),
    ],
)
def test_what_is_typed_wrong(metarun: Metarun, tmp_path: Path, word: str, why: str) -> None:
    said = metarun("profile", *TINY, word)
    assert said.code == 2 and why in said.errors[0]
    assert files(tmp_path) == set()
