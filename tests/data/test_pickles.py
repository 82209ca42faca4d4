"""Pickles and numpy files: what people pass around is read, and nothing in it is ever run."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metarun.data import pickles
from metarun.data.pickles import map_npy, read_npz, read_pickle
from metarun.types import InputError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
CACHE = {"image_data": IMAGES, "class_dict": {"n01": [0, 1, 2], "n02": [3, 4, 5]}}


def put(tmp_path: Path, data: bytes, name: str = "x.pkl") -> Path:
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


def read(tmp_path: Path, value: Any, protocol: int = 2) -> Any:
    return read_pickle(put(tmp_path, pickle.dumps(value, protocol)))


def refusal(tmp_path: Path, data: bytes) -> str:
    path = put(tmp_path, data)
    began = time.perf_counter()
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    assert time.perf_counter() - began < 5
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_cache_of_images(tmp_path: Path, protocol: int) -> None:
    got = read(tmp_path, CACHE, protocol)
    assert got["class_dict"] == CACHE["class_dict"]
    assert got["image_data"].dtype == np.uint8
    assert np.array_equal(got["image_data"], IMAGES)
    assert not got["image_data"].flags.writeable


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_every_plain_kind(tmp_path: Path, protocol: int) -> None:
    values = {
        "bool": np.array([True, False]),
        "whole": np.arange(5, dtype=">i4"),
        "float": np.array([[0.5, np.nan]], dtype=np.float32),
        "text": np.array(["ab", "c"]),
        "bytes": np.array([b"ab", b"c"]),
        "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "none": np.zeros((0, 3)),
        "one": np.array(7),
        "scalar": np.int64(3),
        "half": np.float32(0.5),
    }
    got = read(tmp_path, values, protocol)
    for name, value in values.items():
        assert np.array_equal(got[name], value, equal_nan=value.dtype.kind == "f"), name
        assert np.asarray(got[name]).shape == value.shape


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values(tmp_path: Path, protocol: int) -> None:
    values = [None, True, -1, 10**30, 0.5, "é", b"\x00\xff", bytearray(b"ab"), [], {}, {"a": [1, {"b": 2}]}]
    assert read(tmp_path, values, protocol) == values
    assert read(tmp_path, collections.OrderedDict(b=1, a=2), protocol) == {"b": 1, "a": 2}
    assert read(tmp_path, ((1, 2), (), (3,)), protocol) == [[1, 2], [], [3]], "a tuple is a list"
    objects = read(tmp_path, np.array([[1], "two", None, IMAGES[0]], dtype=object), protocol)
    assert objects[:3] == [[1], "two", None]
    assert np.array_equal(objects[3], IMAGES[0])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_of_numpy_1_name_another_module(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(CACHE, protocol)
    if protocol < 4:
        data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    else:
        short = {n: bytes([len(n)]) + n for n in (b"numpy._core.multiarray", b"numpy._core.numeric")}
        for name, known in short.items():
            other = name.replace(b"_core", b"core")
            data = data.replace(known, bytes([len(other)]) + other)
        data = data[:2] + data[11:]  # without the frame, whose length has changed
    assert b"_core" not in data
    assert np.array_equal(read_pickle(put(tmp_path, data))["image_data"], IMAGES)


def test_a_cifar_batch_of_python_2(tmp_path: Path) -> None:
    """Its text is what Python 3 has for bytes: {"data": uint8 array, "labels": [6, 9]}."""
    raw = bytes(range(200, 212))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01(K\x02K\x06tcnumpy\ndtype\n"
        b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x0c" + raw + b"tb"
    )
    batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x06K\x09eU\x0bbatch_labelU\x04on\xe9 u."
    got = read_pickle(put(tmp_path, batch))
    assert got["data"].tobytes() == raw
    assert got["data"].shape == (2, 6)
    assert (got["labels"], got["batch_label"]) == ([6, 9], "oné ")


def test_what_is_there_twice_is_read_once(tmp_path: Path) -> None:
    row = [1, 2]
    got = read(tmp_path, [row] * 3)
    assert got == [row] * 3
    assert got[0] is got[2]


# What is refused


class Call:
    """Unpickling it would call a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.made


class Own:
    def __init__(self) -> None:
        self.x = 1


RUNS = {
    "posix.system": Call(os.system, "touch sprung"),
    "builtins.eval": Call(eval, "1"),
    "builtins.getattr": Call(getattr, "a", "upper"),
    "builtins.open": Call(open, "sprung", "w"),
    "numpy.load": Call(np.load, "sprung"),
    "Own": Own(),
    "pathlib": Path("x"),
    "set": {1, 2},
    "collections.Counter": collections.Counter("ab"),
    "multiarray.fromstring": Call(np.frombuffer, b"ab"),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", RUNS)
def test_whatever_else_it_names_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path, pickle.dumps({"image_data": IMAGES, "more": RUNS[name]}, protocol))
    if name in ("posix.system", "numpy.load"):
        assert f"is no plain data: it would run '{name}'. Nothing was run" in message
    assert not (tmp_path / "sprung").exists()


def test_a_name_is_told_safely(tmp_path: Path) -> None:
    message = refusal(tmp_path, b"\x80\x04\x8c\x04\x1b[2J\x8c\x02\n!\x93.")
    assert r"'\x1b[2J.\n!'" in message


def op(code: bytes, kind: str, value: int) -> bytes:
    return code + struct.pack(kind, value)


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
U1 = b"cnumpy\ndtype\n(S'u1'\ntR"
BOMBS = {
    "a number for the last thing remembered": b"N" + op(b"r", "<I", 2**32 - 1) + b".",
    "bytes that are not there": op(b"\x8e", "<Q", 2**40) + b".",
    "a bytearray that is not there": op(b"\x96", "<Q", 2**36) + b".",
    "text that is not there": op(b"\x8d", "<Q", 2**62) + b".",
    "a frame that is not there": b"\x80\x04" + op(b"\x95", "<Q", 2**45) + b".",
    "a long that is not there": op(b"\x8b", "<I", 2**31 - 1) + b".",
    "a bytearray of a length": b"cbuiltins\nbytearray\n(I1000000000000\ntR.",
    "an array that is not there": ARRAY.replace(b"I0", b"I1000000000000") + b".",
    "an array without its bytes": ARRAY + b"(I1\n(I1000000000000\nt" + U1 + b"I00\nC\x01atb.",
    "an array of nothing": ARRAY + b"(I1\n(I0\nI1000000000000000000000\nt" + U1 + b"I00\nC\x00tb.",
    "an array of less than nothing": ARRAY + b"(I1\n(I-1\nI-1\nt" + U1 + b"I00\nC\x01atb.",
    "an array of objects made of bytes": ARRAY + b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI00\nC\x08aaaaaaaatb.",
    "an array of records": ARRAY + b"(I1\n(I1\ntcnumpy\ndtype\n(S'V8'\ntRI00\nC\x08aaaaaaaatb.",
    "a type that is a list": b"cnumpy\ndtype\n((l(S'a'\nS'O'\ntatR.",
    "a type alone": U1 + b".",
    "a function alone": b"c_codecs\nencode\n.",
    "an array never filled": ARRAY + b".",
    "bytes of another code": b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.",
    "a function with a state": b"c_codecs\nencode\n}S'x'\nI1\nsb.",
    "a class with a state": b"cnumpy\ndtype\n}S'value'\nI1\nsb.",
    "a key too deep to hash": b"}" + b"N" + b"\x85" * 100_000 + b"Ns.",
    "keys too deep to hash": b"}(" + b"N" + b"\x85" * 100_000 + b"Nu.",
    "a dict of keys too deep to hash": b"(" + b"N" + b"\x85" * 100_000 + b"Nd.",
    "an ordered dict of such": b"ccollections\nOrderedDict\n(((" + b"N" + b"\x85" * 100_000 + b"NtltR.",
    "lists too deep": b"]" * 100_000 + b"a" * 99_999 + b".",
    "a list in itself": b"]q\x00h\x00a.",
    "lists that grow": b"".join([b"](NNNNNNNNeq\x00", *(b"0](" + b"h\x00" * 1000 + b"eq\x00" for _ in range(20))])
    + b".",
    "a name from a register": b"\x82\x01.",
    "a thing elsewhere": b"Px\n.",
    "a buffer elsewhere": b"\x97.",
    "an old object": b"(iposix\nsystem\n.",
    "an object": b"(cposix\nsystem\nS'x'\no.",
    "no end": b"N",
    "nothing": b"",
    "a number too long": b"L" + b"9" * 10_000 + b"L\n.",
    "an unknown word": b"\xff",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused(tmp_path: Path, name: str) -> None:
    if name == "a number for the last thing remembered":  # takes no memory here
        assert read_pickle(put(tmp_path, BOMBS[name])) is None
    else:
        refusal(tmp_path, BOMBS[name])


def test_a_bomb_changes_nothing(tmp_path: Path) -> None:
    refusal(tmp_path, BOMBS["a class with a state"])
    refusal(tmp_path, BOMBS["a function with a state"])
    assert not hasattr(pickles._encoded, "x")
    assert np.array_equal(read(tmp_path, CACHE)["image_data"], IMAGES)


@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_short_is_named(tmp_path: Path, protocol: int, part: float) -> None:
    data = pickle.dumps(CACHE, protocol)
    assert "no whole pickle file" in refusal(tmp_path, data[: int(part * len(data))])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pkl cannot be read"):
        read_pickle(tmp_path / "nowhere.pkl")


# numpy's own files


def test_npz_and_npy(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", images=IMAGES, labels=np.arange(6))
    got = read_npz(tmp_path / "x.npz")
    assert sorted(got) == ["images", "labels"]
    assert np.array_equal(got["images"], IMAGES)
    np.save(tmp_path / "x.npy", IMAGES)
    assert np.array_equal(map_npy(tmp_path / "x.npy"), IMAGES)


def numpy_refusal(read: Any, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_objects_in_numpy_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([Call(os.system, "touch sprung")], dtype=object)
    np.savez(tmp_path / "x.npz", trap=trap)
    np.save(tmp_path / "x.npy", trap)
    numpy_refusal(read_npz, tmp_path / "x.npz")
    numpy_refusal(map_npy, tmp_path / "x.npy")
    numpy_refusal(map_npy, put(tmp_path, pickle.dumps(CACHE), "y.npy"))
    assert not (tmp_path / "sprung").exists()


def test_numpy_files_that_promise_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**14,)})
    numpy_refusal(map_npy, put(tmp_path, file.getvalue(), "x.npy"))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", file.getvalue())
    numpy_refusal(read_npz, tmp_path / "x.npz")
    monkeypatch.setattr(pickles, "SLACK", 1000)
    np.savez_compressed(tmp_path / "y.npz", x=np.zeros(10**6))
    assert "would take 8 MB of memory" in numpy_refusal(read_npz, tmp_path / "y.npz")


# Anything at all


def attempt(read: Any, data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            read(put(Path(folder), data, name))
        except InputError as error:
            assert name in str(error)
        assert [path.name for path in Path(folder).iterdir()] == [name]


WORDS = st.sampled_from(
    [bytes([code]) for code in pickle._Unpickler.dispatch]  # type: ignore[attr-defined]
    + [ARRAY, U1, b"I1\n", b"S'u1'\n", b"(I1\n(I1\nt", b"I00\nC\x01atb", b"K\x01", b"\x8c\x01a", b"q\x00", b"h\x00"]
)


@given(st.lists(WORDS, max_size=30), st.binary(max_size=10))
@settings(max_examples=60, deadline=None)
def test_any_words(words: list[bytes], rest: bytes) -> None:
    attempt(read_pickle, b"".join(words) + rest + b".", "x.pkl")


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes(data: bytes) -> None:
    for read, name in ((read_pickle, "x.pkl"), (read_npz, "x.npz"), (map_npy, "x.npy")):
        attempt(read, data, name)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, images=IMAGES, labels=np.arange(6))
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


WHOLE = [(read_pickle, pickle.dumps(CACHE, p), "x.pkl") for p in PROTOCOLS]
WHOLE += [(read_npz, npz(), "x.npz"), (map_npy, npy(), "x.npy")]


@given(st.sampled_from(WHOLE), st.data())
@settings(max_examples=60, deadline=None)
def test_any_change(whole: tuple[Any, bytes, str], data: st.DataObject) -> None:
    read, content, name = whole
    at = data.draw(st.integers(0, len(content)))
    change = data.draw(st.binary(max_size=4))
    attempt(read, content[:at] + change + content[at + len(change) :], name)
