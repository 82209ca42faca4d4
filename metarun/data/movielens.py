"""Ratings: a task is a user, its examples are what the user has rated; a few to adapt on, the others to predict.

`dataset.path` is looked for under `data_root` unless it is absolute. What is there decides how it is read:

    path/u.data             MovieLens 100K, with u.item and u.user (Harper & Konstan 2015; grouplens.org/datasets)
    path/ratings.dat        MovieLens 1M and 10M, with movies.dat and, in 1M, users.dat
    path/ratings.csv        MovieLens latest, with movies.csv: the columns `item`, title and genres
    path.csv                any table with the columns `user`, `item` and `rating`

Users are split by `ratios` and `split_seed`, so that those of a test are new; with `new_items` items are split too, and
the tasks of a split hold its own items alone: new users with new items, as in MeLU (Lee et al. 2019), which predicts
ratings from such features by MAML. If a user has rated an item twice, the later line counts.

A row's features: the item's genres (1 or 0 each) and year; the user's age, gender and occupation, where there are any;
the item's mean rating by training users and the logarithm of 1 + their number; and `item_buckets` numbers that are 0
but for one, 1 or -1, which a hash of the item's id chooses (Weinberger et al. 2009). What training users say of an item
is taken without the user of the row, whose rating is to be predicted, and is drawn towards the mean of all ratings as
if `SHRINK` more users had given that. An item that no other training user has rated is a new one: nothing is known of
it but its genres and year. All features are standardised by training rows alone and cut at `FURTHEST` standard
deviations, which a rare genre is far beyond: one gradient step would go too far for it. What is unknown is 0, the mean.

The target is the rating in stars, less the training mean (rounded to 1/64, so that nothing is lost).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import nan
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from metarun.cache import cached
from metarun.counter import mix
from metarun.data.ratings import Ratings, found, read
from metarun.data.splits import RATIOS, by_chance, check_ratios
from metarun.data.table import stamp
from metarun.data.taskbank import Scale, TaskBank, grouped
from metarun.measures import MEASURES, ndcg
from metarun.types import InputError, Place, register, setting

SHRINK = 5
"""users who are taken to have given an item the mean rating, beside those who have rated it"""
FURTHEST = 5.0
"""standard deviations of a feature from its mean"""


@register("dataset", "movielens")
@dataclass(frozen=True)
class MovieLens:
    path: str = setting("movielens")
    user: str = setting("userId")
    item: str = setting("movieId")
    rating: str = setting("rating")
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)
    new_items: bool = setting(False)
    min_ratings: int = setting(20, least=1)
    item_buckets: int = setting(32, least=0, most=4096)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)
        if len({self.user, self.item, self.rating}) < 3:
            raise ValueError("user, item and rating must be three columns")

    def load(self, split: str, place: Place) -> TaskBank:
        path = place.root / Path(self.path).expanduser()
        files = found(path)
        columns = self.user, self.item, self.rating
        key = f"1 {[(str(file.resolve()), *stamp(file)) for file in files]} {columns}"
        ratings = Ratings(**cached("movielens", key, lambda: vars(read(files, columns))))
        train = self._rows(path, ratings, "train")
        own = train if split == "train" else self._rows(path, ratings, split)
        zero = round(64 * float(ratings.rating[train].double().mean())) / 64
        features = Features.of(ratings, train, zero, self.item_buckets)
        items = torch.empty(int(own.sum()), features.count)
        # One feature after another: of millions of ratings, all of them at double precision would fill the memory.
        for i, (in_train, in_own) in enumerate(zip(features.columns(train), features.columns(own), strict=True)):
            items[:, i] = Scale.of(in_train[:, None])(in_own[:, None])[:, 0].clamp(-FURTHEST, FURTHEST)
        measures = MEASURES["rmse"], MEASURES["mae"], replace(MEASURES["ndcg"], of=partial(ndcg, zero=zero))
        return grouped(
            "movielens",
            items,
            ratings.rating[own][:, None] - zero,
            ratings.user[own],
            ratings.users,
            measures=measures,
            sieve="dataset.min_ratings",
        )

    def _rows(self, path: Path, ratings: Ratings, split: str) -> Tensor:
        """(rows,) which are the split's: of its users with enough ratings, and of its items if they are split."""
        chosen = self._side(path, "users", ratings.users, split)[ratings.user]
        if self.new_items:
            chosen &= self._side(path, "items", ratings.items, split)[ratings.item]
        each = ratings.user[chosen].bincount(minlength=len(ratings.users))
        few = (each > 0) & (each < self.min_ratings)
        of_items = f" of {split} items" if self.new_items else ""
        if not (each >= self.min_ratings).any():
            raise InputError(
                f"{path}: no user of {split} has dataset.min_ratings={self.min_ratings} ratings{of_items}; lower it"
            )
        if few.any():
            warnings.warn(
                f"{path}: {int(few.sum())} of {int((each > 0).sum())} users of {split} have fewer than "
                f"dataset.min_ratings={self.min_ratings} ratings{of_items} and are left out",
                stacklevel=3,
            )
        return chosen & ~few[ratings.user]

    def _side(self, path: Path, what: str, names: list[str], split: str) -> Tensor:
        """(names,) which are the split's"""
        if len(names) < 3:
            raise InputError(f"{path}: ratings of {len(names)} {what}; train, val and test need one each, 3 or more")
        own = set(by_chance(names, self.split_seed, self.ratios)[split])
        return torch.tensor([name in own for name in names])


@dataclass(frozen=True)
class Features:
    """What a row is predicted from, before it is standardised.

    train           (rows,) which rating is a training user's
    raters, stars   (items,) float64 how many training users have rated it, and the sum of their ratings
    bucket, sign    (items,) which of `buckets` numbers is `sign`, and not 0
    zero            the mean rating
    """

    ratings: Ratings
    train: Tensor
    raters: Tensor
    stars: Tensor
    bucket: Tensor
    sign: Tensor
    buckets: int
    zero: float

    @classmethod
    def of(cls, ratings: Ratings, train: Tensor, zero: float, buckets: int) -> Features:
        count = len(ratings.items)
        item, rating = ratings.item[train], ratings.rating[train].double()
        key = mix(torch.tensor([crc32(name.encode()) for name in ratings.items]))
        return cls(
            ratings,
            train,
            item.bincount(minlength=count).double(),
            item.bincount(rating, minlength=count).double(),
            key.remainder(max(1, buckets)),
            1 - 2 * mix(key).remainder(2).float(),
            buckets,
            zero,
        )

    @property
    def count(self) -> int:
        return self.ratings.of_item.shape[1] + self.ratings.of_user.shape[1] + 2 + self.buckets

    def columns(self, rows: Tensor) -> Iterator[Tensor]:
        """(chosen,) each feature of the chosen rows; NaN where it is unknown"""
        user, item, known = self.ratings.user[rows], self.ratings.item[rows], self.train[rows]
        for column in self.ratings.of_item.T:
            yield column[item]
        for column in self.ratings.of_user.T:
            yield column[user]
        raters = self.raters[item] - known.double()
        stars = self.stars[item] - self.ratings.rating[rows].double() * known
        yield (stars + SHRINK * self.zero) / (raters + SHRINK)
        yield raters.log1p().masked_fill(raters == 0, nan)
        bucket, sign = self.bucket[item], self.sign[item] * (raters > 0)
        for i in range(self.buckets):
            yield sign * (bucket == i)
