"""Items decoded once into one plain file of bytes, which is mapped rather than read.

    NAME-KEY.bin    (items, *item) uint8, one after another
    NAME-KEY.json   the mark that it is whole: its key, shape, rows that were left out, checksum

Decoding runs on all cores and may be stopped at any time: `NAME-KEY.part` and the list of its finished chunks are
gone on with. Of several processes that want the same file one makes it, and the others wait for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, TypeVar
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from metarun.cache import folder
from metarun.data.chunks import Chunk, Writer, Written
from metarun.files import write_atomic
from metarun.processes import spread
from metarun.types import InputError

CHUNK = 4 * 2**20
"""bytes that are decoded and written at a time"""
WORKERS: int | None = None
"""processes that decode; None: one for each core"""
SYNC_EVERY = 1.0
"""seconds after which the disk is told to take what is written"""
TOLD_EVERY = 5.0
"""seconds between two lines of progress where there is no terminal"""


T = TypeVar("T")


@dataclass(frozen=True)
class Packed:
    items: Tensor
    """(items, *item) uint8, mapped from the file; never to be written to"""
    left_out: tuple[int, ...]
    """the numbers of the items that did not decode, ascending"""
    checksum: str
    """8 hex digits of the bytes and of which items they are"""


def packed(
    name: str,
    key: str,
    items: Sequence[T],
    shape: tuple[int, ...],
    decode: Callable[[T], bytes],
    *,
    skip_broken: bool = False,
    workers: int | None = None,
) -> Packed:
    """Items of `shape`, from the cache if they are there, else `decode(item)` of each of `items`.

    name     what the file is called; words of letters, digits, - and _
    key      everything that the bytes depend on
    decode   the bytes of an item. May raise `Broken`, which ends it, or with `skip_broken` leaves that item out
    workers  processes that decode (None: one for each core). More than one once it has taken a while (see
             `metarun.processes`): `decode` and the items must pickle, and should do without torch

    Raises `InputError` for a broken item, a full disk, or a folder that cannot be written.
    """
    key = f"{key} items={len(items)}x{shape} skip={skip_broken}"
    stem = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    place = folder()
    if (kept := _read(place / stem, key, shape)) is not None:
        return kept
    try:
        place.mkdir(parents=True, exist_ok=True)
        part = place / f"{stem}.part"
        while kept is None:
            with alone(part, name) as data:
                # While we waited another process may have made it; then what we hold is no part of anything.
                kept = _read(place / stem, key, shape)
                if not is_still(data, part):
                    continue
                if kept is None:
                    write = Writer(part, prod(shape), decode, skip_broken)
                    _make(place / stem, data, name, key, items, write, workers or WORKERS)
                    kept = _read(place / stem, key, shape)
                else:
                    part.unlink()
    except OSError as error:
        size = len(items) * prod(shape) / 1e6
        raise InputError(
            f"{place} cannot hold {name}, {size:,.0f} MB ({error.strerror or error}): make room, or set METARUN_CACHE "
            "to a folder that can"
        ) from error
    return kept


def mapped(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A file of bytes as a uint8 tensor that takes no memory of its own."""
    if prod(shape) == 0:
        return torch.empty(shape, dtype=torch.uint8)
    with warnings.catch_warnings(action="ignore"):  # of memory that may not be written to: nobody does
        return torch.from_numpy(np.memmap(path, np.uint8, "r", shape=shape))


def _read(path: Path, key: str, shape: tuple[int, ...]) -> Packed | None:
    """What is kept for `key`; None where there is nothing, or nothing whole."""
    try:
        mark = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        data, rows = path.with_suffix(".bin"), mark["rows"]
        if mark["key"] != key or data.stat().st_size != rows * prod(shape):
            return None
        return Packed(mapped(data, (rows, *shape)), tuple(mark["left_out"]), mark["checksum"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def alone(part: Path, name: str) -> Iterator[BinaryIO]:
    """The open part, which no other process works on meanwhile."""
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as data:
        try:
            fcntl.flock(data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{name} is being prepared by another process; waiting for it", file=sys.stderr)
            fcntl.flock(data, fcntl.LOCK_EX)
        yield data


def is_still(data: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one at `path`, which may have been renamed or taken away."""
    try:
        return os.path.samestat(os.fstat(data.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _make(
    path: Path, data: BinaryIO, name: str, key: str, items: Sequence[Any], write: Writer, workers: int | None
) -> None:
    """Fills the part, and gives it its name. What is stopped from outside is left to be gone on with."""
    marks, count = path.with_suffix(".chunks"), len(items)
    try:
        done = _decoded(data, marks, name, key, items, write, workers)
        broken = [i for first in sorted(done) for i in done[first].broken]
        if broken:
            marks.unlink()  # from here on a half is no use
            _close_up(data.fileno(), set(broken), count, write.size)
            print(f"{name}: {len(broken)} of {count:,} items do not decode and are left out", file=sys.stderr)
        os.fsync(data.fileno())
        checksum = crc32(json.dumps([[done[first].crc for first in sorted(done)], broken]).encode())
        mark = {"key": key, "rows": count - len(broken), "left_out": broken, "checksum": f"{checksum:08x}"}
        write.part.replace(path.with_suffix(".bin"))
        write_atomic(path.with_suffix(".json"), lambda file: file.write(json.dumps(mark).encode()))
        marks.unlink(missing_ok=True)
    except BrokenExecutor as error:
        raise InputError(
            f"a process that was preparing {name} was ended from outside, most often for lack of memory: the same "
            "command goes on from there"
        ) from error
    except Exception:
        for file in (write.part, marks):
            file.unlink(missing_ok=True)
        raise


def _decoded(
    data: BinaryIO, marks: Path, name: str, key: str, items: Sequence[Any], write: Writer, workers: int | None
) -> dict[int, Written]:
    """Decodes what an earlier process has not; what is known of each chunk, by its first item."""
    step, count = max(1, CHUNK // write.size), len(items)
    done = _done(data, marks, key, lambda first: (first * write.size, write.size * min(step, count - first)))
    left = [Chunk(first, items[first : first + step]) for first in range(0, count, step) if first not in done]
    synced = monotonic()
    bar = Progress(f"preparing {name}", count, count - sum(len(chunk.items) for chunk in left))
    with marks.open("a" if done else "w", encoding="utf-8") as log:
        if not done:
            log.write(json.dumps(key) + "\n")
        try:
            for written in spread(write, left, workers):
                if written.broken and not write.skip_broken:
                    raise InputError(
                        f"{written.why}: put a whole copy there, take it away, or leave such items out with "
                        "data.skip_broken=true"
                    )
                done[written.first] = written
                log.write(json.dumps(written[:3]) + "\n")
                log.flush()
                bar.add(min(step, count - written.first))
                if monotonic() - synced > SYNC_EVERY:
                    os.fdatasync(data.fileno())  # or all of it is waited for in the end
                    synced = monotonic()
        finally:
            bar.end()
    return done


def _done(data: BinaryIO, marks: Path, key: str, where: Callable[[int], tuple[int, int]]) -> dict[int, Written]:
    """The chunks that an earlier process has written, by their first item, as far as they are what was written.

    `where` gives a chunk's place in the file, and its bytes.
    """
    found = {}
    try:
        first, *lines = marks.read_text(encoding="utf-8").splitlines()
        if json.loads(first) != key:
            return {}
        for line in lines:
            written = Written(*json.loads(line))
            start, size = where(written.first)
            if crc32(os.pread(data.fileno(), size, start)) == written.crc:
                found[written.first] = written
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the list may be cut short, like anything that was stopped
    return found


def _close_up(file: int, gone: set[int], count: int, size: int) -> None:
    """Moves the items that stay together, in their order."""
    to = 0
    for i in range(count):
        if i not in gone:
            if to != i:
                os.pwrite(file, os.pread(file, size, i * size), to * size)
            to += 1
    os.ftruncate(file, to * size)


class Progress:
    """How far something has come: a bar on a terminal, a line now and then elsewhere, nothing for what is quick."""

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self._what, self._total, self._done = what, total, done
        self._bar: Any = None
        self._told = monotonic()
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(what, total=total, completed=done)
            self._bar.start()
        else:
            print(f"{what}: {total:,} items, once", file=sys.stderr)

    def add(self, items: int) -> None:
        self._done += items
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif monotonic() - self._told > TOLD_EVERY:
            self._told = monotonic()
            print(f"{self._what}: {self._done:,} of {self._total:,}", file=sys.stderr)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
