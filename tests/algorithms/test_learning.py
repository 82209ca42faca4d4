"""Every algorithm learns to learn: from chance to well above it, on classes it has never seen, in a few seconds.

The classes hide in a few directions of an 8x8 image under loud noise in others, which are the same for all classes. One
example tells nothing to a network that has not learned which directions matter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from contract.small import ALGORITHMS

from metarun.config import known
from metarun.data.bank import ClassBank
from metarun.data.sampler import EpisodeSampler
from metarun.engine.evaluate import score, task_values
from metarun.engine.optim import make_optimizer
from metarun.engine.state import TrainState
from metarun.engine.step import train_step

SIDE, SIGNAL, NOISE, EACH = 8, 6, 12, 12


def make_bank(classes: int, seed: int) -> ClassBank:
    pixels = SIDE * SIDE
    directions = torch.linalg.qr(torch.randn(pixels, pixels, generator=torch.Generator().manual_seed(0))).Q
    generator = torch.Generator().manual_seed(seed)
    code = torch.randn(classes, 1, SIGNAL, generator=generator)
    code = code + 0.15 * torch.randn(classes, EACH, SIGNAL, generator=generator)
    noise = 3 * torch.randn(classes, EACH, NOISE, generator=generator)
    x = torch.cat([code, noise], -1) @ directions[:, : SIGNAL + NOISE].T
    items = (128 + 40 * x).clamp(0, 255).to(torch.uint8).view(-1, 1, SIDE, SIDE)
    return ClassBank(items, torch.arange(classes + 1) * EACH, tuple(map(str, range(classes))))


@dataclass(frozen=True)
class Recipe:
    """What an algorithm is trained with here; these defaults where it has no entry below."""

    algo: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "Adam"
    lr: float = 3e-3
    steps: int = 130
    meta_batch: int = 16
    query: int = 3


RECIPES = {
    "fomaml": Recipe({"inner_lr": 0.2, "inner_steps": 2}),
    "reptile": Recipe({"inner_lr": 0.02, "eval_steps": 20}, "SGD", 1.0, steps=120, meta_batch=5, query=9),
}
MODELS: dict[str, dict[str, Any]] = {"mlp": {"widths": [64, 32]}, "conv4": {"filters": 16, "blocks": 2}}


def before_and_after(name: str, model: str, recipe: Recipe) -> tuple[float, float]:
    """Accuracy on unseen classes, 5-way 1-shot, of fresh weights and of trained ones."""
    algorithm = known("algo")[name](**recipe.algo)
    net = known("model")[model](item_shape=(1, SIDE, SIDE), outputs=5, **MODELS[model])
    train = EpisodeSampler(make_bank(200, seed=1), 5, 1, recipe.query, 0, "train")
    test = EpisodeSampler(make_bank(100, seed=2), 5, 1, 3, 0, "test")
    meta = {n: w.requires_grad_() for n, w in algorithm.init(net, torch.Generator().manual_seed(0)).items()}
    state = TrainState(meta, make_optimizer(recipe.optimizer, meta.values(), recipe.lr, {}))

    def accuracy() -> float:
        return score(task_values(algorithm, net, meta, test, 100, 50)).mean

    before = accuracy()
    while state.step < recipe.steps:
        train_step(algorithm, net, state, train(state.step * recipe.meta_batch, recipe.meta_batch), None, None)
    return before, accuracy()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_learns_on_an_mlp(name: str) -> None:
    before, after = before_and_after(name, "mlp", RECIPES.get(name, Recipe()))
    assert before < 0.35
    assert after > 0.65


@pytest.mark.parametrize(("name", "algo"), [("maml", {"inner_lr": 0.1}), ("anil", {}), ("protonet", {})])
def test_it_learns_on_a_conv4(name: str, algo: dict[str, Any]) -> None:
    before, after = before_and_after(name, "conv4", Recipe(algo, steps=180))
    assert before < 0.35
    assert after > 0.65
