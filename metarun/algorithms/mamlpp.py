"""MAML++: MAML with what makes it train steadily, each part with a switch of its own.

    w_k+1 = w_k - a_k * dL_support(w_k)/dw      for k = 0 ... K-1; a_k one rate per weight tensor
    min over w, a of  sum over tasks of  sum over k of  v_k * L_query(w_k+1)

Antoniou, Edwards & Storkey 2019, section 4:

    learn_rates             the a_k are learned, from `inner_lr` on ("LSLR")
    multi_step_loss         v starts as 1/K each and moves to the last step until meta-update `multi_step_iterations`,
                            after which the last step alone counts ("MSL")
    first_order_iterations  until then the meta-gradient is MAML's first-order one ("DA")
    per_step_norm           each step has its own norm weights, which the outer loop alone moves, and, where the network
                            keeps moving averages, its own of those ("BNRS", "BNWB")

The cosine outer rate ("CA") is `train.schedule`. With every part off this is MAML.

What the paper leaves open is as in the authors' code: v_k (`importance`); rates are per tensor; step k's norm serves
its support pass and the queries after it, so that all K serve in training; norm weights are not adapted. Past the K-th
step the last step's rates and norm go on. Differences: v moves with every meta-update, not every 500; moving averages,
which the code keeps but never uses, are used at test time where the network is set so (`model.statistics: running`);
its numbers are of `batch`. The released configs leave the first-order phase out, as does the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.func import grad

from metarun.algorithms.inner import OWN, Given, detached, moved, objective, outcome, own, repeated, weights_of
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, register, setting


class Stage(NamedTuple):
    """Where the inner loop is: whose norm queries meet there (`step`), and the network and its weights as they do."""

    step: int
    net: Net
    weights: Meta


@register("algo", "mamlpp")
@dataclass(frozen=True)
class MAMLPP(Algorithm):
    inner_lr: float = setting(0.1, above=0)
    inner_steps: int = setting(5, least=1)
    eval_steps: int = setting(5, least=0)
    learn_rates: bool = setting(True)
    multi_step_loss: bool = setting(True)
    multi_step_iterations: int = setting(300, least=1)
    first_order_iterations: int = setting(0, least=0)
    per_step_norm: bool = setting(True)
    recompute: bool = False
    """whether the meta-gradient takes inner steps again in place of keeping what they computed"""
    first_order: bool = False
    """whether the meta-gradient takes the inner gradients as constants; `at_step` says when"""
    shares: tuple[float, ...] = ()
    """what the queries' loss after each update counts; empty: the last alone"""

    def recomputing(self) -> Algorithm:
        return replace(self, recompute=True)

    def at_step(self, step: int, iterations: int) -> Algorithm:
        early = self.multi_step_loss and step < self.multi_step_iterations
        shares = importance(step / self.multi_step_iterations, self.inner_steps) if early else ()
        now = replace(self, first_order=step < self.first_order_iterations, shares=shares)
        return self if now == self else now

    def init(self, net: Net, generator: Generator) -> Meta:
        meta, steps = net.init(generator), range(self.inner_steps)
        norms = {f"{norm}.{part}" for norm in net.norm_names for part in ("weight", "bias")}
        apart = {name: meta.pop(name) for name in [*meta] if self.per_step_norm and name in norms}
        rates = {f"{OWN}rate.{name}": torch.full((len(steps),), self.inner_lr) for name in meta}
        each = {f"{OWN}step{k}.{name}": w.clone() for k in steps for name, w in apart.items()}
        return meta | (rates if self.learn_rates else {}) | each

    def fresh_running(self, net: Net) -> Meta:
        fresh = net.fresh_running()
        if not self.per_step_norm:
            return fresh
        return {f"{OWN}step{k}.{name}": v.clone() for k in range(self.inner_steps) for name, v in fresh.items()}

    def statistics_used(self, net: Net) -> str:
        return "per_step" if self.per_step_norm and net.tracks else net.statistics_used

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        seen: list[Meta] = []
        shares = self.shares or (*[0.0] * (self.inner_steps - 1), 1.0)
        _, *stages = self._stages(net, meta, episode, self.inner_steps, seen)
        told = [
            (share, outcome(self._answer(stage, episode.query_x, episode.support_x, seen), episode.query_y))
            for share, stage in zip(shares, stages)
            if share
        ]
        total = torch.stack([share * each.loss for share, each in told]).sum()
        metrics = told[-1][1].metrics | {"loss": total.detach()}
        return TaskLoss(total, metrics, means(seen) if self.per_step_norm else {})

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        *_, end = self._stages(net, meta, episode, self.eval_steps, [])
        return self._answer(end, episode.query_x, episode.support_x, [])

    def trajectory(self, net: Net, meta: Meta, episode: Episode) -> list[Tensor]:
        stages = self._stages(net, meta, episode, self.eval_steps, [])
        return [self._answer(stage, episode.query_x, episode.support_x, []) for stage in stages]

    def _stages(self, net: Net, meta: Meta, episode: Episode, steps: int, seen: list[Meta]) -> Iterator[Stage]:
        """After 0, 1, ..., `steps` inner updates. `seen` gathers the norm statistics of the support passes."""

        def step(given: Given, state: tuple[Meta, list[Meta]], update: int) -> tuple[Meta, list[Meta]]:
            (weights, _), k, rates = state, min(update, self.inner_steps - 1), own(given.meta, "rate")

            def of_support(fast: Meta) -> tuple[Tensor, list[Meta]]:
                met: list[Meta] = []
                norms = detached(given.meta) if self.first_order else given.meta
                prediction = self._answer(self._at(k, given.net, norms, fast), given.episode.support_x, None, met)
                return objective(prediction, given.episode.support_y), met

            slope, met = grad(of_support, has_aux=True)(detached(weights) if self.first_order else weights)
            # With no rates learned the one number, not a tensor of it, for exactly MAML's arithmetic.
            rate = {name: rates[name][k] if self.learn_rates else self.inner_lr for name in weights}
            return {name: moved(w, rate[name], slope[name]) for name, w in weights.items()}, met

        start: tuple[Meta, list[Meta]] = weights_of(meta), []
        states = repeated(step, Given(net, meta, episode), start, steps, self.recompute)
        for done, (weights, met) in enumerate(states):
            seen += map(detached, met)
            yield self._at(min(max(done - 1, 0), self.inner_steps - 1), net, meta, weights)

    def _at(self, k: int, net: Net, meta: Meta, weights: Meta) -> Stage:
        """Step k's own norm and moving averages put in their place."""
        part = f"step{k}"
        if self.per_step_norm and net.running is not None:
            net = net.at_test(own(net.running, part))
        return Stage(k, net, weights | own(meta, part))

    def _answer(self, at: Stage, x: Tensor, support: Tensor | None, seen: list[Meta]) -> Tensor:
        """Predictions, as `net(weights, x, support)` makes them; `seen` gathers the norm statistics that they met."""
        met: Meta = {}
        features = at.net.features(at.weights, x, support=support, moments=met)
        seen.append({f"{OWN}step{at.step}.{name}": v.detach() for name, v in met.items()})
        return at.net.head(at.weights, features)


def importance(progress: float, steps: int) -> tuple[float, ...]:
    """The share of each step's loss when `progress` of the way, in [0, 1), to the last step's alone is done.

    All but the last fall from 1/steps in a straight line, but not below 3 % of it; the last has the rest.
    """
    others = max(1 - progress, 0.03) / steps
    return (*[others] * (steps - 1), 1 - (steps - 1) * others)


def means(seen: list[Meta]) -> Meta:
    """The mean of each statistic over the passes that met it: a support pass, and one of the queries for some steps."""
    values: dict[str, list[Tensor]] = {}
    for met in seen:
        for name, v in met.items():
            values.setdefault(name, []).append(v)
    return {name: torch.stack(each).mean(0) for name, each in values.items()}
