"""The networks are the textbook ones: built from torch.nn with the same weights, they say the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.small import ITEM, MODELS, WAY, Model, make_net, model_id
from torch import Tensor, nn

from metarun.models.conv4 import Conv4
from metarun.models.mlp import MLP
from metarun.types import Meta

every_model = pytest.mark.parametrize("model", MODELS, ids=model_id)


def double(meta: Meta, seed: int = 0) -> Meta:
    """Weights with every bias and scale away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return {n: w.double() + 0.1 * torch.randn(w.shape, generator=generator) for n, w in meta.items()}


def items(count: int = 7, shape: tuple[int, ...] = ITEM) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def norm_module(kind: str, channels: int, images: bool, groups: int) -> list[nn.Module]:
    batch = nn.BatchNorm2d if images else nn.BatchNorm1d
    made = {"batch": batch(channels), "group": nn.GroupNorm(groups, channels), "layer": nn.GroupNorm(1, channels)}
    return [made[kind]] if kind in made else []


def textbook_conv4(net: Conv4, shape: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = shape[0]
    for _ in range(net.blocks):
        stride = 2 if net.halving == "stride" else 1
        layers.append(nn.Conv2d(channels, net.filters, 3, stride, padding=1, bias=net.norm != "batch"))
        layers += [*norm_module(net.norm, net.filters, True, net.groups), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if net.halving == "pool" else []
        channels = net.filters
    return nn.Sequential(*layers, nn.Flatten() if net.readout == "flatten" else Mean(), nn.LazyLinear(net.outputs))


def textbook_mlp(net: MLP, shape: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for width in net.widths:
        layers.append(nn.LazyLinear(width, bias=net.norm != "batch"))
        layers += [*norm_module(net.norm, width, False, net.groups), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(net.widths[-1], net.outputs))


def same_as_textbook(net: Any, textbook: nn.Sequential, shape: tuple[int, ...]) -> None:
    textbook.double()
    textbook(items(2, shape))  # sizes what is lazy
    meta, x = double(net.init(torch.Generator().manual_seed(0))), items(7, shape)
    assert [w.shape for w in meta.values()] == [w.shape for w in textbook.parameters()]
    with torch.no_grad():
        for own, w in zip(textbook.parameters(), meta.values()):
            own.copy_(w)
        torch.testing.assert_close(net(meta, x), textbook.train()(x))


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 11)])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize("readout", ["flatten", "mean"])
@pytest.mark.parametrize("halving", ["stride", "pool"])
def test_conv4_is_the_textbooks(halving: str, readout: str, norm: str, shape: tuple[int, ...]) -> None:
    net = Conv4(item_shape=shape, outputs=3, norm=norm, groups=4, filters=8, blocks=3, halving=halving, readout=readout)
    same_as_textbook(net, textbook_conv4(net, shape), shape)


@pytest.mark.parametrize("shape", [(1, 5, 4), (13,)])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
def test_mlp_is_the_textbooks(norm: str, shape: tuple[int, ...]) -> None:
    net = MLP(item_shape=shape, outputs=3, norm=norm, groups=4, widths=[12, 8, 8])
    same_as_textbook(net, textbook_mlp(net, shape), shape)


def test_the_published_conv4_has_its_number_of_weights() -> None:
    """64 filters on 28x28: the last map of four stride-2 convolutions is 2x2, of four poolings 1x1."""
    trunk = 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64
    for halving, readout, features in (("stride", "flatten", 256), ("stride", "mean", 64), ("pool", "flatten", 64)):
        net = Conv4(item_shape=(1, 28, 28), outputs=5, halving=halving, readout=readout)
        weights = net.init(torch.Generator())
        assert net.feature_size == features
        assert sum(w.numel() for w in weights.values()) == trunk + 5 * features + 5


@every_model
def test_features_and_head_make_the_network(model: Model) -> None:
    net = make_net(model)
    meta, x = double(net.init(torch.Generator().manual_seed(0))), items()
    features = net.features(meta, x)
    assert features.shape == (7, net.feature_size)
    assert torch.equal(net.head(meta, features), net(meta, x))
    assert net(meta, x).shape == (7, WAY)


@every_model
def test_a_net_without_head_is_the_same_trunk(model: Model) -> None:
    net = make_net(model)
    whole, trunk = (net.init(torch.Generator().manual_seed(0), head=head) for head in (True, False))
    assert whole.keys() - trunk.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(trunk[n], whole[n]) for n in trunk)


@every_model
def test_support_statistics_treat_the_support_set_as_a_batch_of_its_own(model: Model) -> None:
    """Asked about the support set itself, `support` says what `batch` says."""
    meta, x = double(make_net(model).init(torch.Generator().manual_seed(0))), items()
    alone = make_net(model)(meta, x)
    torch.testing.assert_close(make_net(model, statistics="support")(meta, x, support=x), alone)
    torch.testing.assert_close(make_net(model, statistics="support")(meta, x), alone)
    assert torch.equal(make_net(model)(meta, x, support=items(3)), alone)


@every_model
def test_at_test_without_moving_averages_is_the_net_itself(model: Model) -> None:
    for norm, statistics in (("batch", "batch"), ("batch", "support"), ("group", "running"), ("none", "running")):
        net = make_net(model, norm, statistics)
        assert not net.tracks
        assert net.fresh_running() == {}
        assert net.at_test({}) is net


@every_model
def test_a_tracking_net_trains_on_the_batch_and_tests_on_its_averages(model: Model) -> None:
    net = make_net(model, statistics="running")
    meta, x = double(net.init(torch.Generator().manual_seed(0))), items()
    assert net.tracks
    assert torch.equal(net(meta, x), make_net(model)(meta, x))
    own = net.moments(meta, x)
    torch.testing.assert_close(net.at_test(own)(meta, x), net(meta, x))
    fresh = net.fresh_running()
    assert {n: v.shape for n, v in fresh.items()} == {n: v.shape for n, v in own.items()}
    assert all(v.eq(0 if n.endswith("mean") else 1).all() for n, v in fresh.items())


@pytest.mark.parametrize(
    ("norm", "statistics", "said"),
    [
        ("batch", "batch", "batch"),
        ("batch", "support", "support"),
        ("batch", "running", "running"),
        ("group", "running", "per example"),
        ("layer", "batch", "per example"),
        ("none", "support", "none"),
    ],
)
def test_what_an_accuracy_must_be_read_with(norm: str, statistics: str, said: str) -> None:
    assert make_net(norm=norm, statistics=statistics).statistics_used == said


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Conv4(item_shape=(13,), outputs=3), r"needs images .*\(13,\)"),
        (lambda: Conv4(item_shape=(1, 8, 8), outputs=3, halving="pool", blocks=4), "blocks=4 halvings.*8x8"),
        (lambda: Conv4(item_shape=(1, 8, 8), outputs=3, filters=12, norm="group"), "groups=8.*filters=12"),
        (lambda: MLP(item_shape=(8,), outputs=3, widths=[16, 12], norm="group"), "groups=8.*12"),
        (lambda: MLP(item_shape=(8,), outputs=3, widths=[]), r"widths=\[\]"),
        (lambda: MLP(item_shape=(8,), outputs=3, widths=[4, 0]), r"widths=\[4, 0\]"),
    ],
)
def test_settings_that_do_not_fit_say_which_and_why(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
