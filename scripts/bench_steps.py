"""A meta-step of metarun beside the same work in its peers, in turns.

Peers are `higher`, TorchOpt, the plain task loop, and metarun as it is not by default (`bench_cases.OWN`). Each system
is a process of its own, as its users have it, and works while all others wait: a step to get going, and one that is
timed. Beside the times: the most memory that each took; how far its meta-gradient is from the one in float64, of its
norm, the median of five draws (one ReLU that falls on the other side outweighs all rounding); and how far metarun is
from the arithmetic, counted, at the rate of a matrix product here.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
from bench_cases import CASES, OWN, PEERS, Case, Step, built, peers_of
from numpy.linalg import norm

from metarun import __version__
from metarun.device import describe, pick
from metarun.files import write_atomic
from metarun.settings import DeviceSettings

SPINS = "GOMP_SPINCOUNT"
RECORDED = Path(__file__).with_name("bench_recorded.json")
DRAWS = 5
QUICK = ("maml-5w1s", "maml-5w1s-q15")
LOOSE = 0.75
"""of a recorded ratio to the plain loop is what `--quick` still takes"""


def memory(what: str) -> int:
    """Bytes of this process: VmRSS, what it has, or VmHWM, the most that it had."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def timed(step: Step, device: str) -> float:
    began = perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - began


def serve(system: str, case: Case, threads: int, device: str, asked: Connection) -> None:
    """The process of one system: answers "gradients", "step", "memory" and "flops" until it hears "end"."""
    torch.set_num_threads(threads)
    if system == "metarun" or system in OWN:
        pick(DeviceSettings(kind=device, kernels=False if system == "torch's" else "auto"))
    exact = system == "float64"
    before = memory("VmRSS")
    made = built("loop" if exact else system, case, torch.float64 if exact else torch.float32, device)
    while (what := asked.recv()) != "end":
        if what == "gradients":
            asked.send([made.gradient(draw).double().cpu().numpy() for draw in range(1, DRAWS + 1)])
        elif what == "step":
            # A run takes its steps one after another: the first after the others' turns is not like them.
            took = [timed(made.step, device) for _ in range(2)]
            asked.send(took[-1])
        elif what == "flops":
            from torch.utils.flop_counter import FlopCounterMode

            with FlopCounterMode(display=False) as counter:
                made.step()
            asked.send(counter.get_total_flops())
        else:
            asked.send(torch.cuda.max_memory_allocated() if device == "cuda" else memory("VmHWM") - before)


@contextmanager
def serving(systems: list[str], case: Case, device: str) -> Iterator[dict[str, Connection]]:
    spawn, lines, processes = multiprocessing.get_context("spawn"), {}, []
    for system in systems:
        lines[system], theirs = spawn.Pipe()
        args = (system, case, torch.get_num_threads(), device, theirs)
        processes.append(spawn.Process(target=serve, args=args, daemon=True))
        spins = os.environ.pop(SPINS, None) if system in PEERS else None  # metarun's own, which peers do without
        processes[-1].start()
        os.environ.update({SPINS: spins} if spins else {})
        theirs.close()
    try:
        yield lines
    finally:
        for process in processes:
            process.kill()
            process.join()


def ask(line: Connection, what: str) -> Any:
    line.send(what)
    return line.recv()


def rate(device: str, side: int = 2048) -> float:
    """The most floating-point operations a second of a float32 matrix product here, of ten."""
    a, times = torch.rand(side, side, device=device), []
    for _ in range(10):
        began = perf_counter()
        torch.mm(a, a)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(perf_counter() - began)
    return 2 * side**3 / min(times)


def compare(name: str, peers: list[str], seconds: float, device: str) -> dict[str, Any]:
    """One case's figures. Steps are taken in turns for about so many seconds, 5 of each at least."""
    case = CASES[name]
    systems = ["metarun", *peers_of(case, device, peers)]
    with serving(["float64"], case, device) as lines:
        exact = ask(lines["float64"], "gradients")
    with serving(systems, case, device) as lines:
        gaps = {}
        for system in systems:
            found = ask(lines[system], "gradients")
            gaps[system] = median(float(norm(a - b) / norm(b)) for a, b in zip(found, exact, strict=True))
            if not gaps[system] < 0.2:
                sys.exit(f"{name}: the meta-gradient of {system} is {gaps[system]:.1e} of its norm off: other work")
        for system in systems:
            ask(lines[system], "step")
        times: dict[str, list[float]] = {system: [] for system in systems}
        rates = [rate(device)]
        began = perf_counter()
        while len(times["metarun"]) < 5 or perf_counter() - began < seconds:
            for system in systems:
                times[system].append(ask(lines[system], "step"))
        rates.append(rate(device))
        most = {system: ask(lines[system], "memory") for system in systems}
        flops = ask(lines["loop"], "flops") if "loop" in systems else None
    ours = median(times["metarun"])
    figures = {
        system: {
            "median": median(all_),
            "quartiles": [quantiles(all_)[0], quantiles(all_)[2]],
            "steps": len(all_),
            "ratio": median(all_) / ours,
            "memory": most[system],
            "gradient_error": gaps[system],
        }
        for system, all_ in times.items()
    }
    limit = {} if flops is None else {"flops": flops, "rate": max(rates), "times_limit": ours / (flops / max(rates))}
    return {"case": name, "what": case.described(), "systems": figures} | limit


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['what']}")
    print(f"{'':18}{'median':>9}{'quartiles':>17}{'ratio':>7}{'memory':>10}{'gradient error':>16}")
    for system, found in result["systems"].items():
        low, high = found["quartiles"]
        names = {"metarun": f"metarun {__version__}", "loop": "plain loop"} | {own: f"  {own}" for own in OWN}
        name = names.get(system, system)
        print(
            f"{name:<18}{found['median']:>8.3f}s{low:>9.3f} -{high:>6.3f}{found['ratio']:>7.2f}"
            f"{found['memory'] / 1e6:>7.0f} MB{found['gradient_error']:>16.0e}"
        )
    if "flops" in result:
        print(
            f"arithmetic: {result['flops'] / 1e9:.1f} GFLOP, {result['flops'] / result['rate']:.3f} s at the "
            f"{result['rate'] / 1e9:.0f} GFLOP/s of a matrix product; metarun: {result['times_limit']:.1f} times that"
        )


def slipped(results: list[dict[str, Any]]) -> dict[str, str]:
    """Which cases became slow, in words: their ratio is under three quarters of the recorded one."""
    recorded: dict[str, float] = json.loads(RECORDED.read_text())
    ratios = {result["case"]: result["systems"]["loop"]["ratio"] for result in results}
    return {
        name: f"{name}: {ratio:.2f} times as fast as the plain loop, recorded {recorded[name]:.2f}"
        for name, ratio in ratios.items()
        if ratio < LOOSE * recorded[name]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)} (all)")
    parser.add_argument("--seconds", type=float, default=40, help="of steps for each case, 5 of each at least (40)")
    parser.add_argument("--peers", default="", help="higher,torchopt,loop and so on (all there are)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="a file for all figures, as JSON")
    parser.add_argument("--quick", action="store_true", help="the plain loop only; fails if metarun became slow")
    parser.add_argument("--record", action="store_true", help="with --quick: these ratios are what is compared with")
    args = parser.parse_args()
    for name in args.cases:
        if name not in CASES:
            parser.error(f"no such case: {name}; there are {', '.join(CASES)}")
    peers = ["loop"] if args.quick else [peer for peer in args.peers.split(",") if peer]
    names = args.cases or (QUICK if args.quick else CASES)
    seconds = 15 if args.quick else args.seconds
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {describe(torch.device(args.device))}")
    print("seconds a meta-step, in turns; ratio: times metarun's; memory: the most it took beyond its imports")
    results = []
    for name in names:
        results.append(compare(name, peers, seconds, args.device))
        show(results[-1])
    if args.out:
        machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.processor()}
        content = json.dumps(
            {"metarun": __version__, "device": describe(torch.device(args.device)), **machine, "results": results},
            indent=1,
        )
        write_atomic(args.out, lambda file: file.write(content.encode()))
    if args.record:
        ratios = {result["case"]: round(result["systems"]["loop"]["ratio"], 2) for result in results}
        write_atomic(RECORDED, lambda file: file.write((json.dumps(ratios, indent=1) + "\n").encode()))
    elif args.quick and (slow := slipped(results)):
        print("\nslower than recorded; once more")
        again = [compare(name, peers, 2 * seconds, args.device) for name in slow]
        if slow := slipped(again):
            sys.exit("\n".join(["metarun became slower than it was:", *slow.values()]))


if __name__ == "__main__":
    main()
