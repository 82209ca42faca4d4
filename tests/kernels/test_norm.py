"""The batch norm's kernels against its plain bodies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarun.batchnorm import _gradient, _norm, _second
from metarun.kernels import library
from metarun.kernels.norm import fits, gradient, norm, second

EPS = 1e-5


@pytest.fixture(autouse=True)
def there() -> None:
    if not library.loaded():
        pytest.skip("the kernels could not be compiled here")


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, w, b, g, to_gx, to_gw, to_gb."""
    torch.manual_seed(0)
    x, g, to_gx = torch.randn(3, *shape, dtype=dtype)
    channels = torch.randn(4, shape[0], 1, shape[2], 1, dtype=dtype)
    w, b = channels[0] + 1, channels[1]
    return x * 2 + 0.5, w, b, g, to_gx, channels[2], channels[3]


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
    (1, 200, 3, 784),
    (1, 60, 2, 7056),
    (1, 9000, 20, 4),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slope", [None, 0, 0.01])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_in_torch(shape: tuple[int, ...], slope: float | None, dtype: torch.dtype) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    x, w, b, g, *to = inputs(shape, dtype)
    assert fits(x, w, b)
    y, mean, var = _norm(x, w, b, EPS, slope)
    near(norm(x, w, b, EPS, slope), (y, mean, var), tolerance)
    gx, gw, gb = _gradient(g, x, y, w, mean, var, EPS, slope)
    if shape[1] * shape[3] == 1:  # gx is what is left of numbers 1 / sqrt(eps) as large as what is given
        tolerance *= 1000
    near(gradient(g, x, y, w, mean, var, EPS, slope), (gx, gw, gb), tolerance)
    saved = g, x, y, w, mean, var, gw, gb
    near(second(*saved, *to, EPS, slope), _second(*saved, *to, EPS, slope), tolerance)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("slope", [None, 0, 0.01])
@pytest.mark.parametrize("places", [1, 4, 49, 196])
def test_what_is_no_number_comes_out_where_it_does_in_torch(places: int, slope: float | None, value: float) -> None:
    x, w, b, g, *to = inputs((2, 6, 20, places), torch.float32)

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
        y, mean, var = _norm(x_, w_, b, EPS, slope)
        same(norm(x_, w_, b, EPS, slope), (y, mean, var))
        gx, gw, gb = _gradient(g_, x_, y, w_, mean, var, EPS, slope)
        same(gradient(g_, x_, y, w_, mean, var, EPS, slope), (gx, gw, gb))
        saved = g_, x_, y, w_, mean, var, gw, gb
        same(second(*saved, *to_, EPS, slope), _second(*saved, *to_, EPS, slope))


def test_the_same_for_any_number_of_threads() -> None:
    x, w, b, g, *to = inputs((8, 20, 37, 49), torch.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, mean, var = norm(x, w, b, EPS, 0)
            gx, gw, gb = gradient(g, x, y, w, mean, var, EPS, 0)
            found.append((y, mean, var, gx, gw, gb, *second(g, x, y, w, mean, var, gw, gb, *to, EPS, 0)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others, strict=True))


def test_single_precision_is_as_exact_as_torchs() -> None:
    """Of numbers that are far from zero, too, as the first layer of pictures makes them."""
    for shape, shift in (((2, 100, 20, 196), 10.0), ((3, 5, 64, 49), 0.0), ((2, 300, 5, 1), 1.0)):
        x, w, b, *_ = inputs(shape, torch.float32)
        exact = torch.nn.functional.batch_norm
        for i, own in enumerate(norm(x + shift, w, b, EPS, None)[0]):
            given = (x + shift)[i], None, None, w[i].flatten(), b[i].flatten(), True, 0.1, EPS
            truth = exact(*(t.double() if isinstance(t, Tensor) else t for t in given))
            assert (own - truth).norm() <= 1.5 * (exact(*given) - truth).norm() + 1e-7 * truth.norm()


def test_the_layout_of_what_is_given_changes_no_bit_and_channels_of_a_place_are_together() -> None:
    x, w, b, g, *_ = inputs((2, 5, 20, 49), torch.float32)
    turned = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in (x, g)]
    found: list[tuple[Tensor, ...]] = []
    for x_, g_ in ((x, g), turned):
        y, mean, var = norm(x_, w, b, EPS, 0)
        assert y.transpose(2, 3).is_contiguous()
        found.append((y, mean, var, *gradient(g_, x_, y, w, mean, var, EPS, 0)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
