"""Decisions as compact JSON, and the same decisions made again offline under another strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from turnout.request import RoutingConstraints, RoutingStrategy
from turnout_workers.routing.decision import Decision
from turnout_workers.routing.eligibility import Excluded, summarized
from turnout_workers.routing.estimate import MIN_LATENCY_S, Estimate, Odds, Traffic
from turnout_workers.routing.fleet import Endpoint, EndpointView, Limits
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import STRATEGIES, Option, Ranking, ranking

RECORD_VERSION = 3
MAX_ROWS = 20
"""Candidates that are recorded, the best: a story is not to grow with the fleet."""
NOW = 0.0
"""The time of a repeated decision: added to a Unix time, a short silence would drown in a float's rounding."""


def to_json_dict(
    decision: Decision, called: str | None = None, no_room: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All that explains a decision, and lets `choices` repeat it: no prompt, no key. Micro-dollars and seconds.

    called: the endpoint that was called, the first of the candidates for which admission found room.
    no_room: of those that were asked in vain, what was full.
    """
    job = decision.job
    best = frozenset(decision.ranking.order[:MAX_ROWS])
    known = (index for index in (*decision.ready, *decision.busy) if index in best)
    rows = [_row(decision.ranking, index, decision.at) for index in known]
    return {
        "v": RECORD_VERSION,
        "at": decision.at,
        "age_s": round(decision.snapshot_age_s, 3),
        "strategy": decision.strategy.value,
        "seed": decision.options.seed,
        "turn": decision.turn,
        "action": decision.action.value,
        "chosen": rows[0][0] if decision.ready else None,
        "called": called,
        **({"no_room": no_room} if no_room else {}),
        "wait_s": round(decision.wait_s, 3),
        "waits_for": decision.waits_for,
        "job": {
            "lane": job.constraints.lane.value,
            "deadline": job.deadline,
            **({} if job.waiting_since is None else {"waiting_since": job.waiting_since}),
            "in": job.expected_input_tokens,
            "out": job.expected_output_tokens,
            "order": list(job.constraints.order),
            "failures": dict(job.failures),
        },
        "candidates": rows,
        "excluded": [*decision.options.match.excluded, *summarized(decision.not_now)],
    }


class Row(NamedTuple):
    """One of a record's candidates, as expected then. Without names it takes a third of the space."""

    id: str
    score: float | None
    cost_microusd: float | None
    """None: its price is unknown."""
    latency_s: float
    p_late: float
    wait_s: float
    sigma: float
    error_rate: float
    probe: int
    priority: int
    weight: float
    in_flight: int
    slots: int | None
    position: int
    """In the fleet."""
    failures: int = 0
    missed: float = 0.0


def candidates(record: Mapping[str, Any]) -> list[Row]:
    """Those to be called in order, then the busy; none of a record that an earlier release has written."""
    return [Row(*row) for row in record["candidates"]] if record["v"] == RECORD_VERSION else []


def excluded(record: Mapping[str, Any]) -> list[Excluded]:
    """Why the others were none, likewise."""
    return record["excluded"] if record["v"] == RECORD_VERSION else []


def _row(ranked: Ranking, index: int, at: float) -> tuple[Any, ...]:
    """A `Row` without its names, which take a third of the time of a record to give and to take away again."""
    wait_s, latency_s, cost, probe, estimate = ranked.options[index]
    endpoint, odds, traffic, score = estimate.view.endpoint, estimate.odds, estimate.traffic, ranked.scores[index]
    return (
        endpoint.id,
        _rounded(score) if score < math.inf else None,
        _rounded(cost) if cost < math.inf else None,
        _rounded(latency_s),
        _rounded(ranked.late[index]),
        math.ceil(wait_s * 1e4) / 1e4,  # the shortest wait is still one
        _rounded(odds.sigma),
        _rounded(odds.error_rate),
        int(probe),
        endpoint.priority,
        endpoint.weight,
        traffic.in_flight,
        endpoint.limits.concurrency,
        estimate.position,
        traffic.failures,
        _rounded(traffic.missed(latency_s, at)),
    )


def _rounded(value: float) -> float:
    return math.floor(value * 1e4 + 0.5) / 1e4  # in a third of the time of `round`, which takes most of a record's


class Choice(NamedTuple):
    """What a strategy would take, as predicted when the job was decided."""

    endpoint_id: str
    recorded: str
    """What was ranked first then."""
    cost_microusd: float
    """Infinite: its price is unknown."""
    time_s: float
    """Waiting and latency."""
    p_late: float


def choices(records: Iterable[Mapping[str, Any]], strategy: RoutingStrategy | None = None) -> Iterator[Choice]:
    """Decide the recorded jobs again; None: each under its own strategy, which repeats every choice among at most
    `MAX_ROWS`.

    Only the choice is repeated: what a different one would have done to the fleet's load is not modelled. Decisions
    that had no candidate are left out.
    """
    for turn, record in enumerate(records):
        options = [_option(row) for row in sorted(candidates(record), key=attrgetter("position"))]
        if not options:
            continue
        deadline, since = record["job"]["deadline"], record["job"].get("waiting_since")
        job = JobProfile(
            constraints=RoutingConstraints(lane=record["job"]["lane"], order=record["job"]["order"]),
            deadline=deadline and deadline - record["at"],
            waiting_since=None if since is None else since - record["at"],
            failures=record["job"]["failures"],
        )
        name = strategy or RoutingStrategy(record["strategy"])
        turns = record["turn"] if name == record["strategy"] else turn
        ranked = ranking(job, options, STRATEGIES[name], NOW, record["seed"], turns)
        ready = [index for index in ranked.order if options[index].wait_s <= 0]
        first = ready[0] if ready and not STRATEGIES[name].may_wait else ranked.order[0]
        best = options[first]
        yield Choice(
            best.estimate.view.endpoint.id,
            record["waits_for"] or record["chosen"],
            best.cost,
            best.wait_s + best.latency_s,
            ranked.late[first],
        )


def _option(row: Row) -> Option:
    # What follows the provider in the id stands for the model, whose name a record doesn't hold.
    provider, _, rest = row.id.partition("/")
    limits = Limits(concurrency=row.slots)
    endpoint = Endpoint(provider, rest, rest, priority=row.priority, weight=row.weight, limits=limits)
    answered_at = NOW - row.missed * max(row.latency_s, MIN_LATENCY_S) / max(1, row.in_flight)
    traffic = Traffic(row.in_flight, row.failures, -math.inf, answered_at)
    odds, view = Odds.of(row.sigma, row.error_rate), EndpointView(endpoint)
    estimate = Estimate(row.latency_s, 0.0, 0.0, 0.0, False, odds, traffic, view, row.position)
    cost = math.inf if row.cost_microusd is None else row.cost_microusd
    return Option(row.wait_s, row.latency_s, cost, bool(row.probe), estimate)
