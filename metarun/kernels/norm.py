"""Batch norm with its ReLU, the gradient of that, and the gradient of this: each in one pass over memory.

They are `_norm`, `_gradient` and `_second` of `metarun.batchnorm`, with the same shapes, for what `fits`.
"""

from __future__ import annotations

import ctypes
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


def _call(name: str, x: Tensor, given: list[Any], eps: float, slope: float | None) -> None:
    arguments = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in given]
    real = ctypes.c_double(eps), ctypes.c_double(slope or 0.0)
    sizes = (ctypes.c_long * 4)(*x.shape)
    f = library.function(f"metarun_{name}_{NAMES[x.dtype]}")
    f(sizes, *arguments, *real, int(slope is not None), torch.get_num_threads())


def _norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    x, w, b = x.contiguous(), w.contiguous(), b.contiguous()
    y, mean, var = torch.empty_like(x), x.new_empty(len(x), 1, x.shape[2], 1), x.new_empty(len(x), 1, x.shape[2], 1)
    _call("norm", x, [x, w, b, y, mean, var], eps, slope)
    return y, mean, var


def _gradient(given: list[Tensor], eps: float, slope: float | None) -> Three:
    g, x, y, w, mean, var = (t.contiguous() for t in given)
    gx, gw, gb = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    _call("norm_gradient", x, [g, x, y, w, mean, var, gx, gw, gb], eps, slope)
    return gx, gw, gb


def _second(given: list[Tensor], eps: float, slope: float | None) -> Three:
    g, x, y, w, *rest = (t.contiguous() for t in given)
    for_g, for_x, for_w = torch.empty_like(x), torch.empty_like(x), torch.empty_like(rest[0])
    _call("norm_second", x, [g, x, y, w, *rest, for_g, for_x, for_w], eps, slope)
    return for_g, for_x, for_w


_operations = torch.library.Library("metarun", "FRAGMENT")
for name, arguments, kernel in (
    ("norm", "Tensor x, Tensor w, Tensor b", _norm),
    ("norm_gradient", "Tensor[] given", _gradient),
    ("norm_second", "Tensor[] given", _second),
):
    _operations.define(f"{name}({arguments}, float eps, float? slope) -> (Tensor, Tensor, Tensor)")
    _operations.impl(name, kernel, "CPU")
