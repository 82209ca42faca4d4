"""Who rated what: the files of MovieLens as they are, and other tables of ratings."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import nan
from pathlib import Path

import torch
from torch import Tensor

from metarun.data.reading import reading
from metarun.data.tables import number, read_csv
from metarun.types import InputError

HIGHEST = 1e6
"""the highest rating"""
MOST_KINDS = 200
"""genres, and occupations: more are no kinds any more"""
NO_GENRE = "(no genres listed)"
IN_TITLE = re.compile(r"\((\d{4})\)\s*$", re.ASCII)
IN_DATE = re.compile(r"-(\d{4})$", re.ASCII)
BESIDE = {"u.data": ("u.item", "u.user"), "ratings.dat": ("movies.dat", "users.dat"), "ratings.csv": ("movies.csv",)}
"""By the file of ratings, those that say more of the items and the users; each may be missing."""


@dataclass(frozen=True)
class Ratings:
    """Each user's rating of each item that the user has rated, user by user.

    users, items    their ids
    user, item      (rows,) int64, numbers of them
    rating          (rows,) float32, 0 or more
    of_item         (items, genres + 1) float32: 1 for the genres that it is of, and its year; NaN where unknown
    of_user         (users, occupations + 2) float32: 1 for the occupation, age, 1 for a woman; NaN where unknown
    """

    users: list[str]
    items: list[str]
    user: Tensor
    item: Tensor
    rating: Tensor
    of_item: Tensor
    of_user: Tensor


def found(path: Path) -> list[Path]:
    """The file of ratings that a folder or file holds, and those that belong to it."""
    with reading(path):
        mains = [path / name for name in BESIDE if (path / name).is_file()] if path.is_dir() else [path]
        if not mains or not mains[0].is_file():
            raise InputError(
                f"dataset.path: {path} holds no ratings; give a folder with {', '.join(BESIDE)}, or a csv file"
            )
        main = mains[0]
        return [main, *(file for name in BESIDE.get(main.name, ()) if (file := main.with_name(name)).is_file())]


def read(files: list[Path], columns: tuple[str, str, str]) -> Ratings:
    """What the files say; `columns` are the user's, the item's and the rating's of a csv.

    Raises `InputError` for a line that is not as it should be.
    """
    main, *others = files
    users, items, rows = _ratings(main, columns)
    of_item, of_user = torch.empty(len(items), 0), torch.empty(len(users), 0)
    for path in others:
        if path.name in ("u.user", "users.dat"):
            of_user = _table(users, path, _of_user(path))
        else:
            of_item = _table(items, path, _of_item(path, columns[1]))
    return Ratings([*users], [*items], *rows, of_item, of_user)


def _ratings(
    path: Path, columns: tuple[str, str, str]
) -> tuple[dict[str, int], dict[str, int], tuple[Tensor, Tensor, Tensor]]:
    """Numbers of users and items by id; who rated what how."""
    separator = {"u.data": "\t", "ratings.dat": "::"}.get(path.name)
    if separator:
        lines = ((line, *cells[:3]) for line, cells in fields(path, separator, 3))
    else:
        lines = ((line, *(row[column] for column in columns)) for line, row in read_csv(path, columns))
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user, item, rating = array("q"), array("q"), array("f")
    for line, who, what, how in lines:
        if not who or not what:
            raise InputError(f"{path}, line {line}: names no {'item' if who else 'user'}")
        value = number(how, path, line, columns[2])
        if not 0 <= value <= HIGHEST:
            raise InputError(f"{path}, line {line}: {columns[2]} is {how[:40]}; it must be from 0 to {HIGHEST:,.0f}")
        user.append(users.setdefault(who, len(users)))
        item.append(items.setdefault(what, len(items)))
        rating.append(value)
    if not user:
        raise InputError(f"{path} holds no ratings")
    of, about = (torch.frombuffer(numbers, dtype=torch.int64) for numbers in (user, item))
    stars = torch.frombuffer(rating, dtype=torch.float32)
    pair, order = (of * len(items) + about).sort(stable=True)
    last = torch.ones(len(pair), dtype=torch.bool)  # the later of two ratings counts
    last[:-1] = pair[1:] != pair[:-1]
    rows = order[last]
    return users, items, (of[rows], about[rows], stars[rows])


def fields(path: Path, separator: str, least: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not empty, in the encoding of the old MovieLens files."""
    with reading(path), path.open(encoding="latin-1") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            cells = [cell.strip() for cell in text.split(separator)]
            if len(cells) < least:
                between = "a tab" if separator == "\t" else f"'{separator}'"
                raise InputError(
                    f"{path}, line {line}: {len(cells)} fields, where {least} or more are wanted with {between} between"
                )
            yield line, cells


Fact = tuple[str, list[float], list[str]]
"""What a file says of an item or a user: its id, numbers, and the kinds that it is of"""


def _of_item(path: Path, item: str) -> Iterator[Fact]:
    """Each item's year and genres."""
    if path.name == "u.item":
        for line, cells in fields(path, "|", 6):
            if odd := [flag for flag in cells[5:] if flag not in ("0", "1")]:
                raise InputError(f"{path}, line {line}: '{odd[0][:40]}', where 0 or 1 says whether it is of a genre")
            yield cells[0], [_year(IN_DATE, cells[2])], [str(i) for i, flag in enumerate(cells[5:]) if flag == "1"]
    elif path.name == "movies.dat":
        for _, cells in fields(path, "::", 3):
            yield cells[0], [_year(IN_TITLE, cells[1])], cells[-1].split("|")
    else:
        for _, row in read_csv(path, (item, "title", "genres")):
            yield row[item], [_year(IN_TITLE, row["title"])], row["genres"].split("|")


def _of_user(path: Path) -> Iterator[Fact]:
    """Each user's age, gender (1: F, 0: M) and occupation."""
    separator, age, gender = ("|", 1, 2) if path.name == "u.user" else ("::", 2, 1)
    for line, cells in fields(path, separator, 4):
        told = [number(cells[age], path, line, "age"), {"F": 1.0, "M": 0.0}.get(cells[gender], nan)]
        yield cells[0], told, [cells[3]]


def _year(pattern: re.Pattern[str], text: str) -> float:
    match = pattern.search(text)
    return float(match[1]) if match else nan


def _table(numbers: dict[str, int], path: Path, facts: Iterable[Fact]) -> Tensor:
    """(ids, kinds + numbers) in the order of `numbers`: 1 for the kinds that one is of; NaN for what no fact tells."""
    known = {numbers[name]: (told, kinds) for name, told, kinds in facts if name in numbers}
    if not known:
        return torch.empty(len(numbers), 0)
    names = sorted({kind for _, kinds in known.values() for kind in kinds} - {"", NO_GENRE})
    if len(names) > MOST_KINDS:
        raise InputError(f"{path}: {len(names):,} genres or occupations, '{names[0][:40]}' one; {MOST_KINDS} at most")
    place = {name: i for i, name in enumerate(names)}
    pairs = [(row, place[kind]) for row, (_, kinds) in known.items() for kind in kinds if kind in place]
    told = torch.tensor([told for told, _ in known.values()])
    out = torch.full((len(numbers), len(names) + told.shape[1]), nan)
    out[[*known], : len(names)] = 0
    out[[*known], len(names) :] = told
    rows, columns = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    out[rows, columns] = 1
    return out
