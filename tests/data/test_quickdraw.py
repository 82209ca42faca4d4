"""Quick, Draw! on small made-up files, as bitmaps and as strokes."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metarun.data import quickdraw
from metarun.data.bank import ClassBank
from metarun.data.quickdraw import QuickDraw
from metarun.data.splits import by_chance
from metarun.data.strokes import drawing_of, drawn
from metarun.types import SPLITS, InputError, Place

NAMES = ["ant", "alarm clock", "cat", "dog", "The Eiffel Tower"]
DRAWINGS = 6
RATIOS = [0.6, 0.2, 0.2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def bitmaps(name: str) -> np.ndarray:
    return np.frombuffer(Random(name).randbytes(DRAWINGS * 784), np.uint8).reshape(DRAWINGS, 784)


def drawing(name: str, number: int) -> dict[str, Any]:
    """Every third is one that the game did not recognize."""
    draw = Random(f"{name} {number}")
    strokes = [[[draw.randrange(256) for _ in range(n)] for _ in "xy"] for n in (5, 1, 3)]
    return {"word": name, "key_id": str(number), "recognized": number % 3 != 2, "drawing": strokes}


def write_bitmaps(data_root: Path, names: list[str] = NAMES) -> Path:
    folder = data_root / "quickdraw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        np.save(folder / f"{name}.npy", bitmaps(name))
    return folder


def write_strokes(data_root: Path, names: list[str] = NAMES) -> Path:
    folder = data_root / "quickdraw"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        lines = [json.dumps(drawing(name, number)) for number in range(DRAWINGS)]
        (folder / f"{name}.ndjson").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


def load(data_root: Path, split: str = "train", **changed: Any) -> ClassBank:
    return QuickDraw(**{"ratios": RATIOS} | changed).load(split, Place(data_root))


# Bitmaps


def test_bitmaps_are_items_as_they_are(tmp_path: Path) -> None:
    write_bitmaps(tmp_path)
    banks = {split: load(tmp_path, split) for split in SPLITS}
    assert {split: sorted(bank.names) for split, bank in banks.items()} == by_chance(NAMES, 0, RATIOS)
    for bank in banks.values():
        assert bank.item_shape == (1, 28, 28)
        assert bank.sizes.tolist() == [DRAWINGS] * len(bank)
        for c, name in enumerate(bank.names):
            own = bank.items[c * DRAWINGS : (c + 1) * DRAWINGS]
            assert torch.equal(own.view(-1, 784), torch.from_numpy(bitmaps(name).copy()))


def test_the_ratios_are_meta_dataset_s_counts() -> None:
    split = by_chance([str(i) for i in range(345)], 0, QuickDraw().ratios)
    assert [len(split[name]) for name in SPLITS] == [241, 52, 52]


def test_only_the_first_of_each_class(tmp_path: Path) -> None:
    write_bitmaps(tmp_path)
    all_of_them, first = load(tmp_path), load(tmp_path, per_class=2)
    assert first.sizes.tolist() == [2] * len(first)
    assert torch.equal(first.items[2:4], all_of_them.items[DRAWINGS : DRAWINGS + 2])


def test_another_size(tmp_path: Path) -> None:
    write_bitmaps(tmp_path)
    bank = load(tmp_path, image_size=84)
    image = Image.fromarray(bitmaps(bank.names[0])[1].reshape(28, 28)).resize((84, 84), Image.Resampling.LANCZOS)
    assert torch.equal(bank.items[1, 0], torch.from_numpy(np.array(image)))


def test_names_that_a_browser_gives_files(tmp_path: Path) -> None:
    folder = write_bitmaps(tmp_path)
    (folder / "cat.npy").rename(folder / "full_numpy_bitmap_cat.npy")
    (folder / "dog.npy").rename(folder / "full%2Fnumpy_bitmap%2Fdog.npy")
    assert sorted(name for split in SPLITS for name in load(tmp_path, split).names) == sorted(NAMES)
    np.save(folder / "dog.npy", bitmaps("dog"))
    with pytest.raises(InputError, match="are the same class"):
        load(tmp_path)


def test_prepared_once_and_again_when_a_file_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_bitmaps(tmp_path)
    before = load(tmp_path)
    load(tmp_path)
    assert capsys.readouterr().err.count("preparing") == 1
    np.save(folder / f"{before.names[0]}.npy", 255 - bitmaps(before.names[0]))
    assert torch.equal(load(tmp_path).items[:DRAWINGS], 255 - before.items[:DRAWINGS])


# Strokes


def test_strokes_that_were_recognized_are_drawn(tmp_path: Path) -> None:
    write_strokes(tmp_path)
    bank = load(tmp_path, kind="strokes")
    assert bank.item_shape == (1, 28, 28)
    assert bank.sizes.tolist() == [4] * len(bank)
    strokes, recognized = drawing_of(json.dumps(drawing(bank.names[1], 3)).encode())
    assert recognized
    assert bank.items[4 + 2].numpy().tobytes() == drawn(strokes, 28, 16)
    everything = load(tmp_path, kind="strokes", recognized=False)
    assert everything.sizes.tolist() == [6] * len(bank)
    assert torch.equal(everything.items[[0, 1, 3, 4]], bank.items[:4])


def test_only_as_many_drawings_are_read(tmp_path: Path) -> None:
    folder = write_strokes(tmp_path)
    for path in folder.iterdir():
        path.write_text(path.read_text() + "cut sh")
    assert load(tmp_path, kind="strokes", per_class=4).sizes.tolist() == [4, 4, 4]


def image(*strokes: list[list[float]], side: int = 28, width: float = 16) -> np.ndarray:
    points, _ = drawing_of(json.dumps({"drawing": strokes}).encode())
    return np.frombuffer(drawn(points, side, width), np.uint8).reshape(side, side).astype(int)


def test_a_drawing_is_white_on_black_with_soft_edges_in_the_middle() -> None:
    square = image([[0, 255, 255, 0, 0], [0, 0, 255, 255, 0]])
    assert square.max() == 255
    assert square[0].max() == square[:, 0].max() == square[14, 14] == 0
    assert ((square > 0) & (square < 255)).any()
    assert np.abs(square - square.T).max() <= 64
    assert np.abs(square - square[::-1, ::-1]).max() <= 64
    line = image([[0, 0], [0, 100]])
    rows, columns = np.nonzero(line > 127)
    assert 12 < columns.mean() < 15
    assert 12 < rows.mean() < 15


def test_strokes_are_as_wide_as_asked_for_at_every_size() -> None:
    for side in (28, 84):
        thin, wide = (image([[0, 255], [100, 100]], side=side, width=width).sum() for width in (8, 32))
        assert 3 < wide / thin < 5.5
    small, large = (image([[0, 255], [100, 100]], side=side).mean() for side in (28, 112))
    assert small == pytest.approx(large, rel=0.15)


def test_raw_drawings_are_shrunk_to_fit() -> None:
    """Their coordinates are those of whatever screen they were drawn on."""
    small = image([[0, 255], [0, 255]])
    large = image([[3000, 5550], [1000, 3550]])
    assert np.abs(small - large).mean() < 3


def test_a_dot_is_drawn() -> None:
    assert image([[7], [9]]).max() > 200


# Where there is nothing


def refusal(data_root: Path, **changed: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(data_root, **changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_there_says_what_to_put_where(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    parts = (str(tmp_path / "quickdraw"), "CLASS.npy", "numpy_bitmap", "dataset.categories=[", "METARUN_DATA")
    assert all(part in message for part in parts)
    assert "CLASS.ndjson" in refusal(tmp_path, kind="strokes")
    write_strokes(tmp_path)
    assert "holds no bitmaps, but 5 files of strokes: set dataset.kind=strokes" in refusal(tmp_path)


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    write_bitmaps(tmp_path, NAMES[:2])
    assert "2 classes cannot be split" in refusal(tmp_path)


# The download


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "bucket"
    (folder / "numpy_bitmap").mkdir(parents=True)
    for name in NAMES:
        np.save(folder / "numpy_bitmap" / f"{name}.npy", bitmaps(name))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        monkeypatch.setattr(quickdraw, "BUCKET", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder
        server.shutdown()


def test_only_the_classes_that_are_named_are_downloaded(tmp_path: Path, bucket: Path) -> None:
    write_bitmaps(tmp_path, ["cat", "ant"])
    chosen = ["The Eiffel Tower", "cat", "alarm clock"]
    assert sorted(n for s in SPLITS for n in load(tmp_path, s, categories=chosen).names) == sorted(chosen)
    there = sorted(path.name for path in (tmp_path / "quickdraw").iterdir())
    assert there == ["The Eiffel Tower.npy", "alarm clock.npy", "ant.npy", "cat.npy"]


def test_a_class_that_the_bucket_lacks_is_named(tmp_path: Path, bucket: Path) -> None:
    message = refusal(tmp_path, categories=["cat", "unicorn", "dog"])
    assert "unicorn.npy could not be downloaded (" in message
    assert "HTTP 404" in message


@pytest.mark.parametrize("name", ["../cat", "", " ", ".cat", "a/b"])
def test_a_name_that_is_no_class_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no class of Quick, Draw!"):
        QuickDraw(categories=["cat", name])


# Bad files


def changed_file(tmp_path: Path, data: bytes, kind: str = "strokes") -> Path:
    """Takes the place of a file of a training class."""
    folder = write_strokes(tmp_path) if kind == "strokes" else write_bitmaps(tmp_path)
    path = folder / f"{by_chance(NAMES, 0, RATIOS)['train'][0]}{quickdraw.KINDS[kind][1]}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "array", [np.zeros((3, 785), np.uint8), np.zeros((3, 784)), np.zeros((0, 784), np.uint8), np.zeros(784, np.uint8)]
)
def test_bitmaps_of_another_form_are_named(tmp_path: Path, array: np.ndarray) -> None:
    path = changed_file(tmp_path, b"", "bitmaps")
    np.save(path, array)
    assert f"{path} is {array.dtype} of shape {array.shape}" in refusal(tmp_path)


def test_bitmaps_cut_short_are_named(tmp_path: Path) -> None:
    path = changed_file(tmp_path, b"", "bitmaps")
    np.save(path, bitmaps("cat"))
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is no whole npy file" in refusal(tmp_path)


GOOD = json.dumps(drawing("cat", 0)).encode()
LINES = {
    b"": "holds no drawings that were recognized",
    GOOD.replace(b"true", b"false"): "holds no drawings that were recognized",
    GOOD + b"\n" + GOOD[:50]: "line 2: is no json object with a drawing",
    b"[]": "line 1: is no json object",
    b"{}": "line 1: is no json object with a drawing",
    b"\n\n\xff": "line 3: is no json object",
    b"[" * 100_000: "line 1: is no json object",
    b'{"drawing": []}': "line 1: its drawing is not",
    b'{"drawing": [[[1, 2], [3]]]}': "line 1: is no json object with a drawing",
    b'{"drawing": [[[], []]]}': "line 1: its drawing is not",
    b'{"drawing": [[[1]]]}': "line 1: its drawing is not",
    b'{"drawing": [[[NaN], [1]]]}': "line 1: its drawing is not",
    b'{"drawing": [[[1e10], [1]]]}': "line 1: its drawing is not",
    b'{"drawing": [["a", "b"]]}': "line 1: its drawing is not",
    b'{"drawing": [[[true], [false]]]}': "line 1: its drawing is not",
    b'{"drawing": [[[1], [2]]], "recognized": "yes"}': "line 1: its recognized is neither",
}


@pytest.mark.parametrize("number", range(len(LINES)))
def test_a_line_that_holds_no_drawing_is_named(tmp_path: Path, number: int) -> None:
    data, why = list(LINES.items())[number]
    path = changed_file(tmp_path, data)
    message = refusal(tmp_path, kind="strokes")
    assert str(path) in message
    assert why in message
    assert not [*(tmp_path / "cache").glob("*")]


def test_such_lines_are_left_out_if_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed_file(tmp_path, b"\n".join([GOOD, b"?", GOOD, b"{}"]))
    bank = QuickDraw(kind="strokes", ratios=RATIOS).load("train", Place(tmp_path, skip_broken=True))
    assert bank.sizes.tolist()[0] == 2
    assert f"{path}: 2 of 4 lines are no drawings and are left out" in capsys.readouterr().err


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)
NUMBERS = st.lists(st.integers(-(10**12), 10**12) | st.floats(), max_size=3)
DRAWN = st.fixed_dictionaries({"drawing": JSON | st.lists(st.lists(NUMBERS, max_size=3), max_size=3)})
ROWS = DRAWN.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=40)


@given(st.lists(ROWS, max_size=3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_lines_are_a_bank_or_refused(lines: list[bytes], skip: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", f"{folder}/cache")
        changed_file(Path(folder) / "data", b"\n".join(lines))
        try:
            bank = QuickDraw(kind="strokes", ratios=RATIOS).load(
                "train", Place(Path(folder) / "data", skip_broken=skip)
            )
        except InputError:
            pass
        else:
            assert len(bank.items) == int(bank.offsets[-1])
        assert {path.name for path in Path(folder).iterdir()} <= {"cache", "data"}
        assert len([*(Path(folder) / "data").rglob("*")]) == 1 + len(NAMES)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_change_of_bitmaps_is_a_bank_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", f"{folder}/cache")
        path = changed_file(Path(folder), b"", "bitmaps")
        np.save(path, bitmaps("cat"))
        whole = path.read_bytes()
        at = data.draw(st.integers(0, 140) | st.integers(0, len(whole)))
        change = data.draw(st.binary(max_size=4))
        path.write_bytes((whole[:at] + change + whole[at + len(change) :])[: data.draw(st.sampled_from([at, None]))])
        with suppress(InputError):
            load(Path(folder))
