"""Decisions as compact JSON, and the same decisions made again offline under another strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing.decision import Decision
from turnout_workers.routing.estimate import LATENCY_LEAST_S, Estimate, Odds, Traffic
from turnout_workers.routing.fleet import Endpoint, EndpointView, Limits
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import STRATEGIES, Option, Ranking, ranking

RECORD_VERSION = 1
NOW = 0.0
"""The time of a repeated decision: added to a Unix time, a short silence would drown in a float's rounding."""


def to_record(
    decision: Decision, called: str | None = None, no_room: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All that explains a decision, and lets `choices` repeat it: no prompt, no key. Micro-dollars and seconds.

    called: the endpoint that was called, the first of the candidates for which admission found room.
    no_room: of those that were asked in vain, what was full.
    """
    job = decision.job
    rows = [_candidate(decision.ranking, index, decision.at) for index in (*decision.ready, *decision.busy)]
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
            "lane": job.lane.value,
            "deadline": job.deadline,
            "in": job.expected_input_tokens,
            "out": job.expected_output_tokens,
            "order": list(job.order),
            "failures": dict(job.failures),
        },
        "candidates": rows,
        "excluded": {e.endpoint_id: [e.reason.value, e.text] for e in decision.exclusions},
    }


COLUMNS = (
    "id", "score", "cost", "latency_s", "p_late", "wait_s", "sigma", "error_rate",
    "probe", "priority", "weight", "in_flight", "slots", "position", "failures", "missed",
)  # fmt: skip
"""Of a record's candidates: rows without names take a third of the space. The last two are left out where all is
answered."""


def candidates(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record's candidates with their columns' names, for people: those to be called in order, then the busy."""
    return [dict(zip(COLUMNS, row, strict=False)) for row in record["candidates"]]


def _candidate(ranked: Ranking, index: int, at: float) -> list[Any]:
    wait_s, latency_s, cost, probe, estimate = ranked.options[index]
    endpoint, odds, traffic = estimate.view.endpoint, estimate.odds, estimate.traffic
    shown_s = math.ceil(wait_s * 1e4) / 1e4  # the shortest wait is still one
    numbers = (latency_s, ranked.late[index], shown_s, odds.sigma, odds.error_rate)
    row = [
        endpoint.id,
        _rounded(ranked.scores[index]),
        _rounded(cost),
        *(round(number, 4) for number in numbers),
        int(probe),
        endpoint.priority,
        endpoint.weight,
        traffic.in_flight,
        endpoint.limits.concurrency,
        estimate.position,
    ]
    if traffic.in_flight or traffic.failures:
        row += (traffic.failures, round(traffic.missed(latency_s, at), 4))
    return row


def _rounded(value: float) -> float | None:
    return None if value == math.inf else round(value, 4)


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
    """Decide the recorded jobs again; None: each under its own strategy, which repeats every choice.

    Only the choice is repeated: what a different one would have done to the fleet's load is not modelled. Decisions
    that had no candidate are left out.
    """
    for turn, record in enumerate(records):
        options = [_option(c) for c in sorted(candidates(record), key=itemgetter("position"))]
        if not options:
            continue
        deadline = record["job"]["deadline"]
        job = JobProfile(
            lane=Lane(record["job"]["lane"]),
            deadline=deadline and deadline - record["at"],
            order=tuple(record["job"]["order"]),
            failures=record["job"]["failures"],
        )
        name = strategy or RoutingStrategy(record["strategy"])
        turns = record["turn"] if name == record["strategy"] else turn
        ranked = ranking(job, options, STRATEGIES[name], NOW, record["seed"], turns)
        ready = [index for index in ranked.order if options[index].wait_s <= 0]
        first = ready[0] if ready and not STRATEGIES[name].patient else ranked.order[0]
        best = options[first]
        yield Choice(
            best.estimate.view.endpoint.id,
            record["waits_for"] or record["chosen"],
            best.cost,
            best.wait_s + best.latency_s,
            ranked.late[first],
        )


def _option(candidate: Mapping[str, Any]) -> Option:
    # What follows the provider in the id stands for the model, whose name a record doesn't hold.
    provider, _, rest = candidate["id"].partition("/")
    endpoint = Endpoint(
        provider,
        rest,
        rest,
        priority=candidate["priority"],
        weight=candidate["weight"],
        limits=Limits(concurrency=candidate["slots"]),
    )
    in_flight, missed = candidate["in_flight"], candidate.get("missed", 0.0)
    answered_at = NOW - missed * max(candidate["latency_s"], LATENCY_LEAST_S) / max(1, in_flight)
    traffic = Traffic(in_flight, candidate.get("failures", 0), -math.inf, answered_at)
    cost = math.inf if candidate["cost"] is None else candidate["cost"]
    odds = Odds.of(candidate["sigma"], candidate["error_rate"])
    estimate = Estimate(
        candidate["latency_s"], 0.0, 0.0, 0.0, False, odds, traffic, EndpointView(endpoint), candidate["position"]
    )
    return Option(candidate["wait_s"], candidate["latency_s"], cost, bool(candidate["probe"]), estimate)
