"""Run folders: claimed by one process, found by path or as `latest`, never written over."""

from __future__ import annotations

import fcntl
import json
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TextIO

import yaml

from metarun.config import NODES, Tree, load_tree, read, whole
from metarun.files import write_atomic, write_json
from metarun.types import InputError

OUTPUTS = Path("outputs")
CONFIG = "config.yaml"


def label(tree: Tree) -> str:
    """`omniglot-maml-5w1s`"""
    return f"{tree['dataset']['name']}-{tree['algo']['name']}-{tree['task']['way']}w{tree['task']['shot']}s"


def claim(command: str, tree: Tree, asked: Path | None = None) -> Path:
    """A new folder that is this process's alone: `outputs/COMMAND/LABEL/TIME`, or the one `asked` for.

    A folder that is taken is left as it is and the next free name beside it used: `TIME-2`.
    """
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    wanted = asked or OUTPUTS / command / label(tree) / now
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for n in range(1, 10_000):
        folder = wanted if n == 1 else wanted.with_name(f"{wanted.name}-{n}")
        try:
            folder.mkdir()
        except FileExistsError:
            # Hydra makes the folder it was asked for itself; an empty one is free to take.
            if asked is None or not folder.is_dir() or any(folder.iterdir()):
                continue
        return folder
    raise InputError(f"{wanted.parent} holds too many folders called {wanted.name}; name another: hydra.run.dir=PATH")


def lock(folder: Path, patience: float = 0.0) -> TextIO:
    """Keeps every other process from training in `folder` while the returned file is open.

    Raises `InputError` where another one still does after `patience` seconds.
    """
    file, until = (folder / ".lock").open("w"), monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if monotonic() > until:
                file.close()
                raise InputError(
                    f"{folder} is being trained by another process; wait for it, or stop it first"
                ) from None
        sleep(0.1)


def find(given: str, key: str) -> Path:
    """The run folder that `key=given` names; `latest` is the one started last under `outputs/`."""
    if given == "latest":
        started = [c for kind in ("train", "multirun") for c in (OUTPUTS / kind).rglob(CONFIG)]
        if not started:
            raise InputError(f"{key}=latest: there is no run under {OUTPUTS.resolve()}; start one: metarun train")
        return max(started, key=lambda c: c.stat().st_mtime_ns).parent
    folder = Path(given).expanduser()
    if not (folder / CONFIG).is_file():
        what = "has no config.yaml, so it is not a run folder" if folder.is_dir() else "does not exist"
        raise InputError(f"{key}={given}: {folder} {what}; give the path that metarun train printed, or latest")
    return folder


def write_config(folder: Path, tree: Tree) -> None:
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    write_atomic(folder / CONFIG, lambda file: file.write(text.encode()))


def read_config(folder: Path) -> Tree:
    """A run's own config, checked. Raises `InputError` for one that no run of metarun's has written."""
    tree = {node: {} for node in NODES} | load_tree(folder / CONFIG)  # an older run may not have all
    try:
        read(tree)
        return whole(tree)  # what a newer metarun has more to set was at its default
    except InputError as e:
        raise InputError(f"{folder / CONFIG} is no config of a run here:\n{e}") from None


def add_session(folder: Path, session: dict[str, Any]) -> list[str]:
    """Adds a start or resumption to environment.json; the splits whose data is not what the run was started on."""
    path = folder / "environment.json"
    try:
        sessions = json.loads(path.read_text())["sessions"]
        first = sessions[0]["data"]
    except (FileNotFoundError, ValueError, KeyError, IndexError, TypeError):
        sessions, first = [], session["data"]
    write_json(path, {"sessions": [*sessions, session]})
    return [split for split, digest in session["data"].items() if first.get(split) != digest]
