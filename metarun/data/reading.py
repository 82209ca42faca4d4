"""What a forbidden or damaged file raises, said to the person."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metarun.types import InputError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """For while `path` is read: whatever it raises becomes an `InputError` that names it."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error}): allow it, or set data_root to a copy that can be"
        ) from error
    except (
        zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError
    ) as error:  # fmt: skip
        raise InputError(f"{path} is cut short or damaged ({error}): remove it, and take a whole copy") from error
