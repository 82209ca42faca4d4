"""Arrays that people pass around in pickle files, and in numpy's own, read as data alone.

A pickle is a program: it may call whatever its reader can import. The reader here knows the words that make numbers,
text, lists and dicts, and stand-ins for the few functions that numpy's arrays are written as calls of. The stand-ins
check what they are given, for numpy itself trusts what it unpickles. Everything else is refused, by name.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from metarun.data.archive import RATIO, SLACK
from metarun.types import InputError

DEEPEST = 8
"""lists in lists: caches have three"""
LONGEST_TEXT = 2**16
"""bytes of Python 2 that may be text"""
TYPES = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5}|O8?)")
"""numpy's names of bool, whole numbers, floats, bytes and text of a length, and of Python's own objects"""


def read_pickle(path: Path) -> Any:
    """What is in a pickle file: dicts, lists, numbers, text, bytes and arrays, which may not be written to.

    Tuples are lists. Text of Python 2 is read as Latin-1. Raises `InputError`, naming what the file would run, for one
    that holds anything else, and for a damaged one. Nothing in it is ever run.
    """
    try:
        with path.open("rb") as file:
            return _plain(_Reader(_Bounded(file), path).load(), {})
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except Exception as error:
        # A damaged pickle may raise nearly anything.
        raise _damaged(path, "pickle file of plain data", error) from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name. Raises `InputError` for one that is damaged, or holds more than numbers."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as file:
            size = sum(info.file_size for info in file.infolist())
        if size > RATIO * path.stat().st_size + SLACK:
            raise InputError(f"{path} would take {size / 1e6:,.0f} MB of memory: no file of data grows so")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except InputError:
        raise
    except Exception as error:
        raise _damaged(path, "npz file of plain arrays", error) from error


def map_npy(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped rather than read. Raises `InputError` like `read_npz`."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        raise _damaged(path, "npy file of a plain array", error) from error


def _damaged(path: Path, what: str, error: Exception) -> InputError:
    why = str(error) or type(error).__name__
    return InputError(f"{path} is no whole {what} ({why[:200]}): remove it, and take a whole copy")


class _Bounded:
    """A file that is never asked for more than it has, so that nobody makes room for that."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = file.seek(0, 2)
        file.seek(0)

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise EOFError("it ends too early")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline()
        self._left -= len(line)
        return line


class _Array:
    """What becomes an array once its state is there."""

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.fill(raw, dtype, shape, "F" if fortran else "C")

    def fill(self, raw: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, _Type) or not isinstance(shape, tuple) or order not in ("C", "F"):
            raise ValueError("an array without a type or a shape")
        if isinstance(raw, str):
            raw = raw.encode("latin-1")  # Python 2 has one type for both
        size = dtype.value.itemsize * prod(shape)
        if any(not isinstance(side, int) or side < 0 for side in shape):
            raise ValueError(f"an array of shape {shape}")
        if dtype.value.hasobject:
            if not isinstance(raw, list) or len(raw) != prod(shape) or len(shape) != 1:
                raise ValueError("an array of objects that is no list of them")
            self.value = raw
            return
        if not isinstance(raw, bytes) or len(raw) != size:
            raise ValueError(f"an array of shape {shape} that is not {size:,} bytes")
        self.value = np.ndarray(shape, dtype.value, raw, order=order)


class _Type:
    """What stands for a numpy dtype."""

    def __init__(self, name: str, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not TYPES.fullmatch(name):
            raise ValueError(f"an array of {str(name)[:40]!r}")
        self.value = np.dtype(name)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _begun(kind: Any, shape: Any, code: Any) -> _Array:
    """For numpy's `_reconstruct`, which makes an empty array to be filled."""
    return _Array()


def _from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(raw, dtype, shape, order)
    return array


def _scalar(dtype: Any, raw: Any) -> Any:
    return _from_buffer(raw, dtype, (1,), "C").value[0].item()


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2 to read."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in {str(encoding)[:40]!r}")
    return text.encode("latin-1")


def _bytes(data: bytes | str = b"", encoding: str = "latin-1") -> bytes:
    return _encoded(data, encoding) if isinstance(data, str) else b"".join([data])


def _dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _key(key: Any) -> Any:
    """Text or a number: what holds others may be so deep that to hash it never ends."""
    if not isinstance(key, (str, bytes, int, float)):
        raise ValueError(f"a key that is a {type(key).__name__}")
    return key


STAND_INS = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _begun for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
    ("collections", "OrderedDict"): _dict,
    **{(home, "bytes"): _bytes for home in ("builtins", "__builtin__")},
    **{(home, "bytearray"): _bytes for home in ("builtins", "__builtin__")},
}
"""What a file names -> what is called in its place."""

WORDS: dict[int, Any] = dict(pickle._Unpickler.dispatch)
"""What Python's own reader does for each word of a pickle."""
LEFT_OUT = (
    pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.BINPERSID, pickle.EXT1,
    pickle.EXT2, pickle.EXT4, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)  # fmt: skip
"""Words that make objects of other classes, or sets."""


def _left_out(reader: Any) -> None:
    raise ValueError("it holds a set, or an object of a class")


def _build(reader: Any) -> None:
    if not isinstance(reader.stack[-2], (_Array, _Type)):
        raise ValueError("a state for what has none")
    WORDS[pickle.BUILD[0]](reader)


def _bytearray(reader: Any) -> None:
    """As bytes. Python's own makes room first, and reads then."""
    reader.append(reader.read(int.from_bytes(reader.read(8), "little")))


def _set_item(reader: Any) -> None:
    _key(reader.stack[-2])
    WORDS[pickle.SETITEM[0]](reader)


def _set_items(reader: Any) -> None:
    for key in reader.stack[::2]:
        _key(key)
    WORDS[pickle.SETITEMS[0]](reader)


def _make_dict(reader: Any) -> None:
    for key in reader.stack[::2]:
        _key(key)
    WORDS[pickle.DICT[0]](reader)


class _Reader(pickle._Unpickler):
    """Python's own reader, the one in Python, without the words that it need not know.

    The one in C takes memory for whatever number a file says to be its last.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        **WORDS,
        **{word[0]: _left_out for word in LEFT_OUT},
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
    }

    def __init__(self, file: _Bounded, path: Path) -> None:
        super().__init__(file, encoding="latin-1")
        self._path = path

    def _decode_string(self, value: bytes) -> Any:
        """Of Python 2, which has one type for text and bytes: an array's are not made text and bytes again."""
        return value if len(value) > LONGEST_TEXT else value.decode("latin-1")

    def find_class(self, module: str, name: str) -> Any:
        try:
            return STAND_INS[module, name]
        except KeyError:
            named = ascii(f"{module}.{name}"[:100])
            raise InputError(
                f"{self._path} is no plain data: it would run {named}. Nothing was run; take a copy that holds only "
                "arrays, numbers, text, lists and dicts"
            ) from None


def _plain(value: Any, known: dict[int, Any], depth: int = 0) -> Any:
    """`value` with its arrays in place of what stood for them. What is in it twice is gone through once."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array that was never filled")
        return _plain(value.value, known, depth) if isinstance(value.value, list) else value.value
    if not isinstance(value, (dict, list, tuple)):
        if isinstance(value, _Type) or callable(value):
            raise ValueError("a type where data should be")
        return value
    if depth > DEEPEST:
        raise ValueError(f"lists more than {DEEPEST} deep")
    if id(value) not in known:
        if isinstance(value, dict):
            known[id(value)] = {key: _plain(item, known, depth + 1) for key, item in value.items()}
        else:
            known[id(value)] = [_plain(item, known, depth + 1) for item in value]
    return known[id(value)]
