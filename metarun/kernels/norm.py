"""Batch norm with its ReLU, the gradient of that, and the gradient of this: each in one pass over memory.

They are `_norm`, `_gradient` and `_second` of `metarun.batchnorm`, with the same shapes, for what `fits`.
"""

from __future__ import annotations

from ctypes import c_double, c_int, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap

from metarun.kernels import library

NAMES = {torch.float32: "f32", torch.float64: "f64"}
Three = tuple[Tensor, Tensor, Tensor]


def fits(*given: Tensor) -> bool:
    """Whether there is a kernel for them: on a CPU, of one precision, and not wrapped by a transform."""
    dtype = given[0].dtype
    return (
        library.loaded()
        and dtype in NAMES
        and all(t.device.type == "cpu" and t.dtype == dtype and debug_unwrap(t) is t for t in given)
    )


def norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    return torch.ops.metarun.norm(x, w, b, eps, slope)


def gradient(
    g: Tensor, x: Tensor, y: Tensor, w: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float | None
) -> Three:
    return torch.ops.metarun.norm_gradient([g, x, y, w, mean, var], eps, slope)


def second(*given: Any) -> Three:
    *tensors, eps, slope = given
    return torch.ops.metarun.norm_second(tensors, eps, slope)


def _call(name: str, x: Tensor, given: tuple[Tensor, ...], eps: float, slope: float | None) -> None:
    arguments = _arguments(len(given))
    pointers = (t.data_ptr() for t in given)
    f = library.function(f"metarun_{name}_{NAMES[x.dtype]}", arguments)
    f(library.numbers(*x.shape), *pointers, eps, slope or 0.0, slope is not None, torch.get_num_threads())


@cache
def _arguments(tensors: int) -> tuple[Any, ...]:
    return c_void_p, *(c_void_p,) * tensors, c_double, c_double, c_int, c_int


def _norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    x, w, b = x.contiguous(), w.contiguous(), b.contiguous()
    y, mean, var = _empty_norm(x, w, b, eps, slope)
    _call("norm", x, (x, w, b, y, mean, var), eps, slope)
    return y, mean, var


def _gradient(given: list[Tensor], eps: float, slope: float | None) -> Three:
    g, x, y, w, mean, var = (t.contiguous() for t in given)
    gx, gw, gb = _like(x, mean, 1)
    _call("norm_gradient", x, (g, x, y, w, mean, var, gx, gw, gb), eps, slope)
    return gx, gw, gb


def _second(given: list[Tensor], eps: float, slope: float | None) -> Three:
    g, x, y, w, *rest = (t.contiguous() for t in given)
    for_g, for_x, for_w = _like(x, rest[0], 2)
    _call("norm_second", x, (g, x, y, w, *rest, for_g, for_x, for_w), eps, slope)
    return for_g, for_x, for_w


def _like(images: Tensor, channels: Tensor, maps: int) -> Three:
    """Empty: so many shaped as the images, and the rest as what belongs to channels."""
    made = [torch.empty_like(images if i < maps else channels) for i in range(3)]
    return made[0], made[1], made[2]


def _empty_norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    return _like(x, x.new_empty(len(x), 1, x.shape[2], 1), 1)


def _empty_gradient(given: list[Tensor], eps: float, slope: float | None) -> Three:
    return _like(given[1], given[4], 1)


def _empty_second(given: list[Tensor], eps: float, slope: float | None) -> Three:
    return _like(given[1], given[4], 2)


_operations = torch.library.Library("metarun", "FRAGMENT")
for name, arguments, kernel, empty in (
    ("norm", "Tensor x, Tensor w, Tensor b", _norm, _empty_norm),
    ("norm_gradient", "Tensor[] given", _gradient, _empty_gradient),
    ("norm_second", "Tensor[] given", _second, _empty_second),
):
    _operations.define(f"{name}({arguments}, float eps, float? slope) -> (Tensor, Tensor, Tensor)")
    _operations.impl(name, kernel, "CPU")
    _operations.impl(name, empty, "Meta")
    getattr(torch.ops.metarun, name).default.direct = kernel  # lists of operations call it
