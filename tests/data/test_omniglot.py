"""Omniglot: on small trees laid out alike, and, where METARUN_DATA holds it, on the real one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from metarun.data import omniglot
from metarun.data.bank import ClassBank
from metarun.data.omniglot import Omniglot
from metarun.types import SPLITS, InputError, Place

SMALL = {"images_background": {"Angelic": 12, "Futurama": 10}, "images_evaluation": {"Keble": 6}}
COUNTS = {name: sum(alphabets.values()) for name, alphabets in SMALL.items()}
DRAWINGS = 3
SIZES = {"official": (20, 2, 6), "maml": (15, 4, 9)}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """An empty cache; and Omniglot is as small as SMALL, but for the tests on real data."""
    if request.node.get_closest_marker("data"):
        return
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    for name, value in {"CHARACTERS": COUNTS, "DRAWINGS": DRAWINGS, "MAML_TRAIN": 15, "MAML_VAL": 4}.items():
        monkeypatch.setattr(omniglot, name, value)


def png(seed: str, side: int = 105) -> bytes:
    """A one-bit drawing, black on white, as in the published files."""
    draw = random.Random(seed)
    image = Image.new("1", (side, side), 1)
    ImageDraw.Draw(image).line([draw.randrange(side) for _ in range(12)], fill=0, width=3)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def small_files(set_name: str) -> dict[str, bytes]:
    return {
        f"{set_name}/{alphabet}/character{c:02d}/{c:04d}_{d:02d}.png": png(f"{alphabet} {c} {d}")
        for alphabet, count in SMALL[set_name].items()
        for c in range(1, count + 1)
        for d in range(1, DRAWINGS + 1)
    }


def write_folders(data_root: Path) -> Path:
    for set_name in SMALL:
        for member, data in small_files(set_name).items():
            path = data_root / "omniglot-py" / member
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return data_root


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member, data in files.items():
            file.writestr(member, data)


def write_zips(data_root: Path) -> Path:
    for set_name in SMALL:
        write_zip(data_root / "omniglot-py" / f"{set_name}.zip", small_files(set_name))
    return data_root


def load_all(data_root: Path, **settings: Any) -> dict[str, ClassBank]:
    return {split: Omniglot(**settings).load(split, Place(data_root)) for split in SPLITS}


def equal(one: ClassBank, other: ClassBank) -> bool:
    return one.names == other.names and torch.equal(one.items, other.items) and torch.equal(one.offsets, other.offsets)


def cache_files(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("**/*"))


# What is in a bank


def test_folders_and_zip_files_give_equal_banks(tmp_path: Path) -> None:
    folders, zips = load_all(write_folders(tmp_path / "f")), load_all(write_zips(tmp_path / "z"))
    assert len(cache_files(tmp_path)) == 2  # each was packed from its own source
    assert all(equal(folders[split], zips[split]) for split in SPLITS)


def test_an_item_is_its_drawing_in_grey_shrunk_and_inverted(tmp_path: Path) -> None:
    bank = Omniglot(rotations=False).load("test", Place(write_zips(tmp_path)))
    assert bank.names[1] == "Keble/character02"
    image = Image.open(io.BytesIO(png("Keble 2 3"))).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    drawn = torch.tensor(list(image.tobytes()), dtype=torch.uint8).view(1, 28, 28)
    assert torch.equal(bank.items[1 * DRAWINGS + 2], 255 - drawn)
    assert bank.items.dtype == torch.uint8
    assert bank.items.unique().numel() > 2  # grey, not the nearest pixels
    assert bank.items.float().mean() < 128  # ink is the rarer


@pytest.mark.parametrize("split", ["official", "maml"])
def test_splits_have_their_sizes_and_share_no_character(tmp_path: Path, split: str) -> None:
    banks = load_all(write_zips(tmp_path), split=split, rotations=False)
    assert tuple(len(bank) for bank in banks.values()) == SIZES[split]
    names = [name for bank in banks.values() for name in bank.names]
    assert len(set(names)) == len(names) == sum(COUNTS.values())
    assert all(bank.sizes.tolist() == [DRAWINGS] * len(bank) for bank in banks.values())


def test_official_tests_on_the_evaluation_set(tmp_path: Path) -> None:
    bank = Omniglot().load("test", Place(write_zips(tmp_path)))
    assert {name.split("/")[0] for name in bank.names} == set(SMALL["images_evaluation"])


@pytest.mark.parametrize("split", ["official", "maml"])
def test_the_seed_makes_the_split(tmp_path: Path, split: str) -> None:
    data_root = write_zips(tmp_path)
    names = [Omniglot(split=split, split_seed=seed).load("val", Place(data_root)).names for seed in (0, 0, 1)]
    assert names[0] == names[1]
    assert names[0] != names[2]


def test_training_characters_are_also_turned(tmp_path: Path) -> None:
    data_root = write_zips(tmp_path)
    plain, turned = load_all(data_root, rotations=False), load_all(data_root)
    assert len(turned["train"]) == 4 * len(plain["train"])
    assert equal(plain["val"], turned["val"])
    assert equal(plain["test"], turned["test"])
    items = dict(zip(turned["train"].names, turned["train"].items.split(DRAWINGS)))
    for name, drawings in zip(plain["train"].names, plain["train"].items.split(DRAWINGS)):
        assert torch.equal(items[name], drawings)
        for quarter in (1, 2, 3):
            assert torch.equal(items[f"{name}/rot{90 * quarter}"], torch.rot90(drawings, quarter, dims=(2, 3)))


def test_vinyals_needs_the_published_alphabets(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks 1006 characters of split=vinyals.*official"):
        Omniglot(split="vinyals").load("train", Place(write_zips(tmp_path)))


def test_vinyals_covers_every_character_once() -> None:
    chosen = omniglot._vinyals({}, 0)
    names = [name for split in SPLITS for name in chosen[split]]
    assert [len(chosen[split]) for split in SPLITS] == [1028, 172, 423]
    assert len(set(names)) == len(names)


def test_other_files_are_left_aside(tmp_path: Path) -> None:
    bank = Omniglot().load("test", Place(write_zips(tmp_path / "plain")))
    extra = {"__MACOSX/images_evaluation/Keble/character01/._0001_01.png": b"?", "images_evaluation/.DS_Store": b"?"}
    extra |= {"images_evaluation/Keble/": b"", "images_evaluation/Keble/character01/._0001_01.png": b"?"}
    files = small_files("images_evaluation") | extra
    write_zip(write_zips(tmp_path / "more") / "omniglot-py" / "images_evaluation.zip", files)
    assert equal(bank, Omniglot().load("test", Place(tmp_path / "more")))


# The cache


def test_packed_once_and_again_when_the_source_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data_root = write_zips(tmp_path / "data")
    load_all(data_root)
    load_all(data_root, split="maml")
    assert capsys.readouterr().err == "packing Omniglot: 84 drawings, once\n"
    before = Omniglot().load("test", Place(data_root))
    files = small_files("images_evaluation")
    files["images_evaluation/Keble/character01/0001_01.png"] = png("another")
    write_zip(data_root / "omniglot-py" / "images_evaluation.zip", files)
    after = Omniglot().load("test", Place(data_root))
    assert not torch.equal(before.items[0], after.items[0])
    assert torch.equal(before.items[1:], after.items[1:])


def test_a_drawing_changed_in_a_folder_is_seen(tmp_path: Path) -> None:
    data_root = write_folders(tmp_path)
    before = Omniglot().load("test", Place(data_root))
    (data_root / "omniglot-py/images_evaluation/Keble/character01/0001_01.png").write_bytes(png("another"))
    assert not torch.equal(before.items[0], Omniglot().load("test", Place(data_root)).items[0])


def test_a_bank_is_not_tied_to_the_cache_file(tmp_path: Path) -> None:
    data_root = write_zips(tmp_path)
    first = Omniglot().load("val", Place(data_root))
    second = Omniglot().load("val", Place(data_root))
    (file,) = cache_files(tmp_path)
    file.write_bytes(bytes(file.stat().st_size))  # in place: a mapped tensor would see it
    assert equal(first, second)


def test_a_read_only_data_root_is_enough(tmp_path: Path) -> None:
    data_root = write_zips(tmp_path / "data")
    before = sorted(data_root.glob("**/*"))
    load_all(data_root)
    assert sorted(data_root.glob("**/*")) == before


def test_torchvision_is_not_imported_when_the_data_is_there(tmp_path: Path) -> None:
    data_root = write_zips(tmp_path)
    code = f"""
import sys
from pathlib import Path
from metarun.data import omniglot
from metarun.types import Place
omniglot.CHARACTERS, omniglot.DRAWINGS = {COUNTS!r}, {DRAWINGS}
omniglot.Omniglot().load("test", Place(Path({str(data_root)!r})))
assert "PIL" in sys.modules
assert "torchvision" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


# Bad input: one message, and no cache is left


def refusal(tmp_path: Path, data_root: Path, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        Omniglot(**settings).load("train", Place(data_root))
    assert not cache_files(tmp_path)
    return str(caught.value)


def test_a_zip_cut_short_is_named(tmp_path: Path) -> None:
    path = write_zips(tmp_path) / "omniglot-py" / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} is cut short or damaged" in refusal(tmp_path, tmp_path)


def test_a_zip_with_a_flipped_bit_is_named(tmp_path: Path) -> None:
    path = write_zips(tmp_path) / "omniglot-py" / "images_background.zip"
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[5]
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 1
    path.write_bytes(data)
    assert f"{path} is cut short or damaged" in refusal(tmp_path, tmp_path)


@pytest.mark.parametrize("broken", [b"", b"no image", png("Keble 4 2")[:90]])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, broken: bytes) -> None:
    member = "images_evaluation/Keble/character04/0004_02.png"
    path = write_zips(tmp_path) / "omniglot-py" / "images_evaluation.zip"
    write_zip(path, small_files("images_evaluation") | {member: broken})
    message = refusal(tmp_path, tmp_path)
    assert f"{path}: {member} does not decode" in message


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    member = "images_background/Angelic/character01/0001_01.png"
    (write_folders(tmp_path) / "omniglot-py" / member).write_bytes(png("shrunk", side=28))
    assert f"{member} is 28x28, not 105x105" in refusal(tmp_path, tmp_path)


def test_a_zip_that_lacks_a_character_is_refused(tmp_path: Path) -> None:
    files = {m: data for m, data in small_files("images_background").items() if "Angelic/character03" not in m}
    write_zip(write_zips(tmp_path) / "omniglot-py" / "images_background.zip", files)
    assert "21 characters where Omniglot has 22" in refusal(tmp_path, tmp_path)


def test_a_folder_that_lacks_a_drawing_is_refused_or_passed_over(tmp_path: Path) -> None:
    data_root = write_folders(tmp_path / "data")
    (data_root / "omniglot-py/images_background/Angelic/character03/0003_02.png").unlink()
    message = refusal(tmp_path, data_root)
    assert "2 drawings of Angelic/character03 where Omniglot has 3" in message
    assert "images_background.zip" in message
    write_zips(data_root)
    assert equal(
        Omniglot().load("train", Place(data_root)), Omniglot().load("train", Place(write_zips(tmp_path / "zips")))
    )


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write_zips(tmp_path) / "omniglot-py" / "images_evaluation.zip"
    path.unlink()
    path.mkdir()
    assert f"{path} is not Omniglot as published, with 0 characters" in refusal(tmp_path, tmp_path)
    extracted = path.with_suffix("")
    for member, data in small_files("images_evaluation").items():
        (extracted.parent / member).parent.mkdir(parents=True, exist_ok=True)
        (extracted.parent / member).write_bytes(data)
    (extracted / "dangling").symlink_to("nothing")
    assert f"{extracted} cannot be read" in refusal(tmp_path, tmp_path)


def test_a_file_for_a_data_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file'} is not a folder" in refusal(tmp_path, tmp_path / "file")


def test_nothing_there_and_no_download_says_what_to_do(tmp_path: Path) -> None:
    message = refusal(tmp_path, tmp_path / "nowhere", download=False)
    for part in (str(tmp_path / "nowhere"), "downloading is off", "METARUN_DATA", "images_evaluation.zip", "glyphs"):
        assert part in message
    assert not (tmp_path / "nowhere").exists()


# The download


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that stands for the one where torchvision has Omniglot from, with both zip files."""
    from torchvision.datasets import Omniglot as Published

    folder = tmp_path / "mirror"
    for set_name in SMALL:
        write_zip(folder / f"{set_name}.zip", small_files(set_name))
    sums = {name: hashlib.md5((folder / f"{name}.zip").read_bytes()).hexdigest() for name in SMALL}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        monkeypatch.setattr(Published, "zips_md5", sums)
        monkeypatch.setattr(Published, "download_url_prefix", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder
        server.shutdown()


def test_what_is_missing_is_downloaded_once(tmp_path: Path, mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_zip(tmp_path / "data" / "omniglot-py" / "images_evaluation.zip", small_files("images_evaluation"))
    banks = load_all(tmp_path / "data")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("downloading")]
    assert len(told) == 1
    assert told[0].startswith("downloading images_background.zip")
    there = sorted(path.name for path in (tmp_path / "data" / "omniglot-py").iterdir())
    assert there == ["images_background.zip", "images_evaluation.zip"]
    assert equal(banks["train"], Omniglot().load("train", Place(write_zips(tmp_path / "zips"))))


@pytest.mark.parametrize("offline", [Place(Path(), offline=True), Omniglot(download=False)])
def test_nothing_is_downloaded_where_that_is_off(tmp_path: Path, mirror: Path, offline: Place | Omniglot) -> None:
    dataset = offline if isinstance(offline, Omniglot) else Omniglot()
    place = Place(tmp_path / "data", offline=isinstance(offline, Place))
    with pytest.raises(InputError, match="downloading is off"):
        dataset.load("train", place)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("error", ["HTTP 404", "wrong checksum"])
def test_a_failed_download_says_what_to_do_and_leaves_nothing(tmp_path: Path, mirror: Path, error: str) -> None:
    path = mirror / "images_background.zip"
    if error == "HTTP 404":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    message = refusal(tmp_path, tmp_path / "data")
    for part in (
        str(tmp_path / "data" / "omniglot-py"),
        "METARUN_DATA",
        "data_root",
        "images_background.zip",
        "glyphs",
        error,
    ):
        assert part in message
    assert not list((tmp_path / "data" / "omniglot-py").iterdir())


# The real one

REAL = Path(os.environ.get("METARUN_DATA", "nowhere"))


def real(test: Any) -> Any:
    missing = not (REAL / "omniglot-py").is_dir()
    return pytest.mark.data(
        pytest.mark.skipif(missing, reason="METARUN_DATA is not set, or holds no omniglot-py")(test)
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder after the one packing."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(folder))
        Omniglot(download=False).load("val", Place(REAL))
        yield folder


@real
def test_real_cache_is_one_small_file_and_loads_fast(packed: Path) -> None:
    (file,) = packed.iterdir()
    assert file.stat().st_size < 35e6
    times = []
    for _ in range(3):
        began = time.perf_counter()
        Omniglot(download=False).load("train", Place(REAL))
        times.append(time.perf_counter() - began)
    assert min(times) < 0.5


@real
@pytest.mark.parametrize(
    ("split", "sizes"), [("official", (868, 96, 659)), ("maml", (1100, 100, 423)), ("vinyals", (1028, 172, 423))]
)
def test_real_splits(packed: Path, split: str, sizes: tuple[int, int, int]) -> None:
    banks = load_all(REAL, split=split, download=False)
    train, val, test = sizes
    assert [len(bank) for bank in banks.values()] == [4 * train, val, test]
    characters = [{"/".join(name.split("/")[:2]) for name in bank.names} for bank in banks.values()]
    assert [len(names) for names in characters] == [train, val, test]
    assert len(set.union(*characters)) == 1623
    assert all(bank.sizes.eq(20).all() and bank.item_shape == (1, 28, 28) for bank in banks.values())


@real
def test_real_ink_is_light_on_dark(packed: Path) -> None:
    bank = Omniglot(download=False).load("test", Place(REAL))
    assert bank.items.amax() == 255
    assert 10 < bank.items.float().mean() < 40


@pytest.mark.data
@pytest.mark.skipif(not (REAL / "splits.json").is_file(), reason="METARUN_DATA is not set, or holds no splits.json")
def test_vinyals_is_as_published() -> None:
    published = json.loads((REAL / "splits.json").read_text(encoding="utf-8"))["omniglot_vinyals"]
    assert omniglot._vinyals({}, 0) == published
