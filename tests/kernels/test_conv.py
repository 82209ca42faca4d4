"""The kernels are the convolution and its gradients, of any order, for each task by its own weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from metarun.kernels import library
from metarun.kernels.conv import conv2d, fits

SHAPES = [  # tasks, images, channels, height, width, outputs, k, stride
    (3, 2, 1, 28, 28, 64, 3, 2),
    (2, 5, 64, 14, 14, 64, 3, 2),
    (2, 3, 64, 2, 2, 64, 3, 2),
    (2, 3, 3, 9, 10, 10, 3, 1),
    (2, 3, 20, 7, 8, 17, 3, 2),
    (2, 2, 5, 6, 7, 33, 1, 1),
    (2, 2, 16, 5, 4, 8, 5, 2),
    (1, 40, 24, 12, 11, 40, 3, 1),
    (5, 1, 7, 1, 1, 1, 3, 1),
    (2, 2, 18, 10, 9, 130, 3, 3),
    (1, 3, 40, 24, 24, 16, 7, 2),
]
LARGE = [  # an image is worked on some lines at a time
    (1, 2, 32, 70, 66, 32, 3, 1),
    (1, 2, 20, 99, 98, 24, 3, 2),
    (2, 2, 3, 84, 84, 40, 3, 1),
    (1, 1, 33, 90, 91, 17, 5, 3),
]


@pytest.fixture(autouse=True)
def there() -> None:
    if not library.loaded():
        pytest.skip("the kernels could not be compiled here")


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    tasks, n, c, h, w, o, k, _ = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tasks, n, c, h, w, dtype=dtype, generator=generator)
    return x, torch.randn(tasks, o, c, k, k, dtype=dtype, generator=generator)


def plain(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, w, None, stride, w.shape[-1] // 2)


def both(f: Any, x: Tensor, w: Tensor, stride: int) -> tuple[Tensor, ...]:
    """Maps, and the gradients of the sum of their cubes."""
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y = f(x, w, stride)
    return y.detach(), *torch.autograd.grad(y.pow(3).sum(), (x, w))


@pytest.mark.parametrize("shape", [*SHAPES, *LARGE], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_convolution_and_its_gradients_are_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    stride = shape[-1]
    x, w = drawn(shape, dtype)
    assert fits(x, w)
    ours = both(lambda *given: vmap(lambda x, w: conv2d(x, w, stride))(*given[:2]), x, w, stride)
    each = [both(plain, xi, wi, stride) for xi, wi in zip(x.double(), w.double())]
    for own, theirs in zip(ours, (torch.stack(t) for t in zip(*each))):
        assert (own - theirs).norm() <= (1e-13 if dtype == torch.float64 else 1e-5) * theirs.norm()


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0)], ids=str)
@pytest.mark.parametrize("about", [0, 1])
def test_second_order_gradients_under_vmap_are_those_of_a_loop(dims: tuple[Any, Any], about: int) -> None:
    x, w = drawn((3, 2, 4, 5, 6, 5, 3, 2))
    x, w = (t if dim == 0 else t[0] for t, dim in zip((x, w), dims))

    def norm_of_gradient(f: Any) -> Any:
        return lambda x, w: grad(lambda *given: f(*given, 2).pow(3).sum(), about)(x, w).square().sum()

    ours = vmap(grad(norm_of_gradient(conv2d), (0, 1)), dims)(x, w)
    for i in range(3):
        one = (t[i] if dim == 0 else t for t, dim in zip((x, w), dims))
        for own, theirs in zip(ours, grad(norm_of_gradient(plain), (0, 1))(*one)):
            torch.testing.assert_close(own[i], theirs, rtol=1e-12, atol=1e-9)


def test_derivatives_agree_with_finite_differences() -> None:
    x, w = (t[0].requires_grad_() for t in drawn((1, 2, 2, 4, 3, 3, 3, 2)))
    assert torch.autograd.gradcheck(lambda x, w: conv2d(x, w, 2), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: conv2d(x, w, 2), (x, w))


def test_tasks_within_runs_have_each_runs_weights() -> None:
    """Two levels of vmap, the weights shared on the inner one."""
    x, w = drawn((2, 6, 4, 7, 7, 5, 3, 1))
    ours = vmap(vmap(lambda x, w: conv2d(x, w, 1), (0, None)))(x.unflatten(1, (3, 2)), w)
    theirs = torch.stack([plain(xi, wi, 1) for xi, wi in zip(x, w)]).unflatten(1, (3, 2))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_the_number_of_threads_changes_no_bit(shape: tuple[int, ...]) -> None:
    x, w = drawn(shape, torch.float32)
    many: list[tuple[Tensor, ...]] = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        many.append(both(lambda *given: vmap(lambda x, w: conv2d(x, w, shape[-1]))(*given[:2]), x, w, 0))
        many.append(both(conv2d, x.flatten(0, 1), w[0], shape[-1]))
    torch.set_num_threads(1)
    for i, one in enumerate(many):
        assert all(torch.equal(a, b) for a, b in zip(one, many[i % 2]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_single_precision_is_as_exact_as_torchs(shape: tuple[int, ...]) -> None:
    """A sum more or less in the wrong place is a ReLU more or less that falls on the other side."""
    x, w = (t[0] for t in drawn(shape, torch.float32))
    exact = both(plain, x.double(), w.double(), shape[-1])
    for own, theirs, truth in zip(both(conv2d, x, w, shape[-1]), both(plain, x, w, shape[-1]), exact):
        assert (own - truth).norm() <= 1.5 * (theirs - truth).norm() + 1e-7 * truth.norm()


def test_the_layout_of_what_is_given_changes_no_bit_and_maps_have_the_channels_of_a_place_together() -> None:
    x, w = (t[0] for t in drawn(SHAPES[1], torch.float32))
    one, other = (both(conv2d, given, w, 2) for given in (x, x.contiguous(memory_format=torch.channels_last)))
    assert all(torch.equal(a, b) for a, b in zip(one, other))
    assert one[0].is_contiguous(memory_format=torch.channels_last)


def test_numbers_that_are_none_stay_so() -> None:
    x, w = (t[0] for t in drawn((1, 2, 20, 6, 6, 5, 3, 1)))
    x[0, 3, 2, 2] = torch.nan
    torch.testing.assert_close(conv2d(x, w, 1).isnan(), plain(x, w, 1).isnan())


@pytest.mark.parametrize("empty", [(0, 4, 5, 5), (2, 4, 5, 5)], ids=str)
def test_no_images_or_no_outputs_are_no_error(empty: tuple[int, ...]) -> None:
    x = torch.rand(empty, requires_grad=True)
    w = torch.rand(3 if empty[0] == 0 else 0, 4, 3, 3, requires_grad=True)
    y = conv2d(x, w, 2)
    assert y.shape == (empty[0], len(w), 3, 3)
    of_x, of_w = torch.autograd.grad(y.sum(), (x, w))
    assert of_x.shape == x.shape and of_w.shape == w.shape and not of_w.any()
