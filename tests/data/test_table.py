"""A csv of one's own as tasks: what is read, how it is scaled and split, and what is said of one that will not do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metarun.data.table import Table
from metarun.data.taskbank import TaskBank
from metarun.types import SPLITS, InputError, Place

TASKS = [f"town {i}" for i in range(10)]
HEADER = ["when", "task", "size", "note", "target"]


def rows(tasks: list[str] = TASKS, each: int = 12) -> list[list[str]]:
    """target = i + size / 100 + when for task i"""
    drawn = random.Random(0)
    out = []
    for i, task in enumerate(tasks):
        for _ in range(each):
            when, size = drawn.gauss(5, 2), drawn.gauss(1000, 100)
            out.append([f"{when!r}", task, f"{size!r}", "a, b", f"{i + size / 100 + when!r}"])
    drawn.shuffle(out)
    return out


def write(folder: Path, content: list[list[str]], header: list[str] | None = None, delimiter: str = ",") -> Path:
    lines = [header or HEADER, *content]
    quoted = [delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in line) for line in lines]
    path = folder / "table.csv"
    path.write_text("\n".join(quoted) + "\n", encoding="utf-8")
    return path


def load(folder: Path, split: str = "train", **changes: Any) -> TaskBank:
    return Table(**changes).load(split, Place(folder))


def banks(folder: Path, **changes: Any) -> dict[str, TaskBank]:
    return {split: load(folder, split, **changes) for split in SPLITS}


def test_every_row_is_in_the_task_that_it_names(tmp_path: Path) -> None:
    content = rows()
    write(tmp_path, content)
    found = banks(tmp_path)
    assert sorted(task for bank in found.values() for task in bank.tasks) == TASKS
    assert [len(bank) for bank in found.values()] == [6, 2, 2]
    train = [[float(row[0]), float(row[2]), float(row[4])] for row in content if row[1] in found["train"].tasks]
    seen = torch.tensor(train, dtype=torch.float64)
    mean, sd = seen.mean(0), seen.std(0, correction=0)
    for bank in found.values():
        assert bank.item_shape == (2,) and bank.outputs == 1  # `note` holds no numbers
        for i, task in enumerate(bank.tasks):
            own = [[float(row[0]), float(row[2]), float(row[4])] for row in content if row[1] == task]
            expected = (torch.tensor(own, dtype=torch.float64) - mean) / sd
            part = slice(int(bank.offsets[i]), int(bank.offsets[i + 1]))
            got = torch.cat([bank.items[part], bank.targets[part]], 1)
            torch.testing.assert_close(got, expected.float(), atol=1e-5, rtol=1e-5)
    episodes = found["test"].episodes(1, 5, 7, 0, "test")(0, 3)
    assert episodes.support_x.shape == (3, 5, 2) and episodes.query_y.shape == (3, 7, 1)
    assert [m.name for m in found["test"].measures] == ["mse"]


def test_features_are_those_that_are_named_in_that_order(tmp_path: Path) -> None:
    write(tmp_path, rows())
    both = load(tmp_path).items
    assert torch.equal(load(tmp_path, features=["size", "when"]).items, both.flip(1))
    assert torch.equal(load(tmp_path, features=["size"]).items, both[:, 1:])
    assert torch.equal(load(tmp_path, target="size", features=["when"]).targets, both[:, 1:])


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    write(tmp_path, rows())
    expected = load(tmp_path).items
    write(tmp_path, rows(), delimiter=delimiter)
    assert torch.equal(load(tmp_path, delimiter=delimiter).items, expected)


def test_what_changes_in_the_file_changes_what_is_read(tmp_path: Path) -> None:
    write(tmp_path, rows())
    before = [bank.digest() for bank in banks(tmp_path).values()]
    assert [bank.digest() for bank in banks(tmp_path).values()] == before
    write(tmp_path, [[*row[:4], f"{float(row[4]) ** 2!r}"] for row in rows()])
    after = [bank.digest() for bank in banks(tmp_path).values()]
    assert len({*before, *after}) == 6
    assert load(tmp_path, split_seed=1).tasks != load(tmp_path).tasks


def test_splits_by_column_and_by_lists(tmp_path: Path) -> None:
    wanted = {"train": TASKS[:5], "val": TASKS[5:6], "test": TASKS[6:]}
    of = {task: split for split, tasks in wanted.items() for task in tasks}
    write(tmp_path, [[*row, of[row[1]]] for row in rows()], [*HEADER, "part"])
    found = banks(tmp_path, split_column="part")
    assert {split: sorted(bank.tasks) for split, bank in found.items()} == wanted
    assert found["train"].item_shape == (2,)
    part = {"train": TASKS[:3], "val": TASKS[5:6], "test": TASKS[6:8]}
    (tmp_path / "split.json").write_text(json.dumps(part))
    found = banks(tmp_path, lists="split.json")
    assert {split: sorted(bank.tasks) for split, bank in found.items()} == part


def test_small_tasks_are_left_out_and_counted(tmp_path: Path) -> None:
    content = rows()
    test = load(tmp_path_written(tmp_path, content), "test").tasks
    write(tmp_path, [row for i, row in enumerate(content) if row[1] != test[0] or i % 5 == 0])
    with pytest.raises(InputError, match=f"task '{test[0]}' of 'test' has . rows.*or set dataset.min_rows=10"):
        load(tmp_path, "test").episodes(1, 5, 5, 0, "test", "eval")
    with pytest.warns(UserWarning, match="1 of 2 tasks of test have fewer than dataset.min_rows=10 rows"):
        bank = load(tmp_path, "test", min_rows=10)
    assert bank.tasks == test[1:]
    bank.episodes(1, 5, 5, 0, "test", "eval")
    with pytest.raises(InputError, match=r"no task of train has dataset\.min_rows=13 rows"):
        load(tmp_path, "test", min_rows=13)


def tmp_path_written(folder: Path, content: list[list[str]]) -> Path:
    write(folder, content)
    return folder


def test_a_constant_column_says_nothing_and_is_told(tmp_path: Path) -> None:
    test = set(load(tmp_path_written(tmp_path, rows()), "test").tasks)
    write(tmp_path, [[row[0], row[1], "3" if row[1] in test else "0.1", *row[3:]] for row in rows()])
    for split in SPLITS:
        with pytest.warns(UserWarning, match="the same in every training row, and so left at 0: size"):
            bank = load(tmp_path, split)
        assert bank.item_shape == (2,) and not bool(bank.items[:, 1].any())
        assert bool(bank.items[:, 0].any())
    write(tmp_path, [[*row[:4], "1"] for row in rows()])
    with pytest.raises(InputError, match="target is the same in every training row"):
        load(tmp_path)


def changed(row: int, column: int, cell: str) -> list[list[str]]:
    content = rows()
    content[row][column] = cell
    return content


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no file": (None, {"path": "gone.csv"}, r"dataset\.path: .*gone\.csv is no file"),
    "no target": (rows(), {"target": "price"}, r"table\.csv has no column 'price'"),
    "near target": (rows(), {"target": "targt"}, "did you mean target"),
    "no task": (rows(), {"task_column": "town"}, "has no column 'town'"),
    "no feature": (rows(), {"features": ["size", "colour"]}, "has no column 'colour'"),
    "no split": (rows(), {"split_column": "part"}, "has no column 'part'"),
    "text in a feature": (changed(4, 2, "big"), {}, r"table\.csv, line 6: size is 'big', where a finite number"),
    "empty feature": (changed(4, 2, ""), {}, r"line 6: size is '', where a finite number"),
    "text in a target": (changed(0, 4, "x"), {}, "line 2: target is 'x'"),
    "infinite": (changed(1, 4, "inf"), {}, "line 3: target is 'inf'"),
    "huge": (changed(1, 4, "1e200"), {}, r"line 3: target is 1e200; the largest number is 1e\+30"),
    "text as a feature": (rows(), {"features": ["note"]}, "line 2: note is 'a, b'"),
    "no name": (changed(2, 1, ""), {}, "line 4: task is empty"),
    "two tasks": (rows(TASKS[:2]), {}, "task names 2 tasks; .* 3 or more"),
    "no rows": ([], {}, "has no rows"),
    "no numbers": ([["x", *row[1:2], "y", *row[3:]] for row in rows()], {}, "no numbers beside target"),
    "a long row": ([*rows(), ["1"] * 6], {}, "line 122: 6 cells, where the header has 5"),
    "no lists": (rows(), {"lists": "gone.json"}, r"gone\.json cannot be read"),
    "wrong split": ([[*row[:3], "tain", row[4]] for row in rows()], {"split_column": "note"}, "'tain', not one of"),
    "one split": ([[*row[:3], "val", row[4]] for row in rows()], {"split_column": "note"}, "no task in train"),
    "two splits": (
        [[*row[:3], SPLITS[i % 3], row[4]] for i, row in enumerate(rows())], {"split_column": "note"},
        r"line \d+: task 'town \d' is in \w+ here and in \w+ above",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_explained(tmp_path: Path, case: str) -> None:
    content, changes, said = BAD[case]
    if content is not None:
        write(tmp_path, content)
    with pytest.raises(InputError, match=said) as error:
        load(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_a_number_out_of_all_proportion_is_told(tmp_path: Path) -> None:
    test = load(tmp_path_written(tmp_path, rows()), "test").tasks
    tiny = [[row[0], row[1], "1e30" if row[1] == test[0] else repr(float(row[2]) * 1e-40), *row[3:]] for row in rows()]
    write(tmp_path, tiny)
    load(tmp_path)
    with pytest.raises(InputError, match="size of a task of test is out of all proportion"):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"delimiter": ""}, "one character"),
        ({"delimiter": ",,"}, "one character"),
        ({"features": []}, "name one or more"),
        ({"features": ["a", "a"]}, "'a' is named twice"),
        ({"features": ["target"]}, "'target' is named twice"),
        ({"task_column": "target"}, "'target' is named twice"),
        ({"ratios": [0.5, 0.5]}, "ratios"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Table(**settings)


WHOLE = "\n".join(",".join(row) for row in [HEADER, *([*row[:3], "n", row[4]] for row in rows(TASKS[:6], 4))]).encode()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        st.integers(0, len(WHOLE)).map(lambda cut: WHOLE[:cut]),
        st.tuples(st.integers(0, len(WHOLE)), st.binary(max_size=6)).map(
            lambda at: WHOLE[: at[0]] + at[1] + WHOLE[at[0] + len(at[1]) :]
        ),
    )
)
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_a_bank_or_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    for split in SPLITS:
        try:
            bank = load(tmp_path, split)
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert bool(bank.items.isfinite().all()) and bool(bank.targets.isfinite().all())
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
