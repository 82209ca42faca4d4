"""The written-down batch norm against the formula left to autograd, in double precision, to the third order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jacrev, vmap

from metarun.batchnorm import batch_norm

EPS = 1e-5
SHAPES = [(5, 3, 4, 2), (7, 3)]
SLOPES = [None, 0.0, 0.1]
Formula = Callable[..., Tensor]


def obvious(x: Tensor, weight: Tensor, bias: Tensor, slope: float | None) -> Tensor:
    over = [d for d in range(x.dim()) if d != 1]
    mean = x.mean(over, keepdim=True)
    var = ((x - mean) ** 2).mean(over, keepdim=True)
    per_channel = (-1, *(1,) * (x.dim() - 2))
    y = (x - mean) / (var + EPS).sqrt() * weight.view(per_channel) + bias.view(per_channel)
    return y if slope is None else F.leaky_relu(y, slope)


def ours(x: Tensor, weight: Tensor, bias: Tensor, slope: float | None) -> Tensor:
    return batch_norm(x, weight, bias, EPS, slope)[0]


def drawn(shape: tuple[int, ...], *tasks: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (shape, shape[1:2], shape[1:2])
    return [torch.randn(*tasks, *s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


def same(a: object, b: object) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_three_orders(shape: tuple[int, ...], slope: float | None) -> None:
    inputs, probes = drawn(shape), torch.Generator().manual_seed(1)

    def orders(formula: Formula) -> list[Tensor]:
        """The value, and three times: the gradient of something that bends, of all that the last gave."""
        probes.manual_seed(1)
        found = [formula(*inputs, slope)]
        last = found
        for _ in range(3):
            bent = [(v * torch.randn(v.shape, generator=probes, dtype=v.dtype)).sum().sin() for v in last]
            last = list(torch.autograd.grad(sum(bent, torch.tensor(0.0)), inputs, create_graph=True))
            found += last
        return found

    same(orders(ours), orders(obvious))


@pytest.mark.parametrize("slope", SLOPES)
def test_finite_differences(slope: float | None) -> None:
    inputs = drawn((3, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda *tensors: ours(*tensors, slope), inputs)
    assert torch.autograd.gradgradcheck(lambda *tensors: ours(*tensors, slope), inputs)


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (0, None, 0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_tasks_at_once_are_tasks_one_by_one(shape: tuple[int, ...], dims: tuple[int | None, ...]) -> None:
    """Gradients inside the vmap and outside of it: how a meta-gradient comes about."""
    inputs = [t if d == 0 else t[0].detach().requires_grad_() for t, d in zip(drawn(shape, 4), dims)]

    def bent(formula: Formula) -> Callable[..., Tensor]:
        def inner(*tensors: Tensor) -> Tensor:
            return formula(*tensors, 0.1).sin().sum()

        def moved(*tensors: Tensor) -> Tensor:
            slopes = grad(inner, argnums=(0, 1, 2))(*tensors)
            return inner(*(t - 0.1 * s for t, s in zip(tensors, slopes)))

        return moved

    at_once = vmap(bent(ours), in_dims=dims)(*inputs)
    one_by_one = torch.stack(
        [bent(obvious)(*(t if d is None else t[i] for t, d in zip(inputs, dims))) for i in range(4)]
    )
    same(at_once, one_by_one)
    same(torch.autograd.grad(at_once.sum(), inputs), torch.autograd.grad(one_by_one.sum(), inputs))


def test_tasks_of_tasks() -> None:
    x, weight, bias = drawn((5, 3, 2, 2), 2, 4)
    norm = lambda *tensors: ours(*tensors, 0.0)  # noqa: E731
    found = vmap(vmap(norm))(x, weight, bias)
    same(found, torch.stack([vmap(norm)(*each) for each in zip(x, weight, bias)]))
    wanted = jacrev(lambda *tensors: obvious(*tensors, 0.0))(x[0, 0], weight[0, 0], bias[0, 0])
    same(jacrev(norm)(x[0, 0], weight[0, 0], bias[0, 0]), wanted)


def test_moments_are_told_and_have_no_gradient() -> None:
    x, weight, bias = drawn((5, 3, 4, 2))
    _, mean, var = batch_norm(x, weight, bias, EPS)
    same(mean, x.mean((0, 2, 3)).detach())
    same(var, x.var((0, 2, 3), correction=0).detach())
    assert not mean.requires_grad and not var.requires_grad


def test_who_has_the_result_may_write_to_it() -> None:
    x, weight, bias = drawn((5, 3, 4, 2))
    same(
        torch.autograd.grad(ours(x, weight, bias, None).relu_().square().sum(), x),
        torch.autograd.grad(obvious(x, weight, bias, 0.0).square().sum(), x),
    )


def test_far_from_zero_in_single_precision() -> None:
    """A mean a thousand times the spread: the mean of squares less the square of the mean would be noise."""
    x = drawn((50, 3, 4, 4))[0].detach() + 1000
    one, nought = torch.ones(3), torch.zeros(3)
    found = ours(x.float(), one, nought, None).double()
    wanted = obvious(x.float().double(), one.double(), nought.double(), None)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)
