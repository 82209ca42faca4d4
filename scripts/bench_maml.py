"""MAML's meta-step in metarun and in `higher`, the same work on the same episodes, taken in turns.

5-way 1-shot, one query per class, conv4 (64 filters, stride 2, batch norm on the batch's statistics), one second-order
inner step, Adam outside. Both start from the same weights; before anything is timed their meta-gradients are compared,
so that what is timed is the same work.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from statistics import median
from time import perf_counter

import higher  # pyright: ignore[reportMissingImports]  # only scripts/bench installs it
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun import __version__
from metarun.algorithms.maml import MAML
from metarun.device import describe
from metarun.engine.state import TrainState
from metarun.engine.step import meta_gradient, train_step
from metarun.models.conv4 import Conv4
from metarun.types import EpisodeBatch

INNER_LR, LR, WAY = 0.4, 1e-3, 5


class Conv4Module(nn.Sequential):
    """metarun's conv4 as a plain module, with its weights."""

    def __init__(self, meta: dict[str, Tensor]) -> None:
        filters = meta["conv0.weight"].shape[0]
        blocks: list[nn.Module] = []
        for i in range(4):
            conv = nn.Conv2d(meta[f"conv{i}.weight"].shape[1], filters, 3, stride=2, padding=1, bias=False)
            blocks += [conv, nn.BatchNorm2d(filters, track_running_stats=False), nn.ReLU()]
        super().__init__(*blocks, nn.Flatten(), nn.Linear(meta["head.weight"].shape[1], WAY))
        with torch.no_grad():
            # Both list conv, norm weight, norm bias block by block, then the head.
            for own, theirs in zip(self.parameters(), meta.values(), strict=True):
                own.copy_(theirs)


def higher_gradient(net: nn.Module, episodes: EpisodeBatch) -> None:
    """Adds the gradient of the mean query loss to `.grad`, task by task, as higher's MAML example does."""
    inner = torch.optim.SGD(net.parameters(), lr=INNER_LR)
    tasks = len(episodes.support_x)
    for support_x, support_y, query_x, query_y in zip(*episodes, strict=True):
        with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (fast, steps):
            steps.step(F.cross_entropy(fast(support_x), support_y))
            (F.cross_entropy(fast(query_x), query_y) / tasks).backward()


def random_episodes(tasks: int, device: torch.device) -> EpisodeBatch:
    """Noise: a step takes as long on it as on drawings."""
    x = torch.rand(2, tasks, WAY, 1, 28, 28, device=device)
    y = torch.arange(WAY, device=device).expand(tasks, -1)
    return EpisodeBatch(x[0], y, x[1], y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=32, help="meta-batch (32)")
    parser.add_argument("--repeats", type=int, default=20, help="timed steps of each, in turns (20)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)

    algorithm, net = MAML(inner_lr=INNER_LR), Conv4(item_shape=(1, 28, 28), outputs=WAY)
    torch.manual_seed(0)
    drawn = algorithm.init(net, torch.Generator().manual_seed(0))
    module = Conv4Module(drawn).to(device)
    meta = {name: w.to(device).requires_grad_() for name, w in drawn.items()}
    state = TrainState(meta, torch.optim.Adam(meta.values(), LR))
    outer = torch.optim.Adam(module.parameters(), LR)
    episodes = random_episodes(args.tasks, device)

    meta_gradient(algorithm, net, meta, episodes)
    higher_gradient(module, episodes)
    ours, theirs = (
        torch.cat([w.grad.flatten() for w in ws if w.grad is not None]) for ws in (meta.values(), module.parameters())
    )
    gap = float((ours - theirs).norm() / theirs.norm())
    assert gap < 1e-3, f"the two meta-gradients differ by {gap:.1e} of their norm: not the same work"

    def metarun_step() -> None:
        train_step(algorithm, net, state, episodes)

    def higher_step() -> None:
        outer.zero_grad()
        higher_gradient(module, episodes)
        outer.step()

    def timed(step: Callable[[], None]) -> float:
        began = perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter() - began

    for step in (metarun_step, higher_step) * 2:
        timed(step)  # warm-up
    pairs = [(timed(metarun_step), timed(higher_step)) for _ in range(args.repeats)]
    a, b = zip(*pairs, strict=True)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {describe(device)}")
    print(f"MAML 5-way 1-shot, {args.tasks} tasks a step; meta-gradients agree to {gap:.0e}")
    print(f"{'':18}{'median':>9}{'min':>9}{'max':>9}   seconds a step, {args.repeats} each, in turns")
    for name, times in ((f"metarun {__version__}", a), ("higher 0.2.1", b)):
        print(f"{name:<18}{median(times):>9.3f}{min(times):>9.3f}{max(times):>9.3f}")
    print(f"higher / metarun: {median(b) / median(a):.2f} (medians)")


if __name__ == "__main__":
    main()
