"""Pooling by the largest of four, with the ReLU that follows it, that can be differentiated any number of times.

Its gradient takes numbers from squares of four places back to the largest of each, and the gradient of that takes them
along the same way again; both are linear. Which place is the largest is kept in a byte, and nothing else.

Images are (n, channels, height, width) here, as for torch; `vmap` adds to n.
"""

from __future__ import annotations

from ctypes import c_double, c_int, c_void_p
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from metarun.kernels import library

ARGUMENTS = (c_void_p, c_void_p, c_void_p, c_void_p, c_double, c_int)


def fits(x: Tensor) -> bool:
    """Whether there is a kernel for such images."""
    return library.takes(x) and x.dim() == 4


def max_pool(x: Tensor, slope: float) -> Tensor:
    """The largest of each two by two places, whose last line or column may be left over, and then a ReLU of that slope
    below zero."""
    return _Largest.apply(x, slope)[0]  # pyright: ignore


class _Largest(Function):
    """y, and of each of its numbers where it comes from."""

    @staticmethod
    def forward(x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
        return torch.ops.metarun.pool(x, slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]) -> None:
        x, slope = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.how = True, slope, *x.shape[-2:]

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, None]:
        return _Way.apply(slopes[0], *ctx.saved_tensors, *ctx.how), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, tuple[int, int]]:
        x, slope = inputs
        out: Any = _Largest.apply(x.movedim(in_dims[0], 0).flatten(0, 1), slope)
        return tuple(t.unflatten(0, (info.batch_size, -1)) for t in out), (0, 0)


class _Way(Function):
    """Numbers taken from squares back to their places, or along from there."""

    @staticmethod
    def forward(v: Tensor, place: Tensor, back: bool, slope: float, height: int, width: int) -> Tensor:
        return torch.ops.metarun.pool_way(v, place, back, slope, height, width)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, place, back, *how = inputs
        ctx.save_for_backward(place)
        ctx.how = not back, *how

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Any, ...]:
        return _Way.apply(slopes[0], *ctx.saved_tensors, *ctx.how), None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, int]:
        size, (v, place, *how) = info.batch_size, inputs
        v, place = (
            (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
            for t, dim in zip((v, place), in_dims)
        )
        out: Any = _Way.apply(v, place, *how)
        return out.unflatten(0, (size, -1)), 0


def _empty(like: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Images of that size, each place's channels together."""
    n, channels = like.shape[:2]
    line = width * channels
    return like.new_empty_strided((n, channels, height, width), (height * line, 1, line, channels), dtype=dtype)


def _together(x: Tensor) -> Tensor:
    """(n, height, width, channels); a copy if each place's channels are not together yet."""
    return x.permute(0, 2, 3, 1).contiguous()


def _empty_pool(x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    height, width = (side // 2 for side in x.shape[2:])
    return _empty(x, height, width, x.dtype), _empty(x, height, width, torch.uint8)


def _pool(x: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    (y, place), rows = _empty_pool(x, slope), _together(x)
    pointers = rows.data_ptr(), y.data_ptr(), place.data_ptr()
    sizes = library.numbers(*rows.shape)
    library.function("pool", x.dtype, ARGUMENTS)(sizes, *pointers, slope, torch.get_num_threads())
    return y, place


def _empty_way(v: Tensor, place: Tensor, back: bool, slope: float, height: int, width: int) -> Tensor:
    if not back:
        height, width = place.shape[2:]
    return _empty(v, height, width, v.dtype)


def _way(v: Tensor, place: Tensor, back: bool, slope: float, height: int, width: int) -> Tensor:
    out = _empty_way(v, place, back, slope, height, width)
    rows, at = _together(v), _together(place)
    n, channels = v.shape[:2]
    sizes = library.numbers(n, height, width, channels)
    f = library.function("pool_back" if back else "pool_along", v.dtype, ARGUMENTS)
    f(sizes, rows.data_ptr(), at.data_ptr(), out.data_ptr(), slope, torch.get_num_threads())
    return out


_operations = torch.library.Library("metarun", "FRAGMENT")
_operations.define("pool(Tensor x, float slope) -> (Tensor, Tensor)")
_operations.define("pool_way(Tensor v, Tensor place, bool back, float slope, int height, int width) -> Tensor")
for name, kernel, empty in (("pool", _pool, _empty_pool), ("pool_way", _way, _empty_way)):
    _operations.impl(name, kernel, "CPU")
    _operations.impl(name, empty, "Meta")
    getattr(torch.ops.metarun, name).default.direct = kernel  # lists of operations call it
