"""What a search finds: TPE with ASHA over MAML's rates and inner steps on Omniglot, a few minutes on two cores, beside
random search of as many training steps, and beside the default setting, all on the same 1,000 test tasks.

Sweeps and runs that are done are not done again, so it can be killed and started at will.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METARUN = (sys.executable, "-m", "metarun")
_RUN = (
    "algo=maml dataset=omniglot logger=none device=cpu device.threads=1 train.iterations=150 train.meta_batch=8 "
    "train.val_every=15 train.val_episodes=100 train.log_every=15 checkpoint.every=15"
)
RUN = _RUN.split()
SPACE = (
    "algo.inner_lr=tag(log,interval(0.01,1))",
    "train.lr=tag(log,interval(1e-4,1e-2))",
    "algo.inner_steps=1,3,5",
)
TRIALS, ENOUGH, TASKS = 24, 10, 1000
"""of TPE; of random search, unpruned, more than it makes in as many steps; of the test"""
APART = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--sweeps", type=int, default=3, help="of each kind, with seeds 0, 1, ...")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    default = Path("default")
    if not (default / "eval.json").exists():
        metarun("train", *RUN, f"hydra.run.dir={default}", "eval.episodes=10")
    for seed in range(args.sweeps):
        swept(f"tpe-{seed}", "sweep=tpe", "sweep.pruner=asha", f"sweep.seed={seed}", f"sweep.trials={TRIALS}")
        # TPE starts with random settings, and these must be others.
        swept(f"random-{seed}", "sweep=random", f"sweep.seed={APART + seed}", f"sweep.trials={ENOUGH}")
    rows = []
    for seed in range(args.sweeps):
        tpe = trials(f"tpe-{seed}")
        budget = sum(steps for _, _, steps in tpe)
        rows.append(
            {
                "seed": seed,
                "tpe": found(f"tpe-{seed}", tpe, default),
                "random": found(f"random-{seed}", within(trials(f"random-{seed}"), budget), default),
                "steps": budget,
            }
        )
    Path("sweeps.json").write_text(json.dumps(rows, indent=1))
    for row in rows:
        for kind in ("tpe", "random"):
            one = row[kind]
            print(
                f"{kind:<6} {row['seed']}  trials {one['trials']:>2}  {one['seconds']:4.0f} s  validation "
                f"{100 * one['val']:.1f} %  test {100 * one['mean']:.2f} ± {100 * one['ci95']:.2f} %  "
                f"beyond the default {100 * one['gain']:+.2f} ± {100 * one['gain_ci95']:.2f}  {one['params']}"
            )
    print(
        f"medians of {len(rows)}: ",
        *(f"{k} {100 * median(r[k]['mean'] for r in rows):.2f} %" for k in ("tpe", "random")),
    )


def metarun(*words: str) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*METARUN, *words], env=env, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"metarun {' '.join(words)}\n{done.stdout}{done.stderr}")


def swept(name: str, *words: str) -> None:
    took = Path(f"{name}.seconds")
    if not took.exists():
        began = monotonic()
        metarun("sweep", *RUN, *SPACE, *words, f"sweep.name={name}", "sweep.workers=2")
        took.write_text(str(monotonic() - began))
        print(f"{name}: {monotonic() - began:.0f} s", flush=True)


def trials(name: str) -> list[tuple[int, float, int]]:
    """Of each trial, in the order they were asked for: its number, the best validation it made, its steps."""
    out = []
    for n in range(TRIALS if name.startswith("tpe") else ENOUGH):
        lines = (Path("outputs/sweep") / name / str(n) / "metrics.jsonl").read_text().splitlines()
        read: list[dict[str, Any]] = [json.loads(line) for line in lines]
        values = [row["accuracy"] for row in read if row["split"] == "val"]
        out.append((n, max(values, default=0.0), max(row["step"] for row in read)))
    return out


def within(each: list[tuple[int, float, int]], budget: int) -> list[tuple[int, float, int]]:
    """Those that a search of so many steps would have come to the end of."""
    total, out = 0, []
    for trial in each:
        total += trial[2]
        if total > budget:
            break
        out.append(trial)
    return out


def found(name: str, each: list[tuple[int, float, int]], default: Path) -> dict[str, Any]:
    """The best of some trials, on test tasks, against the default setting on the same."""
    number, value, _ = max(each, key=lambda trial: (trial[1], -trial[0]))
    run, out = Path("outputs/sweep") / name / str(number), Path(f"eval-{name}-{number}")
    if not (out / "eval.json").exists():
        metarun("eval", f"run={run}", f"versus={default}", f"eval.episodes={TASKS}", f"hydra.run.dir={out}")
    report = json.loads((out / "eval.json").read_text())
    gap = report["versus"]["difference"]
    return {
        "trial": number,
        "trials": len(each),
        "seconds": float(Path(f"{name}.seconds").read_text()),
        "val": value,
        "mean": report["mean"],
        "ci95": report["ci95"],
        "gain": gap["mean"],
        "gain_ci95": gap["ci95"],
        "params": json.loads((run / "trial.json").read_text())["params"],
    }


if __name__ == "__main__":
    main()
