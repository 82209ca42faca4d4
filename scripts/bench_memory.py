"""What `device.checkpoint_inner` costs and saves: MAML on random 28x28 images, each row a process of its own.

.venv/bin/python scripts/bench_memory.py [--tasks 32] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from time import perf_counter

STEPS = (1, 5, 10)


def row(inner_steps: int, again: bool, tasks: int, repeats: int) -> dict[str, float]:
    """Seconds of a meta-gradient (median), and the megabytes that one takes beyond those before it."""
    import torch
    from torch import Generator

    from metarun.config import known, load_plugins
    from metarun.device import pick
    from metarun.engine.step import meta_gradient
    from metarun.memory import taken
    from metarun.settings import DeviceSettings
    from metarun.types import Episode

    load_plugins([])
    device = pick(DeviceSettings(threads=1))
    algorithm = known("algo")["maml"](inner_steps=inner_steps)
    algorithm = algorithm.recomputing() if again else algorithm
    net = known("model")["conv4"](item_shape=(1, 28, 28), outputs=5)
    meta = {n: w.to(device).requires_grad_() for n, w in algorithm.init(net, Generator().manual_seed(0)).items()}
    x, y = torch.rand(tasks, 5, 1, 28, 28, device=device), torch.arange(5, device=device).expand(tasks, 5)
    episodes = Episode(x, y, x.flip(0), y)

    def gradient() -> None:
        for w in meta.values():
            w.grad = None
        meta_gradient(algorithm, net, meta, episodes)
        if device.type == "cuda":
            torch.cuda.synchronize()

    gradient()
    bytes = taken(gradient, device)
    seconds = []
    for _ in range(repeats):
        began = perf_counter()
        gradient()
        seconds.append(perf_counter() - began)
    return {"seconds": median(seconds), "mb": (bytes or 0) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(row(args.row[0], bool(args.row[1]), args.tasks, args.repeats)))
        return
    sizes = ["--tasks", str(args.tasks), "--repeats", str(args.repeats)]
    print(f"{'inner steps':>11}  {'kept':>20}  {'computed again':>20}  {'memory':>7}  {'time':>6}")
    for steps in STEPS:
        found = []
        for again in (0, 1):
            words = [sys.executable, __file__, "--row", str(steps), str(again), *sizes]
            found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
        kept, again = found
        cells = "  ".join(f"{one['mb']:>9,.0f} MB {one['seconds']:>6.2f} s" for one in found)
        print(f"{steps:>11}  {cells}  {again['mb'] / kept['mb']:>7.2f}  {again['seconds'] / kept['seconds']:>6.2f}")


if __name__ == "__main__":
    main()
