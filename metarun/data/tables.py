"""Tables of text, read row by row, with complaints that name the file, the line and the column."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from metarun.data.reading import reading
from metarun.hints import did_you_mean
from metarun.types import InputError

LONGEST = 2**20
"""characters of a field"""

Row = dict[str, str]


def read_csv(path: Path, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """(line number, {column: text}) of each row of a table with a header. Other columns are there as well.

    Raises `InputError` for a file that cannot be read, is no text, lacks one of `columns`, or has a row of another
    length than its header.
    """
    csv.field_size_limit(LONGEST)
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            header = [cell.strip() for cell in next(rows, [])]
            if missing := [column for column in columns if column not in header]:
                near = did_you_mean(missing[0], header, "its first line") if any(header) else "it is empty"
                raise InputError(f"{path} has no column '{missing[0]}'; {near}")
            for row in rows:
                if row and len(row) != len(header):
                    raise InputError(
                        f"{path}, line {rows.line_num}: {len(row)} cells, where the header has {len(header)}"
                    )
                if row:
                    yield rows.line_num, dict(zip(header, (cell.strip() for cell in row)))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path} is no table of text ({error})") from None


def read_jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of a file with a json object in each line; what is not text is as json has it."""
    with reading(path), path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path}, line {number}: is no json object {{...}}")
                if missing := [column for column in columns if column not in row]:
                    raise InputError(f"{path}, line {number}: has no '{missing[0]}'; {did_you_mean(missing[0], row)}")
                yield number, row
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is no file of json lines ({error})") from None


def number(text: str, path: Path, line: int, column: str) -> float:
    """The finite number that a cell holds. Raises `InputError` for anything else."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: {column} is '{text[:40]}', where a finite number is wanted")
    return value
