"""Networks whose trunk computes in bfloat16, as `device.precision=bf16` trains them."""

from __future__ import annotations

import pytest
import torch
from contract.small import CONV4, MODELS, NORMS, PAIRS, Model, make_algorithm, make_episodes, make_net, model_id
from torch import Tensor

from metarun.batchnorm import batch_norm
from metarun.engine.step import meta_gradient
from metarun.types import Algorithm, EpisodeBatch, Net


def gradient(algorithm: Algorithm, net: Net) -> tuple[Tensor, float]:
    drawn = algorithm.init(net, torch.Generator().manual_seed(0))
    meta = {name: w.clone().requires_grad_() for name, w in drawn.items()}
    episodes = EpisodeBatch(*(f.float() if f.is_floating_point() else f for f in make_episodes(tasks=8)))
    running = algorithm.fresh_running(net)
    metrics, _ = meta_gradient(algorithm, net, meta, episodes, running=running)
    assert all(w.grad is None or w.grad.dtype == torch.float32 for w in meta.values())
    return torch.cat([w.grad.flatten() for w in meta.values() if w.grad is not None]), float(metrics["loss"])


def nearly(net: Net, name: str = "protonet") -> None:
    algorithm = make_algorithm(name)
    (wanted, loss), (found, low_loss) = gradient(algorithm, net), gradient(algorithm, net.in_bf16())
    assert 0 < (wanted - found).norm() < 0.25 * wanted.norm()
    assert low_loss == pytest.approx(loss, rel=0.05)


@pytest.mark.parametrize("model", MODELS, ids=model_id)
def test_every_model_has_nearly_the_same_gradient(model: Model) -> None:
    nearly(make_net(model))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_so_has_it_with_every_norm(norm: str, statistics: str) -> None:
    nearly(make_net(CONV4, norm, statistics))


@pytest.mark.parametrize("name", [name for name, model in PAIRS if model == CONV4])
def test_every_method_trains_such_a_network(name: str) -> None:
    found, loss = gradient(make_algorithm(name), make_net(CONV4).in_bf16())
    assert found.isfinite().all() and 0 < loss < 100
    wanted, _ = gradient(make_algorithm(name), make_net(CONV4))
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=0) > 0.9


def test_features_have_single_precision() -> None:
    net = make_net(CONV4).in_bf16()
    meta = net.init(torch.Generator().manual_seed(0))
    assert net.features(meta, torch.rand(6, 1, 8, 8)).dtype == torch.float32


def test_a_norm_sums_in_single_precision() -> None:
    """A sum in bfloat16 would stop at 256."""
    x, w = (1 + torch.rand(64, 2, 16, 16)).bfloat16(), torch.ones(2)
    y, mean, var = batch_norm(x, w, w, 1e-5)
    assert y.dtype == torch.bfloat16
    for found, wanted in ((mean, x.double().mean((0, 2, 3))), (var, x.double().var((0, 2, 3), correction=0))):
        assert torch.allclose(found.double(), wanted, rtol=1e-5)
