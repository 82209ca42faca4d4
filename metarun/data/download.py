"""Files from the net: whole and checked, from the first mirror that gives them.

    NAME        the file
    NAME.part   what has come of it so far: gone on with by the next try, of whichever mirror or process

Of several processes that want the same file one downloads it, and the others wait for it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from time import monotonic
from typing import Any, BinaryIO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from metarun.cache import cached
from metarun.data.packed import TOLD_EVERY, alone, is_still
from metarun.data.reading import reading
from metarun.types import InputError, Place

PATIENCE = 8.0
"""seconds that a mirror may go without a new byte"""
TRIES = 3
"""how often a mirror that cuts the file short is asked for the rest"""
CHUNK = 2**18
"""bytes that are taken from a mirror at a time, at most"""
NO_SUCH_BYTES = 416
"""the HTTP status of a question for bytes after the last"""
SUMS = {32: "md5", 64: "sha256"}
"""kinds of checksum by their number of hex digits"""


class Published(NamedTuple):
    """A file as it is published."""

    name: str
    urls: tuple[str, ...]
    """mirrors of it, the first that is asked first"""
    checksum: str | None = None
    """md5 or sha256 in hex digits; None where nobody tells"""


class Gone(Exception):
    """A mirror that does not give the file; the message says why."""

    def __init__(self, why: str, status: int | None = None) -> None:
        super().__init__(why)
        self.status = status


class Silent(Gone):
    """A mirror that says nothing any more."""


def fetch(
    name: str, urls: Sequence[str], checksum: str | None, into: Path, place: Place, *, patience: float = PATIENCE
) -> Path:
    """The file `into/name`, which is downloaded where it is not there.

    urls      mirrors of it, asked in this order
    checksum  of the whole file, md5 or sha256 in hex digits; None where nobody tells: then the file is as long as the
              mirror says, and one that was cut is begun anew
    patience  seconds that a mirror may go without a new byte

    Raises `InputError` where no mirror gives it, where nothing may be downloaded, and for a file that is there and has
    another checksum: a file put there by hand is checked as well, once.
    """
    path, part = into / name, into / f"{name}.part"
    checksum = checksum and checksum.lower()
    by_hand = f"put the file into {into} by hand, as {name}"
    if checksum:
        by_hand += f" ({SUMS[len(checksum)]} {checksum})"
    by_hand += ", or set METARUN_DATA or data_root=... to a folder that has it"
    try:
        if path.exists():
            return _checked(path, checksum)
        if place.offline:
            raise InputError(f"{name} is not in {into}, and data.offline=true: {by_hand}; it is at {urls[0]}")
        into.mkdir(parents=True, exist_ok=True)
        while not path.exists():
            with alone(part, name) as file:
                if not is_still(file, part):
                    continue  # while we waited another process has finished with it, or given up
                if path.exists():
                    part.unlink()
                elif reasons := _download(file, part, urls, checksum, patience):
                    raise InputError(f"{name} could not be downloaded ({reasons}): try again later, or {by_hand}")
                else:
                    part.replace(path)
    except OSError as error:
        raise InputError(f"{into} cannot hold {name} ({error.strerror or error}): allow it, or {by_hand}") from error
    return path


def _checked(path: Path, checksum: str | None) -> Path:
    """A file that is there, if it is the right one. What was found is kept, for some take seconds to read."""
    if checksum is None:
        return path
    with reading(path):
        status = path.stat()
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {SUMS[len(checksum)]}"
        found = cached("checksum", key, lambda: {"sum": _digest(path, checksum)})["sum"]
    if found != checksum:
        raise InputError(
            f"{path} is not the published file: its {SUMS[len(checksum)]} is {found}, not {checksum}; remove it, or "
            "put a whole copy there"
        )
    return path


def _digest(path: Path, checksum: str) -> str:
    """The checksum of a file, of the same kind as `checksum`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(SUMS[len(checksum)], usedforsecurity=False)).hexdigest()


def _download(file: BinaryIO, part: Path, urls: Sequence[str], checksum: str | None, patience: float) -> str:
    """Fills the open part from the first mirror that can; why none could, or nothing."""
    reasons = []
    for url in urls:
        try:
            _whole(file, part, url, checksum, patience)
            return ""
        except Gone as why:
            reasons.append(f"{url}: {why}")
    # What is left of a file whose checksum nobody knows cannot be trusted, and nothing is nothing to go on with.
    if checksum is None or _size(file) == 0:
        part.unlink()
    return "; ".join(reasons)


def _whole(file: BinaryIO, part: Path, url: str, checksum: str | None, patience: float) -> None:
    """Fills the part from one mirror, after what is there already. Raises `Gone`, and then keeps what may be right."""
    if checksum is None:
        file.truncate(0)
    for _ in range(TRIES):
        start = _size(file)
        try:
            total = _receive(file, part.stem, url, start, patience)
        except Silent:
            raise
        except Gone as why:
            if _size(file) > start:
                continue  # the connection broke: the mirror may give the rest
            if why.status != NO_SUCH_BYTES:
                raise
            total = None  # there is no rest: the part is whole, or none of this file
        if total is not None and _size(file) < total:
            continue
        found = checksum and _digest(part, checksum)
        if found == checksum:
            os.fsync(file.fileno())
            return
        file.truncate(0)
        if start == 0:
            raise Gone(f"wrong checksum, {found}")
    raise Gone(f"cut short {TRIES} times, after {_size(file):,} bytes at last")


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _receive(file: BinaryIO, name: str, url: str, start: int, patience: float) -> int | None:
    """Writes what a mirror gives, from byte `start` on if it will; how long it says the whole is."""
    answer = _listen(url, start, patience)
    status, headers = next(answer)
    rest = re.fullmatch(rf"bytes {start}-\d+/(\d+|\*)", headers.get("Content-Range") or "")
    if status == 206 and rest:
        said = rest[1]
    else:
        start, said = 0, headers.get("Content-Length") or ""  # it gives the whole, whatever was asked for
    total = int(said) if said.isdigit() else None
    file.seek(start)
    file.truncate(start)
    meter = Meter(name, url, total, start)
    try:
        for data in answer:
            file.write(data)
            meter.add(len(data))
    finally:
        file.flush()
        meter.end()
    return total


def _listen(url: str, start: int, patience: float) -> Iterator[Any]:
    """What a mirror answers: first (status, headers), then the bytes as they come. Raises `Gone`.

    In a thread, for a socket's timeout bounds neither the look-up of a name nor the number of addresses tried. A
    thread that hangs is left behind; it touches no file, and ends with the process.
    """
    heard: Queue[Any] = Queue(8)
    left = threading.Event()

    def tell(word: Any) -> None:
        while not left.is_set():
            with suppress(Full):
                heard.put(word, timeout=1)
                break

    def ask() -> None:
        headers = {"User-Agent": "metarun", "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            with urlopen(Request(url, headers=headers), timeout=patience) as answer:
                tell((answer.status, answer.headers))
                while not left.is_set() and (data := answer.read1(CHUNK)):
                    tell(data)
            tell(None)
        except Exception as error:
            tell(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        while (word := heard.get(timeout=patience)) is not None:
            if isinstance(word, Exception):
                raise _gone(word, patience)
            yield word
    except Empty:
        raise Silent(f"no answer for {patience:g} seconds") from None
    finally:
        left.set()


def _gone(error: Exception, patience: float) -> Gone:
    if isinstance(error, HTTPError):
        return Gone(f"HTTP {error.code} {error.reason}", error.code)
    if isinstance(error, URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return Silent(f"no answer for {patience:g} seconds")
    return Gone(str(error) or type(error).__name__)


class Meter:
    """How many bytes have come: a bar on a terminal, elsewhere a line at first and now and then."""

    def __init__(self, name: str, url: str, total: int | None, done: int) -> None:
        self._name, self._total, self._done = name, total, done
        self._told = monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            shown = (progress.DownloadColumn(), progress.TransferSpeedColumn(), progress.TimeRemainingColumn())
            self._bar = progress.Progress(
                "{task.description}", progress.BarColumn(), *shown, console=Console(stderr=True), transient=True
            )
            self._bar.add_task(name, total=total, completed=done)
            self._bar.start()
        else:
            size = f" ({total / 1e6:,.1f} MB)" if total else ""
            print(f"downloading {name}{size} from {url.split('/')[2]}", file=sys.stderr)

    def add(self, size: int) -> None:
        self._done += size
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif monotonic() - self._told > TOLD_EVERY:
            self._told = monotonic()
            print(f"downloading {self._name}: {self._done / 1e6:,.1f} MB", file=sys.stderr)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
