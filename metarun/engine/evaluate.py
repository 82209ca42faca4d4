"""What a method is worth over a fixed list of tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.counter import mix
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.host import Pool
from metarun.engine.memory import Room
from metarun.engine.portions import tasks_at_once
from metarun.engine.step import per_task
from metarun.measures import Measure
from metarun.types import Algorithm, Episode, EpisodeBatch, Episodes, HostSide, Meta, Net, Sampler


class Score(NamedTuple):
    """A measure's mean over tasks and the half-width of its 95 % interval: 1.96 sd / sqrt(tasks)."""

    mean: float
    ci95: float
    tasks: int


class Outcomes(NamedTuple):
    """What came of each task, on the CPU.

    values      (tasks, points) float64, the first measure after 0, 1, ... inner steps; one point for a method without
    also        (tasks, measures - 1) float64, the others at the end
    true        (tasks, query) the class of each query, as a number of its bank's; None for regression
    predicted   (tasks, query) the class that it was taken for
    """

    values: Tensor
    also: Tensor
    true: Tensor | None = None
    predicted: Tensor | None = None

    @property
    def final(self) -> Tensor:
        """(tasks,)"""
        return self.values[:, -1]


def values_of(measures: Sequence[Measure], prediction: Tensor, y: Tensor) -> Tensor:
    """(measures,) float64 of one task"""
    return torch.stack([measure.of(prediction, y).double() for measure in measures])


def over_tasks(
    f: Callable[[Episode], Tensor],
    episodes: Episodes,
    tasks: int,
    batch: int,
    ranks: Ranks = ALONE,
    room: Room | None = None,
) -> Tensor:
    """(tasks, ...) f of each of the first `tasks` episodes, without a graph, `batch` at a time or as many as there is
    `room` for.

    Ranks take whole batches in turn: a task then has the same neighbours, and the same bits, however many there are.
    """
    room = room or Room()

    def some(first: int, count: int) -> Tensor:
        return per_task(f, episodes(first, count))

    with torch.no_grad():
        firsts = ranks.dealt(range(0, tasks, batch))
        mine = [torch.cat([*room.parts(some, first, min(batch, tasks - first))]) for first in firsts]
        return torch.cat(ranks.collected(mine))


def task_values(
    algorithm: Algorithm,
    net: Net,
    meta: Meta,
    episodes: Episodes,
    tasks: int,
    batch: int | None,
    measure: Measure,
    ranks: Ranks = ALONE,
    room: Room | None = None,
) -> Tensor:
    """(tasks,) the measure of the method's predictions in each of the first `tasks` episodes.

    They are taken `batch` at a time (None: as many as `tasks_at_once` says), or as many as there is `room` for.
    """
    portion: int = ranks.shared(tasks_at_once(batch, episodes, tasks, meta))

    def judged(e: Episode) -> Tensor:
        return measure.of(algorithm.predict(net, meta, e), e.query_y)

    return over_tasks(judged, episodes, tasks, portion, ranks, room)


def outcomes(
    algorithm: Algorithm,
    net: Net,
    meta: Meta,
    episodes: Sampler,
    tasks: int,
    batch: int | None,
    measures: Sequence[Measure],
    *,
    seed: int = 0,
    workers: int | None = None,
    ranks: Ranks = ALONE,
    room: Room | None = None,
) -> Outcomes:
    """All there is to know of the first `tasks` episodes, `batch` at a time (None: as many as `tasks_at_once` says), or
    as many as there is `room` for.

    They are judged by `measures`, and followed along the inner steps by the first of them. A method that answers
    outside torch does so in `workers` processes (None: one for each core), and draws what is random in it from `seed`
    and the task's number. `ranks` take whole batches in turn, and all come to know everything.
    """
    pool, room = Pool(workers), room or Room()
    portion: int = ranks.shared(tasks_at_once(batch, episodes, tasks, meta))

    def some(first: int, count: int) -> Outcomes:
        drawn, classes = episodes(first, count), episodes.classes(first, count)
        if isinstance(algorithm, HostSide):
            found = _fitted(algorithm, net, meta, drawn, measures, _seeds(seed, first, count), pool)
        else:
            found = _followed(algorithm, net, meta, drawn, measures)
        return _told(*found, drawn.query_y, classes)

    with torch.no_grad():
        firsts = ranks.dealt(range(0, tasks, portion))
        mine = [joined([*room.parts(some, first, min(portion, tasks - first))]) for first in firsts]
    return joined([Outcomes(*part) for part in ranks.collected([tuple(part) for part in mine])])


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """One after another."""
    values, also, true, predicted = zip(*parts, strict=True)
    numbers = torch.cat(values), torch.cat(also)
    return Outcomes(*numbers) if true[0] is None else Outcomes(*numbers, torch.cat(true), torch.cat(predicted))


Found = tuple[Tensor, Tensor, Tensor]
"""(tasks, points) the first measure along the inner steps; (tasks, measures) and (tasks, query) labels at their end"""


def _followed(algorithm: Algorithm, net: Net, meta: Meta, drawn: EpisodeBatch, measures: Sequence[Measure]) -> Found:
    def one(e: Episode) -> Found:
        each = algorithm.trajectory(net, meta, e)
        values = [values_of(measures[:1], prediction, e.query_y)[0] for prediction in each]
        return torch.stack(values), values_of(measures, each[-1], e.query_y), each[-1].argmax(-1)

    return per_task(one, drawn)


def _fitted(
    algorithm: HostSide,
    net: Net,
    meta: Meta,
    drawn: EpisodeBatch,
    measures: Sequence[Measure],
    seeds: list[int],
    pool: Pool,
) -> Found:
    """The same for a method outside torch, whose logits are 1 for the class that it says."""
    support, query = per_task(lambda e: algorithm.embed(net, meta, e), drawn)
    arrays = [x.cpu().numpy() for x in (support, drawn.support_y, query)]
    answers = pool([(algorithm.make(s), *rows) for s, *rows in zip(seeds, *arrays, strict=True)])
    labels = torch.stack([drawn.query_y.new_tensor(said) for said in answers])
    logits = F.one_hot(labels, net.outputs).double()
    ends = torch.stack([values_of(measures, *one) for one in zip(logits, drawn.query_y, strict=True)])
    return ends[:, :1], ends, labels


def _seeds(seed: int, first: int, count: int) -> list[int]:
    """32 bits for each task, the same whatever the batch it is in"""
    return (mix(torch.arange(first, first + count) + mix(torch.tensor(seed))) & 0xFFFFFFFF).tolist()


def _told(values: Tensor, ends: Tensor, labels: Tensor, y: Tensor, classes: Tensor | None) -> Outcomes:
    numbers = values.cpu(), ends[:, 1:].cpu()
    if classes is None:
        return Outcomes(*numbers)
    return Outcomes(*numbers, classes.gather(1, y).cpu(), classes.gather(1, labels).cpu())


def queries_see_one_another(algorithm: Algorithm, net: Net, meta: Meta, episodes: Episodes) -> bool:
    """Whether predictions are transductive, by trying: the first test task's first query among other queries."""
    task = episodes(0, 1)
    if task.query_x.shape[1] < 2:
        return False
    others = task._replace(query_x=torch.cat([task.query_x[:, :1], 0.5 * (1 - task.query_x[:, 1:])], dim=1))

    def first_query(e: Episode) -> Tensor:
        if isinstance(algorithm, HostSide):
            return algorithm.embed(net, meta, e)[1][0]
        return algorithm.predict(net, meta, e)[0]

    with torch.no_grad():
        once, again, moved = (per_task(first_query, drawn).double() for drawn in (task, task, others))
    noise = (again - once).norm()  # a GPU may add up in another order each time
    # Written so that what is not a number counts as seen.
    return not bool((moved - once).norm() <= 1e-6 * once.norm() + 100 * noise)


def score(values: Tensor) -> Score:
    """(tasks,) -> Score; sd is the sample standard deviation. Waits for the device."""
    values = values.double()
    sd = float(values.std()) if len(values) > 1 else 0.0
    return Score(float(values.mean()), 1.96 * sd / sqrt(len(values)), len(values))
