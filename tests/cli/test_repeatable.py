"""One seed, one run; and the test tasks are everyone's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commandline import TINY, Said, inside, typed
from test_resume import rows, same_run

from metarun import config, runs
from metarun.build import sampler

Metarun = Callable[..., Said]


def test_one_seed_is_one_run_and_another_seed_another(metarun: Metarun, made: Path, tmp_path: Path) -> None:
    assert metarun("train", *TINY, "hydra.run.dir=again").code == 0
    assert metarun("train", *TINY, "seed=1", "hydra.run.dir=other").code == 0
    said = metarun("train", *TINY, "device.compile=true", "hydra.run.dir=compiled")
    assert "as they come" not in said.out and same_run(tmp_path / "compiled", made)
    assert same_run(tmp_path / "again", made)
    assert not same_run(tmp_path / "other", made)
    assert rows(tmp_path / "other") != rows(made)


def test_chunks_and_evaluation_batches_change_no_number_that_counts(
    metarun: Metarun, made: Path, tmp_path: Path
) -> None:
    assert metarun("train", *TINY, "device.chunk=1", "device.eval_batch=3", "hydra.run.dir=chunked").code == 0
    for one, other in zip(rows(tmp_path / "chunked"), rows(made), strict=True):
        assert one["accuracy"] == other["accuracy"]


def test_all_runs_are_tested_on_the_same_tasks(made: Path, tmp_path: Path) -> None:
    """Whatever their seeds and methods; their training tasks differ."""
    words = [word for word in TINY if not word.startswith(("algo=", "model"))]
    words += ["algo=maml", "model.filters=4", "seed=7"]
    assert typed(tmp_path, "train", *words, "hydra.run.dir=maml").code == 0
    with inside(tmp_path):
        plans = [config.read(runs.read_config(folder)) for folder in (made, tmp_path / "maml")]

    def episodes(split: str) -> list[list[torch.Tensor]]:
        drawn = [sampler(plan, split, plan.dataset.load(split, plan.place))(5, 20) for plan in plans]
        return [list(each) for each in drawn]

    for split in ("val", "test"):
        one, other = episodes(split)
        assert all(map(torch.equal, one, other))
    one, other = episodes("train")
    assert not torch.equal(one[0], other[0])


def test_training_in_bf16_is_nearly_the_same_run(metarun: Metarun, tmp_path: Path) -> None:
    for name, more in (("single", ()), ("half", ("device.precision=bf16",))):
        said = metarun("train", *TINY, *more, f"hydra.run.dir={name}")
        assert said.code == 0, said.err
    single, half = (
        [row["loss"] for row in rows(tmp_path / name) if row["split"] == "train"] for name in ("single", "half")
    )
    assert half != single and half == pytest.approx(single, rel=0.05)
