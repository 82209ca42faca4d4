"""`metarun train`: config to objects to a run. With `evaluation` the only place that builds anything from config."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from metarun import checkpoint, config, runs
from metarun.build import networks
from metarun.company import Company, company
from metarun.computing import computing
from metarun.config import Tree
from metarun.device import describe
from metarun.engine.distributed import ALONE, Ranks, Vote
from metarun.engine.evaluate import Score, score, task_values
from metarun.engine.loop import Course, fit
from metarun.engine.memory import Room, smaller
from metarun.engine.state import TrainState
from metarun.engine.step import meta_gradient
from metarun.environment import environment
from metarun.evaluation import measure
from metarun.loggers.console import Console
from metarun.loggers.jsonl import JsonLines
from metarun.loggers.sink import RunInfo
from metarun.memory import at_a_time
from metarun.report import Report, draw, show, write
from metarun.resume import continued
from metarun.session import Session, prepare
from metarun.types import EpisodeBatch, InputError

GRACEFUL = {int(signal.SIGINT): 130, int(signal.SIGTERM): 143}
HALTED = 1000
"""what is heard in place of a signal's number when a `Watch` ends a run"""


@dataclass(frozen=True)
class Watch:
    """What a sweep asks of a run, beside its training: it ends after the step in which `halt` is true, and tells its
    loggers of its `objective`, as its rows so far have it. Its test classes are left alone."""

    halt: Callable[[], bool]
    objective: Callable[[], float | None]


LEAVING = 60.0
"""seconds that a sweep's run waits for the process that had it before, which is about to end"""


def train(tree: Tree, asked: Path | None) -> int:
    """`metarun train`: a new run from a resolved config, in the folder `asked` for or one of its own."""
    with _company(tree) as others:
        session = prepare(tree)
        tree = tree | {"data_root": str(session.plan.data_root.resolve())}  # as true in another folder
        if session.state is not None:
            others.call("train", tree=tree, content=None)
        folder = runs.claim("train", tree, asked)
        with runs.lock(folder):
            runs.write_config(folder, tree)
            return _fit(session, tree, folder, others)


def resume(folder: Path, asked: Tree, typed: list[str]) -> int:
    """`metarun train resume=`: the run in `folder` goes on from its last checkpoint, to the same bits.

    `asked` is the config that the command line composes, `typed` the keys that were typed on it.
    """
    with runs.lock(folder):
        tree = continued(runs.read_config(folder), asked, typed, folder)
        last = folder / "checkpoints" / "last.pt"
        content = checkpoint.load(last) if last.exists() else None
        if content and content["step"] > tree["train"]["iterations"]:
            raise InputError(
                f"train.iterations={tree['train']['iterations']}: the run is at step {content['step']} already; "
                "give more, or leave it out"
            )
        return _go_on(folder, tree, content, resumed=True)


def carry_on(folder: Path, watch: Watch | None) -> int:
    """The run whose config lies in `folder` starts, or goes on from its last checkpoint, to the same bits.

    0 at its end, 130 or 143 after a signal, `HALTED` where `watch` ended it.
    """
    with runs.lock(folder, patience=LEAVING):
        last = folder / "checkpoints" / "last.pt"
        content = checkpoint.load(last) if last.exists() else None
        return _go_on(folder, runs.read_config(folder), content, content is not None, watch)


def _go_on(folder: Path, tree: Tree, content: dict[str, Any] | None, resumed: bool, watch: Watch | None = None) -> int:
    with _company(tree) as others:
        session = prepare(tree)
        if session.state is not None:
            if content:
                checkpoint.restore(session.state, content, folder / "checkpoints" / "last.pt")
            others.call("train", tree=tree, content=content)
        runs.write_config(folder, tree)
        return _fit(session, tree, folder, others, resumed, watch)


def _company(tree: Tree) -> contextlib.AbstractContextManager[Company]:
    """The processes that are to share a run. Raises `InputError` for a run that cannot be shared."""
    plan = config.read(tree)
    if plan.algorithm.supervised and plan.device.processes != 1:
        raise InputError(
            f"device.processes={plan.device.processes}: algo={tree['algo']['name']} trains on one batch at a time, "
            "which is not shared among processes; set device.processes=1 (metarun eval can share its tasks)"
        )
    return company(plan.device, tree["plugins"], plan.train.meta_batch)


def assist(ranks: Ranks, tree: Tree, content: dict[str, Any] | None) -> Callable[[], None]:
    """What another process than the first does of the training of `tree`, from a checkpoint's `content`, if any."""
    session = prepare(tree)
    state = session.state
    assert state is not None
    if content:
        checkpoint.restore(state, content, Path("last.pt"))

    def work() -> None:
        def ignore(*said: Any) -> None:
            pass

        _trained(session, state, ranks, log=ignore, save=ignore, tick=ignore, say=ignore)

    return work


class Account:
    """What a run leaves in its folder, and tells its person and its logger, while it is trained.

    `ended` and `report` are what has become of it, for the logger to be told at the end: `close` must be called.
    """

    def __init__(
        self,
        session: Session,
        tree: Tree,
        folder: Path,
        processes: int = 1,
        resumed: bool = False,
        watch: Watch | None = None,
    ) -> None:
        plan, state = session.plan, session.state
        self._session, self._folder, self._watch = session, folder, watch
        self.code, self.ended = 1, "failed"
        self.report: Report | None = None
        began, self._iterations = (state.step, plan.train.iterations) if state is not None else (0, 0)
        other_data = runs.add_session(folder, environment(session.device, processes) | {"data": session.digests})
        self._console = Console(folder / "log.txt", began, self._iterations)
        self._rows = JsonLines(folder / "metrics.jsonl", began)
        label = runs.label(tree)
        tags = (tree["algo"]["name"], tree["dataset"]["name"], tree["model"]["name"])
        self._sink = session.logger.open(RunInfo(folder, label, tags, tree, resumed, self.say))
        self.tick = self._console.tick
        self.say(f"{label} on {describe(session.device, processes)}: {folder}")
        if other_data:
            self.say(f"warning: the {', '.join(other_data)} data is not what this run was started on")
        if state is None:
            self.say(f"{tree['algo']['name']} has nothing to train; its {'validation' if watch else 'test'}:")
            return
        if resumed:
            self.say(f"resumed at step {state.step} of {self._iterations}")
        (folder / "checkpoints").mkdir(exist_ok=True)

    def say(self, text: str) -> None:
        self._console.say(text)

    def log(self, row: dict[str, Any]) -> None:
        for target in (self._rows, self._sink, self._console):
            target.log(row)

    def save(self, which: str, state: TrainState) -> None:
        checkpoint.save(self._folder / "checkpoints" / f"{which}.pt", state)

    def trained(self, heard: int) -> int:
        """It has been trained to its end, 0, or until it heard of a signal, or `HALTED`; the command's code then."""
        self._console.end_progress()
        assert self._session.state is not None
        step = self._session.state.step
        if not heard:
            return 0
        if heard == HALTED:
            self.say(f"ended at step {step} by its sweep")
            self.code, self.ended = 0, "pruned"
            return HALTED
        self.say(f"stopped at step {step}; go on with: metarun train resume={self._folder}")
        self.code, self.ended = GRACEFUL[heard], "stopped"
        return self.code

    def complete(self) -> int:
        self.code, self.ended = 0, "complete"
        return 0

    def close(self) -> None:
        session, name = self._session, self._session.measure.name
        best = session.state.best if session.state is not None else {}
        summary: dict[str, Any] = {"best": best.get(name), "best_step": best.get("step"), "state": self.ended}
        if self._watch is not None:
            summary["objective"] = self._watch.objective()
        if self.report is not None:
            summary |= {f"test/{name}": self.report.score.mean, "test/ci95": self.report.score.ci95}
            summary |= {f"test/{other}": found.mean for other, found in self.report.others.items()}
        self._sink.close(summary, self.code)
        self._rows.close()
        self._console.close()


def _fit(
    session: Session, tree: Tree, folder: Path, others: Company, resumed: bool = False, watch: Watch | None = None
) -> int:
    state, ranks = session.state, others.ranks
    others.way_out = f"go on with: metarun train resume={folder}"
    with contextlib.closing(Account(session, tree, folder, ranks.count, resumed, watch)) as account:
        say, log = account.say, account.log
        if state is not None:
            halt = watch.halt if watch else None
            heard = _trained(session, state, ranks, log=log, save=account.save, tick=account.tick, say=say, halt=halt)
            code = account.trained(heard)
            if heard:
                return code
        if watch is None:
            account.report = report = measure(tree, folder, "best", "test", others, say)
            write(report, folder)
            draw(report, folder, say)
            show(report, say)
            say(f"run: {folder}")
        elif state is None:
            found = measure(tree, folder, "best", "val", others, say)
            log({"step": 0, "split": "val", found.metric: found.score.mean, "ci95": found.score.ci95, "best": True})
        return account.complete()


def _trained(
    session: Session,
    state: TrainState,
    ranks: Ranks,
    *,
    log: Callable[[dict[str, Any]], None],
    save: Callable[[str, TrainState], None],
    tick: Callable[[int], None],
    say: Callable[[str], None],
    halt: Callable[[], bool] | None = None,
) -> int:
    """Trains to the end, 0, or until a signal that any of the ranks receives: its number. The same on all ranks.

    `HALTED` where it is `halt` that ends it, which the first rank alone asks.
    """
    plan, vote, heard = session.plan, Vote(ranks), 0

    def stop() -> bool:
        nonlocal heard
        heard = vote(caught[0] if caught else HALTED if halt is not None and halt() else 0)
        return heard > 0

    with graceful() as caught:
        ended = fit(
            course(session, state, ranks, log=log, save=save, tick=tick, stop=stop, say=say),
            plan.algorithm,
            session.net,
            session.train,
            seed=plan.seed,
            chunk=portion(session, state, ranks, say),
            net_at=networks(plan, session.net),
            ranks=ranks,
            compute=computing(plan, session.device, state, session.train, ranks, say),
            say=say,
        )
    return 0 if ended else heard


def course(
    session: Session,
    state: TrainState,
    ranks: Ranks = ALONE,
    *,
    log: Callable[[dict[str, Any]], None],
    save: Callable[[str, TrainState], None],
    tick: Callable[[int], None],
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> Course:
    """What a run does between its steps, as its config has it."""
    plan, room = session.plan, Room(say)
    return Course(
        state,
        plan.train,
        measure=session.measure,
        checkpoint_every=plan.checkpoint.every,
        validate=lambda state: validated(session, state, plan.train.val_episodes, ranks, room),
        log=log,
        save=save,
        tick=tick,
        stop=stop,
    )


def validated(session: Session, state: TrainState, tasks: int, ranks: Ranks = ALONE, room: Room | None = None) -> Score:
    """The score of the first `tasks` validation tasks."""
    plan = session.plan
    net, meta = session.test_net.at_test(state.running), plan.algorithm.at_test(state.meta)
    batch, measure = plan.device.eval_batch, session.measure
    return score(task_values(plan.algorithm, net, meta, session.val, tasks, batch, measure, ranks, room))


def portion(session: Session, state: TrainState, ranks: Ranks, say: Callable[[str], None]) -> int | None:
    """Tasks of a meta-batch at a time that are asked for (None: all).

    Where that is `auto`, what the memory holds goes into `state.chunk`, and `say` is told if it is not all. A run that
    goes on takes no more of them than before, so that its sums are rounded as they were.
    """
    plan = session.plan
    if plan.device.chunk != "auto":
        state.chunk = None
        return plan.device.chunk
    drawn = session.train(state.step * plan.train.meta_batch, len(ranks.part(plan.train.meta_batch)))
    algorithm = plan.algorithm.at_step(state.step, plan.train.iterations)
    net = networks(plan, session.net)(state.step)

    def gradient(tasks: int) -> None:
        few = EpisodeBatch(*(field[:tasks] for field in drawn))
        meta_gradient(algorithm, net, state.meta, few, running=state.running)
        state.optimizer.zero_grad(set_to_none=True)

    fit_memory(session, [state], drawn, gradient, say)
    return None


def fit_memory(
    session: Session,
    states: Sequence[TrainState],
    drawn: EpisodeBatch,
    gradient: Callable[[int], None],
    say: Callable[[str], None],
) -> None:
    """Puts into the `chunk` of all `states` how many tasks like those `drawn` the memory holds at a time, by trying:
    `gradient(n)` takes that of n tasks of each and keeps nothing."""
    plan, tasks = session.plan, drawn.query_x.shape[0]
    items = drawn.support_x.shape[1] + drawn.query_x.shape[1]
    most = plan.task.most_way * (plan.task.most_shot + plan.task.query)
    scale = 1.0 if plan.algorithm.supervised or not plan.task.varies else max(most / items, 1.0)
    held = at_a_time(gradient, tasks, session.device, scale)
    for state in states:
        state.chunk = smaller(held, state.chunk)
    if (least := reduce(smaller, (state.chunk for state in states))) is not None:
        say(f"the memory holds {least} of {tasks} tasks at a time")


@contextlib.contextmanager
def graceful() -> Iterator[list[int]]:
    """Collects the first SIGINT or SIGTERM instead of dying of it; a second one has its usual effect."""
    caught: list[int] = []
    usual: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        for n, handler in usual.items():
            signal.signal(n, handler)

    for number in GRACEFUL:
        usual[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
