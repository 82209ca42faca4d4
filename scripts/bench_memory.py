"""What `device.checkpoint_inner` costs and saves: MAML's meta-gradient of random 28x28 images, both ways in turns.

.venv/bin/python scripts/bench_memory.py [--tasks 32] [--repeats 7]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Generator

from metarun.config import known, load_plugins
from metarun.device import describe, pick
from metarun.engine.compiled import Compiled
from metarun.engine.portions import few_at_once
from metarun.engine.step import Portion, as_it_comes, meta_gradient
from metarun.memory import taken
from metarun.settings import DeviceSettings
from metarun.types import Algorithm, Episode

STEPS = (1, 5, 10)


def gradients(inner_steps: int, tasks: int, device: torch.device) -> list[Callable[[], None]]:
    """The meta-gradient with inner steps kept, and with them computed again."""
    kept = known("algo")["maml"](inner_steps=inner_steps)
    net = known("model")["conv4"](item_shape=(1, 28, 28), outputs=5)
    meta = {n: w.to(device).requires_grad_() for n, w in kept.init(net, Generator().manual_seed(0)).items()}
    x, y = torch.rand(tasks, 5, 1, 28, 28, device=device), torch.arange(5, device=device).expand(tasks, 5)
    episodes = Episode(x, y, x.flip(0), y)

    def gradient(algorithm: Algorithm, portion: Portion) -> None:
        for w in meta.values():
            w.grad = None
        meta_gradient(algorithm, net, meta, episodes, portion=portion)
        if device.type == "cuda":
            torch.cuda.synchronize()

    # As a run takes it: on a CPU from a list, a few tasks at a time.
    few = few_at_once if device.type == "cpu" else None
    portions = [Compiled(lambda line: None, warm=0, at_once=few) if few else as_it_comes for _ in range(2)]
    return [partial(gradient, *each) for each in zip((kept, kept.recomputing()), portions, strict=True)]


def timed(work: Callable[[], None]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    load_plugins([])
    device = pick(DeviceSettings())
    print(f"{args.tasks} tasks on {describe(device)}; medians of {args.repeats}, in turns")
    print(f"{'inner steps':>11}  {'kept':>20}  {'computed again':>20}  {'memory':>7}  {'time':>6}")
    for steps in STEPS:
        ways = gradients(steps, args.tasks, device)
        for way in ways:
            way()
        sizes = [taken(way, device) or 0 for way in ways]
        pairs = [[timed(way) for way in ways] for _ in range(args.repeats)]
        seconds = [median(column) for column in zip(*pairs, strict=True)]
        cells = [f"{size / 1e6:>9,.0f} MB {second:>6.2f} s" for size, second in zip(sizes, seconds, strict=True)]
        memory, time = sizes[1] / max(sizes[0], 1), median(again / kept for kept, again in pairs)
        print(f"{steps:>11}  {cells[0]:>20}  {cells[1]:>20}  {memory:>7.2f}  {time:>6.2f}")


if __name__ == "__main__":
    main()
