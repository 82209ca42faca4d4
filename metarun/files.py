"""Files that are whole or absent: nobody ever sees half of one, whatever kills the process that writes it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replaces `path` by what `write` puts into the open file it is given; on any failure `path` is as it was.

    The folder must exist. A symbolic link at `path` is replaced, not followed. Several processes may write one
    `path` at once: each writes a temporary file of its own, and the last to finish wins. Raises what `write` raises,
    and `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # Not `tempfile`, whose files only their owner may read: what is left behind has the mode of any other file.
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        # Also for a KeyboardInterrupt: what was begun is taken away.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # `torch.save` tells of a full disk in a RuntimeError about positions; what it hides is what helps.
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    # The new name, too, should outlast a power cut. Where a folder cannot be synced the file is whole all the same.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(header)
    out.writerows(rows)
    write_atomic(path, lambda file: file.write(text.getvalue().encode()))


def write_json(path: Path, content: Any) -> None:
    """Plain data, atomically. Raises `ValueError` for a number that is not finite."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))
