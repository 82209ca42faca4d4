"""What a name in a config means: metarun's own classes, installed plugins' and the person's modules.

Names, never import paths: nothing that a run folder holds can make anything be imported.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from metarun.hints import did_you_mean
from metarun.types import REGISTRY, InputError

ROOMS = {"algo": "algorithms", "dataset": "data", "model": "models", "logger": "loggers"}


def load_plugins(modules: Any) -> None:
    """Imports the person's own modules, whose `@register` lines extend the registries."""
    if not isinstance(modules, list) or not all(isinstance(name, str) for name in modules):
        raise InputError(f"plugins={modules!r}: must be a list of modules: plugins=[my_package.my_algo]")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    wrong = []
    for name in modules:
        try:
            if name.endswith(".py") or "/" in name or name.startswith(".") or not name:
                raise ImportError("a module's name is wanted, as in an import: my_package.my_algo")
            importlib.import_module(name)
        except ModuleNotFoundError as e:
            missing = "" if e.name and name.startswith(e.name) else f": it needs '{e.name}'"
            wrong.append(f"plugins: cannot import '{name}'{missing}; is it in this folder, or installed?")
        except Exception as e:
            wrong.append(f"plugins: cannot import '{name}': {_told(e)}")
    if wrong:
        raise InputError("\n".join(wrong))


def _told(e: Exception) -> str:
    """What went wrong in someone's module and where: `NameError: name 'x' is not defined (my_algo.py, line 3)`."""
    frames = traceback.extract_tb(e.__traceback__)
    inside = frames and not frames[-1].filename.startswith("<frozen") and frames[-1].filename != __file__
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if inside else ""
    return f"{'' if isinstance(e, ImportError) else f'{type(e).__name__}: '}{_first_line(e)}{where}"


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def known(kind: str) -> dict[str, type]:
    """Every class of a kind by name: metarun's own, installed plugins' (entry points), and the person's."""
    import_own(kind)
    load_installed()
    return REGISTRY[kind]


def import_own(kind: str) -> None:
    """Every file of a room."""
    for name in _own(kind):
        importlib.import_module(f"metarun.{ROOMS[kind]}.{name}")


def _own(kind: str) -> list[str]:
    """The files of a room."""
    return [module.name for module in pkgutil.iter_modules(importlib.import_module(f"metarun.{ROOMS[kind]}").__path__)]


@cache
def load_installed() -> None:
    """Imports the plugins that are installed, once. Raises `InputError` for one that cannot be."""
    for entry in importlib.metadata.entry_points(group="metarun.plugins"):
        try:
            entry.load()
        except Exception as e:
            name = entry.dist.name if entry.dist else entry.value
            raise InputError(f"the installed plugin '{name}' is broken: {_told(e)}; repair or uninstall it") from e


def _quickly(kind: str, name: str) -> type | None:
    """What `known` has under a name, if the file that is called so says; importing all of them takes 0.2 s."""
    if name in _own(kind):
        importlib.import_module(f"metarun.{ROOMS[kind]}.{name}")
    load_installed()
    return REGISTRY[kind].get(name)


def lookup(kind: str, node: Any) -> type:
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        raise InputError(f"{kind}: needs a name; choose one with {kind}=NAME (metarun list {kind})")
    name = node["name"]
    if (found := _quickly(kind, name)) is not None:
        return found
    options = known(kind)
    if name not in options:
        hint = did_you_mean(name, options)
        raise InputError(f"{kind}.name: no {kind} is called '{name}'; {hint} (your own: plugins=[your.module])")
    return options[name]
