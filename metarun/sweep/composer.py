"""From a trial's settings to the config of its run, by the same Hydra that a plain run is composed by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from metarun.commands import plain, with_protocol
from metarun.config import Tree, flat, load_plugins, settled
from metarun.sweep.space import values
from metarun.sweep.trial import Choice, Interval, Params, Space
from metarun.sweep.words import overrides
from metarun.types import InputError

INSIDE = 0.381966
"""of an interval: a place that is nothing special"""


class Composed(NamedTuple):
    """A config with Hydra's own part, and without."""

    hydra: Any
    own: Any


class Composer:
    """Runs as `metarun train WORDS` would have them, plus a trial's settings. Works while Hydra is initialised.

    groups      the names of all config groups
    replaced    words with Hydra's syntax for new keys where they need it
    """

    def __init__(
        self,
        words: Sequence[str],
        space: Space,
        groups: Sequence[str],
        replaced: Callable[[list[str]], list[str]],
    ) -> None:
        self.words, self.space = [*words], space
        self._replaced = replaced
        self._bases: dict[tuple[Any, ...], Composed] = {}
        self.groups = [key for key in space if key in groups]
        """the keys of the space that are config groups"""
        self._there: dict[tuple[Any, ...], frozenset[str]] = {}

    def there(self, chosen: Params) -> frozenset[str]:
        """The keys of the space that a choice of the groups has."""
        key = tuple(sorted(chosen.items()))  # type: ignore[arg-type]
        if key not in self._there:
            known = set(flat(OmegaConf.to_container(self._with(self._base(chosen), {}))))  # type: ignore[arg-type]
            nodes = {name.rpartition(".")[0] for name in known}
            rest = [name for name in self.space if name not in self.groups]
            free = {name for name in rest if self._replaced([f"{name}=0"])[-1].startswith("++")}
            self._there[key] = frozenset(n for n in rest if n in known or n in nodes or n in free)
        return self._there[key]

    @cached_property
    def conditional(self) -> frozenset[str]:
        """The keys of the space that only some of the groups' choices have."""
        rest = {key for key in self.space if key not in self.groups}
        return frozenset(rest - frozenset.intersection(frozenset(rest), *map(self.there, self._choices())))

    def unknown(self) -> list[str]:
        """The keys of the space that no choice of the groups has."""
        found = frozenset[str]().union(*map(self.there, self._choices()))
        return [key for key in self.space if key not in self.groups and key not in found]

    def _choices(self) -> list[Params]:
        """Each option of each group, the others at their first: what composing can say of their keys."""
        options = {key: values(self.space[key]) for key in self.groups}
        first = {key: some[0] for key, some in options.items()}
        return [first] + [first | {key: value} for key, some in options.items() for value in some[1:]]

    def tree(self, params: Params, seed: int | None = None) -> Tree:
        """The checked config of a run; `seed` takes its own seed's place. Raises `InputError`."""
        base = self._base({key: params[key] for key in self.groups})
        tree = plain("train", self._with(base, {key: value for key, value in params.items() if key not in self.groups}))
        load_plugins(tree["plugins"])
        if tree.pop("resume", None) is not None:
            raise InputError("resume=: goes on with one run, which is metarun train's to do")
        if seed is not None:
            tree["seed"] = seed
        tree = settled(tree)
        if tree.get("paper"):
            HydraConfig.instance().set_config(base.hydra)
            tree = with_protocol("train", tree)
        return tree | {"data_root": str(Path(tree["data_root"]).expanduser().resolve())}

    def _base(self, chosen: Params) -> Composed:
        """What Hydra composes with a choice of the groups. It takes long, and there are few."""
        key = tuple(sorted(chosen.items()))  # type: ignore[arg-type]
        if key not in self._bases:
            hydra = compose("train", self.words + self.typed(chosen), return_hydra_config=True)
            own = copy(hydra)
            with open_dict(own):
                del own["hydra"]
            self._bases[key] = Composed(hydra, own)
        return self._bases[key]

    def _with(self, base: Composed, params: Params) -> Any:
        """The config itself with settings as Hydra would put them in."""
        cfg = deepcopy(base.own)
        for override in OverridesParser.create().parse_overrides(self.typed(params)):
            new = override.is_force_add()
            with open_dict(cfg) if new else nullcontext():
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=new)
        return cfg

    def typed(self, params: Params) -> list[str]:
        return self._replaced(overrides(params))

    def samples(self) -> list[Params]:
        """Settings that between them have every option of every list, and both ends and the inside of every interval.

        Each differs from the first in one key, or in what must be there for it.
        """
        out: list[Params] = []
        for chosen in self._choices():
            there = [key for key in self.space if key in self.there(chosen)]
            base = chosen | {key: _probes(self.space[key])[0] for key in there}
            probes = ({key: value} for key in there for value in _probes(self.space[key])[1:])
            out += [base | probe for probe in itertools.chain([{}], probes)]
        return [params for n, params in enumerate(out) if params not in out[:n]]


def _probes(dimension: Choice | Interval) -> list[Any]:
    if isinstance(dimension, Choice):
        return [*dimension.options]
    low, high = dimension.low, dimension.high
    if dimension.whole:
        return [int(low), int(high)]
    return [low + INSIDE * (high - low), low, high]
