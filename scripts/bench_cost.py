"""What a MAML step costs as the task grows: meta-batch, inner steps, way, shot, image size; a picture and its figures.

Everything else is as in 5-way 1-shot with one query per class, 32 tasks, conv4 (64 filters, strides, 28x28). Beside
metarun is the plain task loop, the same work on the same noise, in turns.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_cases import CASES, Case
from bench_steps import ask, serving

from metarun.device import describe, pick
from metarun.files import write_atomic
from metarun.settings import DeviceSettings

BASE = CASES["maml-5w1s"]
AXES: dict[str, tuple[str, tuple[int, ...]]] = {
    "tasks": ("meta-batch", (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "steps": ("inner steps", (1, 2, 3, 5, 10)),
    "way": ("way", (2, 5, 10, 20)),
    "shot": ("shot", (1, 2, 5, 10)),
    "side": ("image side", (14, 28, 56, 84)),
}
SYSTEMS = {"metarun": "metarun", "loop": "plain task loop"}


def cost(case: Case, repeats: int, device: str) -> dict[str, float]:
    """Median seconds of a step in each system, which is a process of its own and has its own way to wait."""
    times: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    with serving(list(SYSTEMS), case, device) as lines:
        for _ in range(repeats + 1):
            for system, line in lines.items():
                times[system].append(ask(line, "step"))
    return {system: median(all_[1:]) for system, all_ in times.items()}


def drawn(curves: dict[str, list[dict[str, Any]]], path: Path, device: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 2.8), layout="constrained")
    for axes, (field, points) in zip(figure.subplots(1, len(curves), sharey=True), curves.items(), strict=True):
        for system, colour in (("metarun", "#0b7285"), ("loop", "#adb5bd")):
            axes.plot([p[field] for p in points], [p[system] for p in points], "o-", ms=3, color=colour, label=system)
        axes.set(xscale="log", yscale="log", xlabel=AXES[field][0])
        axes.set_xticks([p[field] for p in points], [str(p[field]) for p in points], fontsize=7)
        axes.minorticks_off()
        axes.grid(alpha=0.2)
    figure.axes[0].set_ylabel("seconds a step")
    figure.axes[0].legend([SYSTEMS[system] for system in SYSTEMS], frameon=False, fontsize=8)
    figure.suptitle(f"MAML 5-way 1-shot, 32 tasks, one inner step, 28x28, but for one thing: {device}", fontsize=9)
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=110))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (5)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, default=Path("cost"), help="writes OUT.png and OUT.json (cost)")
    args = parser.parse_args()
    device = describe(pick(DeviceSettings(kind=args.device)))
    curves: dict[str, list[dict[str, Any]]] = {}
    for field, (name, values) in AXES.items():
        curves[field] = []
        for value in values:
            found = cost(replace(BASE, **{field: value}), args.repeats, args.device)
            curves[field].append({field: value, **found})
            told = ", ".join(f"{SYSTEMS[system]} {seconds:.3f} s" for system, seconds in found.items())
            print(f"{name} {value}: {told}, {found['loop'] / found['metarun']:.1f} times", flush=True)
    content = {"device": device, "torch": torch.__version__, "base": asdict(BASE), "curves": curves}
    write_atomic(args.out.with_suffix(".json"), lambda file: file.write(json.dumps(content, indent=1).encode()))
    drawn(curves, args.out.with_suffix(".png"), device)
    print(f"{args.out}.png, {args.out}.json")


if __name__ == "__main__":
    main()
