"""A sweep's record, `study.jsonl`: what was asked, reported and ended, in order. The driver alone writes it.

The runs' own folders say the same again, each for itself, so that a damaged record can be made anew from them.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from metarun.files import write_atomic
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Params, Trial
from metarun.types import InputError

FILE, ABOUT, TRIAL, RESULT, STOP = "study.jsonl", "sweep.json", "trial.json", "result.json", "stop"
"""of a sweep: its record and what it is; of a run: its trial, how it ended, and that it is to end"""

Event = dict[str, Any]


class Study:
    """The trials so far, and the file they are in. Raises `InputError` for a file that is damaged.

    `events` are those that were there, for a search to go through again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.trials = folder, list[Trial]()
        path = folder / FILE
        self.events = list(_read(path)) if path.exists() else []
        for event in self.events:
            self._take(event)
        if path.exists() and not path.read_bytes().endswith(b"\n"):  # a kill cut the last line short
            _write(path, self.events)
        self._file = path.open("a", encoding="utf-8")

    def asked(self, params: Params) -> Trial:
        """The next trial, which has begun with this."""
        self._add({"asked": len(self.trials), "params": params}, sure=True)
        return self.trials[-1]

    def reported(self, number: int, step: int, value: float) -> None:
        self._add({"reported": number, "step": step, "value": value})

    def measured(self, number: int, seed: int, value: float) -> None:
        self._add({"measured": number, "seed": seed, "value": value})

    def ended(self, number: int, state: str, value: float | None, reason: str, seconds: float) -> None:
        self._add({"ended": number, "state": state, "value": value, "reason": reason, "seconds": seconds}, sure=True)

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Event, sure: bool = False) -> None:
        self._take(event)
        self._file.write(json.dumps(event, allow_nan=False) + "\n")
        self._file.flush()
        if sure:
            os.fsync(self._file.fileno())

    def _take(self, event: Event) -> None:
        if (number := event.get("asked")) is not None:
            if number != len(self.trials):
                raise ValueError(f"trial {number} comes after {len(self.trials) - 1}")
            self.trials.append(Trial(number, event["params"]))
        elif (number := event.get("reported")) is not None:
            self.trials[number].reports[event["step"]] = event["value"]
        elif (number := event.get("measured")) is not None:
            self.trials[number].measured[event["seed"]] = event["value"]
        else:
            trial = self.trials[event["ended"]]
            if event["state"] not in (COMPLETE, PRUNED, FAILED):
                raise ValueError(f"no state '{event['state']}'")
            trial.state, trial.value, trial.reason = event["state"], event["value"], event["reason"]
            trial.seconds = event["seconds"]


def _read(path: Path) -> Iterator[Event]:
    lines = path.read_bytes().splitlines(keepends=True)
    for n, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("no event")
        except ValueError:
            if n == len(lines) and not line.endswith(b"\n"):
                return
            raise damaged(path, f"line {n} cannot be read") from None
        yield event


def _write(path: Path, events: list[Event]) -> None:
    text = "".join(json.dumps(event, allow_nan=False) + "\n" for event in events)
    write_atomic(path, lambda file: file.write(text.encode()))


def damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged ({why}); make it anew from its runs: metarun sweep rebuild ... (same words)")


def opened(folder: Path) -> Study:
    """The study in `folder`, or a new one."""
    try:
        return Study(folder)
    except (KeyError, IndexError, TypeError, ValueError) as e:
        raise damaged(folder / FILE, f"{type(e).__name__}: {e}") from None


def locked(folder: Path) -> TextIO:
    """Keeps every other driver from `folder` while the file is open. Raises `InputError` where there is one."""
    file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise InputError(f"{folder} is being searched by {owner}; wait for it, or stop it first") from None
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()}")
    file.flush()
    return file


def read_json(path: Path) -> Any:
    """None where there is no such file, or half of one that nobody of ours wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def rebuild(folder: Path) -> int:
    """Writes the record anew from the runs' folders; how many trials it has. What is there already is kept aside."""
    found: dict[int, dict[int, Any]] = {}
    for path in folder.glob(f"*/{TRIAL}"):
        about = read_json(path)
        if isinstance(about, dict) and isinstance(about.get("trial"), int):
            found.setdefault(about["trial"], {})[about["seed"]] = about | {"folder": path.parent}
    events: list[Event] = []
    for new, number in enumerate(sorted(found)):
        if new != number:
            raise InputError(f"{folder} has runs of trial {number} and none of trial {new}; bring its folders back")
        runs = found[number]
        first = runs[min(runs)]
        events.append({"asked": number, "params": first["params"]})
        events += [{"reported": number, "step": int(s), "value": v} for s, v in first.get("reports", {}).items()]
        events += [
            {"measured": number, "seed": seed, "value": run["value"]}
            for seed, run in sorted(runs.items())
            if "value" in run
        ]
        if (end := next((run["ended"] for run in runs.values() if run.get("ended")), None)) is not None:
            events.append({"ended": number, **end})
    path = folder / FILE
    if path.exists():
        names = (path.with_name(f"{FILE}.before-{n}") for n in count(1))
        path.replace(next(name for name in names if not name.exists()))
    _write(path, events)
    return len(found)
