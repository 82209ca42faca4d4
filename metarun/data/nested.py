"""A dataset that is made of others: what their nodes say, checked as if each were the run's own."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metarun.hints import did_you_mean
from metarun.schema import checked, made
from metarun.types import REGISTRY, Dataset, InputError


def nested(node: Mapping[str, Any], where: str, **defaults: Any) -> Dataset:
    """The dataset of a node {name: NAME, SETTING: VALUE, ...} that stands at `where` in the config.

    `defaults` are for those settings that it has. Raises `InputError` for a name or a setting that there is not.
    """
    name, known = node.get("name"), REGISTRY["dataset"]
    if isinstance(name, str) and name not in known:  # a run imports what its config names, and here is one more name
        for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
            importlib.import_module(f"{__package__}.{module.name}")
    if not isinstance(name, str) or name not in known:
        raise InputError(f"{where}.name: no dataset is called '{name}'; {did_you_mean(str(name), known)}")
    cls = known[name]
    given = checked(cls, node, where)
    has = getattr(cls, "__dataclass_fields__", {})
    return made(cls, {key: value for key, value in defaults.items() if key in has} | given, where)
