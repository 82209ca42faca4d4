"""`metarun sweep`, as it is typed: what it leaves behind, what it refuses, and that no kill loses anything."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import pytest
import torch
from commandline import TINY, Said, files, started, typed
from test_resume import LONG, rows, same

from metarun.sweep.trial import COMPLETE, FAILED, PRUNED

Metarun = Callable[..., Said]
SPACE = ["train.lr=tag(log,interval(1e-4,1e-1))", "algo=maml,protonet", "algo.inner_lr=interval(0.1,1)"]


FILE = "study.jsonl"


def study(sweep: Path) -> list[dict[str, Any]]:
    """What is written so far; of the line that is just being written, nothing."""
    return [json.loads(line) for line in (sweep / FILE).read_text().splitlines(keepends=True) if line.endswith("\n")]


def ended(sweep: Path) -> dict[int, dict[str, Any]]:
    """How each trial ended, which none may do twice."""
    found = [event for event in study(sweep) if "ended" in event]
    assert len({event["ended"] for event in found}) == len(found)
    return {event["ended"]: event for event in found}


def asked(sweep: Path) -> list[dict[str, Any]]:
    return [event["params"] for event in study(sweep) if "asked" in event]


def leaderboard(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def processes(folder: Path) -> list[int]:
    """Those of a sweep in `folder`, beside its driver."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"metarun.sweep" in (place / "cmdline").read_bytes() and (place / "cwd").resolve() == folder:
                found.append(int(place.name))
    return found


def wait(until: Callable[[], object], process: subprocess.Popen[str] | None = None, patience: float = 300.0) -> None:
    """Until it is so; `process` must not end before that."""
    end = time.monotonic() + patience
    while not until():
        assert time.monotonic() < end, "it never came"
        if process is not None and process.poll() is not None:
            assert until(), process.communicate()
            return
        time.sleep(0.02)


@contextlib.contextmanager
def going(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = started(folder, "sweep", *words)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_nothing_is_lost_whoever_is_killed(tmp_path: Path) -> None:
    """The driver at three random moments, once with all that it has started: twelve results, as if nothing had been."""
    once, killed = tmp_path / "once", tmp_path / "killed"
    for folder in (once, killed):
        folder.mkdir()
    longer = ["train.iterations=36", "train.val_every=6", "train.log_every=6", "checkpoint.every=4"]
    words = [*TINY, *SPACE, *longer, "sweep=random", "sweep.trials=12", "sweep.name=k", "sweep.workers=2"]
    assert typed(once, "sweep", *words).code == 0
    sweep, random = killed / "outputs" / "sweep" / "k", Random(os.environ.get("METARUN_TEST_SEED", "0"))
    resumed: dict[Path, list[int]] = {}
    for number in range(3):
        known = len(study(sweep)) if (sweep / FILE).exists() else 0
        then = known + random.randrange(2, 17)  # of the 96 events that there are to come
        with going(killed, *words) as process:
            wait(lambda: (sweep / FILE).exists() and len(study(sweep)) >= then, process)  # noqa: B023
            time.sleep(0.1 * random.random())
            process.send_signal(signal.SIGKILL)
            if number == 1:
                for pid in processes(killed):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        wait(lambda: not processes(killed))  # nobody is left behind
        for event in study(sweep):
            run = sweep / str(event.get("asked"))
            if "asked" in event and event["asked"] not in ended(sweep) and not (run / "result.json").exists():
                last = run / "checkpoints" / "last.pt"
                step = torch.load(last, weights_only=True)["step"] if last.exists() else 0
                resumed.setdefault(run, []).append(step)
    assert typed(killed, "sweep", *words).code == 0
    whole = once / "outputs" / "sweep" / "k"
    assert asked(sweep) == asked(whole) and len(ended(sweep)) == 12
    for number, end in ended(sweep).items():
        assert (end["state"], end["value"]) == (ended(whole)[number]["state"], ended(whole)[number]["value"])
        assert rows(sweep / str(number)) == rows(whole / str(number))
        last = f"{number}/checkpoints/last.pt"
        assert same(*(torch.load(each / last, weights_only=True) for each in (sweep, whole)))
    # What was begun went on from its checkpoint, and from nowhere before that.
    assert resumed
    for run, steps in resumed.items():
        said = [line for line in (run / "log.txt").read_text().splitlines() if line.startswith("resumed")]
        # It may have been killed again before it could say so.
        assert [*dict.fromkeys(said)] == [f"resumed at step {step} of 36" for step in dict.fromkeys(steps) if step]
        assert len(said) <= len(steps)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A folder in which a search has come to its end, and what it said. Not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    said = typed(folder, "sweep", *TINY, *SPACE, "sweep.trials=5", "sweep.startup=2", "sweep.name=s")
    assert said.code == 0, said.err
    return folder, said


def test_a_search_ends_with_all_that_a_person_wants_of_it(searched: tuple[Path, Said]) -> None:
    folder, said = searched
    sweep = folder / "outputs" / "sweep" / "s"
    assert [end["state"] for _, end in sorted(ended(sweep).items())] == [COMPLETE] * 5
    assert all(("algo.inner_lr" in params) == (params["algo"] == "maml") for params in asked(sweep))
    board = leaderboard(sweep)
    assert [row["rank"] for row in board] == list("12345")
    best = max(ended(sweep).values(), key=lambda end: (end["value"], -end["ended"]))
    assert (int(board[0]["trial"]), float(board[0]["value"])) == (best["ended"], best["value"])
    assert {"history.png", "parallel.png", "slices.png", "experiment/best.yaml"} < files(sweep)
    # A trial is a run like any other, and it has not seen the test classes. The best one has, once.
    assert {"config.yaml", "metrics.jsonl", "log.txt", "checkpoints/best.pt"} < files(sweep / "0")
    assert [str(path.relative_to(sweep)) for path in sweep.rglob("eval.json")] == [f"test-{best['ended']}/eval.json"]
    assert f"trial {best['ended']} on test classes: accuracy" in said.out
    assert all(len(line) <= 80 for line in said.out.splitlines() if not line.startswith("trial ")), said.out


def test_the_best_setting_runs_again_to_the_same_bits(searched: tuple[Path, Said], tmp_path: Path) -> None:
    sweep = searched[0] / "outputs" / "sweep" / "s"
    best = leaderboard(sweep)[0]["trial"]
    assert typed(tmp_path, "train", "--config-dir", str(sweep), "experiment=best").code == 0
    (again,) = tmp_path.glob("outputs/train/*/*")
    assert rows(again) == rows(sweep / best)


def test_the_same_words_do_nothing_again(searched: tuple[Path, Said]) -> None:
    folder, _ = searched
    sweep = folder / "outputs" / "sweep" / "s"
    times = {path: path.stat().st_mtime_ns for path in sweep.rglob("*.pt")}
    said = typed(folder, "sweep", *TINY, *SPACE, "sweep.trials=5", "sweep.startup=2", "sweep.name=s")
    assert said.code == 0 and "started" not in said.out
    assert times == {path: path.stat().st_mtime_ns for path in sweep.rglob("*.pt")}
    other = typed(folder, "sweep", *TINY, *SPACE, "sweep.trials=5", "sweep.name=s", "train.meta_batch=3")
    assert other.code == 2
    assert "holds another sweep" in other.errors[0] and "train.meta_batch: 2, now 3" in other.errors[0]
    assert "sweep.name=s-2" in other.errors[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.lrr=1e-3,1e-2"], "train.lrr: no such setting; did you mean train.lr?"),
        (["algo=mamll,maml"], "algo=mamll: no such algo; did you mean maml"),
        (["algo=protonet,r2d2", "algo.inner_lr=0.1,1"], "algo.inner_lr: no such setting"),
        (["train.lr=interval(1,0)"], "write interval(0,1)"),
        (["train.lr=tag(log,interval(0,1))"], "must start above 0"),
        (["train.lr=interval(-1,1)"], "train.lr=-1.0: must be greater than 0"),
        (["train.meta_batch=interval(1,5)"], "must be a whole number; write train.meta_batch=int(interval(1,5))"),
        (["task.way=5,900"], "task.way=900: split 'train' has 864 classes"),
        (["train.lr=interval(1e-4,1)", "sweep=grid"], "train.lr is an interval"),
        (["algo=maml,protonet", "sweep=cmaes"], "algo is a list of choices"),
        (["seed=0,1", "sweep.metric=acuracy"], "did you mean val/accuracy?"),
        (["seed=0,1", "sweep.metric=test/accuracy"], "test classes choose nothing"),
        (["seed=0,1", "sweep.metric=train/rate"], "sweep.direction: say whether more of train/rate is better"),
        (["seed=0,1", "sweep.trails=3"], "did you mean sweep.trials?"),
        (["seed=0,1", "sweep.trials=0"], "sweep.trials=0: must be at least 1"),
        (["seed=0,1", "sweep=tpee"], "no such sweep; did you mean tpe?"),
        (["seed=0,1", "sweep.seeds=2"], "seed is searched already"),
        (["seed=0,1", "sweep.enqueue=[{seed: 7}]"], "seed=7 is not among 0,1"),
        (["seed=0,1", "sweep.enqueue=[{sed: 1}]"], "sed is not searched; did you mean seed?"),
        (["seed=0,1", "sweep.trials=1,2"], "is the sweep's own and takes one value"),
        (["seed=0,1", "sweep.name=../x"], "names a folder under outputs/sweep"),
        (["seed=3"], "nothing is searched"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_starts(
    words: list[str], said: str, metarun: Metarun, tmp_path: Path
) -> None:
    answer = metarun("sweep", *TINY, *words)
    assert answer.code == 2
    assert any(said in error for error in answer.errors), answer.err
    assert files(tmp_path) == set()


def test_what_a_sweep_would_be_can_be_looked_at(metarun: Metarun) -> None:
    said = metarun("sweep", *SPACE, "--cfg", "job", "--package", "sweep")
    assert said.code == 0 and "sampler: tpe" in said.out
    manual = metarun("sweep", "--help").out
    assert "pruner: none" in manual and "asha" in manual and "sweep/executor" in manual
    assert "tpe" in metarun("list", "sweep").out


def test_a_space_may_be_written_in_a_file(metarun: Metarun, tmp_path: Path) -> None:
    own = tmp_path / "mine" / "sweep"
    own.mkdir(parents=True)
    space = 'space: {train.lr: "tag(log,interval(1e-3,1e-1))", task: {shot: [1, 2]}, seed: [0, 1]}'
    (own / "my_space.yaml").write_text(f"sampler: random\n{space}\n")
    words = ["sweep", "--config-dir", str(own.parent), "sweep=my_space", *TINY, "sweep.trials=2", "sweep.name=y"]
    assert metarun(*words, "seed=7").code == 0  # what is typed wins
    sweep = tmp_path / "outputs" / "sweep" / "y"
    for number, params in enumerate(asked(sweep)):
        assert params.keys() == {"train.lr", "task.shot"} and 1e-3 <= params["train.lr"] <= 1e-1
        assert "\nseed: 7\n" in (sweep / str(number) / "config.yaml").read_text()
    assert "task.shot=3 is one value" in metarun(*words, "sweep.space={task.shot: 3}").errors[0]


def test_a_trial_that_fails_does_so_alone_and_too_many_end_the_search(metarun: Metarun, tmp_path: Path) -> None:
    diverges = ["train.optimizer=SGD", "train.clip=null", "sweep.name=f", "sweep=grid"]
    words = ["sweep", *TINY, *diverges, "train.lr=1e30,1e-3,1e31,1e32,1e33,1e34"]
    said = metarun(*words, "sweep.max_failures=1")
    assert said.code == 1
    assert "more than sweep.max_failures=1; the last: training diverged" in said.errors[0]
    sweep = tmp_path / "outputs" / "sweep" / "f"
    states = [end["state"] for _, end in sorted(ended(sweep).items())]
    assert states[:3] == [FAILED, COMPLETE, FAILED] and len(states) < 6
    assert "training diverged" in leaderboard(sweep)[1]["reason"]
    said = metarun(*words, "sweep.max_failures=null")  # it goes on, and the one that is good wins
    assert said.code == 0
    assert len(ended(sweep)) == 6 and (sweep / "test-1" / "eval.json").exists()


def test_pruned_trials_end_early_and_keep_what_they_had(metarun: Metarun, tmp_path: Path) -> None:
    words = [*TINY, "train.iterations=60", "train.val_every=3", "algo=protonet", "sweep.name=p", "sweep=grid"]
    said = metarun("sweep", *words, "train.lr=1e-2,1e-6,1e-7,1e-8,1e-9,1e-10", "sweep.pruner=asha", "sweep.workers=1")
    assert said.code == 0, said.err
    sweep = tmp_path / "outputs" / "sweep" / "p"
    pruned = [number for number, end in ended(sweep).items() if end["state"] == PRUNED]
    assert pruned and 0 not in pruned
    run = sweep / str(pruned[0])
    last = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    assert 3 <= last["step"] < 60 and (run / "checkpoints" / "best.pt").exists()
    assert metarun("train", f"resume={run}").code == 0  # a person may think otherwise of it
    assert rows(run)[-1]["step"] == 60


def test_time_that_is_over_stops_a_sweep_that_more_of_it_goes_on_with(
    metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*LONG, "seed=0,1", "sweep.name=o", "sweep.workers=1"]
    sweep = tmp_path / "outputs" / "sweep" / "o"
    last = sweep / "0" / "checkpoints" / "last.pt"
    monkeypatch.setattr("metarun.sweep.command.monotonic", lambda: 1e6 * last.exists())
    said = metarun("sweep", *words, "train.iterations=100000", "sweep.timeout=60")
    assert "sweep.timeout is over" in said.out
    assert said.code == 1 and ended(sweep) == {}, "none was completed"
    saved = torch.load(last, weights_only=True)["step"]
    assert f"stopped at step {saved}" in (sweep / "0" / "log.txt").read_text()
    assert not processes(tmp_path)


def test_each_setting_is_scored_by_the_mean_over_its_seeds(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("sweep", *TINY, "train.lr=1e-3,1e-1", "sweep=grid", "sweep.seeds=2", "seed=5", "sweep.name=m")
    assert said.code == 0, said.err
    sweep = tmp_path / "outputs" / "sweep" / "m"
    for number, end in ended(sweep).items():
        best = [max(row["accuracy"] for row in rows(sweep / f"{number}-{k}") if row["split"] == "val") for k in (0, 1)]
        assert end["value"] == pytest.approx(sum(best) / 2)
        configs = [(sweep / f"{number}-{k}" / "config.yaml").read_text() for k in (0, 1)]
        assert ["seed: 5\n" in configs[0], "\nseed: 6\n" in configs[1]] == [True, True]
    assert "mean of 2 seeds" in said.out


def test_ctrl_c_saves_what_runs_and_leaves_nobody_behind(tmp_path: Path) -> None:
    words = [*LONG, "train.iterations=100000", "seed=0,1", "sweep.name=c"]
    with going(tmp_path, *words) as process:
        sweep = tmp_path / "outputs" / "sweep" / "c"
        wait((sweep / "0" / "checkpoints" / "last.pt").exists, process)
        second = typed(tmp_path, "sweep", *words)
        assert second.code == 2 and "is being searched by process" in second.err
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "type the same words to go on" in out and "Traceback" not in err
    wait(lambda: not processes(tmp_path))
    saved = torch.load(sweep / "0" / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert f"stopped at step {saved}" in (sweep / "0" / "log.txt").read_text()


def test_a_damaged_study_is_made_anew_from_its_runs(searched: tuple[Path, Said], tmp_path: Path) -> None:
    shutil.copytree(searched[0] / "outputs", tmp_path / "outputs")
    sweep = tmp_path / "outputs" / "sweep" / "s"
    words = [*TINY, *SPACE, "sweep.trials=5", "sweep.startup=2", "sweep.name=s"]
    results, params = ended(sweep), asked(sweep)
    lines = (sweep / "study.jsonl").read_text().splitlines(keepends=True)
    (sweep / "study.jsonl").write_text("".join([*lines[:3], "nonsense\n", *lines[4:]]))
    said = typed(tmp_path, "sweep", *words)
    assert said.code == 2
    assert "study.jsonl is damaged (line 4 cannot be read)" in said.errors[0]
    assert "metarun sweep rebuild" in said.errors[0]
    assert typed(tmp_path, "sweep", "rebuild", *words).code == 0
    assert ended(sweep) == results and asked(sweep) == params
    assert (sweep / "study.jsonl.before-1").exists()
    assert typed(tmp_path, "sweep", *words).code == 0
    with (sweep / "study.jsonl").open("a") as file:
        file.write('{"reported": 4, "st')  # a kill in the middle of a line
    assert typed(tmp_path, "sweep", *words).code == 0
    assert ended(sweep) == results


def test_alike_trials_share_a_process_and_each_has_all_that_it_would_have_alone(
    metarun: Metarun, tmp_path: Path
) -> None:
    space = ["train.lr=tag(log,interval(1e-3,1e-1))", "algo.inner_lr=interval(0.1,1)", "algo.inner_steps=1,2"]
    words = [*TINY, *space, "algo=maml", "sweep=random", "sweep.trials=4", "sweep.workers=1"]
    assert metarun("sweep", *words, "sweep.name=alone").code == 0
    assert metarun("sweep", *words, "sweep.name=together", "sweep.vectorize=4").code == 0
    alone, together = (tmp_path / "outputs" / "sweep" / name for name in ("alone", "together"))
    assert asked(alone) == asked(together)
    processes = {number: (together / str(number) / "work.log").exists() for number in range(4)}
    assert sum(processes.values()) == len({params["algo.inner_steps"] for params in asked(together)})
    for number in range(4):
        one, other = rows(alone / str(number)), rows(together / str(number))
        assert [(row["step"], row["split"]) for row in one] == [(row["step"], row["split"]) for row in other]
        losses = [[row["loss"] for row in each if "loss" in row] for each in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
        assert {"config.yaml", "log.txt", "checkpoints/best.pt", "result.json"} < files(together / str(number))


@pytest.mark.parametrize("retries", [0, 1])
def test_a_run_that_is_killed_is_taken_up_again_unless_that_is_not_wanted(
    metarun: Metarun, tmp_path: Path, retries: int
) -> None:
    sweep = tmp_path / "outputs" / "sweep" / "k"

    def kill() -> None:
        wait((sweep / "0" / "checkpoints" / "last.pt").exists)
        for pid in processes(tmp_path):
            os.kill(pid, signal.SIGKILL)

    longer = ["train.iterations=1000", "train.val_every=500", "checkpoint.every=5"]
    words = [*TINY, *longer, "train.lr=1e-3,1e-2", "sweep=grid", "sweep.workers=1", "sweep.trials=1", "sweep.name=k"]
    killer = Thread(target=kill)
    killer.start()
    said = metarun("sweep", *words, f"sweep.retries={retries}")
    killer.join()
    end = ended(sweep)[0]
    if retries:
        assert (said.code, end["state"]) == (0, COMPLETE), said.err
        assert "trial 0: goes on" in said.out and "resumed at step" in (sweep / "0" / "log.txt").read_text()
    else:
        assert (said.code, end["state"]) == (1, FAILED), said.out
        assert "was ended by signal 9" in end["reason"]
