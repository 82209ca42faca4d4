"""The layers are torch's own functions: the same values and the same first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metarun.layers import Norm, conv2d, xavier


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def derivatives(f: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The value, its gradient, and the gradient of that gradient's square, in every input."""
    value = f(*inputs)
    first = torch.autograd.grad(value.sin().sum(), inputs, create_graph=True)
    second = torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), inputs)
    return [value, *first, *second]


def same_with_derivatives(ours: Callable[..., Tensor], torchs: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    for mine, theirs in zip(derivatives(ours, inputs), derivatives(torchs, inputs)):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [(8, 8), (7, 9), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_conv2d_is_torchs_on_both_paths(kernel: int, channels: int, stride: int, side: tuple[int, int]) -> None:
    same_with_derivatives(
        lambda x, w, b: conv2d(x, w, b, stride),
        lambda x, w, b: F.conv2d(x, w, b, stride, padding=kernel // 2),
        [rand(2, channels, *side), rand(5, channels, kernel, kernel), rand(5)],
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_conv2d_without_bias_and_with_weights_of_each_tasks_own(channels: int) -> None:
    x, w = rand(3, 2, channels, 8, 8), rand(3, 5, channels, 3, 3)
    together = vmap(lambda x, w: conv2d(x, w, None, 2))(x, w)
    alone = torch.stack([F.conv2d(xi, wi, None, 2, padding=1) for xi, wi in zip(x, w)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 4, 4), (6, 8, 1, 3)])
def test_batch_norm_is_torchs_on_the_batch(shape: tuple[int, ...]) -> None:
    same_with_derivatives(
        lambda x, w, b: Norm("batch")({"n.weight": w, "n.bias": b}, "n", x),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        [rand(*shape), rand(8), rand(8)],
    )


@pytest.mark.parametrize(("kind", "groups"), [("group", 4), ("layer", 1)])
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 4, 4)])
def test_group_and_layer_norm_are_torchs(shape: tuple[int, ...], kind: str, groups: int) -> None:
    module = torch.nn.GroupNorm(groups, 8, dtype=torch.float64)
    x, weight, bias = rand(*shape), rand(8), rand(8)
    module.load_state_dict({"weight": weight, "bias": bias})
    ours = Norm(kind, groups=4)({"n.weight": weight, "n.bias": bias}, "n", x)
    torch.testing.assert_close(ours, module(x))


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 4, 4)])
def test_support_statistics_come_from_the_first_rows_only(shape: tuple[int, ...]) -> None:
    x, meta = rand(*shape).detach(), {"n.weight": rand(8), "n.bias": rand(8)}
    ours = Norm("batch", support=4)(meta, "n", x)
    over = [d for d in range(x.dim()) if d != 1]
    mean, var = x[:4].mean(over), x[:4].var(over, correction=0)
    theirs = F.batch_norm(x, mean, var, meta["n.weight"], meta["n.bias"], training=False)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 4, 4)])
def test_running_statistics_are_torchs_batch_norm_in_eval_mode(shape: tuple[int, ...]) -> None:
    module = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(8, dtype=torch.float64).eval()
    weight, bias, mean, var = rand(8), rand(8), rand(8).detach(), rand(8).detach().square()
    module.load_state_dict({"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}, strict=False)
    x = rand(*shape)
    ours = Norm("batch", running={"n.mean": mean, "n.var": var})({"n.weight": weight, "n.bias": bias}, "n", x)
    torch.testing.assert_close(ours, module(x))


def test_collected_statistics_are_mean_and_population_variance_per_channel() -> None:
    x, seen = rand(6, 8, 4, 4), {}
    Norm("batch", collected=seen)({"n.weight": rand(8), "n.bias": rand(8)}, "n", x)
    assert seen.keys() == {"n.mean", "n.var"}
    torch.testing.assert_close(seen["n.mean"], x.mean((0, 2, 3)))
    torch.testing.assert_close(seen["n.var"], x.var((0, 2, 3), correction=0))


def test_no_norm_is_the_identity_and_has_no_weights() -> None:
    x = rand(3, 8)
    assert Norm("none")({}, "n", x) is x
    assert Norm("none").init("n", 8) == {}


def test_a_fresh_norm_neither_scales_nor_shifts() -> None:
    fresh = Norm("batch").init("n", 8)
    assert fresh["n.weight"].eq(1).all() and fresh["n.bias"].eq(0).all()
    assert fresh["n.weight"].shape == fresh["n.bias"].shape == (8,)


@pytest.mark.parametrize("shape", [(64, 32), (32, 16, 3, 3)])
def test_xavier_has_the_variance_of_its_fans(shape: tuple[int, ...]) -> None:
    w = xavier(shape, torch.Generator().manual_seed(0))
    field = 9 if len(shape) == 4 else 1
    variance = 2 / ((shape[0] + shape[1]) * field)
    assert w.var().item() == pytest.approx(variance, rel=0.1)
    assert w.abs().max() <= (3 * variance) ** 0.5
