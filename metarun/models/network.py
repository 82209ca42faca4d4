"""What every model shares: a trunk that makes features, a linear head, and where norm statistics come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import torch
from torch import Generator, Tensor

from metarun.layers import Norm, linear
from metarun.noise import Noise
from metarun.types import Meta, setting

READOUTS = ("flatten", "mean")
STATISTICS = ("batch", "support", "running")


@dataclass(frozen=True, kw_only=True)
class Network(ABC):
    """A network as pure functions of its weights.

    `statistics` says what a batch norm's mean and variance are taken from:
    `batch`    the examples of the forward pass itself. On queries this is transductive: they see one another.
    `support`  the support set, under the same weights; a query then depends on no other query.
    `running`  moving averages over training, used at test time (training itself uses the batch).

    `dropout` is the rate at which training drops elements of every block's output, or where the model's own file says.
    """

    item_shape: tuple[int, ...]
    outputs: int
    running: Meta | None = None
    """the moving averages; None while training"""
    noise: Noise | None = field(default=None, compare=False)
    """what dropout draws from; None where nothing is dropped: everywhere but in training"""
    low: frozenset[str] = frozenset()
    """the trunk's weights that are used in bfloat16, if any; images and what is made of them then are so too"""
    norm: str = setting("batch", choices=("batch", "group", "layer", "none"))
    statistics: str = setting("batch", choices=STATISTICS)
    groups: int = setting(8, least=1)
    dropout: float = setting(0.0, least=0, below=1)

    def __post_init__(self) -> None:
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raises `ValueError` for settings that do not fit the items."""

    @abstractmethod
    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        """Fresh weights of the trunk."""

    @abstractmethod
    def trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        """x: (n, *item) -> (n, feature_size)"""

    @property
    @abstractmethod
    def feature_size(self) -> int: ...

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """What one row of `features` is when it is not flat."""
        return (self.feature_size,)

    @cached_property
    def norm_names(self) -> tuple[str, ...]:
        """Its norm layers from input to output."""
        if self.norm == "none":
            return ()
        names = [name.rpartition(".")[0] for name in self.trunk_init(Generator(), self._norm())]
        return tuple(dict.fromkeys(name for name in names if name.rpartition(".")[2].startswith("norm")))

    @property
    def statistics_used(self) -> str:
        """What an accuracy of this network must be read with."""
        if self.norm == "batch":
            return self.statistics
        return "none" if self.norm == "none" else "per example"

    @property
    def tracks(self) -> bool:
        """Whether moving averages are kept while training."""
        return self.norm == "batch" and self.statistics == "running"

    @property
    def random(self) -> bool:
        """Whether training draws random numbers."""
        return self.dropout > 0

    def at_train(self, running: Meta, ticket: Tensor) -> Network:
        """The network as one task of one step trains with it; dropout is drawn from `ticket`, () int64."""
        return replace(self, noise=Noise(ticket)) if self.random else self

    @property
    def noise_position(self) -> tuple[Tensor, int] | None:
        """Where the random numbers of a training network stand (see `Noise`); None where it draws none."""
        return None if self.noise is None else self.noise.position

    def with_noise_at(self, key: Tensor, draws: int) -> Network:
        """The network as it draws from there on."""
        return self if self.noise is None else replace(self, noise=self.noise.at(key, draws))

    def in_bf16(self) -> Network:
        """The same network with its trunk in bfloat16, as it computes (Micikevicius et al. 2018): weights and their
        gradients, norms' statistics and all that follows have single precision."""
        norms = {f"{name}.{part}" for name in self.norm_names for part in ("weight", "bias")}
        return replace(self, low=frozenset(self.trunk_init(Generator(), self._norm())) - norms)

    def at_test(self, running: Meta) -> Network:
        """The same network as it predicts: with the moving averages, if it keeps any."""
        return replace(self, running=running) if self.tracks else self

    def init(self, generator: Generator, head: bool = True) -> Meta:
        """Fresh weights on the CPU; `head=False` leaves the classifier out."""
        meta = self.trunk_init(generator, self._norm())
        if head:
            meta["head.weight"] = 0.01 * torch.randn((self.outputs, self.feature_size), generator=generator)
            meta["head.bias"] = torch.zeros(self.outputs)
        return meta

    def features(self, meta: Meta, x: Tensor, support: Tensor | None = None, moments: Meta | None = None) -> Tensor:
        """x: (n, *item) -> (n, feature_size).

        `support` is read only where `statistics` is `support`; `moments` is filled with the batch's own statistics
        only where moving averages are kept.
        """
        if support is None or self.norm != "batch" or self.statistics != "support":
            collected = moments if self.tracks and self.running is None else None
            return self._trunk(meta, x, self._norm(running=self.running, collected=collected))
        rows = len(support)
        return self._trunk(meta, torch.cat([support, x]), self._norm(support=rows))[rows:]

    def _trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        if not self.low:
            return self.trunk(meta, x, norm)
        low = {name: meta[name].bfloat16() for name in self.low}
        return self.trunk({**meta, **low}, x.bfloat16(), norm).float()

    def head(self, meta: Meta, features: Tensor) -> Tensor:
        """(n, feature_size) -> (n, outputs)"""
        return linear(features, meta["head.weight"], meta["head.bias"])

    def __call__(self, meta: Meta, x: Tensor, support: Tensor | None = None) -> Tensor:
        return self.head(meta, self.features(meta, x, support))

    def norm_layer(self, support: int = 0, moments: Meta | None = None) -> Norm:
        """A norm set as this network's are, for a method's own layers: its statistics come from the first `support`
        rows where the network takes the support set's, else from all rows; `moments` is filled where moving averages
        are kept, which `at_test` brings back."""
        collected = moments if self.tracks and self.running is None else None
        of_support = support if self.norm == "batch" and self.statistics == "support" else 0
        return self._norm(of_support, self.running, collected)

    def moments(self, meta: Meta, x: Tensor) -> Meta:
        """The batch statistics of every norm on x, by name: what the moving averages average."""
        collected: Meta = {}
        self._trunk(meta, x, self._norm(collected=collected))
        return collected

    def fresh_running(self) -> Meta:
        """Moving averages before the first step: mean 0, variance 1. Empty where none are kept."""
        if not self.tracks:
            return {}
        weights = self.trunk_init(Generator(), self._norm())
        channels = {name: len(weights[f"{name}.weight"]) for name in self.norm_names}
        means = {f"{name}.mean": torch.zeros(size) for name, size in channels.items()}
        return means | {f"{name}.var": torch.ones(size) for name, size in channels.items()}

    def _drop(self, x: Tensor) -> Tensor:
        return x if self.noise is None else self.noise.dropout(x, self.dropout)

    def _norm(self, support: int = 0, running: Meta | None = None, collected: Meta | None = None) -> Norm:
        return Norm(self.norm, self.groups, support, running, collected)

    def _check_groups(self, channels: int, where: str) -> None:
        if self.norm == "group" and channels % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {where}={channels}")

    @property
    def _inputs(self) -> int:
        return prod(self.item_shape)


@dataclass(frozen=True, kw_only=True)
class ImageNetwork(Network):
    """A network whose trunk makes a map of images, which `readout` flattens or averages over space."""

    readout: str = setting("flatten", choices=READOUTS)

    @property
    @abstractmethod
    def map_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the last map."""

    @abstractmethod
    def maps(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        """x: (n, channels, height, width) -> (n, *map_shape)"""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return self.map_shape if self.readout == "flatten" else self.map_shape[:1]

    @property
    def feature_size(self) -> int:
        return prod(self.feature_shape)

    def trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        maps = self.maps(meta, x, norm)
        return maps.flatten(1) if self.readout == "flatten" else maps.mean((2, 3))

    def _check_images(self, halvings: int = 0, where: str = "") -> None:
        """Raises `ValueError` where the items are no images, or too small to be halved, rounding down, so often."""
        check_images(self.item_shape)
        h, w = self.item_shape[1:]
        if min(h, w) < 2**halvings:
            raise ValueError(f"{where} halvings leave nothing of {h}x{w}")


def check_images(item_shape: tuple[int, ...]) -> None:
    if len(item_shape) != 3:
        raise ValueError(
            f"needs images (channels, height, width), this dataset's items are {item_shape}; model=mlp takes any"
        )


def check_widths(name: str, widths: list[int], least: int = 1) -> None:
    """Raises `ValueError` for a list of layer widths that is too short, or holds one below 1."""
    if len(widths) < least or min(widths) < 1:
        raise ValueError(f"{name}={widths}: give {least} or more layer widths of at least 1")


def halved(side: int, times: int) -> int:
    """A side after that many halvings by strides, which round up."""
    return -(-side // 2**times)
