"""Several datasets as one: what is in it, how it is sampled, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import metarun.data.cifar
import metarun.data.torchvision  # noqa: F401 (the example's datasets)
from metarun.counter import MIX, mix, signed
from metarun.data.bank import ClassBank, subset, with_turns
from metarun.data.pixels import Form
from metarun.data.sampler import EpisodeSampler, stream
from metarun.data.union import Together, fitted, joined, read_sources
from metarun.types import REGISTRY, SPLITS, InputError, Place, setting

NOWHERE = Place(Path("no data needed"))
CLASSES = {"train": 6, "val": 3, "test": 4}


def bank_of(shape: tuple[int, ...], classes: int, each: int, first: int = 0) -> ClassBank:
    """Every image of class `c` is of the grey `first + c`."""
    greys = torch.arange(first, first + classes, dtype=torch.uint8).repeat_interleave(each)
    items = greys.view(-1, *[1] * len(shape)).repeat(1, *shape)
    return ClassBank(items, torch.arange(classes + 1) * each, tuple(f"class{c}" for c in range(classes)))


@dataclass(frozen=True)
class Grey:
    """10 x 10, and nothing to set."""

    def load(self, split: str, place: Place) -> ClassBank:
        return bank_of((1, 10, 10), CLASSES[split], 5, SPLITS.index(split) * 10)


@dataclass(frozen=True)
class Colour:
    """Decodes to any size."""

    image_size: int = setting(84, least=1, most=100)
    ratios: list[float] = setting([0.5, 0.25, 0.25])
    split_seed: int = setting(0, least=0)
    lists: str | None = setting(None)

    def load(self, split: str, place: Place) -> ClassBank:
        return bank_of((3, self.image_size, self.image_size), CLASSES[split] + 1, 7, 100 + SPLITS.index(split) * 10)


@dataclass(frozen=True)
class Numbers:
    def load(self, split: str, place: Place) -> ClassBank:
        return ClassBank(torch.zeros(4, 3), torch.tensor([0, 2, 4]), ("a", "b"))


@dataclass(frozen=True)
class Tracks(Grey):
    def load(self, split: str, place: Place) -> ClassBank:
        bank = super().load(split, place)
        return ClassBank(bank.items, bank.offsets, bank.names, groups=torch.arange(len(bank.items)) // 2)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    for name, cls in {"grey": Grey, "colour": Colour, "numbers": Numbers, "tracks": Tracks}.items():
        monkeypatch.setitem(REGISTRY["dataset"], name, cls)


BOTH: list[dict[str, Any]] = [{"name": "grey"}, {"name": "colour"}]


def union(sources: list[dict[str, Any]] | None = None, **changes: Any) -> Together:
    return Together(BOTH if sources is None else sources, **{"image_size": 8} | changes)


def sampler(bank: ClassBank, **changes: Any) -> EpisodeSampler:
    return EpisodeSampler(bank, **{"way": 4, "shot": 2, "query": 3, "seed": 0, "split": "train"} | changes)


# What is in it


def test_classes_of_all_sources_under_their_names_and_of_one_form() -> None:
    for split, classes in CLASSES.items():
        bank = union().load(split, NOWHERE)
        grey, colour = (
            [f"{name}/class{c}" for c in range(n)] for name, n in (("grey", classes), ("colour", classes + 1))
        )
        assert bank.names == (*grey, *colour)
        assert bank.sizes.tolist() == [5] * classes + [7] * (classes + 1)
        assert (bank.item_shape, bank.items.dtype) == ((3, 8, 8), torch.uint8)
        assert bank.sources is not None
        assert bank.sources.tolist() == [0] * classes + [1] * (classes + 1)
        for c, start in enumerate(bank.offsets[:-1].tolist()):
            first = SPLITS.index(split) * 10
            assert (bank.items[start] == (first + c if c < classes else 100 + first + c - classes)).all()


def test_splits_of_a_source_go_where_use_says() -> None:
    sources = [
        {"name": "grey", "use": {"train": ["train", "test"], "val": ["val"]}},
        {"name": "colour", "use": ["test"]},
    ]
    names = {split: union(sources).load(split, NOWHERE).names for split in SPLITS}
    assert len(names["train"]) == CLASSES["train"] + CLASSES["test"]
    assert {name.partition("/")[0] for name in names["train"] + names["val"]} == {"grey"}
    assert [name.partition("/")[0] for name in names["test"]] == ["colour"] * 5


def test_a_source_that_can_decodes_to_the_size_of_the_union() -> None:
    (plain,) = read_sources([{"name": "colour"}], 8, 3)
    (own,) = read_sources([{"name": "colour", "image_size": 20, "split_seed": 3}], 8, 3)
    assert (plain.dataset, own.dataset) == (Colour(image_size=8), Colour(image_size=20, split_seed=3))


def test_two_of_one_name_are_told_apart() -> None:
    sources = [{"name": "colour", "use": ["train"]}, {"name": "colour", "use": ["val", "test"]}]
    assert union(sources).load("val", NOWHERE).names[0] == "colour-2/class0"


def test_groups_of_one_source_are_kept_and_mixed_with_no_others() -> None:
    bank = union([{"name": "tracks"}, {"name": "colour"}]).load("val", NOWHERE)
    assert bank.groups is not None
    assert bank.groups[:15].tolist() == [i // 2 for i in range(15)]
    assert len(bank.groups[15:].unique()) == len(bank.items) - 15
    assert not set(bank.groups[:15].tolist()) & set(bank.groups[15:].tolist())
    assert union().load("val", NOWHERE).groups is None


def test_kept_and_read_again(tmp_path: Path) -> None:
    first = union().load("train", NOWHERE)
    again = union().load("train", NOWHERE)
    assert torch.equal(first.items, again.items)
    assert first.digest() == again.digest() != union(mix="pool").load("train", NOWHERE).digest()
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 1


# Images


def test_colours_become_grey_as_pillow_has_it() -> None:
    image = torch.randint(0, 256, (3, 9, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    wanted = Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")
    assert fitted(image, Form(9, 1)).flatten().tolist() == list(wanted.tobytes())


@pytest.mark.parametrize(
    ("shape", "form"), [((3, 40, 40), Form(13)), ((1, 12, 12), Form(31, 1)), ((3, 28, 21), Form(28))]
)
def test_resizing_is_smooth_and_near_to_pillows(shape: tuple[int, ...], form: Form) -> None:
    rough = torch.rand(shape[0], 5, 5, generator=torch.Generator().manual_seed(0))
    image = (255 * torch.nn.functional.interpolate(rough[None], shape[1:], mode="bicubic")[0].clamp(0, 1)).to(
        torch.uint8
    )
    pillow = Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())
    wanted = pillow.resize((form.side, form.side), Image.Resampling.BILINEAR).tobytes()
    got = fitted(image, form).permute(1, 2, 0).flatten()
    assert (got.int() - torch.tensor(list(wanted))).abs().max() <= 1


def test_grey_becomes_three_equal_channels_and_what_fits_is_untouched() -> None:
    image = torch.randint(0, 256, (1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert torch.equal(fitted(image, Form(8)), image.expand(3, 8, 8))
    assert torch.equal(fitted(image, Form(8, 1)), image)


# How it is sampled


def drawn_sources(bank: ClassBank, classes: Tensor) -> Tensor:
    assert bank.sources is not None
    return bank.sources[classes]


def test_an_episode_is_of_one_source_and_each_source_as_likely() -> None:
    bank = union([{"name": "grey"}, {"name": "colour"}, {"name": "tracks"}]).load("train", NOWHERE)
    sources = drawn_sources(bank, sampler(bank, query=2).classes(0, 6000))
    assert (sources == sources[:, :1]).all()
    counts = sources[:, 0].bincount(minlength=3).double()
    assert ((counts - 2000) ** 2 / 2000).sum() < 13.8  # 2 degrees of freedom: once in a thousand


def test_within_its_source_every_class_is_as_likely() -> None:
    bank = union().load("train", NOWHERE)
    classes = sampler(bank).classes(0, 6000)
    for source, count in ((0, 6), (1, 7)):
        own = classes[drawn_sources(bank, classes)[:, 0] == source]
        assert (own.sort().values.diff() > 0).all()
        for position in own.T:
            counts = (position - 6 * source).bincount(minlength=count).double()
            assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 22.5


def test_the_pool_mixes_sources() -> None:
    bank = union(mix="pool").load("train", NOWHERE)
    assert bank.sources is None
    assert (sampler(bank, way=9).classes(0, 5) >= 6).any()


def test_episodes_are_those_of_the_definition() -> None:
    """One episode and class at a time, in Python."""
    bank = union().load("train", NOWHERE)
    assert bank.sources is not None
    for index, found in enumerate(sampler(bank, seed=3).classes(0, 20).tolist()):
        task = mix(torch.tensor(index + stream(3, "train")))
        source = int(mix(task ^ signed(MIX[1]))) % 2
        own = [c for c in range(len(bank)) if bank.sources[c] == source]
        assert found == sorted(own, key=lambda c: -int(mix(task + c)))[:4]
    assert torch.equal(sampler(bank).classes(3, 5), sampler(bank).classes(0, 8)[3:])


def test_the_episode_list_is_pinned() -> None:
    """A published number stands for these tasks: do not change the numbers below, ever."""
    bank = union().load("train", NOWHERE)
    pinned = [[3, 0, 4, 5], [12, 8, 11, 9], [0, 1, 2, 5], [7, 12, 11, 6]]
    assert sampler(bank, seed=1, split="test").classes(0, 4).tolist() == pinned


def test_a_part_or_turns_of_it_keep_their_sources() -> None:
    bank = union().load("train", NOWHERE)
    part = subset(bank, 8, None, 0)
    assert part.sources is not None
    assert part.sources.tolist() == [int(name.startswith("colour")) for name in part.names]
    turned = with_turns(bank)
    assert turned.sources is not None
    assert turned.sources.tolist() == [int(name.startswith("colour")) for name in turned.names]
    assert bank.to("cpu").sources is not None


def test_sources_that_a_part_leaves_out_are_never_drawn() -> None:
    bank = ClassBank(
        torch.zeros(8, 1), torch.arange(5) * 2, ("a/1", "a/2", "c/1", "c/2"), sources=torch.tensor([0, 0, 2, 2])
    )
    classes = sampler(bank, way=2, shot=1, query=1).classes(0, 100)
    assert {tuple(sorted(row)) for row in classes.tolist()} == {(0, 1), (2, 3)}


def test_more_ways_than_a_source_has_classes() -> None:
    bank = union().load("val", NOWHERE)
    said = r"task\.way=4: source 'grey' of split 'val' has 3 classes, .*lower task\.way, .*dataset\.mix=pool"
    with pytest.raises(InputError, match=said):
        sampler(bank, split="val")
    assert sampler(union(mix="pool").load("val", NOWHERE), split="val").classes(0, 1).shape == (1, 4)


# Refused


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "none is used for train"),
        ([{"name": "grey", "use": ["train", "val"]}], r"none is used for test; give one use: \[test\]"),
        ([{"name": "gray"}], r"dataset\.sources\[0\]\.name: no dataset is called 'gray'; did you mean grey\?"),
        ([{}], "no dataset is called 'None'"),
        ([{"name": ["grey"]}], "no dataset is called"),
        ([{"name": "grey", "image_size": 3}], r"dataset\.sources\[0\]\.image_size: no such setting; grey has none"),
        ([{"name": "colour", "image_sise": 3}], "image_sise: no such setting; did you mean image_size"),
        ([{"name": "colour", "image_size": "3"}], "image_size=3: must be a whole number"),
        ([{"name": "colour", "image_size": 0}], "image_size=0: must be at least 1"),
        ([{"name": "colour", "ratios": [0.5, "a"]}], "ratios=.*: must be a list, each a finite number"),
        ([{"name": "grey", "use": "train"}], r"use=train: give \[train, val, test\]"),
        ([{"name": "grey", "use": [["train"]]}], "use=.*: give"),
        ([{"name": "grey", "use": ["training"]}], "'training' is no split"),
        ([{"name": "grey", "use": {"train": ["val", "all"]}}], "'all' is no split"),
        ([{"name": "grey", "use": {"train": ["val"], "test": ["val"]}}], "val is in it twice"),
        ([{"name": "grey"}, {"name": "grey", "use": ["val"]}], "grey and grey-2 both use val of the same data"),
        ([{"name": "cifar_fs"}, {"name": "fc100", "use": ["test"]}], "cifar_fs and fc100 hold some of the same images"),
        (
            [{"name": "colour", "use": ["train"]}, {"name": "colour", "split_seed": 1, "use": ["val", "test"]}],
            "split the same data in two ways",
        ),
    ],
)
def test_sources_that_cannot_be(sources: list[dict[str, Any]], said: str) -> None:
    with pytest.raises((ValueError, InputError), match=said):
        union(sources)


def test_what_has_no_images_cannot_be_joined() -> None:
    with pytest.raises(InputError, match=r"dataset\.sources: 'numbers' has no images"):
        union([{"name": "grey"}, {"name": "numbers"}]).load("train", NOWHERE)


def test_whole_numbers_and_nothing_will_do_where_the_type_says_so() -> None:
    assert read_sources([{"name": "colour", "ratios": [1, 0.5, 0], "lists": None}], 8, 3)
    assert read_sources([{"name": "colour", "lists": "x.json"}], 8, 3)


ANY = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(SPLITS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SPLITS, "x"]), inner, max_size=3),
    max_leaves=5,
)
NODE = st.dictionaries(st.sampled_from(["name", "use", "image_size", "lists"]), ANY | st.just("colour"), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.lists(NODE, max_size=3))
def test_no_list_of_sources_is_too_strange(nodes: list[dict[str, Any]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY["dataset"], "colour", Colour)
        try:
            union(nodes)
        except (ValueError, InputError) as error:
            assert str(error).removeprefix("dataset.").startswith("sources")


def test_the_example_is_one_that_can_be_trained_on() -> None:
    mnist, cifar = read_sources(Together().sources, 32, 3)
    assert (mnist.label, cifar.label) == ("MNIST", "CIFAR10")
    assert set(mnist.use) | set(cifar.use) == set(SPLITS)


def test_joining_takes_portions() -> None:
    """Items are made one by one: a bank that is mapped from a file stays there."""
    bank = joined([bank_of((1, 4, 4), 2, 3), bank_of((3, 6, 6), 1, 2, 50)], ["a", "b"], Form(4, 1), "x")
    assert bank.items[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 50, 50]
