"""The networks are the textbook ones: built from torch.nn with the same weights, they say the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from contract.small import ITEM, MODELS, WAY, Model, make_net, model_id
from models import textbook
from torch import Tensor, nn

from metarun.config import known
from metarun.layers import he
from metarun.models.conv4 import Conv4
from metarun.models.conv_r2d2 import ConvR2D2
from metarun.models.mlp import MLP
from metarun.models.resnet12 import ResNet12
from metarun.models.resnet18 import ResNet18
from metarun.models.wrn28_10 import WideResNet
from metarun.types import Meta

every_model = pytest.mark.parametrize("model", MODELS, ids=model_id)


def double(meta: Meta, seed: int = 0) -> Meta:
    """Weights with every bias and scale away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return {n: w.double() + 0.1 * torch.randn(w.shape, generator=generator) for n, w in meta.items()}


def items(count: int = 7, shape: tuple[int, ...] = ITEM) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def same_as_textbook(net: Any, textbook: nn.Sequential, shape: tuple[int, ...]) -> None:
    textbook.double()
    textbook(items(2, shape))  # sizes what is lazy
    meta, x = double(net.init(torch.Generator().manual_seed(0))), items(7, shape)
    assert [w.shape for w in meta.values()] == [w.shape for w in textbook.parameters()]
    with torch.no_grad():
        for own, w in zip(textbook.parameters(), meta.values()):
            own.copy_(w)
        torch.testing.assert_close(net(meta, x), textbook.train()(x))


SMALL: dict[str, list[dict[str, Any]]] = {
    "conv4": [
        {"filters": 8, "blocks": 3, "halving": halving, "readout": readout, "residual": residual}
        for halving in ("stride", "pool")
        for readout in ("flatten", "mean")
        for residual in (False, True)
    ],
    "mlp": [{"widths": [12, 8, 8]}, {"widths": [12, 8, 8], "residual": True}],
    "conv_r2d2": [{"filters": [8, 12, 8]}],
    "resnet12": [{"widths": [8, 8, 12], "readout": readout} for readout in ("flatten", "mean")],
    "resnet18": [
        {"widths": [8, 12], "blocks": [2, 1], "stem": "small"},
        {"widths": [8, 8, 12], "blocks": [1, 2, 1], "stem": "imagenet", "readout": "flatten"},
    ],
    "wrn28_10": [{"depth": 10, "widen": 1, "base": 8}, {"depth": 16, "widen": 2, "base": 4, "readout": "flatten"}],
}
EACH = [(name, settings) for name, several in SMALL.items() for settings in several]


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 9, 11)])
@pytest.mark.parametrize("norm", ["batch", "group", "layer", "none"])
@pytest.mark.parametrize(
    ("name", "settings"), EACH, ids=[f"{n}{i}" for n, all in SMALL.items() for i in range(len(all))]
)
def test_a_network_is_the_textbooks(name: str, settings: dict[str, Any], norm: str, shape: tuple[int, ...]) -> None:
    net = known("model")[name](item_shape=shape, outputs=3, norm=norm, groups=4, **settings)
    same_as_textbook(net, getattr(textbook, name)(net, shape), shape)


def test_the_small_networks_above_are_all_there_are() -> None:
    own = {name for name, cls in known("model").items() if cls.__module__.startswith("metarun.")}
    assert SMALL.keys() == own - {"torchvision"}  # which has its own tests


def test_an_mlp_takes_items_of_any_shape() -> None:
    net = MLP(item_shape=(13,), outputs=3, widths=[12, 8])
    same_as_textbook(net, textbook.mlp(net, (13,)), (13,))


def trunk_size(net: Any) -> int:
    return sum(w.numel() for w in net.init(torch.Generator(), head=False).values())


def test_the_published_conv4_has_its_number_of_weights() -> None:
    """64 filters on 28x28: the last map of four stride-2 convolutions is 2x2, of four poolings 1x1."""
    trunk = 9 * 64 + 3 * 9 * 64 * 64 + 4 * 2 * 64
    for halving, readout, features in (("stride", "flatten", 256), ("stride", "mean", 64), ("pool", "flatten", 64)):
        net = Conv4(item_shape=(1, 28, 28), outputs=5, halving=halving, readout=readout)
        assert net.feature_size == features
        assert trunk_size(net) == trunk
        assert sum(w.numel() for w in net.init(torch.Generator()).values()) == trunk + 5 * features + 5


@pytest.mark.parametrize(
    ("side", "features"), [(28, 3_584), (32, 8_064), (84, 72_576)], ids=["omniglot", "cifar_fs", "mini_imagenet"]
)
def test_r2d2s_network_has_its_number_of_features(side: int, features: int) -> None:
    assert ConvR2D2(item_shape=(3, side, side), outputs=5).feature_size == features


def test_resnet12_has_the_published_size() -> None:
    """12.4 million in the trunk; 640x5x5 features of 84x84 images, and 640 where they are averaged."""
    net = ResNet12(item_shape=(3, 84, 84), outputs=5)
    assert net.feature_shape == (640, 5, 5)
    assert trunk_size(net) == 12_424_320
    assert ResNet12(item_shape=(3, 84, 84), outputs=5, readout="mean").feature_shape == (640,)


def test_resnet18_has_the_published_size() -> None:
    """torchvision's 11,689,512 less its 1000-class head; 512x7x7 before the mean at 224x224."""
    net = ResNet18(item_shape=(3, 224, 224), outputs=5)
    assert trunk_size(net) == 11_689_512 - 513_000
    assert net.feature_shape == (512,)
    assert net.map_shape == (512, 7, 7)
    assert ResNet18(item_shape=(3, 84, 84), outputs=5, stem="small").map_shape == (512, 11, 11)


def test_wrn28_10_has_the_published_size() -> None:
    """36.5 million with a 10-class head (Zagoruyko & Komodakis 2016, table 4)"""
    net = WideResNet(item_shape=(3, 80, 80), outputs=10)
    assert trunk_size(net) + 10 * 641 == 36_479_194
    assert net.map_shape == (640, 20, 20)


@pytest.mark.parametrize(
    ("name", "settings"), EACH, ids=[f"{n}{i}" for n, all in SMALL.items() for i in range(len(all))]
)
def test_features_flatten_to_their_shape(name: str, settings: dict[str, Any]) -> None:
    for shape in ((1, 12, 12), (3, 9, 11), (2, 17, 8)):
        net = known("model")[name](item_shape=shape, outputs=3, **settings)
        meta = {n: w.double() for n, w in net.init(torch.Generator()).items()}
        assert net.features(meta, items(2, shape)).shape == (2, int(torch.Size(net.feature_shape).numel()))
        norms = [n.removesuffix(".weight") for n in meta if "norm" in n and n.endswith(".weight")]
        assert list(net.norm_names) == norms == list(dict.fromkeys(norms))


@pytest.mark.parametrize(("shape", "gain"), [((64, 32, 3, 3), 9), ((128, 32, 1, 1), 1)])
def test_he_has_the_variance_of_its_fan_out(shape: tuple[int, ...], gain: int) -> None:
    w = he(shape, torch.Generator().manual_seed(0))
    assert w.var().item() == pytest.approx(2 / (shape[0] * gain), rel=0.1)


def test_resnet12_drops_blocks_after_its_last_two_and_elements_before() -> None:
    net = ResNet12(item_shape=(1, 32, 32), outputs=3, widths=[8, 8, 8, 8], dropout=0.5, dropblock=0.3, dropblock_size=2)
    asked: list[tuple[str, tuple[int, ...]]] = []

    class Spy:
        def dropout(self, x: Tensor, rate: float) -> Tensor:
            asked.append((f"dropout {rate}", tuple(x.shape[1:])))
            return x

        def dropblock(self, x: Tensor, rate: float, size: int) -> Tensor:
            asked.append((f"dropblock {rate} {size}", tuple(x.shape[1:])))
            return x

    spied = replace(net, noise=cast(Any, Spy()))
    spied.features(net.init(torch.Generator()), torch.rand(2, 1, 32, 32))
    assert asked == [
        ("dropout 0.5", (8, 16, 16)),
        ("dropout 0.5", (8, 8, 8)),
        ("dropblock 0.3 2", (8, 4, 4)),
        ("dropblock 0.3 2", (8, 2, 2)),
    ]


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
        (lambda: ConvR2D2(item_shape=(13,), outputs=3), r"needs images .*\(13,\)"),
        (lambda: ConvR2D2(item_shape=(1, 15, 28), outputs=3), "4 blocks leave nothing of 15x28"),
        (lambda: ConvR2D2(item_shape=(1, 28, 28), outputs=3, filters=[8]), r"filters=\[8\]: give 2 or more"),
        (lambda: ConvR2D2(item_shape=(1, 28, 28), outputs=3, filters=[8, 12], norm="group"), "groups=8.*filters=12"),
        (lambda: ResNet12(item_shape=(13,), outputs=3), r"needs images .*\(13,\)"),
        (lambda: ResNet12(item_shape=(1, 15, 28), outputs=3), "4 blocks' halvings leave nothing of 15x28"),
        (lambda: ResNet12(item_shape=(1, 28, 28), outputs=3, widths=[]), r"widths=\[\]"),
        (lambda: ResNet12(item_shape=(1, 28, 28), outputs=3, widths=[12], norm="group"), "groups=8.*width=12"),
        (lambda: ResNet18(item_shape=(13,), outputs=3), r"needs images .*\(13,\)"),
        (lambda: ResNet18(item_shape=(1, 28, 28), outputs=3, blocks=[2, 2]), r"blocks=\[2, 2\].*\[64, 128, 256, 512\]"),
        (lambda: ResNet18(item_shape=(1, 28, 28), outputs=3, blocks=[2, 2, 0, 2]), r"blocks=\[2, 2, 0, 2\]"),
        (lambda: ResNet18(item_shape=(1, 28, 28), outputs=3, widths=[12, 8], blocks=[1, 1], norm="group"), "width=12"),
        (lambda: WideResNet(item_shape=(13,), outputs=3), r"needs images .*\(13,\)"),
        (lambda: WideResNet(item_shape=(1, 28, 28), outputs=3, depth=27), "depth=27: must be 6 n"),
        (lambda: WideResNet(item_shape=(1, 28, 28), outputs=3, base=12, norm="group"), "groups=8.*base=12"),
    ],
)
def test_settings_that_do_not_fit_say_which_and_why(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
