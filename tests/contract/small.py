"""Small networks and random tasks in double precision, for whatever algorithm and model is registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torchvision.models._api import register_model
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from metarun.config import known
from metarun.engine.step import meta_gradient
from metarun.types import Algorithm, Episode, EpisodeBatch, HostSide, Meta, Net, TaskShape

WAY, SHOT, QUERY, TASKS = 3, 2, 2, 3
ITEM = (1, 8, 8)

TRAINED = sorted(name for name, cls in known("algo").items() if not issubclass(cls, HostSide))
"""The algorithms that work in torch, and train."""

_SHORT = {"inner_steps": 2, "eval_steps": 2, "cg_steps": 2, "inner_batch": 4, "input_gate": 0.1}


@register_model("tiny_resnet")
class TinyResNet(nn.Module):
    """A network as torchvision builds them, smaller than any that it has."""

    def __init__(self, weights: None = None, progress: bool = True) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(3, 8, stride=2)
        self.block = BasicBlock(8, 8)
        self.fc = nn.Linear(8, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


Model = tuple[str, dict[str, Any]]
CONV4: Model = ("conv4", {"filters": 8, "blocks": 2, "halving": "stride", "readout": "flatten"})
POOLED: Model = ("conv4", {"filters": 8, "blocks": 2, "halving": "pool", "readout": "mean"})
MLP: Model = ("mlp", {"widths": [12, 8]})
SKIPPING: Model = ("conv4", {"filters": 8, "blocks": 2, "halving": "pool", "residual": True})
R2D2: Model = ("conv_r2d2", {"filters": [8, 8], "dropout": 0.0})
RESNET12: Model = ("resnet12", {"widths": [8, 8], "readout": "mean", "dropout": 0.0, "dropblock": 0.0})
RESNET18: Model = ("resnet18", {"widths": [8, 8], "blocks": [1, 1], "stem": "small"})
WRN: Model = ("wrn28_10", {"depth": 10, "widen": 1, "base": 8})
TORCHVISION: Model = ("torchvision", {"arch": "tiny_resnet"})
_LISTED = [CONV4, POOLED, MLP, SKIPPING, R2D2, RESNET12, RESNET18, WRN, TORCHVISION]
MODELS = _LISTED + [(name, {}) for name in sorted(known("model")) if name not in {listed for listed, _ in _LISTED}]
"""Every model: small where it is listed, with its defaults otherwise."""

NORMS = ("batch", "group", "layer", "none")
STATISTICS = ("batch", "support", "running")


def model_id(model: Model) -> str:
    return "-".join([model[0], *(str(value) for value in model[1].values() if isinstance(value, str))])


def make_algorithm(name: str, **settings: Any) -> Algorithm:
    """The algorithm with few inner steps, in small batches, where it has such settings."""
    cls = known("algo")[name]
    own = {f.name for f in fields(cls)}
    return cls(**{k: v for k, v in _SHORT.items() if k in own} | settings)


def make_net(model: Model = CONV4, norm: str = "batch", statistics: str = "batch") -> Any:
    name, settings = model
    common = {"item_shape": ITEM, "outputs": WAY, "norm": norm, "statistics": statistics, "groups": 4}
    return known("model")[name](**common, **settings)


def fits(algorithm: Algorithm, net: Net, kind: str = "classification") -> bool:
    """Whether the method serves these tasks with this network, by its own word."""
    try:
        algorithm.check(net, TaskShape(kind, WAY if kind == "classification" else 1, SHOT, QUERY))
    except ValueError:
        return False
    return True


PAIRS = [(name, model) for name in TRAINED for model in MODELS if fits(make_algorithm(name), make_net(model))]
"""Every algorithm that tells classes apart with every model that fits."""
ALGORITHMS = list(dict.fromkeys(name for name, _ in PAIRS))
REGRESSORS = [name for name in TRAINED if fits(make_algorithm(name), make_net(MLP), "regression")]
"""Those that predict numbers, with the MLP."""


def pair_id(pair: tuple[str, Model]) -> str:
    return f"{pair[0]}-{model_id(pair[1])}"


def make_meta(algorithm: Algorithm, net: Net, seed: int = 0) -> Meta:
    """Initial weights, shaken so that no bias is 0 and no norm's weight 1; leaves in double precision."""
    generator = Generator().manual_seed(seed)
    drawn = algorithm.init(net, generator)
    return {
        n: (w + 0.1 * torch.randn(w.shape, generator=generator)).double().requires_grad_() for n, w in drawn.items()
    }


def make_running(algorithm: Algorithm, net: Net, meta: Meta, seed: int = 1) -> Meta:
    """Moving averages as if there had been some training; empty where the net keeps none."""
    task = next(one_by_one(make_episodes(1, seed, query=5)))
    with torch.no_grad():
        return moments_of(algorithm, net, meta, task) if net.tracks else {}


def moments_of(algorithm: Algorithm, net: Net, meta: Meta, task: Episode) -> Meta:
    """The norm statistics of one task: those that the method's loss tells of, else the meta-weights' on all of it."""
    return algorithm.loss(net, meta, task).moments or net.moments(meta, torch.cat([task.support_x, task.query_x]))


def make_episodes(tasks: int = TASKS, seed: int = 2, query: int = QUERY) -> EpisodeBatch:
    """Noise with the classes in an order of its own in every task."""
    generator = Generator().manual_seed(seed)

    def labels(each: int) -> Tensor:
        order = [torch.randperm(WAY * each, generator=generator) % WAY for _ in range(tasks)]
        return torch.stack(order)

    def items(each: int) -> Tensor:
        return torch.rand((tasks, WAY * each, *ITEM), generator=generator, dtype=torch.float64)

    return EpisodeBatch(items(SHOT), labels(SHOT), items(query), labels(query))


def make_regression(tasks: int = TASKS, seed: int = 2, query: int = QUERY) -> EpisodeBatch:
    """The same items with real targets, as many numbers in each as there are classes otherwise."""
    generator = Generator().manual_seed(seed + 1)
    items = make_episodes(tasks, seed, query)

    def targets(x: Tensor) -> Tensor:
        return torch.randn(*x.shape[:2], WAY, generator=generator, dtype=torch.float64)

    return items._replace(support_y=targets(items.support_x), query_y=targets(items.query_x))


def one_by_one(episodes: EpisodeBatch) -> Iterator[Episode]:
    for i in range(len(episodes.support_x)):
        yield Episode(*(field[i] for field in episodes))


def vmapped_gradient(
    algorithm: Algorithm, net: Net, meta: Meta, episodes: EpisodeBatch, chunk: int | None = None
) -> tuple[Meta, dict[str, Tensor], Meta]:
    """The engine's own: gradient by name, metrics, norm statistics."""
    for w in meta.values():
        w.grad = None
    metrics, moments = meta_gradient(algorithm, net, meta, episodes, chunk)
    missing = [name for name, w in meta.items() if w.grad is None]
    assert not missing, f"no gradient for {missing}"
    return {name: w.grad.clone() for name, w in meta.items()}, metrics, moments  # type: ignore[union-attr]


def loop_gradient(loss: Callable[[Episode], Tensor], meta: Meta, episodes: EpisodeBatch) -> Meta:
    """The same by its definition: task after task with no vmap, and plain autograd around it."""
    losses = torch.stack([loss(task) for task in one_by_one(episodes)])
    return dict(zip(meta, torch.autograd.grad(losses.mean(), list(meta.values()))))


def gap(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|"""
    a, b = a.detach(), b.detach()
    return float((a - b).norm() / b.norm())
