"""Ratings as tasks: the files as MovieLens has them, features that know nothing of the tests, and new users."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from cli.commandline import TINY, typed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from metarun.counter import mix
from metarun.data.movielens import FURTHEST, SHRINK, Features, MovieLens
from metarun.data.ratings import found, read
from metarun.data.splits import by_chance
from metarun.data.taskbank import TaskBank
from metarun.types import SPLITS, InputError, Place

GENRES = ("Action", "Comedy", "Drama", "Film-Noir")
JOBS = ("artist", "lawyer", "none")
Rating = tuple[str, str, float]


@dataclass(frozen=True)
class Log:
    """Who rated what; each item's year and genres; each user's age, gender and job."""

    ratings: tuple[Rating, ...]
    items: dict[str, tuple[int, tuple[str, ...]]]
    users: dict[str, tuple[int, str, str]]


def made(users: int = 30, items: int = 24, each: int = 14) -> Log:
    drawn = random.Random(0)
    things = {str(7 * i + 1): (1950 + i, tuple(drawn.sample(GENRES, drawn.randint(1, 2)))) for i in range(items)}
    people = {str(u + 1): (drawn.randint(18, 60), drawn.choice("FM"), drawn.choice(JOBS)) for u in range(users)}
    ratings = [(u, i, float(drawn.randint(1, 5))) for u in people for i in drawn.sample([*things], each)]
    drawn.shuffle(ratings)
    return Log(tuple(ratings), things, people)


LOG = made()


def write_100k(folder: Path, log: Log = LOG) -> Path:
    lines = [f"{u}\t{i}\t{int(r)}\t88125{n}" for n, (u, i, r) in enumerate(log.ratings)]
    items = [
        f"{i}|Né {i}|01-Jan-{year}||http://x/{i}|{'|'.join('01'[genre in own] for genre in GENRES)}"
        for i, (year, own) in log.items.items()
    ]
    users = [f"{u}|{age}|{gender}|{job}|85711" for u, (age, gender, job) in log.users.items()]
    return written(folder, {"u.data": lines, "u.item": items, "u.user": users})


def write_1m(folder: Path, log: Log = LOG) -> Path:
    lines = [f"{u}::{i}::{int(r)}::97830{n}" for n, (u, i, r) in enumerate(log.ratings)]
    items = [f"{i}::Né: {i} ({year})::{'|'.join(own)}" for i, (year, own) in log.items.items()]
    users = [f"{u}::{gender}::{age}::{job}::48067" for u, (age, gender, job) in log.users.items()]
    return written(folder, {"ratings.dat": lines, "movies.dat": items, "users.dat": users})


def write_latest(folder: Path, log: Log = LOG) -> Path:
    lines = ["userId,movieId,rating,timestamp", *(f"{u},{i},{r},96498{n}" for n, (u, i, r) in enumerate(log.ratings))]
    items = ["movieId,title,genres", *(f'{i},"Né, {i} ({year})",{"|".join(g)}' for i, (year, g) in log.items.items())]
    return written(folder, {"ratings.csv": lines, "movies.csv": items}, "utf-8")


def written(folder: Path, files: dict[str, list[str]], encoding: str = "latin-1") -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return folder


LAYOUTS: dict[str, Callable[..., Path]] = {"100k": write_100k, "1m": write_1m, "latest": write_latest}


def load(folder: Path, split: str = "train", **changes: Any) -> TaskBank:
    return MovieLens(**{"path": "", "min_ratings": 1, "item_buckets": 8} | changes).load(split, Place(folder))


def banks(folder: Path, **changes: Any) -> dict[str, TaskBank]:
    return {split: load(folder, split, **changes) for split in SPLITS}


# What a row is


def signed(item: str, buckets: int) -> list[float]:
    """An item's hash."""
    key = mix(torch.tensor(crc32(item.encode())))
    return [float(1 - 2 * (int(mix(key)) % 2)) if b == int(key) % buckets else 0.0 for b in range(buckets)]


def by_hand(log: Log, split: str, new_items: bool = False) -> dict[str, tuple[list[list[float]], list[float]]]:
    """Each user's rows and targets, from the definition, one at a time."""
    users, items = (by_chance(dict.fromkeys(r[n] for r in log.ratings), 0) for n in (0, 1))

    def of(split: str) -> list[Rating]:
        return sorted(r for r in log.ratings if r[0] in users[split] and (not new_items or r[1] in items[split]))

    train, own = of("train"), of(split)
    zero = round(64 * sum(r[2] for r in train) / len(train)) / 64

    def features(user: str, item: str) -> list[float]:
        (year, genres), (age, gender, job) = log.items[item], log.users[user]
        others = [stars for u, i, stars in train if i == item and u != user]
        mean = (sum(others) + SHRINK * zero) / (len(others) + SHRINK)
        code = signed(item, 8) if others else [0.0] * 8
        flags = [float(g in genres) for g in GENRES], [float(j == job) for j in JOBS]
        count = math.log(1 + len(others)) if others else np.nan
        return [*flags[0], year, *flags[1], age, float(gender == "F"), mean, count, *code]

    seen = np.array([features(u, i) for u, i, _ in train])
    mean, sd = np.nanmean(seen, 0), np.nanstd(seen, 0)
    sd[np.nanmax(seen, 0) == np.nanmin(seen, 0)] = np.inf
    out: dict[str, tuple[list[list[float]], list[float]]] = {}
    for user, item, stars in own:
        rows, targets = out.setdefault(user, ([], []))
        rows.append(np.nan_to_num((np.array(features(user, item)) - mean) / sd).clip(-FURTHEST, FURTHEST).tolist())
        targets.append(stars - zero)
    return out


@pytest.mark.parametrize("new_items", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_a_row_is_what_is_known_of_the_user_and_the_item(tmp_path: Path, split: str, new_items: bool) -> None:
    bank = load(write_1m(tmp_path), split, new_items=new_items)
    expected = by_hand(LOG, split, new_items)
    assert sorted(bank.tasks) == sorted(expected)
    for n, user in enumerate(bank.tasks):
        part = slice(int(bank.offsets[n]), int(bank.offsets[n + 1]))
        rows, targets = expected[user]
        got = torch.cat([bank.targets[part], bank.items[part]], 1).tolist()
        wanted = [[target, *row] for target, row in zip(targets, rows, strict=True)]
        torch.testing.assert_close(torch.tensor(sorted(got)), torch.tensor(sorted(wanted)), atol=2e-4, rtol=1e-4)


def test_all_layouts_say_the_same(tmp_path: Path) -> None:
    every = {name: banks(write(tmp_path / name)) for name, write in LAYOUTS.items()}
    for split in SPLITS:
        old, middle, new = (every[name][split] for name in LAYOUTS)
        assert old.tasks == middle.tasks == new.tasks
        assert torch.equal(old.items, middle.items)
        about_user = len(JOBS) + 2
        shared = [*range(len(GENRES) + 1), *range(len(GENRES) + 1 + about_user, old.items.shape[1])]
        assert torch.equal(old.items[:, shared], new.items)
        assert torch.equal(old.targets, middle.targets) and torch.equal(old.targets, new.targets)


@pytest.mark.parametrize("name", ["u.data", "ratings.dat", "ratings.csv"])
def test_the_file_of_ratings_stands_for_its_folder(tmp_path: Path, name: str) -> None:
    write = {"u.data": write_100k, "ratings.dat": write_1m, "ratings.csv": write_latest}[name]
    assert load(write(tmp_path), path=name).digest() == load(tmp_path).digest()


def test_a_table_of_your_own(tmp_path: Path) -> None:
    lines = ["who,what,stars", *(f"{u},{i},{r}" for u, i, r in LOG.ratings)]
    written(tmp_path, {"mine.csv": lines})
    bank = load(tmp_path, path="mine.csv", user="who", item="what", rating="stars")
    assert bank.item_shape == (2 + 8,)
    assert bank.tasks == load(write_latest(tmp_path / "m")).tasks


def test_files_beside_the_ratings_may_be_missing(tmp_path: Path) -> None:
    write_100k(tmp_path)
    (tmp_path / "u.user").unlink()
    assert load(tmp_path).item_shape == (len(GENRES) + 1 + 2 + 8,)
    (tmp_path / "u.item").unlink()
    assert load(tmp_path).item_shape == (2 + 8,)
    assert load(tmp_path, item_buckets=0).item_shape == (2,)


def test_what_is_unknown_is_the_mean(tmp_path: Path) -> None:
    """An item that no file tells of, a title without a year, a user of no gender."""
    write_1m(tmp_path)
    for name, first in (("movies.dat", "1::Nameless::Drama"), ("users.dat", "")):
        path = tmp_path / name
        path.write_text("\n".join([first, *path.read_text(encoding="latin-1").splitlines()[1:]]), encoding="latin-1")
    users = [bank for bank in banks(tmp_path).values() if "1" in bank.tasks]
    n = users[0].tasks.index("1")
    own = users[0].items[int(users[0].offsets[n]) : int(users[0].offsets[n + 1])]
    assert not bool(own[:, 5:10].any())
    every = torch.cat([bank.items for bank in banks(tmp_path).values()])
    assert int((every[:, 4] == 0).sum()) == sum(r[1] == "1" for r in LOG.ratings)
    assert bool(every.isfinite().all())


# What it must not know


def test_users_of_a_split_are_in_no_other_and_with_new_items_neither_are_items(tmp_path: Path) -> None:
    write_latest(tmp_path)
    for new_items in (False, True):
        own = banks(tmp_path, new_items=new_items)
        every = [user for bank in own.values() for user in bank.tasks]
        assert len(set(every)) == len(every) == len(LOG.users)
    users, items = by_chance(LOG.users, 0), by_chance(LOG.items, 0)
    count = sum(u in users["test"] and i in items["test"] for u, i, _ in LOG.ratings)
    assert len(own["test"].items) == count < len(load(tmp_path, "test").items)
    # Nobody has rated them in training: all that differs from row to row is what they are like.
    assert bool((own["test"].items[:, 5:] == own["test"].items[0, 5:]).all())
    assert float(own["test"].items[:, 6].abs().max()) == 0
    assert load(tmp_path, split_seed=1).tasks != load(tmp_path).tasks


def other(log: Log, user: str) -> Log:
    """The same, but that one user thinks otherwise."""
    return replace(log, ratings=tuple((u, i, 6 - r if u == user else r) for u, i, r in log.ratings))


def test_a_test_user_changes_nothing_for_anybody_else(tmp_path: Path) -> None:
    before = banks(write_1m(tmp_path / "a"))
    user = before["test"].tasks[1]
    after = banks(write_1m(tmp_path / "b", other(LOG, user)))
    for split in SPLITS:
        assert torch.equal(before[split].items, after[split].items)  # nor even for what his own are predicted from
    assert torch.equal(before["train"].targets, after["train"].targets)
    assert not torch.equal(before["test"].targets, after["test"].targets)


def test_a_rating_is_not_among_what_it_is_predicted_from(tmp_path: Path) -> None:
    columns = []
    for folder, those in (("a", LOG), ("b", other(LOG, "1"))):
        ratings = read(found(write_1m(tmp_path / folder, those)), ("userId", "movieId", "rating"))
        everybody = torch.ones(len(ratings.user), dtype=torch.bool)
        columns.append(torch.stack([*Features.of(ratings, everybody, 3.0, 8).columns(everybody)], 1))
    own = ratings.user == ratings.users.index("1")
    assert torch.equal(columns[0][own], columns[1][own])
    assert not torch.equal(columns[0][~own], columns[1][~own])


# Which ratings count


def test_of_two_ratings_of_an_item_the_later_counts(tmp_path: Path) -> None:
    expected = load(write_1m(tmp_path / "a"))
    twice = tuple((u, i, 6 - r) for u, i, r in LOG.ratings[:50])
    assert load(write_1m(tmp_path / "b", replace(LOG, ratings=twice + LOG.ratings))).digest() == expected.digest()


def test_users_with_few_ratings_are_left_out_and_counted(tmp_path: Path) -> None:
    few = {"3", "4", "5", "6", "7", "8"}
    log = replace(LOG, ratings=tuple(r for n, r in enumerate(LOG.ratings) if r[0] not in few or n % 2))
    write_1m(tmp_path, log)
    for split, users in by_chance(LOG.users, 0).items():
        with pytest.warns(UserWarning) as told:
            bank = load(tmp_path, split, min_ratings=12)
        assert set(bank.tasks) == set(users) - few
        gone = len(few & set(users))
        if gone:
            assert f"{gone} of {len(users)} users of {split} have fewer than" in str([str(w.message) for w in told])
    with pytest.raises(InputError, match=r"no user of train has dataset\.min_ratings=99 ratings; lower it"):
        load(tmp_path, min_ratings=99)
    with pytest.raises(InputError, match=r"dataset\.min_ratings=14 ratings of train items; lower it"):
        load(tmp_path, min_ratings=14, new_items=True)
    with pytest.raises(InputError, match=r"has 14 rows.* = 20: lower eval\.shot or .*set dataset\.min_ratings=20"):
        load(write_1m(tmp_path), "test").episodes(1, 10, 10, 0, "test", "eval")


# What it is judged by


def test_ratings_are_judged_in_stars(tmp_path: Path) -> None:
    bank = load(write_1m(tmp_path), "test")
    episode = bank.episodes(1, 4, 6, 0, "test", "eval")(0, 1)
    y = episode.query_y[0]
    assert [m.name for m in bank.measures] == ["rmse", "mae", "ndcg"]
    assert [float(m.of(y, y)) for m in bank.measures] == [0, 0, 1]
    assert [float(m.of(y + 0.5, y)) for m in bank.measures] == pytest.approx([0.5, 0.5, 1])
    train = [r for u, _, r in LOG.ratings if u in by_chance(LOG.users, 0)["train"]]
    zero = round(64 * sum(train) / len(train)) / 64
    stars = y + zero
    assert set(stars.flatten().tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert abs(float(load(tmp_path).targets.mean())) < 1 / 64
    guess = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    expected = ndcg_score(stars.T.numpy(), guess.T.numpy())
    assert float(bank.measures[2].of(guess, y)) == pytest.approx(float(expected))


# What will not do


def spoiled(write: Callable[..., Path], name: str, line: int, text: str) -> Callable[[Path], None]:
    """The layout with a line (from 1) in one of its files replaced."""

    def spoil(folder: Path) -> None:
        path = write(folder) / name
        lines = path.read_text(encoding="latin-1").splitlines()
        lines[line - 1] = text
        path.write_text("\n".join(lines), encoding="latin-1")

    return spoil


MANY = replace(LOG, items={i: (1990, tuple(map(str, range(300)))) for i in LOG.items})
BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "nothing": (lambda folder: None, {}, r"holds no ratings; give a folder with u\.data"),
    "no folder": (lambda folder: None, {"path": "gone"}, "gone holds no ratings"),
    "empty": (lambda folder: (folder / "u.data").touch(), {}, r"u\.data holds no ratings"),
    "commas": (spoiled(write_100k, "u.data", 3, "1,2,3,4"), {}, r"u\.data, line 3: 1 fields, .* with a tab between"),
    "tabs": (spoiled(write_1m, "ratings.dat", 1, "1\t2\t3"), {}, r"ratings\.dat, line 1: 1 fields, .* with '::'"),
    "no stars": (spoiled(write_1m, "ratings.dat", 4, "1::2::good::9"), {}, "line 4: rating is 'good', where a finite"),
    "negative": (spoiled(write_latest, "ratings.csv", 2, "1,2,-3,4"), {}, "line 2: rating is -3; it must be from 0"),
    "no user": (spoiled(write_latest, "ratings.csv", 5, ",2,3,4"), {}, r"ratings\.csv, line 5: names no user"),
    "no item": (spoiled(write_100k, "u.data", 2, "1\t\t3\t4"), {}, "line 2: names no item"),
    "no column": (write_latest, {"rating": "stars"}, r"ratings\.csv has no column 'stars'"),
    "no title": (spoiled(write_latest, "movies.csv", 1, "movieId,name,genres"), {}, "has no column 'title'"),
    "genre": (spoiled(write_100k, "u.item", 2, "8|x|01-Jan-1990|||1|x|0|0"), {}, "line 2: 'x', where 0 or 1"),
    "age": (spoiled(write_100k, "u.user", 2, "2|old|F|none|1"), {}, r"u\.user, line 2: age is 'old'"),
    "short user": (spoiled(write_1m, "users.dat", 2, "2::F"), {}, r"users\.dat, line 2: 2 fields"),
    "two users": (lambda folder: write_1m(folder, made(2)), {}, "ratings of 2 users; .* 3 or more"),
    "two items": (lambda folder: write_1m(folder, made(9, 2, 2)), {"new_items": True}, "ratings of 2 items"),
    "many genres": (lambda folder: write_1m(folder, MANY), {}, "300 genres or occupations, '0' one; 200 at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_explained(tmp_path: Path, case: str) -> None:
    prepare, changes, said = BAD[case]
    prepare(tmp_path)
    with pytest.raises(InputError, match=said) as error:
        load(tmp_path, **changes)
    assert "\n" not in str(error.value)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="three columns"):
        MovieLens(user="a", item="a")
    with pytest.raises(ValueError, match="ratios"):
        MovieLens(ratios=[1.0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of each layout."""
    folder = tmp_path_factory.mktemp("whole")
    small = made(6, 6, 4)
    return {
        name: {path.name: path.read_bytes() for path in write(folder / name, small).iterdir()}
        for name, write in LAYOUTS.items()
    }


def damage(content: bytes) -> Iterator[st.SearchStrategy[bytes]]:
    yield st.binary(max_size=100)
    yield st.text(max_size=100).map(str.encode)
    yield st.integers(0, len(content)).map(lambda cut: content[:cut])
    yield st.tuples(st.integers(0, len(content)), st.binary(max_size=6)).map(
        lambda at: content[: at[0]] + at[1] + content[at[0] + len(at[1]) :]
    )


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_bytes_are_a_bank_or_an_error(
    tmp_path: Path, whole: dict[str, dict[str, bytes]], data: st.DataObject
) -> None:
    layout = data.draw(st.sampled_from([*whole]))
    name = data.draw(st.sampled_from([*whole[layout]]))
    for path in tmp_path.iterdir():
        path.unlink()
    for other, content in whole[layout].items():
        (tmp_path / other).write_bytes(content)
    (tmp_path / name).write_bytes(data.draw(st.one_of(*damage(whole[layout][name]))))
    for split in SPLITS:
        try:
            bank = load(tmp_path, split)
        except InputError as error:
            assert str(error)
        else:
            assert bool(bank.items.isfinite().all()) and bool(bank.targets.isfinite().all())
    assert {path.name for path in tmp_path.iterdir()} == {*whole[layout]}


# As it is typed


def test_a_run_is_selected_by_rmse_and_tells_of_all_measures(tmp_path: Path) -> None:
    write_100k(tmp_path / "ml")
    words = "train dataset=movielens dataset.path=ml data_root=. dataset.min_ratings=5 algo=maml model.norm=none"
    said = typed(tmp_path, *words.split(), *TINY[2:], "task.shot=4", "task.query=5", "hydra.run.dir=r")
    assert said.code == 0, said.err
    assert " val 1." in said.out or " val 2." in said.out
    logged = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["rmse"] > 0 for row in logged if row["split"] == "val")
    evaluated = json.loads((tmp_path / "r" / "eval.json").read_text())
    assert evaluated["metric"] == "rmse" and {*evaluated["also"]} == {"mae", "ndcg"}
    assert "averaged" in evaluated["notes"]["rmse"]
    with (tmp_path / "r" / "tasks.csv").open(newline="") as file:
        tasks = [*csv.DictReader(file)]
    assert [*tasks[0]] == ["index", "value", "mae", "ndcg"]
    for name in ("mae", "ndcg"):
        assert evaluated["also"][name]["mean"] == pytest.approx(sum(float(row[name]) for row in tasks) / len(tasks))
