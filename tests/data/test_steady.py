"""Episodes whose number is a tensor: what a step that is recorded once asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.data.ahead import Ahead
from metarun.data.augment import Augment, Augmented
from metarun.data.bank import ClassBank
from metarun.data.completion import Pixels
from metarun.data.sinusoid import Sinusoid
from metarun.data.taskbank import TaskBank
from metarun.data.varied import Shapes, VariedSampler
from metarun.types import Place, Sampler


def images(channels: int = 3) -> ClassBank:
    items = torch.randint(0, 256, (60, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ClassBank(items, torch.arange(7) * 10, tuple("abcdef"))


def everything(channels: int) -> Augmented:
    augment = Augment(crop=1, flip=True, zoom=0.5, rotation=20, jitter=0.4, erase=0.5)
    return Augmented(images(channels).episodes(3, 1, 2, 0, "train"), augment, 0, "train")


STEADY: dict[str, Callable[[], Sampler]] = {
    "episodes": lambda: images().episodes(3, 1, 2, 0, "train"),
    "grouped": lambda: replace(images(), groups=torch.arange(60) // 2).episodes(3, 1, 2, 0, "train"),
    "sources": lambda: replace(images(), sources=torch.arange(6) // 3).episodes(3, 1, 2, 0, "train"),
    "batches": lambda: images().batches(0, "train"),
    "augmented": lambda: everything(3),
    "augmented grey": lambda: everything(1),
    "curves": lambda: Sinusoid().load("train", Place(Path())).episodes(1, 5, 5, 0, "train"),
    "tasks": lambda: TaskBank(
        "t", torch.rand(60, 2), torch.rand(60, 1), torch.arange(7) * 10, tuple("abcdef")
    ).episodes(1, 2, 3, 0, "train"),
    "pixels": lambda: Pixels(images()).episodes(1, 5, 5, 0, "train"),
}


@pytest.mark.parametrize("name", STEADY)
def test_episodes_are_the_same_whether_their_number_is_a_tensor(name: str) -> None:
    sampler = STEADY[name]()
    assert sampler.steady
    wanted, found = sampler(32, 4), sampler(torch.tensor(32), 4)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(wanted, sampler(torch.tensor(36), 4), strict=True))


def test_what_is_read_from_the_disk_or_changes_its_shape_is_not_steady() -> None:
    mapped = replace(images(), ahead=True).episodes(3, 1, 2, 0, "train")
    varied = VariedSampler(images().episodes(5, 2, 2, 0, "train"), Shapes((2, 5), (1, 2), 4, 0))
    assert not mapped.steady and not Ahead(mapped).steady and not varied.steady
