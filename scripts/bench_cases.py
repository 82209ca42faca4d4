"""What `scripts/bench` times: each case's network and episodes, and one meta-step of it in metarun and in its peers.

A peer is what its users write: the case's network as a plain module, one task after another. All start from the same
weights and see the same episodes, which are noise: a step takes as long on it as on pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A method on `tasks` tasks of `way` classes with `shot` support and `query` query images each.

    The network is conv4 with batch norm on the batch's statistics.
    """

    method: str
    way: int
    shot: int
    query: int
    tasks: int = 32
    steps: int = 1
    inner_lr: float = 0.4
    side: int = 28
    channels: int = 1
    filters: int = 64
    halving: str = "stride"

    def described(self) -> str:
        adapts = f", {self.steps} inner step{'s' * (self.steps > 1)}" if self.method in ("maml", "anil") else ""
        side = "" if self.side == 28 else f", {self.side}x{self.side}"
        tasks, queries = (f"{n} {what}" for n, what in ((self.tasks, "tasks"), (self.query, "queries per class")))
        return f"{self.method} {self.way}-way {self.shot}-shot{side}, {queries}, {tasks}{adapts}"


CASES = {
    "maml-5w1s": Case("maml", 5, 1, 1),
    "maml-5w1s-q15": Case("maml", 5, 1, 15),
    "maml-20w5s": Case("maml", 20, 5, 5, inner_lr=0.1),
    "maml-5w5s-84": Case("maml", 5, 5, 15, 4, 5, 0.01, side=84, channels=3, filters=32, halving="pool"),
    "anil-5w1s": Case("anil", 5, 1, 15, steps=5, inner_lr=0.1),
    "protonet-5w1s": Case("protonet", 5, 1, 15),
    "r2d2-5w1s": Case("r2d2", 5, 1, 15),
}


FEW = 4
"""tasks that a gradient's accuracy is looked at with"""
Tasks = tuple[Tensor, Tensor, Tensor, Tensor]
"""(tasks, images, channels, side, side) and (tasks, images), of the support and of the queries"""


class Built(NamedTuple):
    """Ready to be timed. `gradient` gives the flat meta-gradient of the first weights on a few tasks of a draw, `step`
    takes a whole meta-update."""

    gradient: Callable[[int], Tensor]
    step: Step


def episodes(case: Case, dtype: torch.dtype, device: torch.device, draw: int = 0) -> Tasks:
    """Those of a step; of draw 1, 2, ... only a few."""
    generator = torch.Generator().manual_seed(draw)
    tasks = min(FEW, case.tasks) if draw else case.tasks
    sides: list[Tensor] = []
    for each in (case.shot, case.query):
        images = (tasks, case.way * each, case.channels, case.side, case.side)
        x = torch.rand(images, generator=generator).to(device, dtype)
        sides += [x, torch.arange(case.way, device=device).repeat_interleave(each).expand(tasks, -1)]
    return sides[0], sides[1], sides[2], sides[3]


def drawn(case: Case) -> tuple[Any, Any, dict[str, Tensor]]:
    """metarun's algorithm and network for it, and its weights."""
    from metarun.algorithms.anil import ANIL
    from metarun.algorithms.maml import MAML
    from metarun.algorithms.protonet import ProtoNet
    from metarun.algorithms.r2d2 import R2D2
    from metarun.models.conv4 import Conv4

    inner = {"inner_lr": case.inner_lr, "inner_steps": case.steps}
    algorithm = {
        "maml": lambda: MAML(**inner),
        "anil": lambda: ANIL(**inner),
        "protonet": ProtoNet,
        "r2d2": R2D2,
    }[case.method]()
    shape = (case.channels, case.side, case.side)
    net = Conv4(item_shape=shape, outputs=case.way, filters=case.filters, halving=case.halving)
    return algorithm, net, algorithm.init(net, torch.Generator().manual_seed(0))


def metarun(case: Case, dtype: torch.dtype, device: torch.device, system: str) -> Built:
    """As it is by default, or as one of `OWN` has it."""
    from metarun.computing import compiler
    from metarun.engine.compiled import Compiled
    from metarun.engine.optim import make_optimizer
    from metarun.engine.portions import few_at_once
    from metarun.engine.state import TrainState
    from metarun.engine.step import as_it_comes, meta_gradient, train_step
    from metarun.types import EpisodeBatch

    algorithm, net, weights = drawn(case)
    meta = {name: w.to(device, dtype).requires_grad_() for name, w in weights.items()}
    state = TrainState(meta, make_optimizer("Adam", meta.values(), 1e-3, {}))
    cpu = device.type == "cpu"
    if system == "torch's" or (system == "metarun" and not cpu):
        portion = as_it_comes
    else:
        few = few_at_once if cpu and system != "all at once" else None
        by = partial(torch.compile, fullgraph=True, dynamic=False) if system == "compiled" and cpu else compiler(device)
        portion = Compiled(lambda line: None, compiler=by, at_once=few)
    batch = EpisodeBatch(*episodes(case, dtype, device))

    def gradient(draw: int) -> Tensor:
        first = {name: w.to(device, dtype).requires_grad_() for name, w in drawn(case)[2].items()}
        meta_gradient(algorithm, net, first, EpisodeBatch(*episodes(case, dtype, device, draw)), portion=portion)
        return flat(list(first.values()))

    def step() -> None:
        train_step(algorithm, net, state, batch, portion=portion)

    return Built(gradient, step)


class Plain(nn.Module):
    """The case's network as its users write it, with the same weights."""

    def __init__(self, case: Case, weights: dict[str, Tensor]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i in range(4):
            stride, channels = (2 if case.halving == "stride" else 1), weights[f"conv{i}.weight"].shape[1]
            bias = f"conv{i}.bias" in weights
            blocks.append(nn.Conv2d(channels, case.filters, 3, stride=stride, padding=1, bias=bias))
            blocks.append(nn.BatchNorm2d(case.filters, track_running_stats=False))
            blocks += [nn.ReLU()] if stride == 2 else [nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*blocks, nn.Flatten())
        if "head.weight" in weights:
            self.head = nn.Linear(weights["head.weight"].shape[1], case.way)
        if case.method == "r2d2":
            self.log_l, self.scale = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        # Both list conv, norm weight, norm bias block by block, then the head or the method's own; a module's own
        # parameters come before those of its parts.
        names = list(weights)
        if case.method == "r2d2":
            names = names[-2:] + names[:-2]
        self.order = names
        with torch.no_grad():
            for own, name in zip(self.parameters(), names, strict=True):
                own.copy_(weights[name])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def plain(case: Case, dtype: torch.dtype, device: torch.device, peer: str) -> Built:
    """`peer`: `higher`, `torchopt` or `loop`, which is torch alone"""
    _, _, weights = drawn(case)
    net = Plain(case, weights).to(device, dtype)
    outer = torch.optim.Adam(net.parameters())
    tasks = list(zip(*episodes(case, dtype, device), strict=True))
    add = {"higher": by_higher, "torchopt": by_torchopt, "loop": by_loop}[peer](case, net)

    def gradient(draw: int) -> Tensor:
        net.zero_grad()
        few = list(zip(*episodes(case, dtype, device, draw), strict=True))
        for task in few:
            add(*task, 1 / len(few))
        own = dict(zip(net.order, net.parameters(), strict=True))
        return flat([own[name] for name in weights])

    def step() -> None:
        outer.zero_grad()
        for task in tasks:
            add(*task, 1 / len(tasks))
        outer.step()

    return Built(gradient, step)


AddsTask = Callable[[Tensor, Tensor, Tensor, Tensor, float], None]
"""(support_x, support_y, query_x, query_y, share) adds the gradient of a task's share of the loss to `.grad`"""


def by_higher(case: Case, net: Plain) -> AddsTask:
    import higher  # pyright: ignore[reportMissingImports]  # only scripts/bench installs it

    adapts, body = (net, nn.Identity()) if case.method == "maml" else (net.head, net.body)
    inner = torch.optim.SGD(adapts.parameters(), lr=case.inner_lr)

    def add(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, share: float) -> None:
        with higher.innerloop_ctx(adapts, inner, copy_initial_weights=False) as (fast, steps):
            support = body(support_x)
            for _ in range(case.steps):
                steps.step(F.cross_entropy(fast(support), support_y))
            (share * F.cross_entropy(fast(body(query_x)), query_y)).backward()

    return add


def by_torchopt(case: Case, net: Plain) -> AddsTask:
    import torchopt  # pyright: ignore[reportMissingImports]  # only scripts/bench installs it

    adapts, body = (net, nn.Identity()) if case.method == "maml" else (net.head, net.body)
    inner = torchopt.MetaSGD(adapts, lr=case.inner_lr)

    def add(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, share: float) -> None:
        before = torchopt.extract_state_dict(adapts, by="reference", detach_buffers=True)
        rates = torchopt.extract_state_dict(inner, by="reference")
        support = body(support_x)
        for _ in range(case.steps):
            inner.step(F.cross_entropy(adapts(support), support_y))
        (share * F.cross_entropy(adapts(body(query_x)), query_y)).backward()
        torchopt.recover_state_dict(adapts, before)
        torchopt.recover_state_dict(inner, rates)

    return add


def by_loop(case: Case, net: Plain) -> AddsTask:
    from torch.func import functional_call

    loss = {"protonet": protonet_loss, "r2d2": r2d2_loss}.get(case.method)
    adapts, body = (net, nn.Identity()) if case.method == "maml" else (getattr(net, "head", net), net.body)

    def adapted(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        support = body(support_x)
        fast: dict[str, Tensor] = dict(adapts.named_parameters())
        for _ in range(case.steps):
            inner = F.cross_entropy(functional_call(adapts, fast, support), support_y)
            slopes = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
            fast = {name: w - case.inner_lr * slope for (name, w), slope in zip(fast.items(), slopes, strict=True)}
        return F.cross_entropy(functional_call(adapts, fast, body(query_x)), query_y)

    def add(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor, share: float) -> None:
        task = support_x, support_y, query_x, query_y
        (share * (adapted(*task) if loss is None else loss(net, case.way, *task))).backward()

    return add


def protonet_loss(net: Plain, way: int, support_x: Tensor, support_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
    support, query = net.body(torch.cat([support_x, x])).split([len(support_x), len(x)])
    prototypes = torch.stack([support[support_y == c].mean(0) for c in range(way)])
    return F.cross_entropy(-(query[:, None] - prototypes).square().sum(-1), y)


def r2d2_loss(net: Plain, way: int, support_x: Tensor, support_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
    features = net.body(torch.cat([support_x, x]))
    support, query = torch.cat([features, torch.ones_like(features[:, :1])], 1).split([len(support_x), len(x)])
    targets = F.one_hot(support_y, way).to(support.dtype)
    gram = support @ support.T + len(support) * net.log_l.exp() * torch.eye(len(support)).to(support)
    return F.cross_entropy(net.scale * (query @ (support.T @ torch.linalg.solve(gram, targets))), y)


def flat(weights: list[Tensor]) -> Tensor:
    return torch.cat([w.grad.flatten() for w in weights if w.grad is not None])


OWN = {
    "all at once": "device.chunk=null, on a CPU",
    "torch's": "device.kernels=false device.compile=false, on a CPU",
    "compiled": "device.compile=true on a GPU; on a CPU, where no setting asks for it, by torch's compiler too",
}
"""metarun as it is not by default"""


PEERS = ("higher", "torchopt", "loop")


def peers_of(case: Case, device: str, named: list[str]) -> list[str]:
    """Those `named`, or all but what takes a minute for each case: to be compiled on a CPU."""
    own = ["all at once", "torch's", "compiled"] if device == "cpu" else ["compiled"]
    every = [*own, *(["higher", "torchopt"] if case.method in ("maml", "anil") else []), "loop"]
    return [peer for peer in every if (peer in named if named else (device, peer) != ("cpu", "compiled"))]


def built(system: str, case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Built:
    where = torch.device(device)
    if system == "metarun" or system in OWN:
        return metarun(case, dtype, where, system)
    return plain(case, dtype, where, system)
