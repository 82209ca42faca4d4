"""Why `layers.py` writes its own batch norm: torch's gives wrong second-order gradients under the engine's vmap.

Both are put into the same network and compared with the same plain task loop, in double precision.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contract.small import (
    CONV4,
    MLP,
    Model,
    gap,
    loop_gradient,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    model_id,
    vmapped_gradient,
)
from torch import Tensor

from metarun.layers import EPS, Norm
from metarun.types import Meta

FIXED = "torch has fixed this: F.batch_norm agrees with the task loop, so the norm of layers.py can be dropped"


def torch_norm(self: Norm, meta: Meta, name: str, x: Tensor, slope: float | None = None) -> Tensor:
    y = F.batch_norm(x, None, None, meta[f"{name}.weight"], meta[f"{name}.bias"], training=True, eps=EPS)
    return y if slope is None else F.leaky_relu(y, slope)


def worst_gap(model: Model) -> float:
    """The largest error, over all weights, of the vmapped second-order gradient."""
    algorithm, net = make_algorithm("maml"), make_net(model)
    meta, episodes = make_meta(algorithm, net), make_episodes()
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(lambda task: algorithm.loss(net, meta, task).loss, meta, episodes)
    return max(gap(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("model", [CONV4, MLP], ids=model_id)
def test_torch_batch_norm_is_wrong_under_vmap_and_ours_is_right(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst_gap(model) < 1e-9
    monkeypatch.setattr(Norm, "__call__", torch_norm)
    assert worst_gap(model) > 0.01, FIXED


def test_both_norms_are_the_same_function_so_only_the_vmap_differs() -> None:
    x = torch.randn(6, 8, 4, 4, dtype=torch.float64)
    meta = {"norm.weight": torch.randn(8, dtype=torch.float64), "norm.bias": torch.randn(8, dtype=torch.float64)}
    torch.testing.assert_close(Norm("batch")(meta, "norm", x), torch_norm(Norm("batch"), meta, "norm", x))
