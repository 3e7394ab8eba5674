"""Decisions as compact JSON, and the same decisions made again offline, also under another strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from turnout.request import RoutingConstraints, RoutingStrategy
from turnout_workers.routing.decision import Decision
from turnout_workers.routing.eligibility import ExclusionSummary, summarized
from turnout_workers.routing.estimate import MIN_LATENCY_S, Estimate, Odds, Traffic
from turnout_workers.routing.fleet import Endpoint, EndpointView, Limits
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import STRATEGIES, Option, Ranking, ranked

VERSION = 3
MAX_ROWS = 20
"""Candidates that are logged, the best ones: a job's story must not grow with the fleet."""
NOW = 0.0
"""The time of a repeated decision: added to a Unix time, a short time would drown in a float's rounding."""


def to_json_dict(
    decision: Decision, called: str | None = None, no_room: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Everything that explains a decision and lets `choices` repeat it, without prompts and keys. In micro-dollars and
    seconds.

    called: the endpoint that was called: the first candidate for which admission found room.
    no_room: what was full, by endpoint id, for candidates that were refused.
    """
    job = decision.job
    best = frozenset(decision.ranking.order[:MAX_ROWS])
    indices = (index for index in (*decision.ready, *decision.busy) if index in best)
    rows = [_row(decision.ranking, index, decision.at) for index in indices]
    return {
        "v": VERSION,
        "at": decision.at,
        "age_s": round(decision.snapshot_age_s, 3),
        "strategy": decision.strategy.value,
        "seed": decision.options.seed,
        "turn": decision.decision_number,
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
        "excluded": [*decision.options.match.summaries, *summarized(decision.not_now)],
    }


class CandidateRow(NamedTuple):
    """A logged candidate, as expected then. In JSON it is a list: without names it takes a third of the space."""

    id: str
    score: float | None
    cost_microusd: float | None
    """None: the price is unknown."""
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


def candidates(decision: Mapping[str, Any]) -> list[CandidateRow]:
    """The candidates, best first, then the busy ones; empty if an earlier release logged the decision."""
    return [CandidateRow(*row) for row in decision["candidates"]] if decision["v"] == VERSION else []


def excluded(decision: Mapping[str, Any]) -> list[ExclusionSummary]:
    """Why the other endpoints weren't candidates; empty if an earlier release logged the decision."""
    return decision["excluded"] if decision["v"] == VERSION else []


def _row(ranking: Ranking, index: int, at: float) -> tuple[Any, ...]:
    """A `CandidateRow` without its names, which would take a third of the time."""
    wait_s, latency_s, cost, probe, estimate = ranking.options[index]
    endpoint, odds, traffic, score = estimate.view.endpoint, estimate.odds, estimate.traffic, ranking.scores[index]
    return (
        endpoint.id,
        _rounded(score) if score < math.inf else None,
        _rounded(cost) if cost < math.inf else None,
        _rounded(latency_s),
        _rounded(ranking.late[index]),
        math.ceil(wait_s * 1e4) / 1e4,  # the shortest wait must not become 0
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
    return math.floor(value * 1e4 + 0.5) / 1e4  # three times as fast as `round`, and called most often


class Choice(NamedTuple):
    """The endpoint that a strategy would choose, with what was predicted when the decision was made."""

    endpoint_id: str
    logged: str
    """The endpoint that was ranked first then."""
    cost_microusd: float
    """Infinite: the price is unknown."""
    time_s: float
    """Wait and latency."""
    p_late: float


def choices(decisions: Iterable[Mapping[str, Any]], strategy: RoutingStrategy | None = None) -> Iterator[Choice]:
    """Decide the logged jobs again. strategy: None: each one's own, which repeats its choice among at most `MAX_ROWS`.

    Only the choice is repeated: what another one would have done to the fleet's load isn't modelled. Decisions without
    candidates are left out.
    """
    for number, decision in enumerate(decisions):
        options = [_option(row) for row in sorted(candidates(decision), key=attrgetter("position"))]
        if not options:
            continue
        deadline, since = decision["job"]["deadline"], decision["job"].get("waiting_since")
        job = JobProfile(
            constraints=RoutingConstraints(lane=decision["job"]["lane"], order=decision["job"]["order"]),
            deadline=deadline and deadline - decision["at"],
            waiting_since=None if since is None else since - decision["at"],
            failures=decision["job"]["failures"],
        )
        name = strategy or RoutingStrategy(decision["strategy"])
        decision_number = decision["turn"] if name == decision["strategy"] else number
        ranking = ranked(job, options, STRATEGIES[name], NOW, decision["seed"], decision_number)
        ready = [index for index in ranking.order if options[index].wait_s <= 0]
        first = ready[0] if ready and not STRATEGIES[name].may_wait else ranking.order[0]
        best = options[first]
        yield Choice(
            best.estimate.view.endpoint.id,
            decision["waits_for"] or decision["chosen"],
            best.cost,
            best.wait_s + best.latency_s,
            ranking.late[first],
        )


def _option(row: CandidateRow) -> Option:
    # The rest of the id stands for the model, whose name isn't logged.
    provider, _, rest = row.id.partition("/")
    limits = Limits(concurrency=row.slots)
    endpoint = Endpoint(provider, rest, rest, priority=row.priority, weight=row.weight, limits=limits)
    answered_at = NOW - row.missed * max(row.latency_s, MIN_LATENCY_S) / max(1, row.in_flight)
    traffic = Traffic(row.in_flight, row.failures, -math.inf, answered_at)
    odds, view = Odds.of(row.sigma, row.error_rate), EndpointView(endpoint)
    estimate = Estimate(row.latency_s, 0.0, 0.0, 0.0, False, odds, traffic, view, row.position)
    cost = math.inf if row.cost_microusd is None else row.cost_microusd
    return Option(row.wait_s, row.latency_s, cost, bool(row.probe), estimate)
