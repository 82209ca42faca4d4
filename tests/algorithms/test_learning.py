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
from metarun.engine.evaluate import score, task_values
from metarun.engine.optim import make_optimizer
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.measures import MEASURES

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
    model: str = "mlp"


RECIPES = {
    "relationnet": Recipe({"channels": 16}, steps=140, model="conv4"),  # an mlp has no feature maps
    "metaoptnet": Recipe({"solver_steps": 10}, steps=80),
    "baseline": Recipe(steps=200, meta_batch=64),
    "baselinepp": Recipe(steps=200, meta_batch=64),
    "cavia": Recipe({"layer": "norm1", "inner_lr": 10.0}, lr=5e-3, steps=200),
    "metalstm": Recipe(
        {"hidden": 4, "input_gate": 0.1, "inner_steps": 3, "eval_steps": 3}, lr=5e-3, steps=80, meta_batch=8
    ),
    "protomaml": Recipe({"inner_steps": 2, "eval_steps": 2}),
    "boil": Recipe({"inner_lr": 2.0}, lr=1e-2, steps=200),
    "imaml": Recipe(
        {"inner_lr": 0.5, "inner_steps": 5, "eval_steps": 5, "regularisation": 0.5, "cg_steps": 3}, lr=5e-3, steps=80
    ),
    "mamlpp": Recipe({"inner_steps": 3, "eval_steps": 3, "multi_step_iterations": 60}, steps=100),
    "fomaml": Recipe({"inner_lr": 0.2, "inner_steps": 2}),
    "reptile": Recipe({"inner_lr": 0.02, "eval_steps": 20}, "SGD", 1.0, steps=120, meta_batch=5, query=9),
}
MODELS: dict[str, dict[str, Any]] = {"mlp": {"widths": [64, 32]}, "conv4": {"filters": 16, "blocks": 2}}


def before_and_after(name: str, model: str, recipe: Recipe) -> tuple[float, float]:
    """Accuracy on unseen classes, 5-way 1-shot, of fresh weights and of trained ones."""
    algorithm = known("algo")[name](**recipe.algo)
    bank = make_bank(200, seed=1)
    train = bank.batches(0, "train") if algorithm.supervised else bank.episodes(5, 1, recipe.query, 0, "train", "task")
    test = make_bank(100, seed=2).episodes(5, 1, 3, 0, "test", "eval")
    net, test_net = (
        known("model")[model](item_shape=(1, SIDE, SIDE), outputs=n, **MODELS[model]) for n in (train.outputs, 5)
    )
    meta = {n: w.requires_grad_() for n, w in algorithm.init(net, torch.Generator().manual_seed(0)).items()}
    state = TrainState(meta, make_optimizer(recipe.optimizer, meta.values(), recipe.lr, {}))

    def accuracy() -> float:
        return score(
            task_values(algorithm, test_net, algorithm.at_test(meta), test, 100, 20, MEASURES["accuracy"])
        ).mean

    before = accuracy()
    while state.step < recipe.steps:
        now = algorithm.at_step(state.step, recipe.steps)
        train_step(now, net, state, train(state.step * recipe.meta_batch, recipe.meta_batch), None, None)
    return before, accuracy()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_it_learns(name: str) -> None:
    recipe = RECIPES.get(name, Recipe())
    before, after = before_and_after(name, recipe.model, recipe)
    assert before < 0.35
    assert after > 0.65


@pytest.mark.parametrize(("name", "algo"), [("maml", {"inner_lr": 0.1}), ("anil", {}), ("protonet", {})])
def test_it_learns_on_a_conv4(name: str, algo: dict[str, Any]) -> None:
    before, after = before_and_after(name, "conv4", Recipe(algo, steps=180))
    assert before < 0.35
    assert after > 0.65
