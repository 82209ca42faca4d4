"""Several runs in one process, trained as one: settings of a sweep that differ in real numbers or in their seed alone.

Each keeps its own folder, rows, log, checkpoints, validations and end, as if `run.carry_on` had trained it by itself.
"""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from torch import Tensor

from metarun import checkpoint, runs
from metarun.build import networks
from metarun.computing import computing_together
from metarun.config import Tree, lookup, read
from metarun.engine.loop import tickets
from metarun.engine.stacked import Member, drawn, fit_together, gradients, updated
from metarun.engine.step import in_chunks
from metarun.run import (
    HALTED,
    LEAVING,
    Account,
    Watch,
    carry_on,
    course,
    fit_memory,
    graceful,
)
from metarun.schema import limits_of
from metarun.session import Once, Session, prepare
from metarun.types import EpisodeBatch, InputError, TrainingError

FREE = ("lr", "l1", "l2", "clip")
"""of `train`: each run's own, where they are numbers"""
ARGS = ("optimizer_args", "schedule_args")
"""of `train`: each run's own in their real numbers"""
NUMBER = "a number"


def alike(tree: Tree) -> str:
    """What two runs must have the same to be trained together, from a run's checked config.

    That is all but the seed, the logger, and real numbers: the method's own, and the outer loop's rate, penalties,
    clipping and arguments. Raises `InputError` for a run that can only be trained by itself.
    """
    if (count := tree["device"]["processes"]) != 1:
        raise InputError(f"device.processes={count}: runs are trained together in one process; set device.processes=1")
    train, kept = tree["train"], {key: node for key, node in tree.items() if key not in ("seed", "logger")}
    kept["train"] = train | {key: _blurred(train[key]) for key in (*FREE, *ARGS)}
    if not tree["device"]["checkpoint_inner"]:  # a step that is taken again is given tensors of the method's own alone
        kept["algo"] = tree["algo"] | {key: _blurred(tree["algo"][key]) for key in _numbers(tree)}
    if read(tree).task.varies:
        kept["seed"] = tree["seed"]  # from which the shape of each meta-batch is drawn
    return json.dumps(kept, sort_keys=True, default=str)


def _numbers(tree: Tree) -> list[str]:
    """The settings of a run's method that are real numbers and enter the maths as such."""
    method = lookup("algo", tree["algo"])
    hints = get_type_hints(method)
    return [
        name
        for name, limits in limits_of(method).items()
        if float in (hints[name], *get_args(hints[name])) and not limits.apart
    ]


def _blurred(value: Any) -> Any:
    """`value` with real numbers made alike."""
    if isinstance(value, float):
        return NUMBER
    if isinstance(value, dict):
        return {key: _blurred(v) for key, v in value.items()}
    return [_blurred(v) for v in value] if isinstance(value, (list, tuple)) else value


@dataclass(eq=False)
class Going:
    """A run that is being trained. `signals`: those that all runs have heard of; `heard`: what it is to end by, as
    `run.Watch` has it. Closing `open` ends its account and lets others have its folder."""

    number: int
    session: Session
    account: Account
    watch: Watch
    open: contextlib.ExitStack
    signals: Sequence[int] = ()
    heard: int = 0

    def stop(self) -> bool:
        self.heard = self.signals[0] if self.signals else HALTED if self.watch.halt() else 0
        return self.heard > 0

    def member(self) -> Member:
        session, account = self.session, self.account
        assert session.state is not None
        tells = {"log": account.log, "save": account.save, "tick": account.tick, "say": account.say}
        own = course(session, session.state, stop=self.stop, **tells)
        net_at = networks(session.plan, session.net)
        return Member(own, session.plan.algorithm, net_at, session.train, tickets(session.plan.seed))

    def over(self, finished: bool, failure: Exception | None) -> int:
        """Its code, as `carry_on` gives it; 1 where it has failed, or 2 where it is its input that cannot be used."""
        with self.open:
            if failure is not None:
                return _failed(failure, self.account.say)
            return self.account.trained(0 if finished else self.heard) or self.account.complete()


def carry_on_together(folders: Sequence[Path], watches: Sequence[Watch], ended: Callable[[int, int], None]) -> None:
    """Runs of a sweep that are `alike`, whose configs lie in `folders`: each starts, or goes on from where it was.

    `ended(i, code)` is called as soon as run i is over, with what `run.carry_on` would give. Where it has failed, the
    code is 1, or 2 where its config or checkpoint cannot be used; `error:` and why are in its log.txt then, and the
    others go on. A signal lets all of them save and end.
    """
    once = Once()
    with contextlib.ExitStack() as all_open:
        going: list[Going] = []
        for i, (folder, watch) in enumerate(zip(folders, watches, strict=True)):
            try:
                begun = _begun(i, folder, watch, once)
                code = carry_on(folder, watch) if begun is None else 0
            except (InputError, TrainingError, OSError) as e:
                begun, code = None, _failed(e, partial(_note, folder))
            if begun is None:
                ended(i, code)
            else:
                all_open.callback(begun.open.close)
                going.append(begun)
        if going:
            _train(going, ended)


def _begun(number: int, folder: Path, watch: Watch, once: Once) -> Going | None:
    """The run in `folder`, its account opened. None where there is nothing to train."""
    with contextlib.ExitStack() as opened:
        opened.enter_context(runs.lock(folder, patience=LEAVING))
        tree, last = runs.read_config(folder), folder / "checkpoints" / "last.pt"
        if once("alike", alike, tree) != alike(tree):
            raise InputError(f"{folder}: differs in more than real numbers and its seed from what it would train with")
        content = checkpoint.load(last) if last.exists() else None
        session = prepare(tree, once)
        if session.state is None:
            return None
        if content:
            checkpoint.restore(session.state, content, last)
        runs.write_config(folder, tree)
        account = Account(session, tree, folder, resumed=content is not None, watch=watch)
        opened.callback(account.close)
        return Going(number, session, account, watch, opened.pop_all())


def _train(going: Sequence[Going], ended: Callable[[int, int], None]) -> None:
    signals: list[int] = []
    of: dict[Member, Going] = {}
    for run in going:
        run.signals = signals
        of[run.member()] = run
    session, members = going[0].session, list(of)
    states, steady = [member.state for member in members], all(run.session.train.steady for run in going)

    def say(line: str) -> None:
        for run in of.values():
            run.account.say(line)

    def update(some: Sequence[Member]) -> list[dict[str, Tensor]]:
        found = updated(some, chunk, say, compute)
        signals[:] = caught  # between two steps, so that all end after the same one and go on together
        return found

    def over(member: Member, failure: Exception | None) -> None:
        run = of.pop(member)
        ended(run.number, run.over(member.course.finished is True, failure))

    with graceful() as caught:
        try:
            chunk = _portion(members, session, say)
        except Exception as e:  # none of their steps can be taken
            for member in members:
                over(member, e)
            return
        compute = computing_together(session.plan, session.device, states, steady, say)
        fit_together(members, update, over)


def _portion(members: Sequence[Member], session: Session, say: Callable[[str], None]) -> int | None:
    """`run.portion` of all runs: so many tasks of each at a time."""
    states = [member.state for member in members]
    if session.plan.device.chunk != "auto":
        for state in states:
            state.chunk = None
        return session.plan.device.chunk
    behind = min(state.step for state in states)
    first = [member for member in members if member.state.step == behind]
    batch = drawn(first, behind * session.plan.train.meta_batch)
    axis = batch.ticket.dim() - 1
    of_one = EpisodeBatch(*(field[0] for field in batch.episode)) if axis else batch.episode

    def gradient(tasks: int) -> None:
        gradients(first, next(in_chunks(batch, tasks, axis)))
        for state in states:
            state.optimizer.zero_grad(set_to_none=True)

    fit_memory(session, states, of_one, gradient, say)
    return None


def _failed(failure: Exception, say: Callable[[str], None]) -> int:
    """Tells why a run has failed; its code."""
    known = isinstance(failure, (InputError, TrainingError, OSError))
    if not known:
        traceback.print_exception(failure)
    for line in (str(failure) if known else f"{type(failure).__name__}: {failure}").splitlines():
        say(f"error: {line}")
    return 2 if isinstance(failure, InputError) else 1


def _note(folder: Path, line: str) -> None:
    """A line for the log of a run that could not begin."""
    print(line, file=sys.stderr, flush=True)
    with contextlib.suppress(OSError), (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(line + "\n")
