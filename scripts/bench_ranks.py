"""What a second process is worth: whole runs of `metarun train`, in turns, with one process of one thread and with N.

MAML 5-way 1-shot on Omniglot (conv4, 64 filters with strides, second order). What is compared is the rate of training
steps that a run's metrics.jsonl tells of, without its first interval; gradients go over gloo.
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

RUN = (
    "dataset=omniglot algo=maml task.way=5 task.shot=1 model.halving=stride device=ddp device.kind=cpu "
    "device.threads=1 logger=none train.val_every=1000000 train.val_episodes=1 eval.episodes=1"
)


def rate(processes: int, folder: Path, args: argparse.Namespace) -> float:
    """Median training steps a second over the intervals of one run."""
    words = [*RUN.split(), f"device.processes={processes}", f"hydra.run.dir={folder}", f"data_root={args.data}"]
    words += [f"task.query={args.query}", f"train.meta_batch={args.tasks}"]
    words += [f"train.iterations={args.every * (1 + args.intervals)}", f"train.log_every={args.every}"]
    done = subprocess.run([sys.executable, "-m", "metarun", "train", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return median([row["rate"] for row in rows if row["split"] == "train"][1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="beside the one (2)")
    parser.add_argument("--pairs", type=int, default=5, help="of runs in turns (5)")
    parser.add_argument("--tasks", type=int, default=32, help="in a meta-batch (32)")
    parser.add_argument("--query", type=int, default=1, help="queries per class (1)")
    parser.add_argument("--every", type=int, default=5, help="steps in an interval (5)")
    parser.add_argument("--intervals", type=int, default=6, help="of each run that count (6)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("METARUN_DATA", "data")), help="has Omniglot")
    args = parser.parse_args()
    args.data = args.data.resolve()
    print(f"MAML 5-way 1-shot, {args.tasks} tasks, {args.query} query per class: steps a second")
    print(f"  {'pair':<6}{'1 process':>12}{f'{args.processes} processes':>14}{'ratio':>8}", flush=True)
    ratios = []
    with tempfile.TemporaryDirectory(prefix="metarun-bench-") as folder:
        for pair in range(args.pairs):
            one, many = (rate(n, Path(folder) / f"{pair}-{n}", args) for n in (1, args.processes))
            ratios.append(many / one)
            print(f"  {pair + 1:<6}{one:>12.3f}{many:>14.3f}{many / one:>8.2f}", flush=True)
    print(f"{median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}), one thread in each process")


if __name__ == "__main__":
    main()
