"""How long until a run's first step, beside `python -c "import torch"`, and how long an evaluation of 1,000 tasks.

Both are whole processes, taken in turns; `cpu` is user and system time, which other work on the machine changes less.
Needs Omniglot (METARUN_DATA). What is made of it is kept, as by any run; the first start here makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import time

RUN = ("algo={}", "dataset=omniglot", "device=cpu", "logger=none")
METARUN = "from metarun.cli import main; main()"
FIRST = "first step"
PHASES = ("python", "hydra, composing", "import torch", "import metarun", "config", "data cache", "building", FIRST)

UNTIL_FIRST_STEP = """
import importlib, json, os, sys, time
from functools import wraps

marks = []

def mark(phase):
    marks.append((phase, time.time(), time.process_time()))

def around(module, name, before=None, after=None):
    f = getattr(module, name)
    @wraps(f)
    def g(*args, **kwargs):
        before and mark(before)
        try:
            return f(*args, **kwargs)
        finally:
            after and mark(after)
    setattr(module, name, g)

mark("python")
from metarun import app
from metarun.cli import dispatch

def imported(name, load=importlib.import_module):
    if name != "metarun.run" or name in sys.modules:
        return load(name)
    mark("hydra, composing")
    import torch
    mark("import torch")
    run = load(name)
    from metarun import commands, config
    from metarun.data.omniglot import Omniglot
    from metarun.engine import loop
    mark("import metarun")
    around(config, "settled", after="config")
    around(Omniglot, "load", before="building", after="data cache")
    around(loop, "meta_update", before="building", after="first step")
    around(run, "measure", before="after")
    return run

app.importlib = type("Importlib", (), {"import_module": staticmethod(imported)})
assert dispatch(sys.argv[1:]) == 0
print("MARKS " + json.dumps(marks))
"""


def took(folder: Path, *words: str) -> tuple[float, float, str]:
    """Wall and CPU seconds of a Python process, and what it printed."""
    began, before = time(), os.times()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
    wall, after = time() - began, os.times()
    if done.returncode:
        sys.exit(done.stderr)
    return (
        wall,
        after.children_user + after.children_system - before.children_user - before.children_system,
        done.stdout,
    )


def phases(folder: Path, algo: str) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of each phase of a start, up to the end of its first step."""
    began = time()
    words = [word.format(algo) for word in RUN]
    short = ("train.iterations=1", "train.val_episodes=1", "eval.episodes=1")
    out = took(folder, "-c", UNTIL_FIRST_STEP, "train", *words, *short)[2]
    (marks,) = (json.loads(line[6:]) for line in out.splitlines() if line.startswith("MARKS "))
    spent: dict[str, tuple[float, float]] = dict.fromkeys(PHASES, (0.0, 0.0))
    wall, cpu = began, 0.0
    for phase, at, at_cpu in marks:
        if phase in spent:
            spent[phase] = (spent[phase][0] + at - wall, spent[phase][1] + at_cpu - cpu)
        wall, cpu = at, at_cpu
        if phase == FIRST:
            break
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each; medians are printed")
    parser.add_argument("--algo", default="protonet")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [word.format(args.algo) for word in RUN]
        took(folder, "-c", METARUN, "train", *words, "train.iterations=100", "hydra.run.dir=run")
        torch, starts, evals = [], [], []
        for _ in range(args.turns):
            torch.append(took(folder, "-c", "import torch")[:2])
            starts.append(phases(folder, args.algo))
            evals.append(took(folder, "-c", METARUN, "eval", "run=run", "eval.episodes=1000", "device=cpu")[:2])
    figures: dict[str, list[float]] = {}
    for kind in (0, 1):
        until = [sum(s[kind] for p, s in start.items() if p != FIRST) for start in starts]
        allowed = [t[kind] + start["data cache"][kind] for t, start in zip(torch, starts, strict=True)]
        rows = {
            'python -c "import torch"': median(t[kind] for t in torch),
            f"metarun train algo={args.algo}, to its first step": median(until),
            **{f"  {phase}": median(start[phase][kind] for start in starts) for phase in PHASES},
            "ratio, to import torch and the data cache": median(u / a for u, a in zip(until, allowed, strict=True)),
            "metarun eval, 1,000 tasks": median(e[kind] for e in evals),
        }
        for row, value in rows.items():
            figures.setdefault(row, []).append(value)
    print(f"{'seconds, medians of ' + str(args.turns):<50}{'wall':>8}{'cpu':>8}")
    for row, (wall, cpu) in figures.items():
        print(f"{row:<50}{wall:>8.2f}{cpu:>8.2f}")
    if args.json:
        args.json.write_text(json.dumps({row: {"wall": w, "cpu": c} for row, (w, c) in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
