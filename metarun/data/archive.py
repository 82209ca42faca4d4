"""Zip and tar files unpacked into a folder: whole or not at all, and nowhere else.

    FOLDER/.unpacked   the mark that it is whole: which archive it was made from

What is in an archive was written by others. Only plain files and folders below its root are taken from it; their modes,
owners and times are not.
"""

from __future__ import annotations

import json
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from metarun.data.packed import alone, is_still
from metarun.data.reading import reading
from metarun.types import InputError

MARK = ".unpacked"
RATIO, SLACK = 100, 2**28
"""An archive may grow to `RATIO` times its size and `SLACK` bytes more: published ones stay below a tenth of that, and
zeros can be packed a thousandfold."""
BLOCK = 512
"""bytes of a block of a tar file; what a member is taken to need however empty it is"""
CHUNK = 2**20


class Member(NamedTuple):
    """`file` is open, or None for a folder."""

    name: str
    size: int
    file: IO[bytes] | None


def unpacked(path: Path, into: Path) -> Path:
    """The folder `into`, with what is in the zip, tar, tar.gz or tgz file `path`; unpacked once.

    An archive that has changed is unpacked again, and one that is gone is not missed. Raises `InputError` for a member
    that would be written elsewhere, is no plain file or folder, or is far too large; for a damaged archive; and where
    `into` is there but was not made from it, or cannot be made.
    """
    if made_from(path, into):
        return into
    with _writing(into):
        into.parent.mkdir(parents=True, exist_ok=True)
    lock = into.with_name(f".{into.name}.lock")
    while not made_from(path, into):
        with _writing(into), alone(lock, into.name) as held:
            if is_still(held, lock):  # else another process has finished meanwhile
                try:
                    if not made_from(path, into):
                        _unpack(path, into)
                finally:
                    lock.unlink()
    return into


def _stamp(path: Path) -> dict[str, str | int]:
    with reading(path):
        status = path.stat()
    return {"archive": path.name, "size": status.st_size, "time": status.st_mtime_ns}


def made_from(path: Path, into: Path) -> bool:
    """Whether `into` is whole, and of this archive."""
    try:
        mark = json.loads((into / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not path.exists() or mark == _stamp(path)


@contextmanager
def _writing(into: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{into} cannot be made ({error.strerror or error}): make room there, or allow it") from error


def _unpack(path: Path, into: Path) -> None:
    mark = _stamp(path)
    if into.exists() and not (into / MARK).is_file():
        raise InputError(
            f"{into} is there, but was not unpacked from {path.name}, or has lost its file {MARK}: remove it"
        )
    # In the folder beside, so that a rename is all it takes at the end.
    with tempfile.TemporaryDirectory(prefix=f".{into.name}.", dir=into.parent) as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        _extract(path, folder, RATIO * int(mark["size"]) + SLACK)
        (folder / MARK).write_text(json.dumps(mark), encoding="utf-8")
        if into.exists():  # made from what the archive was before
            into.rename(Path(temporary) / "old")
        folder.rename(into)


def _extract(path: Path, folder: Path, most: int) -> None:
    """Writes every member below `folder`, `most` bytes in all."""
    total = 0
    try:
        for name, size, file in _members(path):
            total += size + BLOCK
            if total > most:
                raise InputError(f"{path}: with {name} it grows to more than {most / 1e6:,.0f} MB: no archive of data")
            target = folder.joinpath(*_parts(path, name))
            with _writing(target):
                (target if file is None else target.parent).mkdir(parents=True, exist_ok=True)
            if file is not None:
                _copy(path, name, file, target, size)
    except InputError:
        raise
    except Exception as error:
        # A damaged archive may raise nearly anything.
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is cut short or damaged ({why}): remove it, and take a whole copy") from error


def _parts(path: Path, name: str) -> list[str]:
    """Where below the folder a member belongs. Raises `InputError` where that is elsewhere."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or "\0" in name or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise InputError(f"{path}: {name!r} would be written outside its folder: unpack it by hand, if you trust it")
    return [part for part in parts if part not in ("", ".")]


def _copy(path: Path, name: str, file: IO[bytes], target: Path, size: int) -> None:
    left = size
    with _writing(target):
        out = target.open("wb")
    with out:
        while data := file.read(min(CHUNK, left)) if left else b"":
            left -= len(data)
            with _writing(target):
                out.write(data)
    if left or file.read(1):
        raise InputError(f"{path} is damaged: {name} is not as long as it says; take a whole copy")


def _members(path: Path) -> Iterator[Member]:
    """What is in an archive, each open until the next is asked for. Raises `InputError` for a link or a device."""
    if path.suffix == ".zip" or zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise _refused(path, info.filename)
                if info.is_dir():
                    yield Member(info.filename, 0, None)
                else:
                    with archive.open(info) as file:
                        yield Member(info.filename, info.file_size, file)
        return
    with tarfile.open(path) as archive:
        for info in archive:
            if not (info.isreg() or info.isdir()):
                raise _refused(path, info.name)
            yield Member(info.name, 0 if info.isdir() else info.size, archive.extractfile(info))
        # Python takes a file that is cut between two members for a whole one, but a whole one ends in zeros.
        assert archive.fileobj is not None
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(BLOCK) != bytes(BLOCK):
            raise EOFError("it has no end")


def _refused(path: Path, name: str) -> InputError:
    return InputError(
        f"{path}: {name!r} is a link or a device, where data is only files and folders: unpack it by hand, if you "
        "trust it"
    )
