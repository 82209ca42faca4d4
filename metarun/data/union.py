"""Several datasets as one: to train on one and test on another, or on many at once as Meta-Dataset does.

`sources` says which, each with its own settings, and `use` which of its splits go where:

    {name: omniglot}                                       its train, val and test, each into the same of the union
    {name: cifar_fs, use: [train, val]}                    not its test classes
    {name: CIFAR10, use: {test: [train, val, test]}}       all of its classes, for tests alone

`mix: source` is Meta-Dataset's way (Triantafillou et al. 2020): an episode's classes are all of one source, and every
source is as likely, however many classes it has. `mix: pool` draws from the classes of all sources together.

A source that has `image_size` and `channels` settings decodes to the union's own; the images of others are resized,
grey ones become three equal channels, and coloured ones their luma (ITU-R 601, as Pillow has it).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from metarun.data.bank import ClassBank
from metarun.data.nested import nested
from metarun.data.packed import packed
from metarun.data.pixels import LARGEST, Form
from metarun.types import SPLITS, Dataset, InputError, Place, register, setting

LUMA = (19595, 38470, 7471)
"""the parts of red, green and blue in grey, of 65536"""
SAME = (
    {"cifar_fs", "fc100", "CIFAR100"},
    {"mini_imagenet", "tiered_imagenet"},
    {"omniglot", "Omniglot"},
    {"dtd", "DTD"},
    {"gtsrb", "GTSRB"},
    {"vgg_flowers", "Flowers102"},
    {"aircraft", "FGVCAircraft"},
)
"""datasets that hold the same images under several names, or some of the same"""
SHAPING = {"image_size", "channels", "fit", "download"}
SPLITTING = {"ratios", "split_seed", "lists", "split"}
EXAMPLE = [
    {"name": "MNIST", "use": {"train": ["train", "val", "test"]}},
    {"name": "CIFAR10", "ratios": [0.2, 0.3, 0.5], "use": {"val": ["train", "val"], "test": ["test"]}},
]


@register("dataset", "union")
@dataclass(frozen=True)
class Together:
    sources: list[dict[str, Any]] = setting(EXAMPLE)
    mix: str = setting("source", choices=("source", "pool"))
    image_size: int = setting(32, least=1, most=LARGEST)
    channels: int = setting(3, least=1, most=3)

    def __post_init__(self) -> None:
        if self.channels == 2:
            raise ValueError("channels=2: images are grey (1) or in colour (3)")
        used = {split for source in read_sources(self.sources, self.image_size, self.channels) for split in source.use}
        if unserved := [split for split in SPLITS if split not in used]:
            raise ValueError(f"sources: none is used for {unserved[0]}; give one use: [{unserved[0]}]")

    def load(self, split: str, place: Place) -> ClassBank:
        banks, labels = [], []
        for source in read_sources(self.sources, self.image_size, self.channels):
            for own in source.use.get(split, ()):
                banks.append(_images(source.dataset.load(own, place), source.label))
                labels.append(source.label)
        bank = joined(banks, labels, Form(self.image_size, self.channels), f"union-{split}")
        return bank if self.mix == "source" else replace(bank, sources=None)


# What the person says


class Source(NamedTuple):
    label: str
    """its name, and a number where several have that name"""
    dataset: Dataset
    use: dict[str, list[str]]
    """splits of the union -> the splits of the dataset that are in it"""


def read_sources(nodes: Sequence[Mapping[str, Any]], image_size: int, channels: int) -> list[Source]:
    """Raises `InputError` for what is no dataset or setting, `ValueError` where a class could get into two splits."""
    found: list[Source] = []
    for number, node in enumerate(nodes):
        own = {key: value for key, value in node.items() if key != "use"}
        dataset = nested(own, f"dataset.sources[{number}]", image_size=image_size, channels=channels)
        before = sum(other["name"] == node["name"] for other in nodes[:number])
        label = f"{node['name']}-{before + 1}" if before else node["name"]
        try:
            found.append(Source(label, dataset, _use(node.get("use"))))
        except ValueError as error:
            raise ValueError(f"sources[{number}]: {error}") from None
    for (one, node), (other, other_node) in combinations(zip(found, nodes), 2):
        _check_apart(one, other, node, other_node)
    return found


def _use(given: Any) -> dict[str, list[str]]:
    if given is None:
        given = list(SPLITS)
    if isinstance(given, list) and all(isinstance(split, str) for split in given):
        given = {split: [split] for split in given}
    use = given if isinstance(given, dict) else {}
    if not use or not all(isinstance(own, list) and own for own in use.values()):
        raise ValueError(f"use={given}: give [train, val, test], or {{train: [train, val], test: [test]}}")
    names = [*use, *(split for own in use.values() for split in own)]
    if wrong := [name for name in names if name not in SPLITS]:
        raise ValueError(f"use={given}: '{wrong[0]}' is no split; {', '.join(SPLITS)} are")
    taken = [split for own in use.values() for split in own]
    if twice := [split for split in taken if taken.count(split) > 1]:
        raise ValueError(f"use={given}: {twice[0]} is in it twice, and a class belongs in one split")
    return use


def _check_apart(one: Source, other: Source, node: Mapping[str, Any], other_node: Mapping[str, Any]) -> None:
    """Two sources that are the same data must be split alike, and must not share a split."""

    def parts(of: Mapping[str, Any]) -> tuple[Any, Any]:
        data = {key: value for key, value in of.items() if key not in SHAPING | SPLITTING | {"use"}}
        return data, {key: value for key, value in of.items() if key in SPLITTING}

    (data, split), (other_data, other_split) = parts(node), parts(other_node)
    same = {node["name"], other_node["name"]}
    if len(same) == 2 and any(same <= names for names in SAME) and len(one.use.keys() | other.use.keys()) > 1:
        raise ValueError(
            f"sources: {one.label} and {other.label} hold some of the same images, split in two ways, which mixes "
            "them: leave one of them out, or use both for one split alone"
        )
    if data != other_data:
        return
    if split != other_split:
        raise ValueError(f"sources: {one.label} and {other.label} split the same data in two ways, which mixes them")
    taken, again = ({own for splits in source.use.values() for own in splits} for source in (one, other))
    if shared := [name for name in SPLITS if name in taken & again]:
        raise ValueError(f"sources: {one.label} and {other.label} both use {shared[0]} of the same data")


# What it becomes


def _images(bank: Any, label: str) -> ClassBank:
    shape = bank.item_shape if isinstance(bank, ClassBank) else ()
    if len(shape) != 3 or shape[0] not in (1, 3) or bank.items.dtype != torch.uint8:
        raise InputError(f"dataset.sources: '{label}' has no images, and only datasets of images can be joined")
    return bank


def joined(banks: Sequence[ClassBank], labels: Sequence[str], form: Form, name: str) -> ClassBank:
    """One bank of all classes, called LABEL/CLASS, made to `form` once and kept; its sources are the labels."""
    ends = list(accumulate(len(bank.items) for bank in banks))

    def item(i: int) -> bytes:
        bank = banks[bisect_right(ends, i)]
        return fitted(bank.items[i - ends[bisect_right(ends, i)]], form).numpy().tobytes()

    key = f"1 {form} {[bank.digest() for bank in banks]}"
    made = packed(name, key, range(ends[-1]), form.item, item, workers=1)  # the banks stay here
    order = list(dict.fromkeys(labels))
    groups = None
    if any(bank.groups is not None for bank in banks):
        # Numbers that no other bank has; an item without a group is one of its own.
        own = [bank.groups if bank.groups is not None else torch.arange(len(bank.items)) for bank in banks]
        groups = torch.cat([group + start for group, start in zip(own, [0, *ends])])
    sizes = torch.cat([bank.sizes for bank in banks])
    return ClassBank(
        made.items,
        torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]),
        tuple(f"{label}/{known}" for bank, label in zip(banks, labels) for known in bank.names),
        made.checksum,
        groups,
        sources=torch.tensor([order.index(label) for bank, label in zip(banks, labels) for _ in bank.names]),
    )


def fitted(image: Tensor, form: Form) -> Tensor:
    """(channels, height, width) uint8 -> `form.item`"""
    if image.shape[0] == 3 and form.channels == 1:
        parts = torch.tensor(LUMA, dtype=torch.int32)[:, None, None]
        image = ((image.int() * parts).sum(0, keepdim=True) + 2**15 >> 16).to(torch.uint8)
    if image.shape[1:] != (form.side, form.side):
        image = interpolate(image[None], (form.side, form.side), mode="bilinear", antialias=True)[0]
    return image.expand(form.item).contiguous()
