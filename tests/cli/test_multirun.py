"""`-m`: a folder for each run, what is wrong with one leaves the others alone, and Ctrl-C ends them all."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from commandline import TINY, Said, files, started
from test_resume import at_step, finish, same_run

Metarun = Callable[..., Said]


def jobs(folder: Path) -> list[Path]:
    return sorted((folder / "outputs" / "multirun").glob("*/*/"))


def test_each_job_is_a_run(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("train", "-m", *TINY, "seed=0,1")
    assert said.code == 0, said.err
    first, second = jobs(tmp_path)
    assert (first.name, second.name) == ("0", "1")
    for job in (first, second):
        assert {"config.yaml", "environment.json", "metrics.jsonl", "eval.json", "log.txt"} < files(job)
        assert {"checkpoints/last.pt", "checkpoints/best.pt"} < files(job)
    assert not same_run(first, second)
    assert metarun("eval", "run=latest").code == 0
    assert metarun("eval", f"run={first}").code == 0
    assert metarun("train", f"resume={first}", "train.iterations=6").code == 0


def test_one_bad_job_leaves_the_others_alone(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("train", "-m", *TINY, "task.way=5,900,4")
    assert said.code == 2
    *complaints, last = said.errors
    assert complaints and all("way=900: split" in error for error in complaints)
    assert last == "1 of 3 jobs failed: #1"
    assert [job.name for job in jobs(tmp_path)] == ["0", "2"]
    for job in jobs(tmp_path):
        assert (job / "eval.json").exists()


def test_unknown_names_stop_all_jobs_before_the_first(metarun: Metarun, tmp_path: Path) -> None:
    """Also the third of three choices, and a key that only one of them has."""
    said = metarun("train", "-m", *TINY, "algo=protonet,maml,mamll")
    assert said.code == 2
    assert said.errors == ["algo=mamll: no such algo; did you mean maml or imaml?"]
    said = metarun("train", "-m", *TINY, "algo=maml,protonet", "algo.inner_lr=0.1,0.2")
    assert said.errors == [
        "algo=protonet: algo.inner_lr: no such setting; "
        "choose from: algo.distance, algo.learn_scale, algo.name, algo.scale"
    ]
    assert metarun("train", "-m", "seed=0,1", "sede=3").errors == ["sede: no such setting; did you mean seed?"]
    assert "there is nothing to run" in metarun("train", "-m", "algo=glob(nope*)").errors[0]
    assert "tries lists only" in metarun("train", "-m", "train.lr=interval(0,1)").errors[0]
    assert files(tmp_path) == set()


def test_values_that_are_lists_or_quoted_may_be_swept(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("train", "-m", *TINY, "model.widths=[4],[6,5]", "train.optimizer_args={eps:1e-8},{weight_decay:0.1}")
    assert said.code == 0, said.err
    assert len(jobs(tmp_path)) == 4


def test_ctrl_c_ends_all_jobs(metarun: Metarun, tmp_path: Path) -> None:
    words = [*TINY, "train.iterations=400", "train.log_every=5", "train.val_every=100", "checkpoint.every=7"]
    process = started(tmp_path, "train", "-m", *words, "seed=0,1,2")
    run = at_step(tmp_path, 13, process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert "Traceback" not in err
    assert "go on with: metarun train resume=" in out
    assert run in jobs(tmp_path)
    assert f"hydra.sweep.dir={run.parent.relative_to(tmp_path)}" in out
    assert metarun("train", f"resume={run}").code == 0
    assert metarun("train", *words, f"seed={run.name}").code == 0
    (whole,) = tmp_path.glob("outputs/train/*/*")
    assert same_run(run, whole)


def test_the_same_words_go_on_in_the_same_folder(metarun: Metarun, tmp_path: Path) -> None:
    words = ["train", "-m", *TINY, "seed=0,1", "hydra.sweep.dir=runs"]
    assert metarun(*words).code == 0
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/checkpoints/last.pt")}
    assert len(done) == 2
    said = metarun(*words)
    assert said.code == 0 and "started" not in said.out
    assert done == {path: path.stat().st_mtime_ns for path in done}
    assert "holds other runs" in metarun(*words, "train.lr=1,2").errors[0]
