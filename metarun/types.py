"""The vocabulary: what a task is, what a method is, what a network is.

Everything here is about ONE task. The engine alone adds the leading task axis (see `metarun.engine.step`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

from torch import Generator, Tensor

from metarun.counter import Number
from metarun.measures import Measure

Meta = dict[str, Tensor]
"""Everything a method carries from task to task, by name: the network's weights under the names that the network gives
them, and the method's own meta-parameters under names that start with `algo.`"""


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
    """(support,) class ids in [0, way), or (support, *target) float for regression"""
    query_x: Tensor
    """(query, *item)"""
    query_y: Tensor
    """(query,) class ids in [0, way), or (query, *target) float for regression"""


EpisodeBatch = Episode
Episodes = Callable[[Number, int], EpisodeBatch]
"""(first, count) -> episodes `first` to `first + count - 1` of a fixed, endless list"""


class TaskLoss(NamedTuple):
    """What one task says about the meta-parameters."""

    loss: Tensor
    """() the scalar whose gradient is the method's meta-gradient"""
    metrics: dict[str, Tensor]
    """() tensors to average over tasks and report; never read inside the step"""
    moments: Meta = {}  # noqa: RUF012 (never written to)
    """the batch statistics that `net.features(..., moments=)` met at `meta` itself; empty: the engine looks itself"""


@dataclass(frozen=True)
class TaskShape:
    """The tasks that a method is asked to serve: `kind` is as a bank's, the numbers are per task and class."""

    kind: str
    way: int
    shot: int
    query: int
    balanced: bool = True
    """whether each class has as many support examples as any other"""


class Norm(Protocol):
    """A normalisation layer as the network is set to have them, for a method's own modules."""

    @property
    def subtracts_channel_mean(self) -> bool: ...
    def init(self, name: str, channels: int) -> Meta: ...
    def __call__(self, meta: Meta, name: str, x: Tensor, slope: float | None = None) -> Tensor:
        """`slope`: below zero, of a ReLU that follows at once; None: none does."""
        ...


class Net(Protocol):
    """A network as pure functions of its weights.

    `support`, where given, is what batch norm statistics come from when the net is set so; a net that `tracks` keeps
    moving averages of them, which the engine updates from `moments` and hands back for test time.
    """

    @property
    def item_shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        ...

    @property
    def outputs(self) -> int:
        """Classes, or numbers in a target."""
        ...

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """What one row of `features` is when it is not flat: (channels, height, width) of a map, or (size,)."""
        ...

    @property
    def norm_names(self) -> tuple[str, ...]:
        """Its norm layers from input to output: `NAME.weight` and `NAME.bias` scale and shift each channel."""
        ...

    @property
    def running(self) -> Meta | None:
        """The moving averages that it predicts with; None while training."""
        ...

    @property
    def tracks(self) -> bool: ...
    @property
    def statistics_used(self) -> str: ...

    def init(self, generator: Generator, head: bool = True) -> Meta: ...
    def features(self, meta: Meta, x: Tensor, support: Tensor | None = None, moments: Meta | None = None) -> Tensor: ...
    def head(self, meta: Meta, features: Tensor) -> Tensor: ...
    def __call__(self, meta: Meta, x: Tensor, support: Tensor | None = None) -> Tensor: ...
    def norm_layer(self, support: int = 0, moments: Meta | None = None) -> Norm:
        """A norm set as the network's own are: statistics of the first `support` rows where it takes the support
        set's, of all rows otherwise, kept in `moments` where moving averages are made."""
        ...

    def moments(self, meta: Meta, x: Tensor) -> Meta: ...
    def fresh_running(self) -> Meta: ...
    def at_train(self, running: Meta, ticket: Tensor) -> Net:
        """The net as ONE task of one step trains with it; what is random in it is drawn from `ticket`, () int64."""
        ...

    @property
    def noise_position(self) -> tuple[Tensor, int] | None:
        """What random numbers are drawn from, () int64, and how many draws there have been; None: nothing is random."""
        ...

    def with_noise_at(self, key: Tensor, draws: int) -> Net:
        """The net as it goes on from such a position: to compute again what was computed there."""
        ...

    def in_bf16(self) -> Net:
        """The net with its trunk's products in bfloat16, and all else in single precision."""
        ...

    def at_test(self, running: Meta) -> Net: ...


class Algorithm(ABC):
    """A meta-learning method: a frozen dataclass whose fields are its hyperparameters and its config schema.

    In `loss` those that are real numbers may be () tensors (see `setting`).
    """

    eval_steps: int = 0
    """inner updates at test time; 0 for a method that takes none"""
    supervised: ClassVar[bool] = False
    """Whether it trains on batches over all training classes in place of episodes. A batch is an episode with an empty
    support set, whose queries are `train.meta_batch` random examples labelled among all training classes."""

    @property
    def in_turn(self) -> bool:
        """Whether it reads the support examples one after another, so that their order matters (see `Episode`)."""
        return False

    def recomputing(self) -> Algorithm:
        """The same method, which of its inner steps keeps the weights alone and takes each again for its gradient.

        Raises `ValueError` for one whose meta-gradient goes through no inner steps: it keeps nothing of them anyway.
        """
        raise ValueError("its meta-gradient goes through no inner steps, of which something could be kept")

    def check(self, net: Net, task: TaskShape) -> None:  # noqa: B027 (most serve everything)
        """Raises `ValueError`, saying what fits, for a network or task that the method cannot serve."""

    @abstractmethod
    def init(self, net: Net, generator: Generator) -> Meta:
        """Fresh meta-parameters on the CPU; none for a method that has nothing to train."""

    @abstractmethod
    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        """The loss of ONE task: pure, no `.item()`, no branch on data."""

    @abstractmethod
    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        """(query, way) logits, or (query, *target), after adaptation; runs without an outer graph."""

    def trajectory(self, net: Net, meta: Meta, episode: Episode) -> list[Tensor]:
        """What `predict` gives after 0, 1, ..., `eval_steps` inner updates; only the last for a method without any."""
        return [self.predict(net, meta, episode)]

    def at_step(self, step: int, iterations: int) -> Algorithm:
        """The method as it is for meta-update `step` (from 0) of `iterations`; itself unless something is annealed."""
        return self

    def at_test(self, meta: Meta) -> Meta:
        """The meta-parameters that prediction needs: without those that only training does."""
        return meta

    def fresh_running(self, net: Net) -> Meta:
        """Moving averages before the first step; a method with norms of its own adds theirs to the net's."""
        return net.fresh_running()

    def statistics_used(self, net: Net) -> str:
        """What norms' statistics a number of this method with this network must be read with."""
        return net.statistics_used


class Classifier(Protocol):
    """What scikit-learn's are. It must survive being sent to another process."""

    def fit(self, x: Any, y: Any) -> Any: ...
    def predict(self, x: Any) -> Any: ...


class HostSide(Algorithm):
    """A method that learns nothing from task to task: it fits a classifier to each task's support set, on the CPU and
    outside torch. The engine embeds tasks together on the device and fits them in processes of their own."""

    @abstractmethod
    def embed(self, net: Net, meta: Meta, episode: Episode) -> tuple[Tensor, Tensor]:
        """(support, features), (query, features); like `loss` for ONE task, and pure."""

    @abstractmethod
    def make(self, seed: int) -> Classifier:
        """A fresh classifier, which draws what is random in it from `seed`, 0 to 2^32 - 1."""

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        raise NotImplementedError(f"{type(self).__name__} has nothing to train")

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        """1 for the class that the classifier says, 0 for the others; cannot run under `vmap`."""
        support, query = (x.detach().cpu().numpy() for x in self.embed(net, meta, episode))
        said = self.make(0).fit(support, episode.support_y.cpu().numpy()).predict(query)
        logits = episode.query_x.new_zeros(len(query), net.outputs)
        return logits.scatter(1, episode.query_y.new_tensor(said)[:, None], 1.0)


class Sampler(Protocol):
    """Episodes as a pure function of their index."""

    @property
    def item_shape(self) -> tuple[int, ...]: ...
    @property
    def outputs(self) -> int:
        """What a network for these episodes must put out: classes, or numbers in a target."""
        ...

    @property
    def steady(self) -> bool:
        """Whether it draws on the device alone, and alike for any `first`, which may be a tensor then."""
        ...

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        """Episodes `first` to `first + count - 1`."""
        ...

    def classes(self, first: Number, count: int) -> Tensor | None:
        """(count, way) what each label of each episode stands for in the bank's `names`; None for regression."""
        ...


class Bank(Protocol):
    """The tasks of one split, before any is drawn."""

    @property
    def kind(self) -> str:
        """`classification` or `regression`"""
        ...

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What its tasks are judged by; models are selected by the first."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The classes; empty for regression."""
        ...

    def digest(self) -> str:
        """Tells two banks apart: 8 hex digits. Call it before the bank goes to a GPU."""
        ...

    def to(self, device: Any, budget: int | None = None) -> Bank:
        """With its episodes on `device`, and all its items too where they take no more than `budget` bytes."""
        ...

    @property
    def ahead(self) -> bool:
        """Whether episodes take so long to gather that a thread should make them before they are asked for."""
        ...

    def episodes(self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str) -> Sampler:
        """Raises `InputError`, naming settings of the node `asked_by`, where there are too few classes or items."""
        ...

    def batches(self, seed: int, split: str) -> Sampler:
        """Supervised batches: `sampler(first, count)` is ONE episode whose queries are `count` random examples."""
        ...


@dataclass(frozen=True)
class Place:
    """Where files of data are, and what may be done about them."""

    root: Path
    offline: bool = False
    """nothing is downloaded"""
    skip_broken: bool = False
    """images that do not decode are left out, named and counted; otherwise they are an error"""


class Dataset(Protocol):
    """Where tasks come from: a frozen dataclass whose fields are its config schema."""

    def load(self, split: str, place: Place) -> Bank:
        """The tasks of `train`, `val` or `test`. Raises `InputError` for data that is missing or broken."""
        ...


SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Limits:
    """What a setting may be, beyond its type. `above` and `below` are exclusive, `least` and `most` inclusive.

    `apart`: runs with other values of it are never trained together, for code decides by it in Python. A real number of
    a method is otherwise a tensor where several runs are trained at once.
    """

    key: ClassVar[str] = "limits"
    above: float | None = None
    below: float | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None
    apart: bool = False

    def broken_by(self, value: Any) -> str | None:
        """Why `value` is refused, or None."""
        if self.choices is not None and value not in self.choices:
            return f"must be one of {', '.join(self.choices)}"
        if isinstance(value, str):
            return None
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
    """A dataclass field that config may set, with its limits and what else is to be known of it (see `Limits`)."""
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
