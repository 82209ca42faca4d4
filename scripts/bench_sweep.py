"""What a sweep costs beside its runs: seconds for each of many empty jobs beyond their own start, and how busy slots
are kept by jobs of unequal length.

The jobs are stand-ins of a few milliseconds or some seconds; all else is `metarun sweep` itself, TPE and ASHA included.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from subprocess import run
from time import monotonic
from typing import Any

RUN = ("dataset=glyphs", "algo=protonet", "model=mlp", "logger=none", "device=cpu", "device.threads=1")
SWEEP = ("sweep.pruner=asha", "sweep.workers=2", "train.lr=tag(log,interval(1e-5,1))", "seed=range(0,1000)")
JOB = """
import json, os, sys, time
began = time.time()
folder = sys.argv[1]
seed = json.load(open(folder + "/trial.json"))["params"]["seed"]
time.sleep(SECONDS)
row = {"step": 100, "split": "val", "accuracy": seed / 1000}
open(folder + "/metrics.jsonl", "w").write(json.dumps(row) + "\\n")
open(folder + "/.r", "w").write(json.dumps({"state": "complete", "code": 0, "reason": ""}))
open(folder + "/busy", "w").write(str(time.time() - began))
os.replace(folder + "/.r", folder + "/result.json")
"""
EMPTY, UNEQUAL = "0", "1 + (seed * 37 % 100) / 20"
LONG = 30
"""jobs of unequal length"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=64, help="empty jobs")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = alone(Path(folder))
        wall, _ = swept(Path(folder), "empty", EMPTY, args.trials)
        unequal, busy = swept(Path(folder), "unequal", UNEQUAL, LONG)
    each = 2 * wall / args.trials - start
    share = busy / (2 * unequal)
    print(f"an empty job by itself     {start:.3f} s")
    print(f"{args.trials} of them on 2 slots      {wall:.2f} s: {each:.3f} s each beyond their own start")
    print(f"jobs of 1 to 6 s           {unequal:.1f} s on 2 slots, which are busy {100 * share:.1f} % of the time")
    if args.json:
        args.json.write_text(json.dumps({"start": start, "wall": wall, "each": each, "busy": share}, indent=1))


def command(seconds: str) -> Callable[[Any], tuple[str, ...]]:
    script = JOB.replace("SECONDS", seconds)
    return lambda folders: (sys.executable, "-S", "-E", "-c", script, str(folders[0]))


def alone(folder: Path) -> float:
    """The median of an empty job's seconds, one after another."""
    (folder / "trial.json").write_text(json.dumps({"params": {"seed": 1}}))
    took = []
    for _ in range(21):
        began = monotonic()
        run(command(EMPTY)([folder]), check=True)
        took.append(monotonic() - began)
    return median(took)


def swept(folder: Path, name: str, seconds: str, trials: int) -> tuple[float, float]:
    """Seconds from the first trial's start to the last one's end, and those that the jobs worked in."""
    from metarun.cli import dispatch
    from metarun.sweep import command as sweeps
    from metarun.sweep.driver import Driver

    took: list[float] = []

    class Timed(Driver):
        def drive(self, stop: Callable[[], bool]) -> bool:
            began = monotonic()
            over = super().drive(stop)
            took.append(monotonic() - began)
            return over

    kept, ends = sweeps.Driver, sweeps.end
    sweeps.Driver = partial(Timed, command=command(seconds))  # type: ignore[assignment,misc]
    sweeps.end = lambda *args: 0  # type: ignore[assignment]
    try:
        with chdir(folder), redirect_stdout(StringIO()) as said:
            code = dispatch(["sweep", *RUN, *SWEEP, f"sweep.trials={trials}", f"sweep.name={name}"])
    finally:
        sweeps.Driver, sweeps.end = kept, ends
    sweep = folder / "outputs" / "sweep" / name
    results = [json.loads(path.read_text())["state"] for path in sweep.glob("*/result.json")]
    assert code == 0 and results == ["complete"] * trials, said.getvalue()
    return took[0], sum(float(path.read_text()) for path in sweep.glob("*/busy"))


if __name__ == "__main__":
    main()
