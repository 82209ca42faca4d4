"""What it is worth to train several settings at once: a step of k runs together beside k steps one after the other.

5-way 1-shot with one query per class, a small meta-batch, conv4 (64 filters, strides, 28x28), Adam; each run has its
own rates, and its own seed unless --same-seed. Episodes, gradient and outer update all count. In turns, in one process;
medians. On a GPU steps are recorded and replayed, of both, as they are in `metarun train` and in a sweep.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from metarun import __version__
from metarun.data.bank import ClassBank
from metarun.device import describe, pick
from metarun.engine.evaluate import Score
from metarun.engine.graph import Recorded, RecordedTogether
from metarun.engine.loop import Computed, Course, meta_update, tickets
from metarun.engine.loop import computed as computed_alone
from metarun.engine.optim import make_optimizer
from metarun.engine.stacked import Member, computed, updated
from metarun.engine.state import TrainState
from metarun.files import write_atomic
from metarun.measures import MEASURES
from metarun.models.conv4 import Conv4
from metarun.registry import known
from metarun.settings import DeviceSettings, TrainSettings

CLASSES, ITEMS = 200, 20


@dataclass(frozen=True)
class Figures:
    """Seconds that a step of all k runs takes."""

    k: int
    together: float
    alone: float

    @property
    def ratio(self) -> float:
        return self.alone / self.together


def bank(device: torch.device) -> ClassBank:
    items = torch.randint(0, 256, (CLASSES * ITEMS, 1, 28, 28), dtype=torch.uint8)
    names = tuple(map(str, range(CLASSES)))
    return ClassBank(items, torch.arange(CLASSES + 1) * ITEMS, names).to(device)


def members(method: str, k: int, data: ClassBank, tasks: int, same_seed: bool) -> list[Member]:
    """k runs with inner and outer rates of their own."""
    net = Conv4(item_shape=(1, 28, 28), outputs=5, filters=64, halving="stride")
    seeds = [0] * k if same_seed else list(range(k))
    draws = {seed: data.episodes(5, 1, 1, seed, "train") for seed in seeds}
    out = []
    for i, seed in enumerate(seeds):
        algorithm = known("algo")[method]()
        if hasattr(algorithm, "inner_lr"):
            algorithm = replace(algorithm, inner_lr=algorithm.inner_lr * (0.5 + i / k))
        drawn = algorithm.init(net, torch.Generator().manual_seed(seed))
        meta = {name: w.to(data.device).requires_grad_() for name, w in drawn.items()}
        state = TrainState(meta, make_optimizer("Adam", meta.values(), 1e-3 / (i + 1), {}))
        course = Course(
            state,
            TrainSettings(iterations=10**6, meta_batch=tasks),
            measure=MEASURES["accuracy"],
            checkpoint_every=10**6,
            validate=lambda state: Score(0.0, 0.0, 0),
            log=lambda row: None,
            save=lambda which, state: None,
            tick=lambda step: None,
            stop=lambda: False,
        )
        out.append(Member(course, algorithm, lambda step: net, draws[seed], tickets(seed)))
    return out


def alone(all_: list[Member], device: torch.device) -> Callable[[], None]:
    """A step of each, one after the other."""
    compute: list[Computed] = [
        Recorded(computed_alone, device, print) if device.type == "cuda" else computed_alone for _ in all_
    ]

    def steps() -> None:
        for run, own in zip(all_, compute, strict=True):
            net = run.net_at(run.state.step)
            parts = run.algorithm, net, run.state, run.episodes, run.settings, run.ticket, None
            run.state.add(meta_update(*parts, compute=own))

    return steps


def together(all_: list[Member], device: torch.device) -> Callable[[], None]:
    compute = RecordedTogether(computed, device, print) if device.type == "cuda" else computed

    def steps() -> None:
        for run, metrics in zip(all_, updated(all_, compute=compute), strict=True):
            run.state.add(metrics)

    return steps


def compare(method: str, k: int, args: argparse.Namespace, device: torch.device) -> Figures:
    data = bank(device)
    ways = {name: members(method, k, data, args.tasks, args.same_seed) for name in ("together", "alone")}
    steps = {"together": together(ways["together"], device), "alone": alone(ways["alone"], device)}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.warm + args.turns):
        for name, step in steps.items():
            began = perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn >= args.warm:
                times[name].append(perf_counter() - began)
    return Figures(k, median(times["together"]), median(times["alone"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", default=["maml"], metavar="METHOD", help="(maml)")
    parser.add_argument("--k", type=int, nargs="+", default=[1, 4, 8, 16], help="runs (1 4 8 16)")
    parser.add_argument("--tasks", type=int, default=4, help="in each run's meta-batch (4)")
    parser.add_argument("--turns", type=int, default=9, help="of each that count (9)")
    parser.add_argument("--warm", type=int, default=2, help="of each before, that do not (2; 6 on a GPU)")
    parser.add_argument("--same-seed", action="store_true", help="all runs see the same episodes")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    device = pick(DeviceSettings(kind=args.device, threads=args.threads))
    args.warm = max(args.warm, 6) if device.type == "cuda" else args.warm
    seeds = "one seed" if args.same_seed else "a seed each"
    print(f"torch {torch.__version__}, {describe(device)}, load {os.getloadavg()[0]:.1f} before; {seeds}")
    found: dict[str, list[dict[str, Any]]] = {}
    for method in args.methods:
        print(f"{method}, {args.tasks} tasks: seconds of a step of k runs")
        print(f"{'k':>4}{'one by one':>12}{'together':>10}{'times':>7}{'runs a second':>15}")
        found[method] = []
        for k in args.k:
            figures = compare(method, k, args, device)
            found[method].append(asdict(figures) | {"ratio": figures.ratio})
            per_second = k / figures.together
            print(
                f"{k:>4}{figures.alone:>12.4f}{figures.together:>10.4f}{figures.ratio:>7.2f}{per_second:>15.1f}",
                flush=True,
            )
    if args.json:
        machine = {"metarun": __version__, "torch": torch.__version__, "python": platform.python_version()}
        told = machine | {
            "device": describe(device),
            "tasks": args.tasks,
            "same_seed": args.same_seed,
            "methods": found,
        }
        write_atomic(args.json, lambda file: file.write((json.dumps(told, indent=1) + "\n").encode()))


if __name__ == "__main__":
    main()
