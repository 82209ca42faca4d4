"""Pooling's kernels against torch's own pooling and ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metarun.kernels import library
from metarun.kernels.pool import fits, max_pool


@pytest.fixture(autouse=True)
def there() -> None:
    if not library.loaded():
        pytest.skip("the kernels could not be compiled here")


def plain(x: Tensor, slope: float) -> Tensor:
    y = F.max_pool2d(x, 2)
    return F.relu(y) if slope == 0 else F.leaky_relu(y, slope)


SHAPES = [
    *((2, c, 6, 4) for c in (1, 2, 3, 7, 8, 15, 16, 17, 32, 33, 64)),
    *((3, 5, h, w) for h, w in ((2, 2), (3, 2), (2, 3), (5, 7), (9, 9))),
    (0, 4, 6, 6),
    (20, 32, 21, 21),  # enough for two threads
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slope", [1.0, 0.0, 0.1])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_in_torch(shape: tuple[int, ...], slope: float, together: bool, dtype: torch.dtype) -> None:
    """To the bit: what comes out, its gradient, and the gradient of that."""
    torch.manual_seed(0)
    images = torch.randint(-3, 4, shape).to(dtype)  # with many that are equal
    images = images.to(memory_format=torch.channels_last) if together else images
    assert fits(images)
    g = torch.randn(*shape[:2], shape[2] // 2, shape[3] // 2, dtype=dtype)
    v = torch.randn(shape, dtype=dtype)

    def all_of(pool: Callable[..., Tensor]) -> list[Tensor]:
        x, to = images.clone().requires_grad_(), g.clone().requires_grad_()
        y = pool(x, slope)
        (gx,) = torch.autograd.grad(y, x, to, create_graph=True)
        (along,) = torch.autograd.grad(gx, to, v, create_graph=True)
        return [y, gx, along]

    for ours, theirs in zip(all_of(max_pool), all_of(plain), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.0])
@pytest.mark.parametrize("slope", [1.0, 0.0, 0.1])
@pytest.mark.parametrize("at", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_what_is_no_number(at: tuple[int, int], slope: float, value: float) -> None:
    x = torch.randn(1, 17, 2, 2)
    x[..., at[0], at[1]] = value
    assert torch.equal(max_pool(x, slope).nan_to_num(7.0), plain(x, slope).nan_to_num(7.0))
    whole = torch.full((1, 17, 2, 2), value)
    assert torch.equal(max_pool(whole, slope).nan_to_num(7.0), plain(whole, slope).nan_to_num(7.0))


def test_a_gradient_that_is_infinite_stops_at_the_relu() -> None:
    x = -torch.ones(1, 3, 2, 2, requires_grad=True)
    (gx,) = torch.autograd.grad(max_pool(x, 0.0), x, torch.full((1, 3, 1, 1), float("inf")))
    assert torch.equal(gx, torch.zeros_like(gx))


@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_under_the_engines_transforms(slope: float) -> None:
    """Of many tasks at once, through an inner gradient, to the third order."""
    torch.manual_seed(0)
    x, w = torch.randn(4, 3, 5, 6, 7, dtype=torch.float64), torch.randn(5, 1, 1, dtype=torch.float64)

    def meta_loss(pool: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def task(w: Tensor, x: Tensor) -> Tensor:
            def inner(w: Tensor) -> Tensor:
                return pool(w * x, slope).pow(3).sum()

            moved = w - 0.1 * grad(inner)(w)
            return pool(moved * x, slope).pow(2).mean()

        return lambda w: vmap(task, (None, 0))(w, x).mean()

    def orders(pool: Callable[..., Tensor]) -> list[Tensor]:
        loss: Any = meta_loss(pool)
        second = grad(lambda w: grad(loss)(w).pow(2).sum())
        return [loss(w), grad(loss)(w), second(w)]

    for ours, theirs in zip(orders(max_pool), orders(plain), strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()
