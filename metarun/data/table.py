"""A table of your own: a csv file in which one column says what task a row is of, and others hold numbers.

`dataset.path` is looked for under `data_root` unless it is absolute; `lists` beside it. Tasks are split as
`split_column` says, else by `lists` (see `imagefolder`), else by `ratios` and `split_seed`. Features and target are
standardised by the training tasks alone, so that an mse of 1 is what predicting their mean gets on tasks like them.
"""

from __future__ import annotations

import warnings
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.cache import cached
from metarun.data.imagefolder import read_lists
from metarun.data.reading import reading
from metarun.data.splits import RATIOS, by_chance, check_ratios, listed
from metarun.data.tables import Row, number, read_csv
from metarun.data.taskbank import Scale, TaskBank, grouped
from metarun.measures import MEASURES
from metarun.types import SPLITS, InputError, Place, register, setting

LARGEST = 1e30
"""the largest number that a cell may hold: its square is still far from the end of the numbers"""
NOTE = "of the standardised target: the training mean alone gets about 1"


@register("dataset", "table")
@dataclass(frozen=True)
class Table:
    path: str = setting("table.csv")
    delimiter: str = setting(",")
    task_column: str = setting("task")
    target: str = setting("target")
    features: list[str] | None = setting(None)
    split_column: str | None = setting(None)
    lists: str | None = setting(None)
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)
    min_rows: int = setting(1, least=1)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)
        if len(self.delimiter) != 1 or self.delimiter in '\r\n"':
            raise ValueError(f"delimiter={self.delimiter!r}: must be one character, as in ',' ';' or a tab")
        named = [self.task_column, self.target, *filter(None, [self.split_column]), *(self.features or [])]
        if twice := [name for name in named if named.count(name) > 1]:
            raise ValueError(f"'{twice[0]}' is named twice: a column serves as one of task, target, split or features")
        if self.features == []:
            raise ValueError("features=[]: name one or more columns, or null for all that hold numbers")

    def load(self, split: str, place: Place) -> TaskBank:
        path = place.root / Path(self.path).expanduser()
        if not path.is_file():
            raise InputError(f"dataset.path: {path} is no file; give the path of a csv file")
        read = self.delimiter, self.task_column, self.target, self.features, self.split_column
        table = cached("table", f"1 {path.resolve()} {stamp(path)} {read}", lambda: self._read(path))
        task, names, columns = table["task"], table["names"], [*table["columns"], self.target]
        side = self._split(path, names, table["splits"])
        train = self._rows(path, task, side, "train")
        own = train if split == "train" else self._rows(path, task, side, split)
        numbers = torch.cat([table["x"], table["y"]], 1)
        scale = Scale.of(numbers[train])
        self._check_varies(path, [columns[i] for i in scale.constant])
        scaled = scale(numbers[own])
        if wild := [column for column, fine in zip(columns, scaled.isfinite().all(0).tolist()) if not fine]:
            raise InputError(f"{path}: {wild[0]} of a task of {split} is out of all proportion to the training tasks'")
        measures = (replace(MEASURES["mse"], note=NOTE),)
        return grouped(
            "table", scaled[:, :-1], scaled[:, -1:], task[own], names, measures=measures, sieve="dataset.min_rows"
        )

    def _rows(self, path: Path, task: Tensor, side: list[str], split: str) -> Tensor:
        """(rows,) which are of the split's tasks, without those that are too small."""
        large = task.bincount(minlength=len(side)) >= self.min_rows
        there = torch.tensor([name == split for name in side])
        if not (large & there).any():
            raise InputError(
                f"{path}: no task of {split} has dataset.min_rows={self.min_rows} rows; lower it, or split otherwise"
            )
        if small := int((there & ~large).sum()):
            warnings.warn(
                f"{path}: {small} of {int(there.sum())} tasks of {split} have fewer than "
                f"dataset.min_rows={self.min_rows} rows and are left out",
                stacklevel=3,
            )
        return (large & there)[task]

    def _check_varies(self, path: Path, constant: list[str]) -> None:
        if self.target in constant:
            raise InputError(f"{path}: {self.target} is the same in every training row: there is nothing to predict")
        if constant:
            named = ", ".join(constant[:3]) + (f" and {len(constant) - 3} more" if len(constant) > 3 else "")
            warnings.warn(f"{path}: the same in every training row, and so left at 0: {named}", stacklevel=3)

    def _read(self, path: Path) -> dict[str, Any]:
        """The rows as they are, to be kept.

        names, task     (tasks) and (rows,) int64
        columns, x, y   the features' names; (rows, features) and (rows, 1) float64
        splits          of each task, where there is a split column
        """
        others = {self.task_column, self.target, self.split_column}
        columns = self.features
        numbers, targets, task = array("d"), array("d"), array("q")
        tasks: dict[str, int] = {}
        splits: list[str] = []
        wanted = [self.task_column, self.target, *filter(None, [self.split_column]), *(columns or [])]
        for line, row in read_csv(path, wanted, self.delimiter):
            if columns is None:
                columns = [name for name, text in row.items() if name not in others and _is_number(text)]
            name = row[self.task_column]
            if not name:
                raise InputError(f"{path}, line {line}: {self.task_column} is empty, where the task's name is wanted")
            if name not in tasks:
                tasks[name] = len(tasks)
                splits.append(row[self.split_column] if self.split_column else "")
            self._check_split(path, line, row, splits[tasks[name]])
            task.append(tasks[name])
            targets.append(_number(row[self.target], path, line, self.target))
            numbers.extend(_number(row[column], path, line, column) for column in columns)
        if not task:
            raise InputError(f"{path} has no rows below its first line")
        if not columns:
            raise InputError(f"{path} has no numbers beside {self.target} in its first row; name dataset.features")
        return {
            "names": [*tasks],
            "splits": splits,
            "columns": columns,
            "task": torch.frombuffer(task, dtype=torch.int64),
            "x": torch.frombuffer(numbers, dtype=torch.float64).view(len(task), len(columns)),
            "y": torch.frombuffer(targets, dtype=torch.float64)[:, None],
        }

    def _check_split(self, path: Path, line: int, row: Row, split: str) -> None:
        if self.split_column is None:
            return
        if (said := row[self.split_column]) not in SPLITS:
            raise InputError(
                f"{path}, line {line}: {self.split_column} is '{said[:40]}', not one of {', '.join(SPLITS)}"
            )
        if said != split:
            raise InputError(
                f"{path}, line {line}: task '{row[self.task_column]}' is in {said} here and in {split} above; a task "
                "belongs in one split"
            )

    def _split(self, path: Path, names: list[str], splits: list[str]) -> list[str]:
        """train, val or test for each task; nothing for one that no list names."""
        if self.split_column is not None:
            if gone := [name for name in SPLITS if name not in splits]:
                raise InputError(f"{path}: {self.split_column} puts no task in {gone[0]}; each split needs some")
            return splits
        if self.lists is not None:
            split = listed(read_lists(path.parent / self.lists), names, self.lists)
        elif len(names) < 3:
            raise InputError(
                f"{path}: {self.task_column} names {len(names)} tasks; train, val and test need one each, 3 or more"
            )
        else:
            split = by_chance(names, self.split_seed, self.ratios)
        of = {name: side for side, tasks in split.items() for name in tasks}
        return [of.get(name, "") for name in names]


def stamp(path: Path) -> tuple[int, int]:
    """Tells a file from what it was before."""
    with reading(path):
        found = path.stat()
    return found.st_size, found.st_mtime_ns


def _number(text: str, path: Path, line: int, column: str) -> float:
    value = number(text, path, line, column)
    if abs(value) > LARGEST:
        raise InputError(f"{path}, line {line}: {column} is {text[:40]}; the largest number is {LARGEST:g}")
    return value


def _is_number(text: str) -> bool:
    """Or a number that is missing, to be complained of."""
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
