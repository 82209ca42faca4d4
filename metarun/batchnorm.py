"""Batch normalisation by the batch's own statistics, with the ReLU that follows it: few passes over memory, any order.

Ioffe & Szegedy 2015, section 3. Autograd passes over the batch many times for the gradient of the statistics, and many
more for the gradient of that. Here both are written down as a few sums per channel and one linear combination of what
there is; derivatives of third order and beyond are left to autograd, on the same formulas.

x is (tasks, n, channels, places) here, what belongs to a channel (tasks, 1, channels, 1); `vmap` adds to the tasks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from metarun.kernels import norm as kernel


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps) * weight + bias, and then a ReLU.

    x             (n, channels, ...)
    weight, bias  (channels,)
    slope         of the ReLU where its input is negative; None: there is no ReLU

    Returns y, shaped as x, and the (channels,) mean and (biased) variance, through which no gradient flows.
    """
    flat = x.reshape(1, *x.shape[:2], -1)
    y, mean, var = _Norm.apply(flat, weight.view(1, 1, -1, 1), bias.view(1, 1, -1, 1), eps, slope)  # pyright: ignore
    return y.reshape(x.shape), mean.flatten(), var.flatten()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """(tasks, n, channels, places) -> mean and variance of the channels. `torch.var_mean` takes ten times as long."""
    count = x.shape[1] * x.shape[3]
    mean = _total(x) / count
    return mean, _total((x - mean).square()) / count


def _total(x: Tensor) -> Tensor:
    """The sums of the channels; in two steps, of which the long one is over what lies together."""
    return x.sum(3, keepdim=True).sum(1, keepdim=True)


def _wide(*given: Tensor) -> tuple[Tensor, ...]:
    """In single precision at least: what is summed up here is summed up there."""
    return tuple(t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in given)


def _masked(g: Tensor, y: Tensor, slope: float | None) -> Tensor:
    """The gradient `g` of what the ReLU gave, y, taken back through it."""
    return g if slope is None else torch.ops.aten.leaky_relu_backward(g, y, slope, True)


def _norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean and variance"""
    dtype, (x,) = x.dtype, _wide(x)
    mean, var = moments(x)
    scale = w * torch.rsqrt(var + eps)
    # `addcmul` would do both at once, but not with vector instructions where its arguments are broadcast.
    y = (x * scale).add_(b - mean * scale)
    if slope is not None:
        y = y.relu_() if slope == 0 else F.leaky_relu_(y, slope)
    return y.to(dtype), mean, var


def _gradient(
    g: Tensor, x: Tensor, y: Tensor, w: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, where g is that of y.

    With xhat = (x - mean) r and r = 1 / sqrt(var + eps), m of each per channel, g taken back through the ReLU:
    gb = sum(g), gw = sum(g xhat), gx = w r (g - gb / m - xhat gw / m).
    """
    dtype, (g, x, y) = x.dtype, _wide(g, x, y)
    m, r, g = x.shape[1] * x.shape[3], torch.rsqrt(var + eps), _masked(g, y, slope)
    gb = _total(g)
    gw = (_total(g * x) - mean * gb) * r
    of_x = -w * r * r * gw / m
    gx = (x * of_x).sub_(w * r * gb / m + of_x * mean).addcmul_(g, w * r)
    return gx.to(dtype), gw, gb


def _second(
    g: Tensor,
    x: Tensor,
    y: Tensor,
    w: Tensor,
    mean: Tensor,
    var: Tensor,
    gw: Tensor,
    gb: Tensor,
    to_gx: Tensor,
    to_gw: Tensor,
    to_gb: Tensor,
    eps: float,
    slope: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of g, x and weight of s = <to_gx, gx> + to_gw gw + to_gb gb.

    Per channel, with A = sum(to_gx), B = sum(to_gx xhat) and Q = sum(to_gx g) - A gb / m - B gw / m:
    s = w r Q + to_gw gw + to_gb gb. What x moves it moves through xhat and through r.
    """
    dtype, (g, x, y, to_gx) = x.dtype, _wide(g, x, y, to_gx)
    m, r = x.shape[1] * x.shape[3], torch.rsqrt(var + eps)
    g, scale = _masked(g, y, slope), w * r
    a = _total(to_gx)
    b = (_total(to_gx * x) - mean * a) * r
    q = _total(to_gx * g) - (a * gb + b * gw) / m
    # ds/dg = scale to_gx + xhat_g xhat + constant, through the ReLU
    xhat_g = to_gw - scale * b / m
    for_g = (x * (xhat_g * r)).add_(to_gb - scale * a / m - xhat_g * r * mean).add_(to_gx * scale)
    # ds/dxhat = e = e_to to_gx + e_g g, and ds/dr = w Q; dxhat/dx and dr/dx = - r^2 xhat / m as in the first order
    e_to, e_g = -scale * gw / m, xhat_g
    mean_e = (e_to * a + e_g * gb) / m
    mean_e_xhat = (e_to * b + e_g * gw) / m
    of_xhat = -r * mean_e_xhat - w * q * r * r / m
    for_x = (x * (of_xhat * r)).sub_(r * mean_e + of_xhat * r * mean).add_(g * (r * e_g)).add_(to_gx * (r * e_to))
    return _masked(for_g, y, slope).to(dtype), for_x.to(dtype), r * q


class _Norm(Function):
    @staticmethod
    def forward(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> tuple[Tensor, Tensor, Tensor]:
        return (kernel.norm if kernel.fits(x, w, b) else _norm)(x, w, b, eps, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w, _, ctx.eps, ctx.slope = inputs
        y, mean, var = output
        ctx.mark_non_differentiable(mean, var)
        # Without a ReLU y is not asked for, and who has it may write to it.
        ctx.save_for_backward(x, w, x if ctx.slope is None else y, mean, var)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        x, w, y, mean, var = ctx.saved_tensors
        return *_Gradient.apply(slopes[0], x, y, w, mean, var, ctx.eps, ctx.slope), None, None  # pyright: ignore

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_tasks(_Norm, info.batch_size, in_dims, inputs)


class _Gradient(Function):
    @staticmethod
    def forward(
        g: Tensor, x: Tensor, y: Tensor, w: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        f = kernel.gradient if kernel.fits(g, x, y, w, mean, var) else _gradient
        return f(g, x, y, w, mean, var, eps, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.eps, ctx.slope = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        g, x, y, w, mean, var, gw, gb = ctx.saved_tensors
        again = torch.is_grad_enabled()
        if again:
            mean, var = moments(x)  # a third order is wanted: it goes through these too
        given = g, x, y, w, mean, var, gw, gb, *slopes
        f: Any = kernel.second if not again and kernel.fits(*given) else _second
        for_g, for_x, for_w = f(*given, ctx.eps, ctx.slope)
        return for_g, for_x, None, for_w, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _over_tasks(_Gradient, info.batch_size, in_dims, inputs)


def _over_tasks(
    function: type[Function], size: int, dims: tuple[Any, ...], inputs: tuple[Any, ...]
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """`function` under a vmap: its tasks are so many times as many."""
    tasks = (
        (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1) if isinstance(t, Tensor) else t
        for t, dim in zip(inputs, dims)
    )
    outputs: Any = function.apply(*tasks)
    return tuple(t.unflatten(0, (size, -1)) for t in outputs), (0,) * len(outputs)
