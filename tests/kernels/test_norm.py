"""The batch norm in C++ against the one in PyTorch.

python tests/kernels/test_norm.py    times them beside each other
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import metarun
from metarun.batchnorm import _Gradient, _Norm, moments

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
EPS = 1e-5
LONG, REAL, FLAG = ctypes.c_long, ctypes.c_double, ctypes.c_int


def build(folder: Path) -> ctypes.CDLL:
    """Compiled with OpenMP and linked without: its functions are those of the library that torch brought."""
    source = Path(metarun.__file__).parent / "kernels" / "norm.cpp"
    options = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp", "-Wall", "-Wextra"]
    subprocess.run([*COMPILER.split(), *options, "-c", source, "-o", folder / "norm.o"], check=True)  # pyright: ignore
    subprocess.run([*COMPILER.split(), "-shared", folder / "norm.o", "-o", folder / "norm.so"], check=True)  # pyright: ignore
    return ctypes.CDLL(str(folder / "norm.so"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("norm"))


def call(library: ctypes.CDLL, name: str, x: Tensor, *given: Any, slope: float | None) -> None:
    """The function `name` for the sizes of x; of `given` tensors it gets the places in memory."""
    for t in given:
        assert not isinstance(t, Tensor) or (t.dtype == x.dtype and t.is_contiguous())
    f = getattr(library, f"metarun_{name}_{'f32' if x.dtype == torch.float32 else 'f64'}")
    f.restype = None
    rest = REAL(EPS), REAL(slope or 0), FLAG(slope is not None)
    f((LONG * 4)(*x.shape), *(ctypes.c_void_p(t.data_ptr()) if isinstance(t, Tensor) else t for t in given), *rest)


def step(w: Tensor) -> ctypes.c_long:
    return LONG(0 if len(w) == 1 else w.shape[2])


def norm(library: ctypes.CDLL, x: Tensor, w: Tensor, b: Tensor, slope: float | None) -> tuple[Tensor, ...]:
    y, mean = torch.empty_like(x), x.new_empty(len(x), 1, x.shape[2], 1)
    var = torch.empty_like(mean)
    call(library, "norm", x, x, w, b, step(w), step(b), y, mean, var, slope=slope)
    return y, mean, var


def gradient(
    library: ctypes.CDLL, g: Tensor, x: Tensor, y: Tensor, w: Tensor, mean: Tensor, var: Tensor, slope: float | None
) -> tuple[Tensor, ...]:
    gx, gw, gb = torch.empty_like(x), torch.empty_like(mean), torch.empty_like(mean)
    y_or_none = None if slope is None else y
    call(library, "norm_gradient", x, g, x, y_or_none, w, step(w), mean, var, gx, gw, gb, slope=slope)
    return gx, gw, gb


def second(library: ctypes.CDLL, saved: tuple[Tensor, ...], to: Any, slope: float | None) -> tuple[Tensor, ...]:
    g, x, y, w, *channels = saved
    for_g, for_x, for_w = torch.empty_like(x), torch.empty_like(x), torch.empty_like(channels[0])
    y_or_none = None if slope is None else y
    call(library, "norm_second", x, g, x, y_or_none, w, step(w), *channels, *to, for_g, for_x, for_w, slope=slope)
    return for_g, for_x, for_w


def second_in_torch(saved: tuple[Tensor, ...], to: Any, slope: float | None) -> tuple[Tensor, ...]:
    with torch.no_grad():
        for_g, for_x, _, for_w, *_ = _Gradient.backward(SimpleNamespace(saved_tensors=saved, eps=EPS, slope=slope), *to)
    return for_g, for_x, for_w


def inputs(shape: tuple[int, ...], dtype: torch.dtype, shared: bool, seed: int = 0) -> tuple[Tensor, ...]:
    """x, w, b, g, to_gx, to_gw, to_gb."""
    torch.manual_seed(seed)
    x, g, to_gx = torch.randn(3, *shape, dtype=dtype)
    channels = torch.randn(4, shape[0], 1, shape[2], 1, dtype=dtype)
    w, b = channels[0] + 1, channels[1]
    return x * 2 + 0.5, w[:1] if shared else w, b[:1] if shared else b, g, to_gx, channels[2], channels[3]


def near(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * (b.norm() + 1e-30) or (a - b).abs().max() <= tolerance


PLACES = (1, 2, 3, 4, 9, 15, 16, 17, 31, 49, 64, 100, 127, 128, 129, 196, 441, 784)
SHAPES = [
    *((2, 5, 7, p) for p in PLACES),
    *((3, 75, 5, p) for p in (1, 4, 16, 49, 196)),
    *((1, 1, 3, p) for p in (1, 4, 33, 196)),  # n = 1
    *((2, 500, 3, p) for p in (1, 4, 49)),
    *((4, 10, c, p) for c in (1, 2, 64, 65, 300) for p in (1, 4, 9)),
    (1, 200, 3, 784),  # too large to be copied
    (1, 60, 2, 7056),
    (1, 9000, 20, 4),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slope", [None, 0, 0.01])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_in_torch(library: ctypes.CDLL, shape: tuple[int, ...], slope: float | None, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for shared in (False, True):
        x, w, b, g, *to = inputs(shape, dtype, shared)
        y, mean, var = _Norm.forward(x, w, b, EPS, slope)
        near(norm(library, x, w, b, slope), (y, mean, var), tolerance)
        gx, gw, gb = _Gradient.forward(g, x, y, w, mean, var, EPS, slope)
        if shape[1] * shape[3] == 1:  # gx is what is left of numbers 1 / sqrt(eps) as large as what is given
            tolerance *= 1000
        near(gradient(library, g, x, y, w, mean, var, slope), (gx, gw, gb), tolerance)
        saved = g, x, y, w, mean, var, gw, gb
        for given in ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)):
            zeros = [t if there else torch.zeros_like(t) for t, there in zip(to, given)]
            ours = second(library, saved, [t if there else None for t, there in zip(to, given)], slope)
            near(ours, second_in_torch(saved, zeros, slope), tolerance)


@pytest.mark.parametrize("places", [1, 4, 49, 196])
def test_moments_alone(library: ctypes.CDLL, places: int) -> None:
    x = torch.randn(1, 30, 20, places, dtype=torch.float64)
    mean, var = x.new_empty(1, 1, 20, 1), x.new_empty(1, 1, 20, 1)
    call(library, "norm", x, x, None, None, LONG(0), LONG(0), None, mean, var, slope=None)
    near((mean, var), moments(x), 1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("slope", [None, 0, 0.01])
@pytest.mark.parametrize("places", [1, 4, 49, 196])
def test_what_is_no_number_comes_out_where_it_does_in_torch(
    library: ctypes.CDLL, places: int, slope: float | None, value: float
) -> None:
    x, w, b, g, *to = inputs((2, 6, 20, places), torch.float32, False)

    def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite())
            # Infinite or none at all is a matter of how the formula is written.
            assert value == value or torch.equal(a.isnan(), b.isnan())

    for bad in ("x", "w", "g", "to", None):
        if bad == "w" and value == value:
            continue
        x_, w_, g_, to_ = x.clone(), w.clone(), g.clone(), [t.clone() for t in to]
        if bad is not None:
            {"x": x_, "w": w_, "g": g_, "to": to_[0]}[bad].view(-1)[3 if bad == "w" else -5] = value
        y, mean, var = _Norm.forward(x_, w_, b, EPS, slope)
        same(norm(library, x_, w_, b, slope), (y, mean, var))
        gx, gw, gb = _Gradient.forward(g_, x_, y, w_, mean, var, EPS, slope)
        same(gradient(library, g_, x_, y, w_, mean, var, slope), (gx, gw, gb))
        saved = g_, x_, y, w_, mean, var, gw, gb
        same(second(library, saved, to_, slope), second_in_torch(saved, to_, slope))


def test_the_same_for_any_number_of_threads(library: ctypes.CDLL) -> None:
    x, w, b, g, *to = inputs((8, 20, 37, 49), torch.float32, False)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, mean, var = norm(library, x, w, b, 0)
            gx, gw, gb = gradient(library, g, x, y, w, mean, var, 0)
            found.append((y, mean, var, gx, gw, gb, *second(library, (g, x, y, w, mean, var, gw, gb), to, 0)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def _time(repeats: int, f: Any, *given: Any, **named: Any) -> float:
    times = []
    for _ in range(repeats + 1):
        start = perf_counter()
        f(*given, **named)
        times.append(perf_counter() - start)
    return sorted(times[1:])[repeats // 2] * 1e3


def _times(library: ctypes.CDLL, repeats: int) -> None:
    torch.set_num_threads(2)
    print("ms, ours / torch's       forward                gradient               second")
    for shape in ((32, n, 64, p) for n in (5, 75) for p in (196, 49, 16, 4)):
        x, w, b, g, *to = inputs(shape, torch.float32, False)
        y, mean, var = _Norm.forward(x, w, b, EPS, 0)
        _, gw, gb = _Gradient.forward(g, x, y, w, mean, var, EPS, 0)
        saved = g, x, y, w, mean, var, gw, gb
        times = (
            (_time(repeats, norm, library, x, w, b, 0), _time(repeats, _Norm.forward, x, w, b, EPS, 0)),
            (
                _time(repeats, gradient, library, *saved[:6], 0),
                _time(repeats, _Gradient.forward, *saved[:6], EPS, 0),
            ),
            (_time(repeats, second, library, saved, to, 0), _time(repeats, second_in_torch, saved, to, 0)),
        )
        print(f"{'x'.join(map(str, shape)):18s}", *(f"{a:10.3f} / {b:10.3f}" for a, b in times), flush=True)


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _times(build(Path(folder)), int(sys.argv[1]) if len(sys.argv) > 1 else 9)
