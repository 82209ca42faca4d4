"""Curves from a few points: the methods that serve regression learn to fit a curve they have never seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metarun.data.sinusoid import Sinusoid
from metarun.engine.evaluate import over_tasks
from metarun.engine.optim import make_optimizer
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.measures import MEASURES
from metarun.models.mlp import MLP
from metarun.registry import known
from metarun.types import TaskShape

NET = MLP(item_shape=(1,), outputs=1, widths=[40, 40], norm="none")
SHAPE = TaskShape("regression", 1, 5, 10)


def test_maml_fits_curves_better_with_every_step() -> None:
    """Finn et al. 2017, section 5.1, shortened. The mean square of the curves themselves is about 4."""
    algorithm = known("algo")["maml"](inner_lr=0.01, inner_steps=1, eval_steps=5)
    train, test = (Sinusoid().load(s, Path()).episodes(1, 10, 20, 0, s) for s in ("train", "test"))
    meta = {n: w.requires_grad_() for n, w in algorithm.init(NET, torch.Generator().manual_seed(0)).items()}
    state = TrainState(meta, make_optimizer("Adam", meta.values(), 2e-3, {}))
    while state.step < 1200:
        train_step(algorithm, NET, state, train(state.step * 25, 25))
    errors = over_tasks(
        lambda e: torch.stack([MEASURES["mse"].of(p, e.query_y) for p in algorithm.trajectory(NET, meta, e)]),
        test,
        400,
        200,
    ).mean(0)
    assert errors[0] > 2.5  # one network cannot be all curves
    assert errors[1] < 1.5
    assert errors[5] < min(0.9, float(errors[1]))


@pytest.mark.parametrize("name", ["protonet", "matchingnet", "relationnet", "protomaml", "baseline", "baselinepp"])
def test_methods_that_tell_classes_apart_refuse_curves_and_say_what_fits(name: str) -> None:
    with pytest.raises(ValueError, match="maml"):
        known("algo")[name]().check(NET, SHAPE)


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "boil", "reptile", "metasgd", "mamlpp", "cavia", "r2d2"])
def test_methods_that_fit_curves_take_them(name: str) -> None:
    known("algo")[name]().check(NET, SHAPE)


def test_an_error_is_better_the_lower() -> None:
    assert MEASURES["mse"].better(0.1, 0.2)
    assert MEASURES["accuracy"].better(0.2, 0.1)
