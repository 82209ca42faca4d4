"""What data costs: preparing image files, drawing episodes, and drawing them from the disk, beside a MAML step.

    prepare   60,000 JPEG files of 84x84 decoded on one core and on all, the most memory it took, a second start
    sample    5-way 1-shot with 15 queries, 32 tasks, from Omniglot and from those 60,000 images, in memory
    disk      the same from the file of the cache, none of which is in memory, read ahead while a step is computed

The MAML step is conv4's (64 filters with strides on Omniglot, 32 with pooling on the colour images), second order.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

import torch

from metarun import __version__
from metarun.algorithms.maml import MAML
from metarun.data.ahead import Ahead
from metarun.data.bank import ClassBank
from metarun.data.images import folders, image_bank
from metarun.data.omniglot import Omniglot
from metarun.data.pixels import Form
from metarun.device import describe
from metarun.engine.compiled import Compiled
from metarun.engine.portions import few_at_once
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.models.conv4 import Conv4
from metarun.types import Place, Sampler

CLASSES, EACH, SIDE = 100, 600, 84
PAIRS = 5
WAY, SHOT, QUERY, TASKS = 5, 1, 15, 32


def write_class(folder: Path) -> None:
    """Smooth noise, which makes files about as large as photographs do."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True)
    random = np.random.default_rng(int(folder.name))
    for i in range(EACH):
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i:03d}.jpg", quality=90)


PREPARE = """
import resource, sys, threading, time
from pathlib import Path
from metarun.data import packed
workers = int(sys.argv[2])
packed.WORKERS = workers
from metarun.data.images import folders, image_bank
from metarun.data.pixels import Form
from metarun.types import Place
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
bank = image_bank("bench", "train", folders(Path(sys.argv[1])), Form(int(sys.argv[3])), Place(Path()))
seconds = time.perf_counter() - began
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
for process in Path("/proc/self/task", str(threading.get_native_id()), "children").read_text().split():
    lines = Path("/proc", process, "status").read_text().splitlines()
    most += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(seconds, most * 1024, bank.bytes)
"""


def prepare(images: Path, cache: Path, workers: int) -> tuple[float, float, float]:
    """Seconds, the memory that it took beyond the imports, the bytes of the items; in a process of its own, and those
    that it starts."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(images), str(workers), str(SIDE)],
        env=os.environ | {"METARUN_CACHE": str(cache)},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    seconds, memory, size = map(float, done.stdout.split())
    return seconds, memory, size


def timed(work: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return median(times)


def stepper(bank: ClassBank, filters: int, halving: str) -> tuple[Callable[[], object], Sampler]:
    """A MAML step, taken as a run would, on episodes that are there already, and the sampler of such episodes."""
    sampler = bank.episodes(WAY, SHOT, QUERY, 0, "train")
    net = Conv4(item_shape=bank.item_shape, outputs=WAY, filters=filters, halving=halving)
    meta = {n: w.requires_grad_() for n, w in MAML().init(net, torch.Generator().manual_seed(0)).items()}
    state, episodes = TrainState(meta, torch.optim.Adam(meta.values())), sampler(0, TASKS)
    portion = Compiled(lambda line: None, warm=0, at_once=few_at_once)
    return lambda: train_step(MAML(), net, state, episodes, portion=portion), sampler


def sampling(sampler: Sampler, repeats: int) -> float:
    at = iter(range(0, 10**9, TASKS))
    return timed(lambda: sampler(next(at), TASKS), repeats)


def from_disk(bank: ClassBank, cache: Path, step: float, repeats: int) -> float:
    """Seconds that a loop waits for its episodes, whose items are on the disk alone, when a step takes `step`."""
    far = bank.to("cpu", 0)
    ahead, waits = Ahead(far.episodes(WAY, SHOT, QUERY, 1, "train")), []
    for n in range(repeats + 1):
        for path in cache.glob("*.bin"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = perf_counter()
        ahead(n * TASKS, TASKS)
        waits.append(perf_counter() - began)
        sleep(min(step, 2.0))  # the step, or as much of it as reading ahead may count on here
    return median(waits[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--steps", type=int, default=3, help="MAML steps timed on each dataset (3)")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("METARUN_DATA", "data")), help="has Omniglot")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cores = os.cpu_count() or 1
    device = describe(torch.device("cpu"))
    print(f"metarun {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {device}")
    with tempfile.TemporaryDirectory(prefix="metarun-bench-") as folder:
        images, one, every = (Path(folder) / name for name in ("images", "one", "every"))
        with ProcessPoolExecutor(cores) as pool:
            list(pool.map(write_class, [images / f"{c:03d}" for c in range(CLASSES)]))
        alone, together = [], []
        memory = size = 0.0
        for _ in range(PAIRS):
            shutil.rmtree(one, ignore_errors=True)
            shutil.rmtree(every, ignore_errors=True)
            alone.append(prepare(images, one, 1)[0])
            seconds, memory, size = prepare(images, every, cores)
            together.append(seconds)
        again, _, _ = prepare(images, every, cores)
        ratios = [a / b for a, b in zip(alone, together)]
        print(f"prepare  {CLASSES * EACH:,} JPEG files of {SIDE}x{SIDE}: {median(alone):.1f} s on 1 core")
        print(f"         {median(together):.1f} s on {cores}: {median(ratios):.2f} times as fast", end=" ")
        print(f"({min(ratios):.2f} to {max(ratios):.2f}, {PAIRS} pairs in turn)")
        print(f"         memory {memory / 1e6:,.0f} MB, {memory / size:.2f} times the cache's {size / 1e6:,.0f} MB")
        print(f"         a second start {again:.2f} s")
        os.environ["METARUN_CACHE"] = str(every)
        colour = image_bank("bench", "train", folders(images), Form(SIDE), Place(Path()))
        for name, bank, filters, halving in (
            ("Omniglot", Omniglot(download=False).load("train", Place(args.data)), 64, "stride"),
            (f"{SIDE}x{SIDE} colour", colour, 32, "pool"),
        ):
            step, sampler = stepper(bank, filters, halving)
            seconds, drawing = timed(step, args.steps), sampling(sampler, 10)
            print(f"sample   {name}: {TASKS / drawing:,.0f} episodes a second, {drawing:.3f} s for {TASKS}")
            print(f"         a MAML step {seconds:.2f} s, of which {100 * drawing / seconds:.2f} %")
        waiting = from_disk(colour, every, seconds, 5)
        print(f"disk     {SIDE}x{SIDE} colour, nothing in memory: the loop waits {waiting:.3f} s for {TASKS}")
        print(f"         {100 * waiting / seconds:.2f} % of a step")
    print(f"the most memory of this script: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


if __name__ == "__main__":
    main()
