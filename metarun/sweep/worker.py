"""The process of one run of a sweep, or of several that are trained together: `python -m metarun.sweep.worker`.

All it is told lies in the run's folder: `config.yaml`, and in `trial.json` what the sweep asks of it. How it ended it
writes there too, so that this is known whoever started it and whether or not they still live.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING, Any

from metarun.files import write_json
from metarun.sweep.rows import objective
from metarun.sweep.study import RESULT, STOP, TRIAL, read_json
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Goal

if TYPE_CHECKING:
    from metarun.run import Watch

ERROR = "error: "
WITH_PARENT, TEST = "--with-parent", "--test"
GRACE = 30.0
"""seconds that a run without its driver has to save and end"""


def main(argv: Sequence[str]) -> int:
    words = [*argv]
    if WITH_PARENT in words:
        words.remove(WITH_PARENT)
        Thread(target=_end_with_parent, daemon=True).start()
    if words[:1] == [TEST]:
        return test(Path(words[1]), [Path(word) for word in words[2:]])
    return work([Path(word) for word in words])


def _end_with_parent() -> None:
    """Standard input is a pipe that the driver holds: it closes when the driver ends, however that comes about."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(GRACE)
    os._exit(143)


def work(folders: Sequence[Path]) -> int:
    """Trains the runs in `folders`, which wait there or were begun already. 0, 1 for one that failed, 130 or 143."""
    from metarun import config, runs
    from metarun.commands import guarded

    def loaded() -> int:
        for folder in folders:
            config.load_plugins(config.load_tree(folder / runs.CONFIG).get("plugins") or [])
        return 0

    if code := guarded(loaded):
        return code
    return _one(folders[0]) if len(folders) == 1 else _several(folders)


def _several(folders: Sequence[Path]) -> int:
    from metarun.commands import guarded
    from metarun.together import carry_on_together

    codes: list[int] = []

    def ended(number: int, code: int) -> None:
        codes.append(_told(folders[number], code, _complaints(folders[number]) if code in (1, 2) else ""))

    watches = [_watch(folder) for folder in folders]
    return guarded(lambda: carry_on_together(folders, [w for w in watches if w], ended) or max(codes, default=1))


def _watch(folder: Path) -> Watch | None:
    """What the sweep asks of the run in `folder`; None of a plain one."""
    from metarun.run import Watch

    about: Any = read_json(folder / TRIAL)
    goal = Goal(**about["goal"]) if about["goal"] else None
    return Watch((folder / STOP).exists, lambda: objective(folder, goal)) if goal else None


def _complaints(folder: Path) -> str:
    """What its log says it has failed of."""
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    return "; ".join(line.removeprefix(ERROR) for line in lines if line.startswith(ERROR))


def _told(folder: Path, code: int, reason: str) -> int:
    """Writes down how a run has ended, unless it is to go on; its code for the outside."""
    from metarun.run import HALTED

    if code < 128 or code == HALTED:
        state = COMPLETE if code == 0 else PRUNED if code == HALTED else FAILED
        write_json(folder / RESULT, {"state": state, "code": code, "reason": reason})
    return 0 if code == HALTED else code


def _one(folder: Path) -> int:
    from metarun.commands import guarded
    from metarun.run import carry_on

    said: list[str] = []
    try:
        code = guarded(lambda: carry_on(folder, _watch(folder)), said.append)
    except Exception as e:
        traceback.print_exc()
        code = 1
        said.append(f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}")
    return _told(folder, code, "; ".join(said))


def test(out: Path, folders: Sequence[Path]) -> int:
    """Evaluates one run, or several that differ in their seed, on test classes, into the folder `out`."""
    from metarun import config, evaluation, runs
    from metarun.commands import guarded

    def evaluated() -> int:
        tree = runs.read_config(folders[0])
        config.load_plugins(tree["plugins"])
        which = {"run": str(folders[0])} if len(folders) == 1 else {"runs": [str(folder) for folder in folders]}
        asked = config.settled_request({**which, "device": tree["device"], "plugins": tree["plugins"]})
        return evaluation.evaluate(asked, out)

    return guarded(evaluated)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
