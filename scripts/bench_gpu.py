"""All that only a GPU can show, meant to take under 10 minutes: `scripts/bench gpu --out gpu.json`.

    right      meta-gradients in fp32, tf32 and bf16 against float64 on the CPU; a recorded run against one that is not
    steps      MAML 5-way 1-shot, whole steps, episodes and optimizer too: as they come, recorded (device.graph), with
               device.compile, tf32 and bf16, beside `higher`, TorchOpt and the plain loop (gradient and optimizer
               alone), and JAX
    layers     each convolution of a step, grouped and as patches times weights
    recipe     `metarun train experiment=omniglot_maml_5w1s`: 60,000 iterations, their time and accuracy

A part that fails says why, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from bench_cases import CASES, built, drawn, episodes, flat
from torch import Tensor

from metarun.computing import compiler, with_tf32
from metarun.data.bank import ClassBank
from metarun.device import allow_tf32, describe, pick
from metarun.engine.compiled import Compiled
from metarun.engine.graph import Recorded
from metarun.engine.loop import Computed, computed, meta_update
from metarun.engine.state import TrainState
from metarun.engine.step import meta_gradient
from metarun.files import write_atomic
from metarun.settings import DeviceSettings, TrainSettings
from metarun.types import EpisodeBatch

CASE = CASES["maml-5w1s"]
GOAL = {"steps_per_second": 250, "times_higher": 40, "recipe_seconds": 300}
CUDA = torch.device("cuda")


def seconds(step: Callable[[], Any], wait: Callable[[], Any], count: int, rounds: int = 5) -> float:
    """Of a step, the median of `rounds` of `count` steps each."""
    for _ in range(5):
        step()
    wait()
    found = []
    for _ in range(rounds):
        began = perf_counter()
        for _ in range(count):
            step()
        wait()
        found.append((perf_counter() - began) / count)
    return median(found)


def bank() -> ClassBank:
    """As large as Omniglot's training classes with rotations, of noise."""
    items = torch.randint(0, 256, (4800 * 20, 1, 28, 28), dtype=torch.uint8)
    return ClassBank(items, torch.arange(4801) * 20, tuple(map(str, range(4800)))).to(CUDA)


def trained(items: ClassBank, compute: Computed, low: bool = False) -> tuple[TrainState, Callable[[], None]]:
    """A run of the case from its start, and what takes its next step."""
    algorithm, net, weights = drawn(CASE)
    net = net.in_bf16() if low else net
    meta = {name: w.to(CUDA).requires_grad_() for name, w in weights.items()}
    state = TrainState(meta, torch.optim.Adam(meta.values(), 1e-3))
    sampler, settings = items.episodes(5, 1, 1, 0, "train"), TrainSettings(iterations=10**9, meta_batch=32)

    def step() -> None:
        meta_update(algorithm, net, state, sampler, settings, 0, None, compute=compute)

    return state, step


def right() -> dict[str, float]:
    """How far from float64 on the CPU, of its norm; and how far apart 30 steps are, recorded and not."""
    found: dict[str, float] = {}

    def gradient(name: str, device: torch.device, dtype: torch.dtype, low: bool = False) -> Tensor:
        algorithm, net, weights = drawn(CASES[name])
        meta = {key: w.to(device, dtype).requires_grad_() for key, w in weights.items()}
        drawn_ = EpisodeBatch(*episodes(CASES[name], dtype, device, 1))
        meta_gradient(algorithm, net.in_bf16() if low else net, meta, drawn_)
        return flat(list(meta.values())).double().cpu()

    for name in ("maml-5w1s", "maml-5w1s-q15", "anil-5w1s", "protonet-5w1s", "r2d2-5w1s"):
        exact = gradient(name, torch.device("cpu"), torch.float64)
        for precision in ("fp32", "tf32", "bf16"):
            allow_tf32(precision == "tf32")
            ours = gradient(name, CUDA, torch.float32, precision == "bf16")
            found[f"{name} {precision}"] = float((ours - exact).norm() / exact.norm())
        allow_tf32(False)
    items = bank()
    runs = [trained(items, compute) for compute in (computed, Recorded(computed, CUDA, print))]
    for _, step in runs:
        for _ in range(30):
            step()
    a, b = (torch.cat([w.detach().flatten() for w in state.meta.values()]) for state, _ in runs)
    found["recorded, 30 steps"] = float((a - b).norm() / a.norm())
    return found


def steps() -> dict[str, float]:
    """Seconds of a step"""
    items, wait, found = bank(), torch.cuda.synchronize, dict[str, float]()
    compiled = Compiled(print, compiler=compiler(CUDA))
    for name, compute, low in (
        ("as it comes", computed, False),
        ("recorded", Recorded(computed, CUDA, print), False),
        ("recorded, compiled", Recorded(partial(computed, portion=compiled), CUDA, print), False),
        ("recorded, tf32", Recorded(with_tf32(computed), CUDA, print), False),
        ("recorded, bf16", Recorded(computed, CUDA, print), True),
    ):
        _, step = trained(items, compute, low)
        found[name] = seconds(step, wait, 20 if name == "as it comes" else 200)
        print(f"  {name:<18}{1e3 * found[name]:>10.2f} ms{1 / found[name]:>10.0f} steps a second", flush=True)
    for peer in ("higher", "torchopt", "loop"):
        try:
            found[peer] = seconds(built(peer, CASE, device="cuda").step, wait, 3, 3)
        except ImportError:
            continue
        print(f"  {peer:<18}{1e3 * found[peer]:>10.2f} ms", flush=True)
    try:
        from bench_jax import jax_step

        step, jax_wait = jax_step(CASE, "cuda")
        found["jax"] = seconds(step, jax_wait, 100)
        print(f"  {'jax':<18}{1e3 * found['jax']:>10.2f} ms", flush=True)
    except ImportError:
        print("  JAX is not installed here")
    return found


def layers() -> dict[str, dict[str, float]]:
    """Seconds of the convolutions of 32 tasks with weights of their own, forward and both gradients."""
    found: dict[str, dict[str, float]] = {}
    for inputs, side in ((1, 28), (64, 14), (64, 7), (64, 4)):
        x = torch.rand(5, 32 * inputs, side, side, device="cuda", requires_grad=True)
        w = torch.rand(32 * 64, inputs, 3, 3, device="cuda", requires_grad=True)

        def grouped(x: Tensor = x, w: Tensor = w) -> Tensor:
            return F.conv2d(x, w, None, 2, 1, groups=32)

        def patches(x: Tensor = x, w: Tensor = w, inputs: int = inputs) -> Tensor:
            split = x.unflatten(1, (32, inputs)).transpose(0, 1).flatten(0, 1)
            columns = F.unfold(split, 3, padding=1, stride=2).unflatten(0, (32, 5))
            return w.view(32, 1, 64, -1) @ columns

        def both(form: Callable[[], Tensor], x: Tensor = x, w: Tensor = w) -> None:
            torch.autograd.grad(form().sum(), (x, w))

        wait = torch.cuda.synchronize
        found[f"{inputs} channels, {side}x{side}"] = {
            name: seconds(lambda form=form: both(form), wait, 50)
            for name, form in (("grouped", grouped), ("patches", patches))
        }
    return found


def recipe(limit: float) -> dict[str, Any]:
    """The paper's recipe by the command line, on the data of METARUN_DATA."""
    if not os.environ.get("METARUN_DATA"):
        return {"skipped": "METARUN_DATA names no folder with Omniglot"}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "metarun",
            "train",
            "experiment=omniglot_maml_5w1s",
            "device=cuda",
            "logger=none",
        ]
        began = perf_counter()
        out = subprocess.run([*command, f"hydra.run.dir={folder}/run"], timeout=limit, check=False, text=True,
                             capture_output=True)  # fmt: skip
        print(out.stdout[-1500:], out.stderr[-1500:])
        told = Path(folder, "run", "eval.json")
        return {"seconds": perf_counter() - began, "eval": json.loads(told.read_text()) if told.exists() else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--parts", default="right,steps,layers,recipe")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (9.5)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("scripts/bench gpu: torch sees no CUDA device here")
    ends = time.monotonic() + 60 * args.minutes
    pick(DeviceSettings(kind="cuda"))
    found: dict[str, Any] = {"device": describe(CUDA), "torch": torch.__version__, "python": platform.python_version()}
    found["goal"] = GOAL
    parts = {"right": right, "steps": steps, "layers": layers, "recipe": lambda: recipe(ends - time.monotonic() - 5)}
    for name in args.parts.split(","):
        print(name, flush=True)
        began = perf_counter()
        try:
            found[name] = parts[name]()
        except Exception as error:
            traceback.print_exc()
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"  {json.dumps(found[name])[:1500]}\n  {perf_counter() - began:.0f} s", flush=True)
        write_atomic(args.out, lambda file: file.write(json.dumps(found, indent=1).encode()))


if __name__ == "__main__":
    main()
