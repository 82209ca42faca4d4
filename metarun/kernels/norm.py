"""Batch norm with its ReLU, the gradient of that, and the gradient of this: each in one pass over memory.

They are `_norm`, `_gradient` and `_second` of `metarun.batchnorm`, with the same shapes, for what `fits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_double, c_int, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap

from metarun.kernels import library

Three = tuple[Tensor, Tensor, Tensor]


def fits(*given: Tensor) -> bool:
    """Whether there is a kernel for them, which must not be wrapped by a transform."""
    return library.takes(*given) and all(debug_unwrap(t) is t for t in given)


def norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    return torch.ops.metarun.norm(x, w, b, eps, slope)


def gradient(
    g: Tensor, x: Tensor, y: Tensor, w: Tensor, mean: Tensor, var: Tensor, eps: float, slope: float | None
) -> Three:
    return torch.ops.metarun.norm_gradient([g, x, y, w, mean, var], eps, slope)


def second(*given: Any) -> Three:
    *tensors, eps, slope = given
    return torch.ops.metarun.norm_second(tensors, eps, slope)


def _call(name: str, rows: Tensor, given: Sequence[Tensor], out: Three, eps: float, slope: float | None) -> None:
    arguments = _arguments(len(given) + len(out))
    pointers = (t.data_ptr() for t in (*given, *out))
    tasks, n, places, channels = rows.shape
    f = library.function(name, rows.dtype, arguments)
    sizes = library.numbers(tasks, n * places, channels)
    f(sizes, *pointers, eps, slope or 0.0, slope is not None, torch.get_num_threads())


@cache
def _arguments(tensors: int) -> tuple[Any, ...]:
    return c_void_p, *(c_void_p,) * tensors, c_double, c_double, c_int, c_int


def _rows(*images: Tensor) -> list[Tensor]:
    """(tasks, n, channels, places) -> (tasks, n, places, channels), each place's channels together."""
    return [t.transpose(2, 3).contiguous() for t in images]


def _norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    (rows,), out = _rows(x), _empty_norm(x, w, b, eps, slope)
    _call("norm", rows, (rows, w.contiguous(), b.contiguous()), out, eps, slope)
    return out


def _gradient(given: list[Tensor], eps: float, slope: float | None) -> Three:
    g, x, y = _rows(*given[:3])
    out = _empty_gradient(given, eps, slope)
    _call("norm_gradient", x, (g, x, y, *(t.contiguous() for t in given[3:])), out, eps, slope)
    return out


def _second(given: list[Tensor], eps: float, slope: float | None) -> Three:
    *images, w, mean, var, gw, gb, to_gx, to_gw, to_gb = given
    g, x, y, to_gx = _rows(*images, to_gx)
    w, mean, var, gw, gb, to_gw, to_gb = (t.contiguous() for t in (w, mean, var, gw, gb, to_gw, to_gb))
    out = _empty_second(given, eps, slope)
    _call("norm_second", x, (g, x, y, w, mean, var, gw, gb, to_gx, to_gw, to_gb), out, eps, slope)
    return out


def _like(x: Tensor, images: int) -> Three:
    """Empty: so many shaped as x, each place's channels together, and the rest as what belongs to channels."""
    tasks, n, channels, places = x.shape
    one = n * places * channels
    made = [
        x.new_empty_strided(x.shape, (one, places * channels, 1, channels))
        if i < images
        else x.new_empty(tasks, 1, channels, 1)
        for i in range(3)
    ]
    return made[0], made[1], made[2]


def _empty_norm(x: Tensor, w: Tensor, b: Tensor, eps: float, slope: float | None) -> Three:
    return _like(x, 1)


def _empty_gradient(given: list[Tensor], eps: float, slope: float | None) -> Three:
    return _like(given[1], 1)


def _empty_second(given: list[Tensor], eps: float, slope: float | None) -> Three:
    return _like(given[1], 2)


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
