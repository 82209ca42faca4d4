"""Without torch's compiler the numbers are torch's own, and the compiler is there for whoever asks for it."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.engine.eager import plain

EXCLUDED = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}
OPTIMIZERS = sorted(n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in EXCLUDED)


def steps(made: Any, weights: list[Tensor], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        made.zero_grad(set_to_none=True)
        for w in weights:
            w.grad = torch.randn(w.shape, generator=generator)
        made.step()


def weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((3, 4), (4,))]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_plain_optimizer_takes_the_same_steps(name: str) -> None:
    """To the bit; also one that goes on from what the other has saved."""
    cls = getattr(torch.optim, name)
    ours, theirs, resumed = weights(), weights(), weights()
    made, stock, again = plain(cls)(ours, lr=0.05), cls(theirs, lr=0.05), plain(cls)(resumed, lr=0.05)
    steps(made, ours, 0, 3)
    steps(stock, theirs, 0, 3)
    for w, there in zip(resumed, theirs, strict=True):
        w.data.copy_(there.detach())
    again.load_state_dict(deepcopy(stock.state_dict()))
    for one, of in ((made, ours), (stock, theirs), (again, resumed)):
        steps(one, of, 3, 6)
    for a, b, c, start in zip(ours, theirs, resumed, weights(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
        assert not torch.equal(a, start)
        assert a.requires_grad
        assert a.grad_fn is None
    assert repr(made) == repr(stock)


IN_A_PROCESS_OF_ITS_OWN = """
import sys
import torch
from torch.func import grad
from metarun.engine.eager import vmap

def cubes(x):
    return (x**3).sum()

def curvature(x):
    return grad(lambda x: grad(cubes)(x).sum())(x)

x = torch.randn(5, 3, dtype=torch.float64)
found = vmap(curvature)(x)
assert "torch._dynamo" not in sys.modules, "imported for nothing"

def fails(x):
    curvature(x)
    raise KeyError

try:
    vmap(fails)(x)
except KeyError:
    pass
assert "_dynamo" not in vars(torch), "something stays behind"

def asks(x):
    grad(cubes)(x)
    asked.append(torch._dynamo.config.disable)
    return curvature(x)

asked = []
assert torch.equal(vmap(asks)(x), found)
assert asked == [False]
assert torch._dynamo is sys.modules["torch._dynamo"], "whoever asks for the compiler gets it"
assert torch.equal(torch.func.vmap(curvature)(x), found), "torch's own numbers"
assert torch.equal(torch.compile(vmap(curvature), backend="eager")(x), found), "it compiles as torch's own does"
"""


def test_gradients_within_need_no_compiler_and_it_comes_when_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
