"""How candidates are ordered: one utility, of which every strategy is a preset.

For each candidate, and for waiting `w` seconds for one that is busy, the least of

    U = (price / cheapest + λ · 5 · L / D) / (1 − e)  +  λ · 5 · w / D  +  100 · P_late  +  2 · e
        + 4 · (times this job failed there)

is best: e error rate, L predicted latency, P_late the lognormal chance of missing the deadline, λ and D the
lane's urgency and time scale. With time to spare the price decides; with a deadline near, P_late does: the
cheapest that will be in time follows by itself.

A job that was parked expects to wait as long again as it has waited. So it pays for another candidate once its waiting
has cost as much as that would have: at most twice what it would have paid had it known (ski rental: Karlin, Manasse,
Rudolph and Sleator, Competitive snoopy caching, 1988). However busy more urgent lanes keep the cheapest, none waits for
ever.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing.estimate import Estimate
from turnout_workers.routing.latency import chance_of_exceeding
from turnout_workers.routing.profile import JobProfile

LATENESS = 100.0
ERROR = 2.0
REPEAT = 4.0
URGENCY = {Lane.INTERACTIVE: 2 * 5 / 5, Lane.STANDARD: 0.5 * 5 / 30, Lane.BATCH: 0.02 * 5 / 600}
"""λ · 5 / D: what one second is worth, as a multiple of the cheapest candidate's price."""
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, fall evenly between 0 and 1 however many there are."""
SERIAL_CALLS = 32
"""Calls in flight that double an endpoint's latency in the eyes of the latency strategy, unless its
concurrency is known."""


class Option(NamedTuple):
    """A candidate and what this job can expect of it."""

    wait_s: float
    latency_s: float
    cost: float
    """Expected micro-dollars; infinite: unknown."""
    probe: bool
    estimate: Estimate


Row = tuple[float, float, float, bool, Estimate]
"""An option without its names: making named tuples would take a fifth of the time of a decision."""

Rows = Sequence[Row]
Numbers = list[float]
Keys = tuple[Numbers, Numbers]
Arrange = Callable[[Sequence[Estimate], Numbers, Numbers, float], Keys]
"""From the options' estimates, utilities, chances of being late and this decision's random number (0 ≤ u < 1), to
groups and utilities."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A preset of the utility, and a rule of order where that isn't all."""

    price: float = 1.0
    urgency: Lane | None = None
    """Whose seconds count; None: the job's own lane."""
    near: float = 0.02
    """Candidates within this share of the best one are equals, and share the work."""
    may_wait: bool = False
    """May wait for a busy candidate though another one is free."""
    arrange: Arrange | None = None


def utilities(job: JobProfile, options: Rows, strategy: Strategy, now: float) -> tuple[Numbers, Numbers]:
    """Of every option, in their order: the utility, and the chance of being late."""
    inf = math.inf
    known = [cost for _, _, cost, _, _ in options if cost < inf]
    # A price that is unknown ranks behind all that are known; if none is known, price says nothing.
    unknown = inf if known and strategy.price else 0.0
    per_cost = strategy.price / min(filter(None, known), default=1.0)
    per_second = URGENCY[strategy.urgency or job.constraints.lane]
    # Ten times the price of the dearest: where prices are far apart, being late still costs more than any.
    lateness = max(LATENESS, 10 * max(known, default=0.0) * per_cost)
    slack = inf if job.deadline is None else job.deadline - now
    failures = job.failures
    scores, late = [], []
    for wait, latency, cost, _, estimate in options:
        sigma, tail, error_rate, tries = estimate.odds
        left = slack - wait
        median = latency * (1 + error_rate)
        p_late = chance_of_exceeding(left, median, sigma) if median * tail > left else 0.0
        money = cost * per_cost if cost < inf else unknown
        utility = (money + per_second * latency) * tries + per_second * wait + lateness * p_late + ERROR * error_rate
        if failures:
            utility += REPEAT * failures.get(estimate.view.endpoint.id, 0)
        scores.append(utility)
        late.append(p_late)
    if job.waiting_since is not None:
        waited = now - job.waiting_since
        for index, (wait, *_) in enumerate(options):
            if 0 < wait < waited:
                scores[index] += per_second * (waited - wait)
    return scores, late


def _crowding(estimate: Estimate) -> float:
    traffic, slots = estimate.traffic, estimate.view.endpoint.limits.concurrency
    return 1 + (traffic.in_flight + traffic.failures) / (slots or SERIAL_CALLS)


def _fastest(estimates: Sequence[Estimate], scores: Numbers, late: Numbers, _: float) -> Keys:
    """Latency times load, so that near-equal endpoints aren't all asked at once."""
    return [0.0] * len(scores), [score * _crowding(one) for one, score in zip(estimates, scores, strict=True)]


def _by_priority(estimates: Sequence[Estimate], scores: Numbers, late: Numbers, _: float) -> Keys:
    """The operator's order; those that would probably be late come last."""
    doomed = [1e9 if p_late > 0.5 else 0.0 for p_late in late]
    return [one.view.endpoint.priority + last for one, last in zip(estimates, doomed, strict=True)], scores


def _in_order(estimates: Sequence[Estimate], scores: Numbers, late: Numbers, _: float) -> Keys:
    """Strictly by priority, then in the order of registration."""
    return [float(one.view.endpoint.priority) for one in estimates], [float(one.position) for one in estimates]


def _in_turn(estimates: Sequence[Estimate], scores: Numbers, late: Numbers, u: float) -> Keys:
    """From the point `u` of a circle on which each has an arc as long as its weight; those without any come last."""
    weights = [max(0.0, one.view.endpoint.weight) for one in estimates]
    arcs = list(accumulate(weights if any(weights) else [1.0] * len(weights)))
    first, count = bisect_right(arcs, u * arcs[-1]), len(weights)
    return [float(weight == 0) for weight in weights], [float((index - first) % count) for index in range(count)]


STRATEGIES: dict[RoutingStrategy, Strategy] = {
    RoutingStrategy.BALANCED: Strategy(may_wait=True),
    RoutingStrategy.COST_OPTIMIZED: Strategy(urgency=Lane.BATCH, may_wait=True),
    RoutingStrategy.LATENCY_OPTIMIZED: Strategy(price=0.0, urgency=Lane.INTERACTIVE, near=0.25, arrange=_fastest),
    RoutingStrategy.PRIORITY: Strategy(arrange=_by_priority),
    RoutingStrategy.ROUND_ROBIN: Strategy(near=0.0, arrange=_in_turn),
    RoutingStrategy.FAILOVER: Strategy(near=0.0, arrange=_in_order),
}


class Ranking(NamedTuple):
    """Options in the order in which to try them."""

    options: Rows
    order: list[int]
    """Indices of `options`, best first."""
    scores: Numbers
    late: Numbers

    def option(self, index: int) -> Option:
        return Option._make(self.options[index])


def ranking(
    job: JobProfile, options: Rows, strategy: Strategy, now: float, seed: int, turn: int | None = None
) -> Ranking:
    """The options, best first. Of two random ones among equals, the less burdened one comes first."""
    if not options:
        return Ranking(options, [], [], [])
    scores, late = utilities(job, options, strategy, now)
    groups: Numbers | None = None
    if strategy.arrange:
        chance = seed / 2**32 if turn is None else turn * GOLDEN % 1
        groups, scores = strategy.arrange([estimate for *_, estimate in options], scores, late, chance)
    if job.constraints.order:
        place = {provider: index - len(job.constraints.order) for index, provider in enumerate(job.constraints.order)}
        ranks = [1e10 * place.get(estimate.view.endpoint.provider, 0) for *_, estimate in options]
        groups = [rank + group for rank, group in zip(ranks, groups or [0.0] * len(ranks), strict=True)]
    keys = scores if groups is None else list(zip(groups, scores, strict=True))
    order = sorted(range(len(options)), key=keys.__getitem__)
    ranked = Ranking(options, order, scores, late)
    if strategy.near and len(order) > 1:
        best = order[0]
        limit = scores[best] + strategy.near * abs(scores[best])
        equal = 1
        while (
            equal < len(order)
            and scores[order[equal]] <= limit
            and (groups is None or groups[order[equal]] == groups[best])
        ):
            equal += 1
        if equal > 1:
            order.insert(0, order.pop(_two_choices(ranked, equal, seed, now)))
    return ranked


def _two_choices(ranked: Ranking, equal: int, seed: int, now: float) -> int:
    """The place of the less burdened of two different options among the first `equal`, picked by `seed`."""
    one = seed % equal
    other = (one + 1 + (seed >> 16) % (equal - 1)) % equal
    here, there = (_burden(ranked.options[ranked.order[place]], now) for place in (one, other))
    return one if here <= there else other


def _burden(row: Row, now: float) -> float:
    """The unanswered calls as a share of capacity, times one more than the answers that should have come by now.

    An endpoint that hangs has no more calls in flight than those that take over its share, but it is silent.
    """
    _, latency_s, _, _, estimate = row
    return (_crowding(estimate) - 1) * (1 + estimate.traffic.missed(latency_s, now))
