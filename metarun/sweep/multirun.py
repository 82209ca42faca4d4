"""`metarun train -m`: one run for each combination, side by side, whatever becomes of the others."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from metarun import run, runs
from metarun.config import Tree
from metarun.files import write_json
from metarun.run import GRACEFUL
from metarun.sweep.command import Typed, fitted, needs_of
from metarun.sweep.composer import Composer
from metarun.sweep.driver import Driver
from metarun.sweep.ending import result
from metarun.sweep.executor import Local
from metarun.sweep.settings import SweepSettings
from metarun.sweep.space import grid, split
from metarun.sweep.study import ABOUT, Study, locked, opened, read_json
from metarun.sweep.table import Board
from metarun.sweep.trial import COMPLETE, FAILED, RUNNING, Params, Trial
from metarun.sweep.words import near
from metarun.sweep.words import settings as told
from metarun.types import InputError

OURS = {"config.yaml", "trial.json", "result.json", "work.log", ".lock"}
"""what is in the folder of a run that never began"""


class Listed:
    """Settings one after another."""

    def __init__(self, each: Sequence[Params]) -> None:
        self._each = each

    def ask(self, number: int) -> Params | None:
        return self._each[number] if number < len(self._each) else None

    def reported(self, number: int, value: float) -> bool:
        return False

    def ended(self, number: int, state: str, value: float | None) -> None:
        pass


def multirun(typed: Typed, folder: Path) -> int:
    """0 when every run is over, else the largest of their codes; 130 or 143 after a signal."""
    words, space = split(typed.words, typed.parsed)
    composer = Composer(words, space, typed.groups, typed.replaced)
    each = list(grid(space))
    settings = SweepSettings(sampler="grid", max_failures=None)
    needs, threads = needs_of(_first(composer, each), settings, len(each), True)
    with closing(Local(typed.nursery).open(needs, None, len(each))) as pool:
        typed.started()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder), closing(opened(folder)) as study:
            _same(folder, [told(params) for params in each])
            board = Board(folder / "log.txt", len(each), pool.slots, None, study.trials)
            driver = Driver(
                folder.resolve(),
                settings,
                None,
                len(each),
                Listed(each),
                study,
                pool,
                board,
                lambda params, seed: fitted(composer.tree(params), threads, None),
            )
            with closing(board), run.graceful() as caught:
                driver.drive(lambda: bool(caught))
                driver.rest()
                board.finish()
                if caught:
                    for trial in study.trials:
                        place = near(folder) / str(trial.number)
                        if trial.state == RUNNING and (place / runs.CONFIG).exists():
                            board.say(f"stopped; go on with: metarun train resume={place}")
                    board.say(f"or with all of them: the same words and hydra.sweep.dir={near(folder)}")
                    return GRACEFUL[caught[0]]
                _show(study, folder, board)
    return _failures(study, driver.codes, folder)


def _first(composer: Composer, each: Sequence[Params]) -> Tree:
    """The config of the first run that has a right one. Raises `InputError` where none has."""
    wrong: list[InputError] = []
    for params in each:
        try:
            return composer.tree(params)
        except InputError as e:
            wrong.append(e)
    raise wrong[0]


def _same(folder: Path, each: list[str]) -> None:
    """Raises `InputError` where the runs in a folder are others than these."""
    before = read_json(folder / ABOUT)
    if before is not None and before != {"runs": each}:
        raise InputError(f"{folder} holds other runs; name a folder of its own: hydra.sweep.dir=PATH")
    write_json(folder / ABOUT, {"runs": each})


def _show(study: Study, folder: Path, board: Board) -> None:
    """The test's number of each run, and where it is."""
    board.say("")
    for trial in study.trials:
        if trial.state == COMPLETE:
            board.say(f"  {result(folder / str(trial.number)) or 'no number':<26} {told(trial.params)}")
            board.say(f"  {'':<26} {near(folder) / str(trial.number)}")
    board.say("")


def _failures(study: Study, codes: dict[int, int], folder: Path) -> int:
    """Says what has failed, and takes away the folders of runs that never began."""
    failed: list[Trial] = [trial for trial in study.trials if trial.state == FAILED]
    for trial in failed:
        print(f"error: {trial.reason}", file=sys.stderr)
        place = folder / str(trial.number)
        if place.is_dir() and {path.name for path in place.iterdir()} <= OURS:
            shutil.rmtree(place)
    if failed and len(study.trials) > 1:
        which = ", ".join(f"#{trial.number}" for trial in failed)
        print(f"error: {len(failed)} of {len(study.trials)} jobs failed: {which}", file=sys.stderr)
    return max((codes.get(trial.number, 1) for trial in failed), default=0)
