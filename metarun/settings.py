"""The plain nodes of a config, and what their values may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from metarun.types import setting


@dataclass(frozen=True)
class TaskSettings:
    """A training episode; `way` is 1 in regression, and 2 or more where there are classes.

    With `way_to` or `shot_to` each meta-batch draws its own way or shot, from `way` or `shot` up to that. Unless they
    are `balanced`, classes have unequal shots, `shot` of them on average.
    """

    way: int = setting(5, least=1)
    shot: int = setting(1, least=1)
    query: int = setting(1, least=1)
    way_to: int | None = setting(None, least=1)
    shot_to: int | None = setting(None, least=1)
    balanced: bool = setting(True)

    def __post_init__(self) -> None:
        for name in ("way", "shot"):
            low, high = getattr(self, name), getattr(self, f"{name}_to")
            if high is not None and high < low:
                raise ValueError(f"{name}_to={high}: is below {name}={low}")

    @property
    def most_way(self) -> int:
        return self.way if self.way_to is None else self.way_to

    @property
    def most_shot(self) -> int:
        return self.shot if self.shot_to is None else self.shot_to

    @property
    def varies(self) -> bool:
        return (self.way, self.shot) != (self.most_way, self.most_shot) or not self.balanced


@dataclass(frozen=True)
class DataSettings:
    """How data is come by, and how much of it training sees.

    `offline`: nothing is downloaded. `skip_broken`: images that do not decode are left out. `classes`, `images`: train
    on that many classes, on that many images of each, both chosen by the run's seed (None: all).
    """

    offline: bool = setting(False)
    skip_broken: bool = setting(False)
    classes: int | None = setting(None, least=2)
    images: int | None = setting(None, least=1)


@dataclass(frozen=True)
class ProfileSettings:
    """`steps` are looked at after `warmup` that are not; `operators`: lines of their table."""

    steps: int = setting(10, least=1)
    warmup: int = setting(2, least=1)
    operators: int = setting(12, least=1)


@dataclass(frozen=True)
class PlanSettings:
    """`seconds`: about as long are steps taken to learn what each takes."""

    seconds: float = setting(20.0, above=0)


@dataclass(frozen=True)
class AugmentSettings:
    """What is done to training images, each drawn anew for every image of every episode; nothing in evaluation.

    `crop` moves an image by up to so many pixels, the edge filled with black. `flip` mirrors every other one. `zoom`
    cuts out a part of at least that area and stretches it to the whole (1: all of it).
    `rotation` turns by up to so many degrees either way. `jitter` is the most that brightness, contrast and saturation
    change, as a part of 1. `erase` is how often a rectangle of 2 to 33 % of the image is blacked out. `turn_classes`
    makes classes of their own of every class turned by 90, 180 and 270 degrees.
    """

    crop: int = setting(0, least=0)
    flip: bool = setting(False)
    zoom: float = setting(1.0, above=0, most=1)
    rotation: float = setting(0.0, least=0, most=180)
    jitter: float = setting(0.0, least=0, below=1)
    erase: float = setting(0.0, least=0, most=1)
    turn_classes: bool = setting(False)


@dataclass(frozen=True)
class TrainSettings:
    """The outer loop. `lr`, `optimizer` and `schedule` are those of the meta-update."""

    iterations: int = setting(1000, least=1)
    meta_batch: int = setting(32, least=1)
    lr: float = setting(1e-3, above=0)
    optimizer: str = setting("Adam")
    optimizer_args: dict[str, Any] = setting({})
    schedule: str = setting("constant")
    schedule_args: dict[str, Any] = setting({})
    clip: float | None = setting(None, above=0)
    l1: float = setting(0.0, least=0)
    l2: float = setting(0.0, least=0)
    log_every: int = setting(10, least=1)
    val_every: int = setting(100, least=1)
    val_episodes: int = setting(200, least=1)


@dataclass(frozen=True)
class EvalSettings:
    """Validation and test episodes: the first `episodes` of a list fixed by `seed`, whatever the run's own seed."""

    episodes: int = setting(600, least=1)
    way: int = setting(5, least=1)
    shot: int = setting(1, least=1)
    query: int = setting(1, least=1)
    seed: int = setting(0, least=0)


@dataclass(frozen=True)
class CheckpointSettings:
    every: int = setting(100, least=1)


@dataclass(frozen=True)
class DeviceSettings:
    """Where, how and in what portions to compute.

    But for `precision` nothing here changes what is computed. `kernels`, `chunk`, `processes` and `threads`, and on a
    GPU `compile`, change how it is rounded.

    `precision` is that of a training step's products and convolutions (`tf32`: on a GPU; `bf16`: the network's alone);
    all else, and evaluation, has single precision. With `graph` a GPU's steps are recorded once and replayed; with
    `compile` the gradient of a step is taken apart once and done from a list (`auto`: on a CPU, as soon as it is of
    use; see `metarun.engine.compiled`).
    `kernels`: on a CPU, convolutions and norms are metarun's own, compiled once on each machine (`auto`: where that can
    be done; false: torch's; see `metarun.kernels`).
    `processes` share each meta-batch and each evaluation, one for each GPU or core where it is `auto`; `chunk` tasks of
    the meta-batch at a time (None: all; `auto`: as many as the memory holds, of which a CPU takes a few), and fewer
    when they turn out to be too many. `checkpoint_inner`: inner steps are computed again for their gradient, in place
    of being kept. `eval_batch` test tasks at a time (None: by the device's memory and the size of a task); `threads` on
    the CPU, of each process; `data_budget` GB of each split's items may lie on the device (None: half of what is free
    there), more are read from the disk as they are needed.
    """

    kind: str = setting("auto", choices=("auto", "cpu", "cuda"))
    precision: str = setting("fp32", choices=("fp32", "tf32", "bf16"))
    graph: bool = setting(True)
    compile: bool | Literal["auto"] = setting("auto")
    kernels: bool | Literal["auto"] = setting("auto")
    processes: int | str = setting(1)
    chunk: int | Literal["auto"] | None = setting("auto", least=1)
    checkpoint_inner: bool = setting(False)
    eval_batch: int | None = setting(None, least=1)
    threads: int | None = setting(None, least=1)
    data_budget: float | None = setting(None, least=0)

    def __post_init__(self) -> None:
        if isinstance(self.processes, str) and self.processes != "auto":
            raise ValueError(f"processes={self.processes}: must be a whole number, or auto")
        if isinstance(self.processes, int) and self.processes < 1:
            raise ValueError(f"processes={self.processes}: must be at least 1")
