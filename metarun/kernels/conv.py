"""Convolutions of many tasks, each with weights of its own, that can be differentiated any number of times.

A convolution belongs to the form <conv(images, weights), maps>, which is linear in each of the three: the convolution,
and the gradients of its images and its weights, are the form's gradients for the one that is missing. The gradient of
each of them is made of the other two, and so on for ever.

Images are (tasks, n, channels, height, width) here, weights (tasks, outputs, channels, k, k) with k odd, and maps
(tasks, n, outputs, height', width'), of a convolution that keeps the size at stride 1; `vmap` adds to the tasks, or to
the images where all tasks share the weights.
"""

from __future__ import annotations

from ctypes import c_int, c_void_p
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from metarun.kernels import library

IMAGES, WEIGHTS, MAPS = range(3)
ARGUMENTS = (c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_int)


class Geometry(NamedTuple):
    height: int
    width: int
    k: int
    stride: int


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether there is a kernel for them, square and with a middle."""
    k = weight.shape[-1]
    return library.takes(x, weight) and weight.shape[-2] == k and k % 2 == 1


def conv2d(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """x: (n, c, h, w), weight: (out, c, k, k), as `fits` has them"""
    geometry = Geometry(x.shape[-2], x.shape[-1], weight.shape[-1], stride)
    y: Any = _Missing.apply(x.unsqueeze(0), weight.unsqueeze(0), MAPS, geometry)
    return y.squeeze(0)  # whose gradient, unlike that of y[0], is a view


class _Missing(Function):
    """The form's gradient for one of the three, from the other two, a and b, in the order of the three."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, missing: int, geometry: Geometry) -> Tensor:
        return torch.ops.metarun.convolve(a, b, missing, list(geometry))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, Geometry], output: Tensor) -> None:
        a, b, ctx.missing, ctx.geometry = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        given = list(ctx.saved_tensors)
        given.insert(ctx.missing, slopes[0])

        def gradient(kind: int) -> Any:
            a, b = given[:kind] + given[kind + 1 :]
            return _Missing.apply(a, b, kind, ctx.geometry)

        kinds = [kind for kind in (IMAGES, WEIGHTS, MAPS) if kind != ctx.missing]
        of_a, of_b = (gradient(kind) if ctx.needs_input_grad[i] else None for i, kind in enumerate(kinds))
        return of_a, of_b, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, int]:
        (a, b, missing, geometry), size, dims = inputs, info.batch_size, in_dims[:2]
        if missing != WEIGHTS and dims[missing == MAPS] is None:
            # All share the weights: they are one task, with so many times the images.
            a, b = (t if dim is None else t.movedim(dim, 1).flatten(1, 2) for t, dim in zip((a, b), dims))
            out: Any = _Missing.apply(a, b, missing, geometry)
            return out.unflatten(1, (size, -1)), 1
        a, b = (
            (t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)).flatten(0, 1)
            for t, dim in zip((a, b), dims)
        )
        out = _Missing.apply(a, b, missing, geometry)
        return out.unflatten(0, (size, -1)), 0


def _empty(a: Tensor, b: Tensor, missing: int, geometry: list[int]) -> Tensor:
    """What is missing: weights as torch has them, images and maps with the channels of each place together."""
    height, width, k, stride = geometry
    if missing == WEIGHTS:
        return a.new_empty(a.shape[0], b.shape[2], a.shape[2], k, k)
    if missing == IMAGES:
        tasks, n, channels = a.shape[0], b.shape[1], a.shape[2]
    else:
        tasks, n, channels = a.shape[0], a.shape[1], b.shape[1]
        height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
    line = width * channels
    strides = n * height * line, height * line, 1, line, channels
    return a.new_empty_strided((tasks, n, channels, height, width), strides)


def _together(t: Tensor) -> Tensor:
    """Images or maps with the channels of each place together; a copy if they are not so yet."""
    return t.permute(0, 1, 3, 4, 2).contiguous()


def _convolve(a: Tensor, b: Tensor, missing: int, geometry: list[int]) -> Tensor:
    out = _empty(a, b, missing, geometry)
    if out.numel() == 0 or a.numel() == 0:
        return out.zero_()
    images, weights = (a, b) if missing == MAPS else (a, out) if missing == WEIGHTS else (out, a)
    sizes = library.numbers(*images.shape, weights.shape[1], *geometry[2:])
    # Held until the kernel has read them.
    p = a.contiguous() if missing == IMAGES else _together(a)
    q = b.contiguous() if missing == MAPS else _together(b)
    pointers = p.data_ptr(), q.data_ptr(), out.data_ptr()
    library.function("conv", a.dtype, ARGUMENTS)(missing, sizes, *pointers, torch.get_num_threads())
    return out


# As an operation of torch's, so that profiles and lists of operations have it.
_operations = torch.library.Library("metarun", "FRAGMENT")
_operations.define("convolve(Tensor a, Tensor b, int missing, int[] geometry) -> Tensor")
_operations.impl("convolve", _convolve, "CPU")
_operations.impl("convolve", _empty, "Meta")
setattr(torch.ops.metarun.convolve.default, "direct", _convolve)  # noqa: B010 (lists of operations call it)
