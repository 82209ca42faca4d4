"""The vocabulary: what a task is, what a method is, what a network is.

Everything here is about ONE task. The engine alone adds the leading task axis (see `metarun.engine.step`).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar
from zlib import crc32

from torch import Generator, Tensor

Meta = dict[str, Tensor]
"""Everything a method carries from task to task: weights and other meta-parameters, by name."""


class InputError(Exception):
    """The person's input cannot be used. The message says what was wrong, where, the limit and the way out."""


class TrainingError(Exception):
    """A run that cannot go on, for a reason that lies in the training itself (a loss that is not finite)."""


class Episode(NamedTuple):
    """One few-shot task. An `EpisodeBatch` is the same tuple with a leading task axis on every tensor.

    Items are ordered shot by shot: position `s * way + c` holds item `s` of class `c`, so that any run of
    consecutive items is as balanced over classes as it can be.
    """

    support_x: Tensor
    """(support, *item), float in [0, 1] for images"""
    support_y: Tensor
    """(support,) class ids in [0, way)"""
    query_x: Tensor
    """(query, *item)"""
    query_y: Tensor
    """(query,) class ids in [0, way)"""


EpisodeBatch = Episode
Episodes = Callable[[int, int], EpisodeBatch]
"""(first, count) -> episodes `first` to `first + count - 1` of a fixed, endless list"""


class TaskLoss(NamedTuple):
    """What one task says about the meta-parameters."""

    loss: Tensor
    """() the scalar whose gradient is the method's meta-gradient"""
    metrics: dict[str, Tensor]
    """() tensors to average over tasks and report; never read inside the step"""
    moments: Meta = {}  # noqa: RUF012 (never written to)
    """the batch statistics that `net.features(..., moments=)` met at `meta` itself; empty: the engine looks itself"""


class Net(Protocol):
    """A network as pure functions of its weights.

    `support`, where given, is what batch norm statistics come from when the net is set so; a net that `tracks` keeps
    moving averages of them, which the engine updates from `moments` and hands back for test time.
    """

    @property
    def outputs(self) -> int: ...
    @property
    def tracks(self) -> bool: ...
    @property
    def statistics_used(self) -> str: ...

    def init(self, generator: Generator, head: bool = True) -> Meta: ...
    def features(self, meta: Meta, x: Tensor, support: Tensor | None = None, moments: Meta | None = None) -> Tensor: ...
    def head(self, meta: Meta, features: Tensor) -> Tensor: ...
    def __call__(self, meta: Meta, x: Tensor, support: Tensor | None = None) -> Tensor: ...
    def moments(self, meta: Meta, x: Tensor) -> Meta: ...
    def fresh_running(self) -> Meta: ...
    def at_test(self, running: Meta) -> Net: ...


class Algorithm(Protocol):
    """A meta-learning method: a frozen dataclass whose fields are its hyperparameters and its config schema."""

    @property
    def eval_steps(self) -> int:
        """Inner updates at test time; 0 for a method that takes none."""
        ...

    def init(self, net: Net, generator: Generator) -> Meta:
        """Fresh meta-parameters."""
        ...

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        """The loss of ONE task: pure, no `.item()`, no branch on data."""
        ...

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        """(query, way) logits after adaptation; runs without an outer graph."""
        ...


@dataclass(frozen=True)
class ClassBank:
    """The items of one split, grouped by class: class `c` owns rows `offsets[c]` to `offsets[c + 1]`."""

    items: Tensor
    """(items, *item) uint8"""
    offsets: Tensor
    """(classes + 1,) int64, ascending from 0"""
    names: tuple[str, ...]
    """one name per class"""

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.names) + 1
        assert int(self.offsets[-1]) == len(self.items)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.items.shape[1:])

    @property
    def sizes(self) -> Tensor:
        """(classes,) items in each class"""
        return self.offsets.diff()

    def digest(self) -> str:
        """Tells two banks apart: 8 hex digits of their bytes. Call it before the bank goes to a GPU."""
        return f"{crc32(self.items.numpy().data, crc32(self.offsets.numpy().data)):08x}"

    def to(self, device: Any) -> ClassBank:
        return ClassBank(self.items.to(device), self.offsets.to(device), self.names)


class Dataset(Protocol):
    """Where classes come from: a frozen dataclass whose fields are its config schema."""

    def load(self, split: str, data_root: Path) -> ClassBank:
        """The classes of `train`, `val` or `test`. Raises `InputError` for data that is missing or broken."""
        ...


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Limits:
    """What a setting may be, beyond its type. `above` and `below` are exclusive, `least` and `most` inclusive."""

    key: ClassVar[str] = "limits"
    above: float | None = None
    below: float | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None

    def broken_by(self, value: Any) -> str | None:
        """Why `value` is refused, or None."""
        if self.choices is not None and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if self.above is not None and not value > self.above:
            return f"must be greater than {self.above:g}"
        if self.below is not None and not value < self.below:
            return f"must be less than {self.below:g}"
        if self.least is not None and not value >= self.least:
            return f"must be at least {self.least:g}"
        if self.most is not None and not value <= self.most:
            return f"must be at most {self.most:g}"
        return None


def setting(default: Any, **limits: Any) -> Any:
    """A dataclass field that config may set, with its limits (the fields of `Limits`)."""
    metadata = {Limits.key: Limits(**limits)}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


Kind = TypeVar("Kind", bound=type)
REGISTRY: dict[str, dict[str, type]] = {"algo": {}, "dataset": {}, "model": {}, "logger": {}}


def register(kind: str, name: str) -> Any:
    """Class decorator: makes `KIND.name: NAME` in a config mean this class. Names, never import paths."""

    def enrol(cls: Kind) -> Kind:
        REGISTRY[kind][name] = cls
        return cls

    return enrol
