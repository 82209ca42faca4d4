"""`metarun eval`: trained runs on fixed episodes. Writes a new folder, touches nothing of the runs'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from glob import glob, has_magic
from pathlib import Path

import torch

from metarun import checkpoint, config, runs
from metarun.build import network, sampler, serves, trains
from metarun.company import Company, company
from metarun.comparison import Seeds, Versus, alike
from metarun.config import Plan, Tree
from metarun.confusion import Confusion
from metarun.device import budget, pick
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.evaluate import Outcomes, joined, outcomes, queries_see_one_another, score
from metarun.engine.memory import Room
from metarun.pictures import Gallery
from metarun.report import Report, draw, show, write
from metarun.settings import DeviceSettings
from metarun.types import Bank, InputError, Meta, Net, Sampler

METHOD = ("steps", "statistics", "classifier")
"""What `metarun eval` may change of the method; its other changes are of the protocol."""


@dataclass
class Banks:
    """The data of one split, each of it loaded once."""

    split: str
    _loaded: dict[str, tuple[Bank, str]] = field(default_factory=dict)

    def of(self, plan: Plan) -> tuple[Bank, str]:
        """On the plan's device, with what tells it from other data."""
        key = repr((plan.dataset, plan.place))
        if key not in self._loaded:
            bank = plan.dataset.load(self.split, plan.place)
            digest = bank.digest()
            device = pick(plan.device)
            self._loaded[key] = bank.to(device, budget(plan.device, device)), digest
        return self._loaded[key]


@dataclass(frozen=True)
class Subject:
    """A run, rebuilt to be evaluated: checked and loaded, nothing computed yet. See `Report` for what is not here."""

    tree: Tree
    plan: Plan
    folder: Path
    which: str | None
    step: int
    trained: int
    split: str
    net: Net
    meta: Meta
    bank: Bank
    data: str
    episodes: Sampler
    trained_by: Tree | None


def rebuilt(tree: Tree, folder: Path, which: str, banks: Banks, classifier: str | None = None) -> Subject:
    """The run in `folder` with the config `tree` at its checkpoint `which`; `classifier` is to take its method's place.

    Raises `InputError` for what cannot be evaluated so.
    """
    plan = config.read(tree)
    bank, data = banks.of(plan)
    episodes = sampler(plan, banks.split, bank)
    net = network(plan, episodes)
    device = pick(plan.device)
    fresh = plan.algorithm.init(net, torch.Generator().manual_seed(plan.seed))
    trained = trains(plan.algorithm, fresh)
    trained_by = None
    if classifier is not None:
        trained_by = tree["algo"] if trained else None
        tree = tree | {"algo": _classical(tree["algo"], classifier)}
        plan = config.read(tree)
        fresh = plan.algorithm.init(net, torch.Generator().manual_seed(plan.seed))
    serves(plan, tree, net, bank.kind, "eval")
    wanted, running = plan.algorithm.at_test(fresh), plan.algorithm.fresh_running(net)
    step = reached = 0
    if trained:
        path = folder / "checkpoints" / f"{which}.pt"
        content = checkpoint.load(path)
        found = plan.algorithm.at_test(content["meta"]), content["running"]
        if trained_by:  # of what another method has trained, the network
            found = tuple({n: w for n, w in part.items() if n in own} for part, own in zip(found, (wanted, running)))
            if gone := [name for name in wanted if name not in found[0]]:
                raise InputError(
                    f"eval.classifier={classifier}: {trained_by['name']} has trained no '{gone[0]}', without which "
                    "its network gives no features; leave eval.classifier out"
                )
        wanted, running = (checkpoint.match(part, own, path) for part, own in zip(found, (wanted, running)))
        last = path.with_name("last.pt")
        step = content["step"]
        reached = checkpoint.load(last)["step"] if last.exists() else step
    meta, running = ({n: w.to(device) for n, w in part.items()} for part in (wanted, running))
    return Subject(
        tree,
        plan,
        folder,
        which if trained else None,
        step,
        reached,
        banks.split,
        net.at_test(running),
        meta,
        bank,
        data,
        episodes,
        trained_by,
    )


def _classical(algo: Tree, classifier: str) -> Tree:
    """The node of a classifier on a run's features: those that the run is of itself, or a network's."""
    own = algo if algo["name"] == config.CLASSIFIER else {"name": config.CLASSIFIER, "features": "network"}
    return own | {"classifier": classifier}


def examined(subject: Subject, others: Company, say: Callable[[str], None] = print) -> Outcomes:
    """The evaluation itself. `say` is told where the memory holds fewer tasks than it was to take at a time."""
    running = subject.net.running or {}
    others.call("examine", tree=subject.tree, split=subject.split, meta=subject.meta, running=running)
    return _outcomes(subject.plan, subject.net, subject.meta, subject.bank, subject.episodes, others.ranks, Room(say))


def assist(ranks: Ranks, tree: Tree, split: str, meta: Meta, running: Meta) -> Callable[[], None]:
    """What another process than the first does of the evaluation of a `Subject`, of which this is what it needs."""
    plan = config.read(tree)
    bank, _ = Banks(split).of(plan)
    episodes = sampler(plan, split, bank)
    device = pick(plan.device)
    meta, running = ({n: w.to(device) for n, w in part.items()} for part in (meta, running))
    net = network(plan, episodes).at_test(running)
    return lambda: _outcomes(plan, net, meta, bank, episodes, ranks, Room()) and None


def _outcomes(plan: Plan, net: Net, meta: Meta, bank: Bank, episodes: Sampler, ranks: Ranks, room: Room) -> Outcomes:
    return outcomes(
        plan.algorithm,
        net,
        meta,
        episodes,
        plan.eval.episodes,
        plan.device.eval_batch,
        bank.measures,
        seed=plan.seed,
        workers=plan.device.threads if ranks == ALONE else torch.get_num_threads(),
        ranks=ranks,
        room=room,
    )


def report(subject: Subject, found: Outcomes) -> Report:
    plan, net = subject.plan, subject.net
    curve = [score(column) for column in found.values.T]
    true, predicted = found.true, found.predicted
    first, *others = (measure.name for measure in subject.bank.measures)
    return Report(
        curve[-1],
        subject.tree,
        subject.folder,
        subject.which,
        subject.step,
        subject.trained,
        subject.split,
        plan.algorithm.eval_steps,
        plan.algorithm.statistics_used(net),
        queries_see_one_another(plan.algorithm, net, subject.meta, subject.episodes),
        first,
        found.final.tolist(),
        curve if len(curve) > 1 else (),
        Confusion.of(subject.bank.names, true, predicted) if true is not None and predicted is not None else None,
        subject.data,
        subject.trained_by,
        dict(zip(others, found.also.T.tolist(), strict=True)),
        {measure.name: measure.note for measure in subject.bank.measures if measure.note},
        Gallery(plan.algorithm, net, subject.meta, subject.episodes),
    )


def measure(tree: Tree, folder: Path, which: str, split: str, others: Company, say: Callable[[str], None]) -> Report:
    """Evaluates checkpoint `which` of a run on the fixed episodes of `split`. `say`: as in `examined`."""
    subject = rebuilt(tree, folder, which, Banks(split))
    return report(subject, examined(subject, others, say))


def evaluate(asked: Tree, into: Path | None) -> int:
    """`metarun eval`: one run, two on the same tasks, or many that differ in their seed.

    Its results go into the folder `into`, or a new one.
    """
    how = _over_seeds if asked["runs"] else _versus if asked["versus"] else _one
    with company(DeviceSettings(**asked["device"]), asked["plugins"]) as others:
        return how(asked, Banks(asked["eval"]["split"]), into, others)


def _one(asked: Tree, banks: Banks, into: Path | None, others: Company) -> int:
    folder = runs.find(asked["run"], "run")
    subject = rebuilt(changed(folder, asked), folder, asked["checkpoint"], banks, asked["eval"]["classifier"])
    own = report(subject, examined(subject, others))
    out = runs.claim("eval", own.tree, into)
    write(own, out)
    draw(own, out, print)
    show(own, print)
    return _told(out)


def _versus(asked: Tree, banks: Banks, into: Path | None, others: Company) -> int:
    folder, other = runs.find(asked["run"], "run"), runs.find(asked["versus"], "versus")
    a = rebuilt(changed(folder, asked), folder, asked["checkpoint"], banks, asked["eval"]["classifier"])
    tree = changed(other, asked, METHOD) | {"eval": a.tree["eval"]}
    try:
        bank, data = banks.of(config.read(tree))
        if bank.kind != a.bank.kind:
            raise InputError(f"its tasks are {bank.kind}, those of run={asked['run']} {a.bank.kind}; nothing compares")
        if data != a.data:
            raise InputError(f"its {banks.split} data is not that of run={asked['run']}; compare runs on the same data")
        b = rebuilt(tree, other, asked["checkpoint"], banks)
    except InputError as e:
        raise InputError(f"versus={asked['versus']}: {e}") from None
    both = Versus(*(report(subject, examined(subject, others)) for subject in (a, b)))
    out = runs.claim("eval", both.a.tree, into)
    write(both.a, out, both.json(), {"versus": both.b})
    draw(both.a, out, print, both.lines)
    both.show(print)
    return _told(out)


def _over_seeds(asked: Tree, banks: Banks, into: Path | None, others: Company) -> int:
    folders = many(asked["runs"])
    trees = [changed(folder, asked) for folder in folders]
    folders, trees = zip(*sorted(zip(folders, trees), key=lambda pair: pair[1]["seed"]))
    alike(trees, folders)
    which, classifier = asked["checkpoint"], asked["eval"]["classifier"]
    subjects = [rebuilt(tree, folder, which, banks, classifier) for tree, folder in zip(trees, folders, strict=True)]
    if other := [subject.folder for subject in subjects if subject.data != subjects[0].data]:
        raise InputError(f"runs: the {banks.split} data of {other[0]} is not that of {folders[0]}")
    found = [examined(subject, others) for subject in subjects]
    each = [report(*pair) for pair in zip(subjects, found, strict=True)]
    average = replace(
        report(subjects[0], averaged(found)),
        step=None,
        trained=min(subject.trained for subject in subjects),
    )
    seeds = Seeds(each, average)
    out = runs.claim("eval", average.tree, into)
    write(average, out, seeds.json(), seeds.named)
    draw(average, out, print, {f"mean of {len(each)} runs": average}, each)
    seeds.show(print)
    return _told(out)


def averaged(found: Sequence[Outcomes]) -> Outcomes:
    """Of each task, the mean of each measure over runs; of its queries, what every run took them for."""
    values, also = (torch.stack(numbers).mean(0) for numbers in ([o.values for o in found], [o.also for o in found]))
    return joined(found)._replace(values=values, also=also)


def changed(folder: Path, asked: Tree, without: Sequence[str] = ()) -> Tree:
    """The config of a run with what an evaluation asks to be otherwise, but for the changes named in `without`."""
    tree = runs.read_config(folder)
    tree["device"] = asked["device"]
    if asked["data_root"]:
        tree["data_root"] = asked["data_root"]
    changes = {k: v for k, v in asked["eval"].items() if v is not None and k != "split" and k not in without}
    steps, statistics, classifier = (changes.pop(k, None) for k in METHOD)
    tree["eval"] = tree["eval"] | changes
    if steps is not None:
        if classifier or "eval_steps" not in tree["algo"]:
            raise InputError(
                f"eval.steps={steps}: {classifier or tree['algo']['name']} takes no inner steps at test time"
            )
        tree["algo"] = tree["algo"] | {"eval_steps": steps}
    if statistics is not None:
        tree["model"] = tree["model"] | {"statistics": statistics}
    return tree


def many(given: str | Sequence[str]) -> list[Path]:
    """The run folders that `runs=` names: paths, and patterns of paths that may match other things as well."""
    found: dict[Path, Path] = {}
    for pattern in [given] if isinstance(given, str) else given:
        if has_magic(pattern):
            matches = [Path(p) for p in sorted(glob(str(Path(pattern).expanduser()), recursive=True))]  # noqa: PTH207 (Path.glob takes no absolute pattern)
            folders = [p for p in matches if (p / runs.CONFIG).is_file()]
            if not folders:
                none = "matches no run folder" if matches else "matches nothing"
                raise InputError(f"runs={pattern}: {none}; a run folder is what metarun train printed last")
        else:
            folders = [runs.find(pattern, "runs")]
        found |= {folder.resolve(): folder for folder in folders}
    return list(found.values())


def _told(out: Path) -> int:
    print(f"eval: {out / 'eval.json'}")
    return 0
