"""Pixels of images as tasks: where they are, what colour they have, which are drawn; and whose images they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from metarun.config import component
from metarun.data.bank import ClassBank
from metarun.data.completion import Completion, Pixels, PixelSampler
from metarun.registry import known
from metarun.types import REGISTRY, InputError, Place, register

NOWHERE = Place(Path())
known("dataset")


def bank(images: int = 6, channels: int = 3, height: int = 5, width: int = 4) -> ClassBank:
    """Every pixel of every image has a colour of its own, as far as bytes go."""
    values = torch.randperm(images * height * width, generator=torch.Generator().manual_seed(0)) % 251
    items = values.view(images, 1, height, width).repeat(1, channels, 1, 1) + torch.arange(channels).view(-1, 1, 1)
    return ClassBank(items.to(torch.uint8), torch.tensor([0, images // 2, images]), ("a", "b"))


def sampler(shot: int = 7, query: int = 9, seed: int = 0, split: str = "test", **shape: int) -> PixelSampler:
    return Pixels(bank(**shape)).episodes(1, shot, query, seed, split)


def pixel_by_pixel(image: Tensor, x: Tensor) -> Tensor:
    """(channels, h, w) uint8 and (n, 2) -> (n, channels): the colours there, by the slow road"""
    height, width = image.shape[1:]
    colours = []
    for down, across in x.tolist():
        row, column = (down + 1) / 2 * (height - 1), (across + 1) / 2 * (width - 1)
        assert row == pytest.approx(round(row), abs=1e-5)
        assert column == pytest.approx(round(column), abs=1e-5)
        colours.append(image[:, round(row), round(column)].float() / 255)
    return torch.stack(colours)


# Episodes


@pytest.mark.parametrize("channels", [1, 3])
def test_targets_are_the_colours_of_one_image_where_the_examples_say(channels: int) -> None:
    draw, images = sampler(channels=channels), bank(channels=channels).items
    assert (draw.item_shape, draw.outputs, draw.image_shape) == ((2,), channels, (channels, 5, 4))
    assert draw.classes(0, 2) is None
    episodes, whole = draw(3, 8), draw.whole(3, 8)
    assert episodes.support_x.shape == (8, 7, 2)
    assert episodes.support_y.shape == (8, 7, channels)
    assert episodes.query_x.shape == (8, 9, 2)
    assert episodes.query_y.shape == (8, 9, channels)
    for t in range(8):
        (image,) = [i for i in images if torch.equal(i.float().flatten(1).T / 255, whole.query_y[t])]
        for x, y in ((episodes.support_x, episodes.support_y), (episodes.query_x, episodes.query_y)):
            torch.testing.assert_close(pixel_by_pixel(image, x[t]), y[t])
            assert len(x[t].unique(dim=0)) == len(x[t])


def test_the_whole_image_is_asked_of_the_same_support_set_row_by_row() -> None:
    draw = sampler()
    episodes, whole = draw(0, 3), draw.whole(0, 3)
    assert torch.equal(whole.support_x, episodes.support_x)
    assert torch.equal(whole.support_y, episodes.support_y)
    x = whole.query_x[0]
    assert torch.equal(x[:4, 0], torch.full((4,), -1.0))
    torch.testing.assert_close(x[:4, 1], torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    assert torch.equal(x[-1], torch.ones(2))
    every = sampler(shot=20, query=20)(0, 1)
    for part in (every.support_x[0], every.query_x[0]):
        assert torch.equal(part.unique(dim=0), x.unique(dim=0))


def test_support_and_queries_are_drawn_apart_and_evenly() -> None:
    episodes = sampler(shot=5, query=5, images=40)(0, 4000)
    assert not torch.equal(episodes.support_x, episodes.query_x)
    place = {tuple(x.tolist()): i for i, x in enumerate(sampler().whole(0, 1).query_x[0])}
    both = []
    for x in (episodes.support_x, episodes.query_x):
        drawn = torch.tensor([[place[tuple(pixel)] for pixel in task] for task in x.tolist()])
        counts = drawn.flatten().bincount(minlength=20) / drawn.numel()
        assert float((counts - 0.05).abs().max()) < 0.006
        both.append(drawn)
    shared = (both[0][:, :, None] == both[1][:, None]).any(2).float().mean()
    assert float(shared) == pytest.approx(0.25, abs=0.02)  # 5 of 20: as chance has it


def test_every_image_is_a_task_and_as_often_as_another() -> None:
    draw = sampler(images=10)
    means = draw.whole(0, 5000).query_y.mean((1, 2))
    counts = means.mul(1e5).round().unique(return_counts=True)[1] / 5000
    assert len(counts) == 10
    assert float((counts - 0.1).abs().max()) < 0.02


def test_a_task_is_its_index_however_it_is_asked_for() -> None:
    whole, part = sampler()(0, 6), sampler()(4, 2)
    for a, b in zip(whole, part):
        assert torch.equal(a[4:], b)
    for other in (sampler(seed=1), sampler(split="val")):
        assert not torch.equal(other(0, 6).support_x, whole.support_x)


def test_more_shots_are_more_pixels_of_the_same_image() -> None:
    few, many = sampler(shot=3)(0, 5), sampler(shot=8)(0, 5)
    assert torch.equal(few.support_x, many.support_x[:, :3])
    assert torch.equal(few.query_y, many.query_y)


def test_an_image_of_one_row_can_be_completed() -> None:
    x = sampler(shot=2, query=4, height=1).whole(0, 1).query_x[0]
    assert torch.equal(x[:, 0], torch.full((4,), -1.0))
    assert len(x.unique(dim=0)) == 4


# The bank


def test_pixels_stay_bytes_and_may_stay_where_they_are() -> None:
    pixels = Pixels(bank())
    moved = pixels.to("cpu", 0)
    assert moved.images.items.dtype == torch.uint8
    assert moved.images.ahead
    assert not moved.ahead
    assert moved.digest() == pixels.digest() != Pixels(bank(images=4)).digest()
    for a, b in zip(moved.episodes(1, 3, 3, 0, "test")(0, 2), pixels.episodes(1, 3, 3, 0, "test")(0, 2)):
        assert torch.equal(a, b)
    assert (pixels.kind, pixels.names, pixels.measures[0].name) == ("regression", (), "mse")


def test_what_makes_no_sense_is_refused() -> None:
    pixels = Pixels(bank())
    with pytest.raises(InputError, match=r"task\.way=5: a regression task has no classes; set task\.way=1"):
        pixels.episodes(5, 1, 1, 0, "train", "task")
    with pytest.raises(InputError, match=r"eval\.query=21: images of 'val' have 5x4 = 20 pixels; lower eval\.query"):
        pixels.episodes(1, 20, 21, 0, "val", "eval")
    with pytest.raises(InputError, match=r"task\.shot=21: .* lower task\.shot"):
        pixels.episodes(1, 21, 1, 0, "train", "task")
    with pytest.raises(InputError, match="no classes"):
        pixels.batches(0, "train")


# Whose images


def test_the_images_are_those_of_another_dataset(tmp_path: Path) -> None:
    for label in "abcdef":
        for i in range(2):
            path = tmp_path / "mine" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (6, 6), (10 * ord(label) % 256, i, 7)).save(path)
    of = {"name": "imagefolder", "path": "mine", "image_size": 6, "ratios": [0.5, 0.2, 0.3]}
    found = Completion(of).load("train", Place(tmp_path))
    own = known("dataset")["imagefolder"](**{k: v for k, v in of.items() if k != "name"}).load("train", Place(tmp_path))
    assert torch.equal(found.images.items, own.items)
    assert found.episodes(1, 4, 36, 0, "train").image_shape == (3, 6, 6)


def test_a_run_says_whose_images_in_its_config() -> None:
    made = component("dataset", {"dataset": {"name": "completion", "of": {"name": "glyphs", "seed": 3}}})
    assert made == Completion({"name": "glyphs", "seed": 3})
    assert Completion() == Completion({"name": "glyphs"})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a name unknown": ({"name": "glyhps"}, r"of\.name: no dataset is called 'glyhps'; did you mean glyphs\?"),
    "no name": ({"seed": 1}, r"of\.name: no dataset is called"),
    "a name that is none": ({"name": ["glyphs"]}, r"of\.name: no dataset is called"),
    "a setting unknown": ({"name": "glyphs", "sead": 1}, r"of\.sead: no such setting; did you mean seed\?"),
    "text for a number": ({"name": "glyphs", "seed": "x"}, r"of\.seed=x: must be a whole number"),
    "true for a number": ({"name": "glyphs", "seed": True}, r"of\.seed=true: must be a whole number"),
    "nothing for a number": ({"name": "glyphs", "seed": None}, r"of\.seed=null: must be a whole number"),
    "a number too small": ({"name": "glyphs", "seed": -1}, r"of\.seed=-1: must be at least 0"),
    "no such choice": ({"name": "omniglot", "split": "mine"}, r"of\.split=mine: must be one of maml, official"),
    "what its class refuses": ({"name": "imagefolder", "channels": 2}, "channels=2: images are grey"),
}


@pytest.mark.parametrize(("of", "why"), REFUSED.values(), ids=REFUSED)
def test_settings_of_the_images_are_checked_as_their_own_dataset_would(of: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=rf"^dataset\.{why}" if why.startswith("of") else why):
        component("dataset", {"dataset": {"name": "completion", "of": of}})


@pytest.mark.parametrize("name", ["sinusoid", "completion"])
def test_what_has_no_images_cannot_be_completed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known("dataset")["glyphs"], "load", lambda *_: bank())
    with pytest.raises(InputError, match=rf"dataset\.of\.name={name}: its items are no images; glyphs"):
        Completion({"name": name}).load("train", NOWHERE)


def test_features_are_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, "dataset", REGISTRY["dataset"].copy())

    @register("dataset", "features")
    @dataclass(frozen=True)
    class Features:
        def load(self, split: str, place: Place) -> ClassBank:
            return ClassBank(torch.rand(4, 1, 2, 2), torch.tensor([0, 4]), ("a",))

    with pytest.raises(InputError, match="no images"):
        Completion({"name": "features"}).load("train", NOWHERE)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["name", "seed", "path", "csv", "ratios", "image_size", "channels", "fit", "split", "rotations", "of"]
)
NAMES = st.sampled_from(["glyphs", "omniglot", "imagefolder", "completion"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(of=st.dictionaries(KEYS, anything, max_size=4), name=NAMES | anything)
def test_whatever_is_asked_for_is_made_or_refused(of: dict[str, Any], name: Any) -> None:
    try:
        Completion(of | {"name": name})
    except InputError as e:
        assert str(e)
