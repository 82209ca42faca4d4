"""Layers that are right and fast under the engine's nested transforms (vmap over tasks, grad inside, grad outside).

`F.batch_norm`, `F.instance_norm` and `F.layer_norm` give silently wrong second-order gradients under
`grad(vmap(grad(...)))`; `F.group_norm` and a norm written with `torch.var_mean` are exact
(`tests/contract/test_norm_hazard.py` shows both).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import debug_unwrap

from metarun.batchnorm import batch_norm, moments
from metarun.kernels import conv as kernel
from metarun.kernels import pool
from metarun.types import Meta

EPS = 1e-5


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1) -> Tensor:
    """Convolution that keeps the size at stride 1. x: (n, c, h, w), weight: (out, c, k, k), k odd.

    On a CPU by metarun's own kernels, where they are there: those of torch are made for weights that all images share.

    Without them, weights that the inner loop moves turn the vmapped convolution, or its gradient, into a grouped one.
    With a few input channels that is 10 to 20 times slower on a CPU than gathering patches and multiplying, with many
    it is the faster of the two. Weights that all tasks share and only the outer loop moves (a plain tensor, not one
    that a transform has wrapped) make one ordinary convolution over all tasks, 2 to 4 times as fast as patches.
    """
    k = weight.shape[-1]
    if kernel.fits(x, weight):
        y = kernel.conv2d(x, weight, stride)
        return y if bias is None else y + bias[:, None, None]
    if x.device.type == "cpu" and weight.shape[1] <= 3 and debug_unwrap(weight) is not weight:
        h, w = (-(-side // stride) for side in x.shape[-2:])
        patches = F.unfold(x, k, padding=k // 2, stride=stride)
        y = torch.matmul(weight.flatten(1), patches).unflatten(-1, (h, w))
        return y if bias is None else y + bias[:, None, None]
    return F.conv2d(x, weight, bias, stride=stride, padding=k // 2)


def max_pool(x: Tensor, slope: float) -> Tensor:
    """The largest of each two by two places, and then a ReLU whose slope below zero is `slope`.

    x: (n, channels, h, w) -> (n, channels, h // 2, w // 2). On a CPU by metarun's own kernel, where it is there.
    """
    if pool.fits(x):
        return pool.max_pool(x, slope)
    y = F.max_pool2d(x, 2)  # before the ReLU, which it commutes with, so that fewer numbers pass that
    return F.relu(y) if slope == 0 else F.leaky_relu(y, slope)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: (n, inputs), weight: (outputs, inputs) -> (n, outputs)"""
    return F.linear(x, weight, bias)


def xavier(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform weights of variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010, eq. 16)."""
    return torch.nn.init.xavier_uniform_(torch.empty(shape), generator=generator)


def he(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Normal weights of variance 2 / fan_out (He et al. 2015, eq. 14): what residual networks start from."""
    return torch.nn.init.kaiming_normal_(torch.empty(shape), mode="fan_out", generator=generator)


class _Moments(torch.autograd.Function):
    """(variance, mean) of x over all dimensions but the second, with a gradient that passes over x once.

    torch's own gradient of `var_mean` takes several, and a norm's cost is passes over memory.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, var = moments(x.reshape(1, *x.shape[:2], -1))
        return var.flatten(), mean.flatten()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        (x, mean), (to_var, to_mean) = ctx.saved_tensors, slopes
        per_channel = (-1, *(1,) * (x.dim() - 2))
        count = x.numel() // mean.numel()
        slope = to_var * (2 / count)
        return torch.addcmul((to_mean / count - slope * mean).view(per_channel), slope.view(per_channel), x)


@dataclass(frozen=True)
class Norm:
    """The normalisation of one forward pass.

    kind        `batch` (per channel, over examples), `group`, `layer` (one group) or `none`
    support     how many leading examples the batch statistics come from; 0: all of them
    running     moving averages to use in place of the batch's own statistics
    collected   filled with the batch's statistics, by name, where given
    """

    kind: str
    groups: int = 8
    support: int = 0
    running: Meta | None = None
    collected: Meta | None = field(default=None, compare=False)

    @property
    def subtracts_channel_mean(self) -> bool:
        """A bias before such a norm does nothing and would never get a gradient."""
        return self.kind == "batch"

    def init(self, name: str, channels: int) -> Meta:
        if self.kind == "none":
            return {}
        return {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}

    def __call__(self, meta: Meta, name: str, x: Tensor, slope: float | None = None, eps: float = EPS) -> Tensor:
        """x: (n, channels) or (n, channels, h, w), normalised, scaled and shifted; and then through a ReLU whose slope
        below zero is `slope`, where that is given: together the two pass over memory less often."""
        if self.kind == "batch" and self.running is None and not self.support:
            y, mean, var = batch_norm(x, meta[f"{name}.weight"], meta[f"{name}.bias"], eps, slope)
            self._collect(name, mean, var)
            return y
        # Statistics are summed up in single precision at least, as `batch_norm` does for itself.
        low = x.dtype == torch.bfloat16 and self.kind != "none"
        y = self._apart(meta, name, x.float(), eps).bfloat16() if low else self._apart(meta, name, x, eps)
        return y if slope is None else F.relu(y) if slope == 0 else F.leaky_relu(y, slope)

    def _apart(self, meta: Meta, name: str, x: Tensor, eps: float) -> Tensor:
        if self.kind == "none":
            return x
        weight, bias = meta[f"{name}.weight"], meta[f"{name}.bias"]
        if self.kind != "batch":
            return F.group_norm(x, self.groups if self.kind == "group" else 1, weight, bias, eps)
        if self.running is not None:
            mean, var = self.running[f"{name}.mean"], self.running[f"{name}.var"]
        else:
            var, mean = _Moments.apply(x[: self.support])
            self._collect(name, mean, var)
        per_channel = (-1, *(1,) * (x.dim() - 2))
        # As one multiply-add: each further pass over x brings more of them in both gradients.
        scale = weight * torch.rsqrt(var + eps)
        return torch.addcmul((bias - mean * scale).view(per_channel), x, scale.view(per_channel))

    def _collect(self, name: str, mean: Tensor, var: Tensor) -> None:
        if self.collected is not None:
            self.collected.update({f"{name}.mean": mean, f"{name}.var": var})


def conv_init(name: str, w: Tensor, norm: Norm) -> Meta:
    """A convolution's weights before `norm`: with a bias only where the norm does not take it off again."""
    return {f"{name}.weight": w} | ({} if norm.subtracts_channel_mean else {f"{name}.bias": torch.zeros(len(w))})


def conv(meta: Meta, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """`conv2d` with the weights called `name`."""
    return conv2d(x, meta[f"{name}.weight"], meta.get(f"{name}.bias"), stride)
