"""`metarun sweep`: from words to a search that is over."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from time import monotonic
from typing import Any

from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from metarun import run, runs
from metarun.config import Tree, flat
from metarun.device import pick
from metarun.engine.step import meta_gradient
from metarun.files import write_json
from metarun.hints import did_you_mean
from metarun.measures import MEASURES
from metarun.memory import free_bytes
from metarun.resume import FREE
from metarun.run import GRACEFUL
from metarun.schema import Complaints, checked
from metarun.session import Session, prepare
from metarun.settings import DeviceSettings
from metarun.sweep.composer import Composer
from metarun.sweep.driver import Driver
from metarun.sweep.ending import Outcome, end
from metarun.sweep.executor import Executor, Local, Needs, cores
from metarun.sweep.executor import executor as executor_of
from metarun.sweep.nursery import Nursery
from metarun.sweep.search import Search, serves
from metarun.sweep.settings import SweepSettings
from metarun.sweep.space import count, holds, shown, split, values
from metarun.sweep.study import ABOUT, FILE, damaged, locked, opened, read_json, rebuild
from metarun.sweep.table import Board
from metarun.sweep.trial import Dimension, Goal, Interval, Params, Space
from metarun.sweep.words import near, overrides, typed
from metarun.together import alike
from metarun.types import InputError, TrainingError

ACTIONS = ("search", "rebuild")
OWN = ("sweep", "action")
"""what of the config is a sweep's own"""
TRIALS = 50
"""that are made where neither `sweep.trials` nor the space says how many"""
IDENTITY = ("sampler", "pruner", "warmup", "reduction", "startup", "seeds", "seed", "enqueue")
"""settings of a sweep that make it another one; the others may change when it goes on"""
PREPARED = 24
"""settings whose data and network are tried before the first trial starts"""
CHECKED_ON = {"kind": "cpu", "precision": "fp32", "processes": 1, "threads": 1}
"""where that is done: the GPUs are the runs'"""
MEMORY = 1.5e9
"""bytes that are reckoned for each run on a CPU, where it is ours to say how many there are"""
GONE = "nothing"


@dataclass(frozen=True)
class Typed:
    """What stood on the command line, and what of it only the command line knows.

    groups      the names of all config groups
    unknown     what to say of a setting that there is not
    replaced    words with Hydra's syntax for new keys where they need it
    nursery     it is importing already what runs on this machine will need
    """

    words: Sequence[str]
    parsed: Sequence[Override]
    groups: Sequence[str]
    unknown: Callable[[str], str]
    replaced: Callable[[list[str]], list[str]]
    started: Callable[[], None]
    nursery: Nursery
    config_dir: str | None = None


def sweep(asked: Typed) -> int:
    """`metarun sweep`: 0 when every trial is over, 1 when none was completed, 130 or 143 after a signal.

    Raises `InputError`, before anything starts, for what cannot be searched so.
    """
    own, words, space = _parts(asked)
    action, settings, executor, written = _settings(own, words, space, asked)
    said = {word.partition("=")[0].lstrip("+") for word in words}
    space = {key: dimension for key, dimension in _written(written).items() if key not in said} | space
    if not space:
        raise InputError(
            "nothing is searched; give a setting several values, as in train.lr=1e-4,1e-3 or "
            "'train.lr=tag(log,interval(1e-4,1e-2))'"
        )
    composer = Composer(words, space, asked.groups, asked.replaced)
    if unknown := composer.unknown():
        raise InputError("\n".join(asked.unknown(key) for key in unknown))
    serves(settings, space, composer.conditional)
    settings = replace(settings, enqueue=[_known(params, space) for params in settings.enqueue])
    if isinstance(executor, Local):
        executor = replace(executor, nursery=asked.nursery)
    else:
        asked.nursery.close()
    return _checked(action, settings, executor, composer, asked)


def _checked(action: str, settings: SweepSettings, executor: Executor, composer: Composer, asked: Typed) -> int:
    """All that can be wrong is looked for, and then the search begins."""
    space, trees = composer.space, _configs(composer)
    tree, limit = trees[0], _limit(settings, composer)
    if settings.vectorize > 1:
        alike(tree)
    needs, threads = needs_of(tree, settings, limit, isinstance(executor, Local))
    goal, validations = _goal(_prepared(trees), trees, settings)
    about = _about(settings, space, goal, tree)
    folder = (runs.OUTPUTS / "sweep" / (settings.name or _name(settings, about, tree))).resolve()
    if action == "rebuild":
        return _rebuild(folder)
    _same(folder, about)
    search = Search(settings, space, goal, composer.groups, composer.there, validations)
    limit = limit if search.size is None else min(limit, search.size)
    asked.started()
    folder.mkdir(parents=True, exist_ok=True)

    def config_of(params: Params, seed: int) -> Tree:
        made = composer.tree(params, None if settings.seeds == 1 else tree["seed"] + seed)
        return fitted(made, threads, folder.name)

    workers = None if settings.workers == "auto" else settings.workers
    at_most = max(1, limit * settings.seeds)
    with locked(folder), closing(opened(folder)) as study:
        write_json(folder / ABOUT, about)
        search.replay(study.events)
        with closing(executor.open(replace(needs, folder=folder), workers, at_most)) as pool:
            seconds = None if settings.timeout is None else 60 * settings.timeout
            length = tree["train"]["iterations"]
            board = Board(folder / "log.txt", limit, pool.slots, goal, study.trials, length, seconds)
            driver = Driver(folder, settings, goal, limit, search, study, pool, board, config_of)
            if settings.vectorize > 1:
                driver.alike = alike
            with closing(board), run.graceful() as caught:
                complaint = _searched(driver, board, seconds, caught)
                if caught:
                    board.say(f"stopped; type the same words to go on with {near(folder)}")
                    return GRACEFUL[caught[0]]
                words, where = composer.words, near(folder)
                found = Outcome(where, study.trials, space, goal, words, settings.seeds, asked.config_dir)
                code = end(found, pool, board.say, lambda: bool(caught))
                if complaint is not None:
                    raise complaint
                return GRACEFUL[caught[0]] if caught else code


def _searched(driver: Driver, board: Board, seconds: float | None, caught: list[int]) -> TrainingError | None:
    """Drives a sweep as far as it may go; what to complain of once the rest is said."""
    until = None if seconds is None else monotonic() + seconds
    try:
        over = driver.drive(lambda: bool(caught) or (until is not None and monotonic() > until))
        if not over and not caught:
            board.say("sweep.timeout is over; with more of it the same words go on")
    except TrainingError as e:
        return e
    finally:
        driver.rest()
        board.finish()
    return None


def _limit(settings: SweepSettings, composer: Composer) -> int:
    """Trials in all."""
    if settings.trials is not None:
        return settings.trials
    there = count(composer.space)
    if there is None:
        return TRIALS
    return there if settings.sampler == "grid" else min(there, TRIALS)


def _parts(asked: Typed) -> tuple[list[str], list[str], dict[str, Dimension]]:
    """The words about the sweep itself, those that every run has, and what is searched."""
    pairs = [*zip(asked.words, asked.parsed, strict=True)]
    own = [(word, o) for word, o in pairs if o.key_or_group in OWN or o.key_or_group.startswith(("sweep.", "sweep/"))]
    if swept := [word for word, o in own if o.is_sweep_override()]:
        raise InputError(f"{swept[0]}: is the sweep's own and takes one value; what is searched are settings of runs")
    rest = [pair for pair in pairs if pair not in own]
    words, space = split([word for word, _ in rest], [o for _, o in rest])
    return [word for word, _ in own], words, space


def _written(node: Any) -> dict[str, Dimension]:
    """The space that a file has, in the syntax of the command line; a list is a choice."""
    if not isinstance(node, Mapping):
        raise InputError(f"sweep.space={node!r}: must be a mapping of settings to what they are searched over")
    words = overrides({key: ",".join(map(typed, v)) if isinstance(v, list) else v for key, v in flat(node).items()})
    rest, space = split(words, OverridesParser.create().parse_overrides(words))
    if rest:
        raise InputError(f"sweep.space: {rest[0]} is one value; give several, or set it outside of sweep.space")
    return space


def _settings(own: list[str], words: list[str], space: Space, asked: Typed) -> tuple[str, SweepSettings, Executor, Any]:
    """What is to be done, how, where, and what a file would have searched."""
    first = overrides({key: values(space[key])[0] for key in space if key in asked.groups})
    cfg = compose("sweep", [*words, *first, *own])
    tree: Any = OmegaConf.to_container(cfg, resolve=True)
    node, action = tree["sweep"], tree["action"]
    executor, name, written = (node.pop(key) for key in ("executor", "name", "space"))
    wrong = Complaints()
    good = wrong.about(lambda: checked(SweepSettings, node, "sweep"))
    made_of = wrong.about(lambda: executor_of(executor))
    if action not in ACTIONS:
        wrong.lines.append(f"action={action}: must be one of {', '.join(ACTIONS)}")
    if name is not None and (not str(name) or "/" in str(name) or str(name).startswith(".")):
        wrong.lines.append(f"sweep.name={name}: names a folder under outputs/sweep; letters, digits, - and _ will do")
    wrong.end()
    settings = SweepSettings(**good, name=None if name is None else str(name))
    if settings.seeds > 1 and "seed" in space:
        raise InputError("sweep.seeds: seed is searched already; leave one of them out")
    return action, settings, made_of, written


def _known(params: Any, space: Space) -> Params:
    """A setting to try first. Raises `InputError` for what is not in the space."""
    if not isinstance(params, Mapping):
        raise InputError(f"sweep.enqueue: {params!r} is no mapping; write [{{train.lr: 1e-3}}]")
    known = {str(key): value for key, value in flat(params).items()}
    for key, value in known.items():
        if key not in space:
            raise InputError(f"sweep.enqueue: {key} is not searched; {did_you_mean(key, space)}")
        if not holds(space[key], value):
            raise InputError(f"sweep.enqueue: {key}={value} is not among {shown(space[key])}")
    return known


def _configs(composer: Composer) -> list[Tree]:
    """Configs that stand for all that may be asked, the first with nothing special about it.

    Raises `InputError` with every complaint there is about them.
    """
    wrong, trees = Complaints(), list[Tree]()
    for params in composer.samples():
        if (tree := wrong.about(lambda params=params: composer.tree(params))) is not None:
            trees.append(tree)
    wrong.lines = [_with_hint(line, composer.space) for line in wrong.lines]
    wrong.end()
    return trees


def _prepared(trees: Sequence[Tree]) -> Session:
    """Tries their data and networks; the first. Raises `InputError` with every complaint there is."""
    wrong, kept = Complaints(), dict[str, Tree]()
    for tree in trees:  # of those that differ in real numbers alone, one
        kept.setdefault(json.dumps(_without_reals(tree), sort_keys=True), tree)
    first, *others = [tree | {"device": tree["device"] | CHECKED_ON} for tree in [*kept.values()][:PREPARED]]
    session = wrong.about(lambda: prepare(first))
    for tree in others:
        wrong.about(lambda tree=tree: prepare(tree) and None)  # not to be held beside one another
    wrong.end()
    return session


def _without_reals(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_reals(value) for key, value in node.items() if key != "seed"}
    return "real" if isinstance(node, float) else node


def _with_hint(line: str, space: Space) -> str:
    key = line.partition("=")[0]
    dimension = space.get(key)
    if isinstance(dimension, Interval) and not dimension.whole and "whole number" in line:
        return f"{line}; write {key}={shown(replace(dimension, whole=True))}"
    return line


def _goal(session: Session, trees: list[Tree], settings: SweepSettings) -> tuple[Goal, int]:
    """What trials are judged by, and how many validations the longest makes. Raises `InputError`."""
    metric = settings.metric or session.measure.name
    metric = metric if "/" in metric else f"val/{metric}"
    split, _, name = metric.partition("/")
    if split == "test":
        raise InputError(f"sweep.metric={metric}: test classes choose nothing; take val/{name}")
    if metric not in (there := _metrics(session)):
        raise InputError(f"sweep.metric={metric}: no run here reports it; {did_you_mean(metric, there)}")
    if settings.direction is None and name not in MEASURES and name not in ("loss", "ci95"):
        raise InputError(f"sweep.direction: say whether more of {metric} is better: maximize or minimize")
    better = MEASURES[name].higher_is_better if name in MEASURES else False
    lengths = [ceil(tree["train"]["iterations"] / tree["train"]["val_every"]) for tree in trees]
    return Goal(metric, better if settings.direction is None else settings.direction == "maximize"), max(lengths)


def _metrics(session: Session) -> list[str]:
    """What the rows of a run hold."""
    found = [f"val/{session.measure.name}", "val/ci95"]
    if session.state is None:
        return found
    plan = session.plan
    algorithm = plan.algorithm.at_step(0, plan.train.iterations)
    metrics, _ = meta_gradient(algorithm, session.net, session.state.meta, session.train(0, 1), None, {})
    return found + [f"train/{name}" for name in (*metrics, "lr", "rate")]


def _about(settings: SweepSettings, space: Space, goal: Goal, tree: Tree) -> Tree:
    """What makes a sweep this one: what is searched, how, and what all its runs have in common."""
    common = {
        key: value
        for key, value in flat({node: value for node, value in tree.items() if node not in FREE}).items()
        if key not in FREE and key not in space and key.partition(".")[0] not in space and key != "seed"
    }
    seed = {} if "seed" in space else {"seed": tree["seed"]}
    searched = {key: shown(dimension) for key, dimension in space.items()}
    how = {key: value for key, value in asdict(settings).items() if key in IDENTITY}
    about = {"space": searched, "goal": asdict(goal), "sweep": how, "runs": common | seed}
    return json.loads(json.dumps(about))


def _name(settings: SweepSettings, about: Tree, tree: Tree) -> str:
    """The same for the same words, whatever their order: `omniglot-maml-5w1s-tpe-3f9a1c`"""
    digest = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:6]
    return f"{runs.label(tree)}-{settings.sampler}-{digest}"


def _same(folder: Path, about: Tree) -> None:
    """Raises `InputError` where `folder` holds another sweep, saying how it differs."""
    if not (folder / ABOUT).exists():
        if (folder / FILE).exists():
            raise damaged(folder / FILE, f"there is no {ABOUT} beside it")
        return
    before = read_json(folder / ABOUT)
    if not isinstance(before, dict):
        raise damaged(folder / ABOUT, "it cannot be read")
    if before != about:
        old, new = flat(before), flat(about)
        keys = [key for key in {**old, **new} if old.get(key, GONE) != new.get(key, GONE)]
        told = [f"{key.partition('.')[2]}: {old.get(key, GONE)}, now {new.get(key, GONE)}" for key in keys[:3]]
        names = (f"{folder.name}-{n}" for n in itertools.count(2))
        free = next(name for name in names if not folder.with_name(name).exists())
        raise InputError(f"{folder} holds another sweep ({'; '.join(told)}); name this one: sweep.name={free}")


def _rebuild(folder: Path) -> int:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such sweep to rebuild; type the words that it was started with")
    with locked(folder):
        trials = rebuild(folder)
    print(f"{folder / FILE}: made anew from the runs of {trials} trials; type the sweep again to go on with it")
    return 0


def needs_of(tree: Tree, settings: SweepSettings, limit: int, here: bool) -> tuple[Needs, int | None]:
    """What each run needs, and the threads that it is to be given where its config leaves that open.

    `here`: runs are on this machine; another one has the device that is asked for, and we cannot see how many.
    """
    import torch

    device = DeviceSettings(**tree["device"])
    own = pick(device) if here else None
    on_gpu = device.kind != "cpu" if own is None else own.type == "cuda"
    room = cores() if here else 1
    gpus = max(1, torch.cuda.device_count()) if own is not None and on_gpu else 1
    ranks = device.processes if isinstance(device.processes, int) else gpus if on_gpu else room
    if settings.workers != "auto":
        slots = settings.workers
    elif on_gpu:
        slots = gpus * settings.per_gpu // ranks
    else:
        free = None if own is None else free_bytes(own)
        slots = room // ranks if free is None else min(room // ranks, int(free // MEMORY))
    slots = max(1, min(slots, limit * settings.seeds))
    threads = device.threads or max(1, room // (slots * ranks))
    share = (ranks if ranks > 1 else 1 / settings.per_gpu) if on_gpu else 0
    return Needs(share, threads * ranks, runs.OUTPUTS.resolve()), threads if device.threads is None else None


def fitted(tree: Tree, threads: int | None, group: str | None) -> Tree:
    """A run's config as its place among others would have it: its threads, and its group where its logger has one."""
    out = dict(tree)
    if threads is not None:
        out["device"] = tree["device"] | {"threads": threads}
    if group is not None:
        among = {"group": group, "job_type": "trial"}
        ours = {key: value for key, value in among.items() if tree["logger"].get(key, "") is None}
        out["logger"] = tree["logger"] | ours
    return out
