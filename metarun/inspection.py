"""`metarun data`: what is in a dataset, and making it ready for runs."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from metarun import cache, config, runs
from metarun.config import Tree
from metarun.data.bank import ClassBank
from metarun.data.taskbank import TaskBank
from metarun.schema import checked, made
from metarun.settings import DataSettings, TaskSettings
from metarun.types import SPLITS, Bank, InputError, Place

ACTIONS = ("info", "prepare")
HEADER = ("items", "each", "MB", "checksum")


def inspect(tree: Tree) -> int:
    """`metarun data ACTION NAME`, from a resolved config."""
    action = tree["action"]
    if action not in ACTIONS:
        raise InputError(f"metarun data {action}: no such action; choose from: {', '.join(ACTIONS)}")
    name = tree["dataset"]["name"]
    dataset = config.component("dataset", tree)
    data = made(DataSettings, checked(DataSettings, tree["data"], "data"), "data")
    place = Place(config.data_root(tree), data.offline, data.skip_broken)
    banks: dict[str, Bank] = {}
    for split in SPLITS:
        began = monotonic()
        banks[split] = dataset.load(split, place)
        if action == "prepare":
            print(f"{name} {split}: ready in {monotonic() - began:.1f} s")
    if action == "info":
        print(name)
        show(banks)
        draw(tree, banks)
    return 0


def show(banks: dict[str, Bank]) -> None:
    """A table, a line for each split."""
    first = next(iter(banks.values()))
    stored = isinstance(first, (ClassBank, TaskBank))
    rows: list[tuple[str, ...]] = [("split", "tasks" if isinstance(first, TaskBank) else "classes", *HEADER)]
    for split, bank in banks.items():
        if isinstance(bank, (ClassBank, TaskBank)):
            each = "-".join(str(n) for n in sorted({int(bank.sizes.min()), int(bank.sizes.max())}))
            rows.append(
                (split, f"{len(bank):,}", f"{len(bank.items):,}", each, f"{bank.bytes / 1e6:,.1f}", bank.digest())
            )
        else:
            rows.append((split, "-", "-", "-", "-", bank.digest()))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        split, *others = (f"{cell:>{w}}" if n else f"{cell:<{w}}" for n, (cell, w) in enumerate(zip(row, widths)))
        print(f"  {split}  {'  '.join(others)}".rstrip())
    if stored:
        kind = str(first.items.dtype).removeprefix("torch.")
        print(f"  items  {' x '.join(map(str, first.item_shape))} {kind}")
    else:
        print("  items  drawn as they are needed")
    print(f"  cache  {cache.folder()}")


def draw(tree: Tree, banks: dict[str, Bank]) -> None:
    """The contact sheet, of what can be drawn."""
    bank = banks["train"]
    if not isinstance(bank, ClassBank) or len(bank.item_shape) != 3:
        return
    from metarun.sheet import contact_sheet

    task = made(TaskSettings, checked(TaskSettings, tree["task"], "task"), "task")
    episode = bank.episodes(task.way, task.shot, task.query, int(tree["seed"]), "train")(0, 1)
    path = Path(tree["sheet"] or runs.OUTPUTS / "data" / f"{tree['dataset']['name']}.png")
    contact_sheet(path, bank, episode, task.shot)
    print(f"  sheet  {path}")
