"""How candidates are ordered: one utility, of which every strategy is a preset.

The candidate with the least

    U = (price / cheapest + λ · 5 · L / D) / (1 − e)  +  λ · 5 · w / D  +  100 · P_late  +  2 · e
        + 4 · (times this job failed there)

is best: w is the wait for a busy candidate, e the error rate, L the predicted latency, P_late the lognormal chance of
missing the deadline, λ and D the lane's urgency and time scale. With time to spare the price decides; near a deadline,
P_late does. So the cheapest candidate that will be in time wins without a special rule.

A parked job expects to wait as long again as it has waited. So it pays for another candidate once its waiting has cost
as much as that would have: at most twice what it would have paid with foresight (ski rental: Karlin, Manasse, Rudolph
and Sleator, Competitive snoopy caching, 1988). However busy more urgent lanes keep the cheapest, no job waits forever.
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
"""Its multiples, modulo 1, are spread evenly between 0 and 1, however many there are."""
SERIAL_CALLS = 32
"""Calls in flight that double an endpoint's latency for the latency strategy, unless its concurrency is known."""


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
SortKeys = tuple[list[float], list[float]]
"""Groups, and scores within a group: the lowest of both comes first."""
SortRule = Callable[[Sequence[Estimate], list[float], list[float], float], SortKeys]
"""Takes the options' estimates, utilities and chances of being late, and this decision's random number (0 ≤ u < 1)."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A preset of the utility, and a sort rule if the utility alone doesn't decide."""

    price: float = 1.0
    urgency: Lane | None = None
    """The lane whose value of a second counts; None: the job's own."""
    near: float = 0.02
    """Candidates within this share of the best score are equal, and share the work."""
    may_wait: bool = False
    """May wait for a busy candidate though another one is free."""
    sort_rule: SortRule | None = None


def utilities(job: JobProfile, options: Rows, strategy: Strategy, now: float) -> tuple[list[float], list[float]]:
    """The utility of each option, and its chance of being late."""
    inf = math.inf
    costs = [cost for _, _, cost, _, _ in options if cost < inf]
    # An unknown price ranks behind all known ones; if none is known, price doesn't count.
    price_of_unknown = inf if costs and strategy.price else 0.0
    per_cost = strategy.price / min(filter(None, costs), default=1.0)
    per_second = URGENCY[strategy.urgency or job.constraints.lane]
    # At least ten times the highest price: even if prices are far apart, being late costs more than any.
    lateness = max(LATENESS, 10 * max(costs, default=0.0) * per_cost)
    slack_s = inf if job.deadline is None else job.deadline - now
    failures = job.failures
    scores, late = [], []
    for wait_s, latency_s, cost, _, estimate in options:
        sigma, certain_factor, error_rate, tries = estimate.odds
        left_s = slack_s - wait_s
        median_s = latency_s * (1 + error_rate)
        p_late = chance_of_exceeding(left_s, median_s, sigma) if median_s * certain_factor > left_s else 0.0
        price = cost * per_cost if cost < inf else price_of_unknown
        score = (price + per_second * latency_s) * tries + per_second * wait_s + lateness * p_late + ERROR * error_rate
        if failures:
            score += REPEAT * failures.get(estimate.view.endpoint.id, 0)
        scores.append(score)
        late.append(p_late)
    if job.waiting_since is not None:
        waited_s = now - job.waiting_since
        for index, (wait_s, *_) in enumerate(options):
            if 0 < wait_s < waited_s:
                scores[index] += per_second * (waited_s - wait_s)
    return scores, late


def _crowding(estimate: Estimate) -> float:
    traffic, slots = estimate.traffic, estimate.view.endpoint.limits.concurrency
    return 1 + (traffic.in_flight + traffic.failures) / (slots or SERIAL_CALLS)


def _by_latency(estimates: Sequence[Estimate], scores: list[float], late: list[float], _: float) -> SortKeys:
    """Latency times load, so that one of several near-equal endpoints doesn't get all calls."""
    return [0.0] * len(scores), [score * _crowding(one) for one, score in zip(estimates, scores, strict=True)]


def _by_priority(estimates: Sequence[Estimate], scores: list[float], late: list[float], _: float) -> SortKeys:
    """The operator's order, but endpoints that would probably be late come last."""
    penalties = [1e9 if p_late > 0.5 else 0.0 for p_late in late]
    return [one.view.endpoint.priority + penalty for one, penalty in zip(estimates, penalties, strict=True)], scores


def _in_order(estimates: Sequence[Estimate], scores: list[float], late: list[float], _: float) -> SortKeys:
    """Strictly by priority, then in the order of registration."""
    return [float(one.view.endpoint.priority) for one in estimates], [float(one.position) for one in estimates]


def _round_robin(estimates: Sequence[Estimate], scores: list[float], late: list[float], u: float) -> SortKeys:
    """Starting at point `u` of a circle on which each has an arc as long as its weight; weightless ones come last."""
    weights = [max(0.0, one.view.endpoint.weight) for one in estimates]
    arcs = list(accumulate(weights if any(weights) else [1.0] * len(weights)))
    first, count = bisect_right(arcs, u * arcs[-1]), len(weights)
    return [float(weight == 0) for weight in weights], [float((index - first) % count) for index in range(count)]


STRATEGIES: dict[RoutingStrategy, Strategy] = {
    RoutingStrategy.BALANCED: Strategy(may_wait=True),
    RoutingStrategy.COST_OPTIMIZED: Strategy(urgency=Lane.BATCH, may_wait=True),
    RoutingStrategy.LATENCY_OPTIMIZED: Strategy(price=0.0, urgency=Lane.INTERACTIVE, near=0.25, sort_rule=_by_latency),
    RoutingStrategy.PRIORITY: Strategy(sort_rule=_by_priority),
    RoutingStrategy.ROUND_ROBIN: Strategy(near=0.0, sort_rule=_round_robin),
    RoutingStrategy.FAILOVER: Strategy(near=0.0, sort_rule=_in_order),
}


class Ranking(NamedTuple):
    """Options in the order in which to try them."""

    options: Rows
    order: list[int]
    """Indices of `options`, best first."""
    scores: list[float]
    late: list[float]
    """Chances of being late."""

    def option(self, index: int) -> Option:
        return Option._make(self.options[index])


def ranked(
    job: JobProfile, options: Rows, strategy: Strategy, now: float, seed: int, decision_number: int | None = None
) -> Ranking:
    """The options, best first. Of two random ones among equals, the less burdened one comes first."""
    if not options:
        return Ranking(options, [], [], [])
    scores, late = utilities(job, options, strategy, now)
    groups: list[float] | None = None
    if strategy.sort_rule:
        u = seed / 2**32 if decision_number is None else decision_number * GOLDEN % 1
        groups, scores = strategy.sort_rule([estimate for *_, estimate in options], scores, late, u)
    if order := job.constraints.order:
        offsets = {provider: 1e10 * (index - len(order)) for index, provider in enumerate(order)}
        wanted = [offsets.get(estimate.view.endpoint.provider, 0.0) for *_, estimate in options]
        groups = [offset + group for offset, group in zip(wanted, groups or [0.0] * len(wanted), strict=True)]
    keys = scores if groups is None else list(zip(groups, scores, strict=True))
    ranking = Ranking(options, sorted(range(len(options)), key=keys.__getitem__), scores, late)
    if strategy.near and len(options) > 1:
        equal = _count_near_equal(ranking, groups, strategy.near)
        if equal > 1:
            ranking.order.insert(0, ranking.order.pop(_less_burdened_of_two(ranking, equal, seed, now)))
    return ranking


def _count_near_equal(ranking: Ranking, groups: list[float] | None, near: float) -> int:
    """How many options, from the best on, are in its group and score within `near` of it."""
    order, scores = ranking.order, ranking.scores
    best = order[0]
    limit = scores[best] + near * abs(scores[best])
    for count, index in enumerate(order):
        if scores[index] > limit or (groups is not None and groups[index] != groups[best]):
            return count
    return len(order)


def _less_burdened_of_two(ranking: Ranking, equal: int, seed: int, now: float) -> int:
    """The rank of the less burdened of two different options among the first `equal`, picked by `seed`."""
    one = seed % equal
    other = (one + 1 + (seed >> 16) % (equal - 1)) % equal
    here, there = (_burden(ranking.options[ranking.order[rank]], now) for rank in (one, other))
    return one if here <= there else other


def _burden(row: Row, now: float) -> float:
    """The unanswered calls as a share of capacity, times one plus the answers that should have come by now.

    An endpoint that hangs has no more calls in flight than those that take over its share, but it doesn't answer.
    """
    _, latency_s, _, _, estimate = row
    return (_crowding(estimate) - 1) * (1 + estimate.traffic.missed(latency_s, now))
