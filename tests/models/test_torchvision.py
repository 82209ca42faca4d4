"""torchvision's networks say what torchvision says they say, and have the gradients that the engine needs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from contract.small import (
    ITEM,
    WAY,
    gap,
    loop_gradient,
    make_algorithm,
    make_episodes,
    make_meta,
    one_by_one,
    vmapped_gradient,
)
from torch import Tensor, nn
from torch.func import vmap
from torchvision.models import ConvNeXt, DenseNet, MaxVit, MobileNetV3, SwinTransformer, VisionTransformer, get_model
from torchvision.models import _api as api
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from metarun import checkpoint
from metarun.engine.state import TrainState
from metarun.models.backbone import TaskConv2d
from metarun.models.pretrained import known_archs
from metarun.models.torchvision import TorchVision
from metarun.types import Meta

SIDE = 16
SWIN = ([2, 2], 8, [2, 2], [2, 2], [4, 4])
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: get_model("tiny_resnet"),
    "densenet": lambda: DenseNet(4, (2, 2), 8, drop_rate=0.3),
    "mobilenet_v3": lambda: MobileNetV3(
        [InvertedResidualConfig(8, 3, 16, 8, True, "HS", 1, 1, 1.0)], 16, norm_layer=partial(nn.BatchNorm2d, eps=0.01)
    ),
    "convnext": lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.3, layer_scale=0.5),
    "vit": lambda: VisionTransformer(SIDE, 4, 2, 2, 8, 16, dropout=0.2, attention_dropout=0.2),
    "swin": lambda: SwinTransformer(*SWIN, stochastic_depth_prob=0.2),
    "swin_v2": lambda: SwinTransformer(
        *SWIN, stochastic_depth_prob=0.2, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2
    ),
    "maxvit": lambda: MaxVit((SIDE, SIDE), 8, 2, [8, 16], [1, 1], 4, stochastic_depth_prob=0.2),
}
"""A small network of every kind of module that torchvision's have"""
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The small networks, as torchvision's own by the names `test_FAMILY`."""
    with warnings.catch_warnings(action="ignore"), pytest.MonkeyPatch.context() as patch:
        for family, make in FAMILIES.items():
            builder = lambda weights=None, progress=True, make=make: make()  # noqa: E731
            patch.setitem(api.BUILTIN_MODELS, f"test_{family}", builder)
        yield


def network(arch: str, shape: tuple[int, ...] = (3, SIDE, SIDE), **settings: Any) -> TorchVision:
    return TorchVision(item_shape=shape, outputs=WAY, arch=arch, **settings)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module with no weight, bias or moving average as it was made, in double precision."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make().double()
        with torch.no_grad():
            for name, w in [*module.named_parameters(), *module.named_buffers()]:
                if w.is_floating_point() and "relative" not in name:
                    w.add_(0.1 * torch.rand_like(w))
    return module


def without_classifier(module: nn.Module, name: str = "fc") -> nn.Module:
    setattr(module, name, nn.Identity())
    return module


def saved(module: nn.Module, folder: Path, name: str = "weights.pth") -> str:
    torch.save(module.state_dict(), folder / name)
    return str(folder / name)


def double(meta: Meta) -> Meta:
    return {name: w.double() for name, w in meta.items()}


def undo_normalisation(x: Tensor) -> Tensor:
    """Items that the network will see as `x`."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return x * std.double()[:, None, None] + mean.double()[:, None, None]


# The same function


def test_resnet18_with_a_files_weights_is_torchvisions(tmp_path: Path) -> None:
    """In eval mode with moving averages, in train mode with the batch's."""
    module = trained(lambda: torchvision.models.resnet18(weights=None)).float()
    net = network("resnet18", (3, 32, 32), weights=saved(module, tmp_path), statistics="running")
    without_classifier(module.double())
    x = images(4, 3, 32, 32)
    meta, running = double(net.init(torch.Generator())), double(net.fresh_running())
    assert net.feature_shape == (512,)
    with torch.no_grad():
        theirs = module.eval()(x)
        torch.testing.assert_close(
            net.at_test(running).features(meta, undo_normalisation(x)), theirs, rtol=1e-6, atol=1e-6
        )
        batch = module.train()(x)
    assert gap(batch, theirs) > 0.01
    torch.testing.assert_close(net.features(meta, undo_normalisation(x)), batch, rtol=1e-6, atol=1e-6)


def test_a_pretrained_googlenet_rescales_its_input_and_has_no_auxiliary_classifiers(tmp_path: Path) -> None:
    """As torchvision sets it for its published weights."""
    with warnings.catch_warnings(action="ignore"):
        module = trained(lambda: torchvision.models.googlenet(transform_input=True)).float()
    net = network("googlenet", (3, 32, 32), weights=saved(module, tmp_path), statistics="running")
    without_classifier(module.double())
    x, meta, running = images(2, 3, 32, 32), double(net.init(torch.Generator())), double(net.fresh_running())
    assert not [name for name in meta if name.startswith("aux")]
    with torch.no_grad():
        theirs, ours = module.eval()(x), net.at_test(running).features(meta, undo_normalisation(x))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_the_files_that_torchvision_publishes_of_densenets_have_older_names(tmp_path: Path) -> None:
    state = trained(FAMILIES["densenet"]).float().state_dict()
    older = {n.replace("norm1", "norm.1").replace("conv2", "conv.2"): w for n, w in state.items()}
    assert older.keys() != state.keys()
    torch.save(older, tmp_path / "older.pth")
    meta = network("test_densenet", weights=str(tmp_path / "older.pth")).init(torch.Generator())
    name = "features.denseblock1.denselayer2.norm1.weight"
    assert torch.equal(meta[name], state[name])


HEADS = {"densenet": "classifier", "vit": "heads", "swin": "head", "swin_v2": "head", "resnet": "fc"}


@every_family
def test_every_family_says_what_torchvisions_says(family: str, tmp_path: Path) -> None:
    """Without its own dropout and stochastic depth."""
    module = trained(FAMILIES[family]).float()
    net = network(f"test_{family}", weights=saved(module, tmp_path), statistics="running")
    seen: list[Tensor] = []
    module.double().eval()
    if family in HEADS:
        setattr(module, HEADS[family], nn.Identity())
    else:  # what goes into the first layer of weights of the classifier
        first = next(m for m in module.classifier.modules() if isinstance(m, nn.Linear))
        first.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    x = images(4, 3, SIDE, SIDE)
    with torch.no_grad():
        theirs = module(x)
        ours = net.at_test(double(net.fresh_running())).features(
            double(net.init(torch.Generator())), undo_normalisation(x)
        )
    theirs = seen[0] if seen else theirs
    assert theirs.std(0).max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arch", "side", "size"),
    [
        ("squeezenet1_1", 32, 512),
        ("mobilenet_v3_small", 32, 576),
        ("shufflenet_v2_x0_5", 32, 1024),
        ("googlenet", 32, 1024),
        ("alexnet", 64, 256 * 6 * 6),
    ],
)
def test_features_are_what_the_classifier_would_get(arch: str, side: int, size: int) -> None:
    assert network(arch, (3, side, side)).feature_size == size


def test_all_of_torchvisions_classification_networks_are_known_and_no_others() -> None:
    archs = known_archs()
    assert {"resnet18", "vit_b_16", "swin_v2_t", "maxvit_t"} <= set(archs)
    assert not {"fcn_resnet50", "raft_large", "r3d_18", "quantized_resnet18", "ssd300_vgg16"} & set(archs)


# Gradients


@every_family
def test_the_second_order_gradient_of_every_family_is_the_task_loops(family: str) -> None:
    """Where a gradient is 0 (a bias before a batch norm, after a linear layer), both are."""
    algorithm, net = make_algorithm("maml", inner_steps=1), network(f"test_{family}", ITEM, image_size=SIDE)
    meta, episodes = make_meta(algorithm, net), make_episodes(tasks=2)
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(lambda task: algorithm.loss(net, meta, task).loss, meta, episodes)
    whole = torch.stack([w.norm() for w in plain.values()]).norm()
    for name, w in plain.items():
        assert (ours[name] - w).norm() < 1e-9 * max(w.norm(), 1e-3 * whole), name
    assert sum(float(w.norm()) > 1e-6 for w in plain.values()) > 0.8 * len(plain)
    with torch.no_grad():  # attention takes another path here, if it is let
        together = vmap(lambda task: algorithm.predict(net, meta, task))(episodes)
        alone = torch.stack([algorithm.predict(net, meta, task) for task in one_by_one(episodes)])
    assert gap(together, alone) < 1e-11


@pytest.mark.parametrize("family", ["resnet", "densenet", "mobilenet_v3"])
def test_nothing_in_a_convolutional_network_is_done_task_by_task(family: str) -> None:
    algorithm, net = make_algorithm("maml", inner_steps=1), network(f"test_{family}", ITEM, image_size=SIDE)
    meta, episodes = make_meta(algorithm, net), make_episodes(tasks=2)
    functorch: Any = vars(torch._C)["_functorch"]
    functorch._set_vmap_fallback_enabled(False)  # it would be an error
    try:
        vmapped_gradient(algorithm, net, meta, episodes)
    finally:
        functorch._set_vmap_fallback_enabled(True)


@pytest.mark.parametrize(
    ("layer", "fits"),
    [
        (nn.Conv2d(3, 8, 7, 2, 3), True),
        (nn.Conv2d(8, 8, 1, bias=False), True),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8), False),
        (nn.Conv2d(8, 8, 3), False),
        (nn.Conv2d(8, 8, 3, padding=2, dilation=2), False),
        (nn.Conv2d(8, 8, 2, 2), False),
        (nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), False),
        (nn.Conv2d(8, 8, 3, (1, 2), 1), False),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), False),
        (nn.Conv2d(8, 8, 3, padding="same"), False),
        (nn.Linear(3, 3), False),
    ],
    ids=str,
)
def test_convolutions_are_metaruns_where_it_has_the_same(layer: nn.Module, fits: bool) -> None:
    assert TaskConv2d.fits(layer) == fits
    if fits and isinstance(layer, nn.Conv2d):
        x = torch.randn(2, layer.in_channels, 9, 8)
        torch.testing.assert_close(TaskConv2d(layer)(x), layer(x))


# Weights and moving averages


@pytest.fixture
def file(tmp_path: Path) -> str:
    return saved(trained(FAMILIES["resnet"]).float(), tmp_path)


def test_fresh_weights_and_averages_are_torchvisions_and_leave_its_random_numbers_alone() -> None:
    net, state = network("test_resnet", statistics="running"), torch.get_rng_state()
    one, same, other = (net.init(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert not torch.equal(one["stem.0.weight"], other["stem.0.weight"])
    names = [n for n, _ in without_classifier(FAMILIES["resnet"]()).named_parameters()]
    assert list(one) == [*names, "head.weight", "head.bias"]
    fresh = net.fresh_running()
    assert set(fresh) == {f"{n}.{what}" for n in net.norm_names for what in ("mean", "var")}
    assert all(v.eq(0 if n.endswith("mean") else 1).all() for n, v in fresh.items())


def test_a_files_weights_are_where_training_starts(file: str) -> None:
    net, state = network("test_resnet", weights=file, statistics="running"), torch.load(file)
    meta, running = net.init(torch.Generator()), net.fresh_running()
    assert all(torch.equal(w, state[n]) for n, w in meta.items() if not n.startswith("head."))
    assert torch.equal(running["stem.1.mean"], state["stem.1.running_mean"])
    assert torch.equal(running["block.bn2.var"], state["block.bn2.running_var"])
    for w in [*meta.values(), *running.values()]:
        w.add_(1)  # must not reach the next run in this process
    assert torch.equal(net.init(torch.Generator())["stem.0.weight"], state["stem.0.weight"])
    assert torch.equal(net.fresh_running()["stem.1.mean"], state["stem.1.running_mean"])


@pytest.mark.parametrize("wrap", ["state_dict", "model", "module."])
def test_a_file_may_be_a_training_scripts_checkpoint_with_another_classifier(
    wrap: str, file: str, tmp_path: Path
) -> None:
    state = torch.load(file) | {"fc.weight": torch.zeros(7, 8), "fc.bias": torch.zeros(7)}
    content = {f"module.{n}": w for n, w in state.items()} if wrap == "module." else {wrap: state, "epoch": 3}
    torch.save(content, tmp_path / "other.pth")
    meta = network("test_resnet", weights=str(tmp_path / "other.pth")).init(torch.Generator())
    assert torch.equal(meta["block.conv1.weight"], state["block.conv1.weight"])
    assert meta["head.weight"].shape == (WAY, 8)


def test_a_file_that_changes_is_read_again(file: str) -> None:
    first = network("test_resnet", weights=file).init(torch.Generator())
    torch.save({n: w + 1 if w.is_floating_point() else w for n, w in torch.load(file).items()}, file)
    second = network("test_resnet", weights=file).init(torch.Generator())
    torch.testing.assert_close(second["stem.0.weight"], first["stem.0.weight"] + 1)


def test_published_weights_are_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = trained(lambda: get_model("squeezenet1_1")).float()
    asked: list[str] = []

    def download(url: str, *args: Any, **kwargs: Any) -> Meta:
        asked.append(url)
        return module.state_dict()

    monkeypatch.setattr(api, "load_state_dict_from_url", download)
    net = network("squeezenet1_1", (3, 32, 32), weights="imagenet1k_v1")
    meta, again = net.init(torch.Generator()), net.init(torch.Generator())
    assert torch.equal(meta["features.0.weight"], module.state_dict()["features.0.weight"])
    assert torch.equal(again["features.0.weight"], meta["features.0.weight"])
    assert len(asked) == 1 and "squeezenet1_1" in asked[0]


# Frozen


def test_a_frozen_trunk_is_no_meta_parameter_and_travels_with_the_moving_averages(file: str) -> None:
    net, state = network("test_resnet", weights=file, frozen=True), torch.load(file)
    assert set(net.init(torch.Generator())) == {"head.weight", "head.bias"}
    assert net.init(torch.Generator(), head=False) == {}
    running = net.fresh_running()
    assert torch.equal(running["frozen.stem.0.weight"], state["stem.0.weight"])
    assert torch.equal(running["stem.1.mean"], state["stem.1.running_mean"])
    assert not net.tracks
    assert net.statistics_used == "running"
    assert net.norm_names == ()


@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_a_frozen_trunk_is_the_pretrained_one_in_eval_mode_in_training_too(statistics: str, file: str) -> None:
    net = network("test_resnet", weights=file, frozen=True, statistics=statistics)
    module = without_classifier(FAMILIES["resnet"]().double())
    module.load_state_dict(torch.load(file), strict=False)
    x, running = images(4, 3, SIDE, SIDE), double(net.fresh_running())
    with torch.no_grad():
        theirs = module.eval()(x)
    for used in (net.at_train(running, torch.tensor(3)), net.at_test(running), net):
        ours = used.features({}, undo_normalisation(x), support=undo_normalisation(x[:2]))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        assert not ours.requires_grad
    other = net.at_train({n: w + 0.1 for n, w in running.items()}, torch.tensor(3))
    assert gap(other.features({}, undo_normalisation(x)), theirs) > 0.01


def test_the_head_of_a_frozen_trunk_is_trained_and_a_checkpoint_holds_both(file: str, tmp_path: Path) -> None:
    net = network("test_resnet", ITEM, weights=file, frozen=True, image_size=SIDE)
    algorithm, episodes = make_algorithm("maml"), make_episodes()
    meta, running = make_meta(algorithm, net), double(net.fresh_running())
    plain = loop_gradient(lambda task: algorithm.loss(net.at_test(running), meta, task).loss, meta, episodes)
    ours, _, moments = vmapped_gradient(algorithm, net, meta, episodes)
    assert moments == {}
    assert all(gap(ours[n], plain[n]) < 1e-6 for n in plain)
    checkpoint.save(tmp_path / "last.pt", TrainState(meta, torch.optim.SGD(meta.values(), lr=0.1), running=running))
    back = checkpoint.load(tmp_path / "last.pt")["running"]
    assert back.keys() == running.keys()
    assert torch.equal(net.at_test(back)(meta, images(2, *ITEM)), net.at_test(running)(meta, images(2, *ITEM)))


def test_a_method_s_own_norm_does_not_look_for_averages_in_a_frozen_trunk(file: str) -> None:
    net = network("test_resnet", weights=file, frozen=True)
    norm = net.at_test(net.fresh_running()).norm_layer()
    own = norm.init("own", 8)
    assert norm(own, "own", torch.rand(5, 8)).mean(0).abs().max() < 1e-5


# Images, norms, dropout


def test_one_channel_is_given_to_all_three_and_images_are_resized() -> None:
    grey, net = images(4, 1, 20, 20), network("test_resnet", (1, 20, 20), image_size=SIDE)
    meta = double(net.init(torch.Generator()))
    three = network("test_resnet", (3, SIDE, SIDE))
    small = nn.functional.interpolate(grey.expand(-1, 3, -1, -1), (SIDE, SIDE), mode="bilinear", antialias=True)
    torch.testing.assert_close(net(meta, grey), three(meta, small))
    together = vmap(lambda x: net(meta, x))(images(3, 4, 1, 20, 20))
    torch.testing.assert_close(together[1], net(meta, images(3, 4, 1, 20, 20)[1]))


@pytest.mark.parametrize(("norm", "left"), [("batch", 3), ("group", 3), ("none", 0)])
def test_norm_names_are_the_networks_own_from_input_to_output(norm: str, left: int) -> None:
    net = network("test_resnet", norm=norm)
    assert net.norm_names == ("stem.1", "block.bn1", "block.bn2")[:left]
    meta = net.init(torch.Generator())
    assert all(f"{n}.weight" in meta and f"{n}.bias" in meta for n in net.norm_names)
    assert ("stem.1.weight" in meta) == (left > 0)


@pytest.mark.parametrize(
    ("family", "norm", "said", "tracks"),
    [
        ("resnet", "batch", "running", True),
        ("resnet", "group", "per example", False),
        ("resnet", "none", "none", False),
        ("vit", "batch", "per example", False),
        ("maxvit", "batch", "running", True),
    ],
)
def test_what_an_accuracy_must_be_read_with(family: str, norm: str, said: str, tracks: bool) -> None:
    net = network(f"test_{family}", norm=norm, statistics="running", groups=4)
    assert net.statistics_used == said
    assert net.tracks is tracks
    assert bool(net.fresh_running()) is tracks


def test_dropout_is_on_the_features_in_training_alone() -> None:
    net = network("test_resnet", dropout=0.5)
    meta, x = double(net.init(torch.Generator())), images(4, 3, SIDE, SIDE)
    plain, dropped = net.features(meta, x), net.at_train({}, torch.tensor(5)).features(meta, x)
    kept = dropped != 0
    assert 0.2 < float((~kept & (plain != 0)).double().mean()) < 0.8
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])


# Errors


def wrong_file(folder: Path, content: Any) -> str:
    torch.save(content, folder / "wrong.pth")
    return str(folder / "wrong.pth")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"arch": "resnet81"}, "no such network; did you mean resnet18"),
        ({"arch": "fcn_resnet50"}, "no such network"),
        ({"item_shape": (13,)}, r"needs images .*\(13,\)"),
        ({"item_shape": (2, 28, 28)}, "1 or 3 channels.* 2"),
        ({"arch": "test_vit", "item_shape": (3, 28, 28)}, "cannot take 28x28 images.*image_size"),
        ({"arch_args": {"foo": 1}}, "arch_args=.*foo"),
        ({"arch_args": {"weights": "DEFAULT"}}, "arch_args=.*weights"),
        ({"frozen": True}, "frozen=true.*model.weights"),
        ({"weights": "DEFAULT", "norm": "group"}, "norm=group"),
        ({"weights": "IMAGENET1K_V3"}, "IMAGENET1K_V1"),
        ({"weights": "nowhere.pth"}, "weights=nowhere.pth: there is no such file"),
        ({"norm": "group", "groups": 7}, "groups=7 does not divide channels=64"),
        ({"arch": "test_resnet", "weights": "DEFAULT"}, "torchvision publishes none"),
    ],
)
def test_settings_that_do_not_fit_say_which_and_why(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TorchVision(**{"item_shape": (3, 32, 32), "outputs": 3, "arch": "resnet18"} | settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {n: w for n, w in state.items() if n != "block.bn1.weight"}, "lacks 'block.bn1.weight'"),
        (lambda state: state | {"block.conv3.weight": torch.zeros(3)}, "holds 'block.conv3.weight'"),
        (lambda state: state | {"block.conv1.weight": torch.zeros(3)}, "block.conv1.weight"),
        (lambda state: [1, 2], "no state_dict"),
        (lambda state: {}, "no state_dict"),
        (lambda state: {"a": 1}, "no state_dict"),
        (lambda state: nn.Linear(2, 2), "no state_dict"),
    ],
)
def test_a_file_that_is_not_these_weights_is_refused(
    change: Callable[[Meta], Any], said: str, file: str, tmp_path: Path
) -> None:
    path = wrong_file(tmp_path, change(torch.load(file)))
    with pytest.raises(ValueError, match=said) as refused:
        network("test_resnet", weights=path)
    assert f"weights={path}" in str(refused.value)


def test_a_file_that_is_no_file_of_torchs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match="no state_dict"):
        network("test_resnet", weights=str(tmp_path / "text.pth"))


def test_a_download_that_fails_says_where_the_file_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Meta:
        raise URLError("no network")

    monkeypatch.setattr(api, "load_state_dict_from_url", fail)
    with pytest.raises(ValueError, match=r"(?s)no network.*https://.*shufflenet.*checkpoints.*model.weights=PATH"):
        network("shufflenet_v2_x0_5", (3, 32, 32), weights="DEFAULT")
