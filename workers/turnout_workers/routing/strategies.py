"""How candidates are ordered: one utility, of which every strategy is a preset.

For each candidate, and for waiting `w` seconds for one that is busy, the least of

    U = (price / cheapest + μ) / (1 − e)  +  100 · (P_late + 0.02 · e)  +  λ · 5 · (w + L / (1 − e)) / D
        + 4 · (times this job failed there)

is best: e error rate, L predicted latency, P_late the lognormal chance of missing the deadline, λ and D the
lane's urgency and time scale. With time to spare the price decides; with a deadline near, P_late does: the
cheapest that will be in time follows by itself. μ is the shadow price of an endpoint's scarce capacity: it
rises while jobs wait for it, so that those which can use another make room for those which can't.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing.estimate import Estimate
from turnout_workers.routing.fleet import Load
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


class Scored(NamedTuple):
    """An option in the order of ranking: compares by group, then by utility."""

    group: float
    utility: float
    position: int
    p_late: float
    option: Option


@dataclass(frozen=True, slots=True)
class Strategy:
    """A preset of the utility, and a rule of order where that isn't all."""

    price: float = 1.0
    urgency: Lane | None = None
    """Whose seconds count; None: the job's own lane."""
    near: float = 0.02
    """Candidates within this share of the best one are equals, and share the work."""
    patient: bool = False
    """May wait for a busy candidate though another one is free."""
    arrange: Callable[[JobProfile, list[Scored], float], list[Scored]] | None = None
    """Changes group or utility. The number, 0 ≤ u < 1, is this decision's share of chance."""


def utilities(job: JobProfile, options: Sequence[Option], strategy: Strategy, now: float) -> list[Scored]:
    """Every option with its utility, unsorted."""
    least = math.inf
    dearest = 0.0
    for option in options:
        cost = option[2]
        if 0 < cost < least:
            least = cost
        if dearest < cost < math.inf:
            dearest = cost
    if least == math.inf:
        least = 1.0
    weight, second = strategy.price, URGENCY[strategy.urgency or job.lane]
    unit = weight / least
    unknown = math.inf if dearest or any(option[2] == 0 for option in options) else 0.0
    slack = math.inf if job.deadline is None else job.deadline - now
    failures = job.failures
    scored = []
    for option in options:
        wait, latency, cost, _, estimate = option
        position, _, _, _, sigma, tail, error_rate, tries, shadow_price, _, _, _, _, view = estimate
        left = slack - wait
        median = latency * (1 + error_rate)
        p_late = 0.0
        if median * tail > left:
            p_late = 1.0 if left <= 0 else 0.5 * math.erfc(math.log(left / median) / (sigma * 1.4142135623730951))
        money = (cost * unit + weight * shadow_price) * tries if cost != math.inf else weight and unknown
        utility = money + LATENESS * p_late + ERROR * error_rate + second * (wait + latency * tries)
        if failures:
            utility += REPEAT * failures.get(view.endpoint.id, 0)
        scored.append(Scored(0.0, utility, position, p_late, option))
    return scored


def _fastest(job: JobProfile, scored: list[Scored], _: float) -> list[Scored]:
    """Latency times load, so that near-equal endpoints aren't all asked at once."""
    return [s._replace(utility=s.utility * _crowding(s)) for s in scored]


def _crowding(scored: Scored) -> float:
    view = scored.option.estimate.view
    return 1 + view.load.in_flight / (view.endpoint.limits.concurrency or SERIAL_CALLS)


def _by_priority(job: JobProfile, scored: list[Scored], _: float) -> list[Scored]:
    """The operator's order; those that would probably be late come last."""
    return [
        s._replace(group=s.option.estimate.view.endpoint.priority + (1e9 if s.p_late > 0.5 else 0.0))
        for s in scored
    ]


def _in_order(job: JobProfile, scored: list[Scored], _: float) -> list[Scored]:
    """Strictly by priority, then in the order of registration."""
    return [
        s._replace(group=float(s.option.estimate.view.endpoint.priority), utility=float(s.position)) for s in scored
    ]


def _in_turn(job: JobProfile, scored: list[Scored], u: float) -> list[Scored]:
    """From the point `u` of a circle on which each candidate has an arc as long as its weight."""
    weights = [max(0.0, s.option.estimate.view.endpoint.weight) for s in scored]
    point, end, first = u * sum(weights), 0.0, 0
    for index, weight in enumerate(weights):
        end += weight
        if point < end:
            first = index
            break
    count = len(scored)
    return [s._replace(utility=float((index - first) % count)) for index, s in enumerate(scored)]


STRATEGIES: dict[RoutingStrategy, Strategy] = {
    RoutingStrategy.BALANCED: Strategy(patient=True),
    RoutingStrategy.COST_OPTIMIZED: Strategy(urgency=Lane.BATCH, patient=True),
    RoutingStrategy.LATENCY_OPTIMIZED: Strategy(price=0.0, urgency=Lane.INTERACTIVE, near=0.25, arrange=_fastest),
    RoutingStrategy.PRIORITY: Strategy(arrange=_by_priority),
    RoutingStrategy.ROUND_ROBIN: Strategy(near=0.0, arrange=_in_turn),
    RoutingStrategy.FAILOVER: Strategy(near=0.0, arrange=_in_order),
}


def ordered(
    job: JobProfile,
    options: Sequence[Option],
    strategy: Strategy,
    now: float,
    seed: int,
    turn: int | None = None,
) -> list[Scored]:
    """The options, best first. Of two random ones among equals, the less busy one comes first."""
    scored = utilities(job, options, strategy, now)
    if strategy.arrange:
        scored = strategy.arrange(job, scored, seed / 2**32 if turn is None else turn * GOLDEN % 1)
    if job.order:
        place = {provider: index - len(job.order) for index, provider in enumerate(job.order)}
        scored = [
            s._replace(group=s.group + 1e10 * place.get(s.option.estimate.view.endpoint.provider, 0))
            for s in scored
        ]
    scored.sort()
    if strategy.near and len(scored) > 1:
        best = scored[0]
        limit = best.utility + strategy.near * abs(best.utility)
        equal = 1
        while equal < len(scored) and scored[equal].utility <= limit and scored[equal].group == best.group:
            equal += 1
        if equal > 1:
            scored.insert(0, scored.pop(_two_choices(scored, equal, seed)))
    return scored


def _two_choices(scored: list[Scored], count: int, seed: int) -> int:
    """Two different indices below `count`, picked by `seed`: the less crowded one's, the first if equal."""
    one = seed % count
    other = (one + 1 + (seed >> 16) % (count - 1)) % count
    return one if _crowding(scored[one]) <= _crowding(scored[other]) else other


def next_shadow_price(price: float, load: Load) -> float:
    """μ half a second later: up while more than one job waits and little is free, down again otherwise."""
    if load.free >= 0.45:
        return price * 0.85
    return min(2.0, price + 0.05) if load.waiting > 1 else price * 0.97
