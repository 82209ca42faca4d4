"""Glyphs: as many as promised, the same every time, quickly made, and neither a toy nor a riddle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from metarun.data import glyphs
from metarun.data.bank import ClassBank
from metarun.data.glyphs import Glyphs
from metarun.data.sampler import EpisodeSampler
from metarun.types import REGISTRY, SPLITS, Place

NOWHERE = Place(Path("no data needed"))
Banks = dict[str, ClassBank]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the module, so that the drawings are made once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def banks(cache: Path) -> Banks:
    return {split: Glyphs().load(split, NOWHERE) for split in SPLITS}


def nearest_mean_accuracy(bank: ClassBank, split: str, tasks: int = 1000) -> float:
    """5-way 1-shot on raw pixels, in per cent: with one shot the mean of a class is its support image."""
    episodes = EpisodeSampler(bank, way=5, shot=1, query=5, seed=0, split=split)(0, tasks)
    guess = torch.cdist(episodes.query_x.flatten(2), episodes.support_x.flatten(2)).argmin(-1)
    return 100 * (guess == episodes.query_y).float().mean().item()


def test_enough_classes_and_drawings(banks: Banks) -> None:
    assert sum(map(len, banks.values())) >= 1000
    for bank in banks.values():
        assert bank.sizes.eq(20).all()
        assert bank.item_shape == (1, 28, 28)
        assert bank.items.dtype == torch.uint8
    assert banks["train"].names[7 * 24 + 3] == "alphabet07/glyph03"


def test_splits_share_no_alphabet(banks: Banks) -> None:
    alphabets = {split: {name.split("/")[0] for name in bank.names} for split, bank in banks.items()}
    assert {split: len(names) for split, names in alphabets.items()} == {"train": 36, "val": 4, "test": 10}
    assert len(set.union(*alphabets.values())) == 50
    drawings = torch.cat([bank.items for bank in banks.values()])
    assert len(drawings.flatten(1).unique(dim=0)) == len(drawings)


def test_ink_is_white_on_black_with_soft_edges(banks: Banks) -> None:
    for bank in banks.values():
        x = bank.items
        grey = ((x > 0) & (x < 255)).float().mean().item()
        assert 0.05 < grey < 0.5
        assert 0.03 < (x > 127).float().mean().item() < 0.3
        assert (x.flatten(1).amax(1) == 255).all()  # nobody hands in an empty page
        assert x[..., [0, -1], :].float().mean() < 5  # nor writes over its edge
        assert x[..., [0, -1]].float().mean() < 5


def test_made_in_under_5_s_and_alike_in_any_number_of_threads(banks: Banks) -> None:
    # Its processor time in one thread: what it takes at most on two cores, however busy the machine is.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start = time.process_time()
        items = glyphs.make(0)["items"]
        took = time.process_time() - start
    finally:
        torch.set_num_threads(threads)
    assert took < 5
    assert torch.equal(items.flatten(0, 2), torch.cat([banks[split].items for split in SPLITS]))


def test_another_seed_draws_others_and_leaves_the_global_generator_alone(banks: Banks) -> None:
    before = torch.get_rng_state()
    items = glyphs.make(1)["items"].flatten(0, 2)
    assert torch.equal(torch.get_rng_state(), before)
    alike = (items[: len(banks["train"].items)] == banks["train"].items).flatten(1).all(1)
    assert not alike.any()


def test_kept_in_the_cache(cache: Path, banks: Banks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "make", lambda seed: pytest.fail("made again"))
    start = time.thread_time()
    again = Glyphs().load("train", NOWHERE)
    took = time.thread_time() - start
    assert torch.equal(again.items, banks["train"].items)
    assert took < 0.3
    assert len(list(cache.iterdir())) == 1


def test_the_cache_tells_seeds_and_versions_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    made: list[int] = []

    def make(seed: int) -> dict[str, torch.Tensor]:
        made.append(seed)
        return {"items": torch.zeros(50, 24, 20, 1, 1, 1, dtype=torch.uint8)}

    monkeypatch.setattr(glyphs, "make", make)
    for dataset in (Glyphs(), replace(Glyphs(), seed=3), Glyphs()):
        dataset.load("val", NOWHERE)
    assert made == [0, 3]
    monkeypatch.setattr(glyphs, "VERSION", glyphs.VERSION + 1)
    Glyphs().load("val", NOWHERE)
    assert made == [0, 3, 0]


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_alone_do_not_solve_it(banks: Banks, split: str) -> None:
    assert 35 <= nearest_mean_accuracy(banks[split], split) <= 60


def test_what_a_hand_changes_can_be_undone(banks: Banks) -> None:
    """Not noise either: nearest pixels do far better once each drawing is moved to where it fits best."""
    episodes = EpisodeSampler(banks["test"], way=5, shot=1, query=5, seed=0, split="test")(0, 200)
    query, support = episodes.query_x.squeeze(2), episodes.support_x.squeeze(2)
    shifts = [(dy, dx) for dy in range(-4, 5) for dx in range(-4, 5)]
    moved = torch.stack([support.roll(shift, (-2, -1)) for shift in shifts], 2)  # (T, way, shifts, 28, 28)
    distance = torch.cdist(query.flatten(2), moved.flatten(3).flatten(1, 2)).unflatten(2, (5, len(shifts)))
    guess = distance.amin(-1).argmin(-1)
    right = 100 * (guess == episodes.query_y).float().mean().item()
    assert right > nearest_mean_accuracy(banks["test"], "test", tasks=200) + 10


def test_config_has_every_field_and_its_default() -> None:
    text = (Path(__file__).parents[2] / "conf" / "dataset" / "glyphs.yaml").read_text()
    config = yaml.safe_load(text)["dataset"]
    assert REGISTRY["dataset"][config.pop("name")] is Glyphs
    assert Glyphs(**config) == Glyphs()
    assert list(config) == ["seed"]
