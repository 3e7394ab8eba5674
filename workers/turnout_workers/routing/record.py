"""Decisions as compact JSON, and the same decisions made again offline under another strategy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from turnout.request import Lane, RoutingStrategy
from turnout_workers.routing.decision import Decision
from turnout_workers.routing.estimate import Estimate, Odds
from turnout_workers.routing.fleet import Endpoint, EndpointView, Limits, Load
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.strategies import STRATEGIES, Option, Ranking, ranking

RECORD_VERSION = 1


def to_record(decision: Decision) -> dict[str, Any]:
    """All that explains and repeats a decision; no prompt, no key. Micro-dollars and seconds."""
    job = decision.job
    return {
        "v": RECORD_VERSION,
        "at": decision.at,
        "age_s": round(decision.snapshot_age_s, 3),
        "strategy": decision.strategy.value,
        "seed": decision.seed,
        "turn": decision.turn,
        "action": decision.action.value,
        "chosen": decision.best.endpoint.id if decision.best else None,
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
        "candidates": [_candidate(decision.ranking, index) for index in (*decision.ready, *decision.busy)],
        "excluded": {e.endpoint_id: [e.reason.value, e.text] for e in decision.exclusions},
    }


def _candidate(ranked: Ranking, index: int) -> dict[str, Any]:
    option = ranked.option(index)
    estimate = option.estimate
    endpoint, load = estimate.view.endpoint, estimate.view.load
    return {
        "id": endpoint.id,
        "provider": endpoint.provider,
        "position": estimate.position,
        "score": _rounded(ranked.scores[index]),
        "cost": _rounded(option.cost),
        "latency_s": round(option.latency_s, 4),
        "sigma": round(estimate.odds.sigma, 4),
        "p_late": round(ranked.late[index], 4),
        "error_rate": round(estimate.odds.error_rate, 4),
        "shadow_price": round(estimate.odds.shadow_price, 4),
        "wait_s": round(option.wait_s, 3),
        "probe": option.probe,
        "priority": endpoint.priority,
        "weight": endpoint.weight,
        "in_flight": load.in_flight,
        "concurrency": endpoint.limits.concurrency,
    }


def _rounded(value: float) -> float | None:
    return None if value == math.inf else round(value, 4)


@dataclass(frozen=True, slots=True)
class Replay:
    """What the recorded jobs would have cost and taken, as predicted when they were decided."""

    decisions: int
    changed: int
    """How many would have gone elsewhere."""
    cost_microusd: int
    unpriced: int
    """How many would have gone to an endpoint of unknown price, and are not in the cost."""
    time_s: float
    """Sum of predicted waiting and latency."""
    late: float
    """Expected number of missed deadlines."""


def replay(records: Iterable[Mapping[str, Any]], strategy: RoutingStrategy | None = None) -> Replay:
    """Decide the recorded jobs again; None: each under its own strategy, which repeats every choice.

    Only the choice is repeated: what a different one would have done to the fleet's load is not modelled.
    """
    decisions = changed = unpriced = 0
    cost = time_s = late = 0.0
    for turn, record in enumerate(records):
        options = [_option(c) for c in sorted(record["candidates"], key=itemgetter("position"))]
        if not options:
            continue
        name = strategy or RoutingStrategy(record["strategy"])
        same = name == record["strategy"]
        best, p_late = _choice(record, options, name, record["turn"] if same else turn)
        decisions += 1
        changed += best.estimate.view.endpoint.model != (record["waits_for"] or record["chosen"])
        if best.cost == math.inf:
            unpriced += 1
        else:
            cost += best.cost
        time_s += best.wait_s + best.latency_s
        late += p_late
    return Replay(decisions, changed, math.ceil(cost), unpriced, time_s, late)


def _choice(
    record: Mapping[str, Any], options: list[Option], name: RoutingStrategy, turn: int | None
) -> tuple[Option, float]:
    job = JobProfile(
        lane=Lane(record["job"]["lane"]),
        deadline=record["job"]["deadline"],
        order=tuple(record["job"]["order"]),
        failures=record["job"]["failures"],
    )
    strategy = STRATEGIES[name]
    ranked = ranking(job, options, strategy, record["at"], record["seed"], turn)
    ready = [index for index in ranked.order if options[index][0] <= 0]
    best = ready[0] if ready and not strategy.patient else ranked.order[0]
    return options[best], ranked.late[best]


def _option(candidate: Mapping[str, Any]) -> Option:
    # The endpoint's id stands for its model: a record holds no more of the configuration than ranking reads.
    endpoint = Endpoint(
        candidate["provider"],
        candidate["id"],
        candidate["id"],
        priority=candidate["priority"],
        weight=candidate["weight"],
        limits=Limits(concurrency=candidate["concurrency"]),
    )
    view = EndpointView(endpoint, load=Load(in_flight=candidate["in_flight"]))
    cost = math.inf if candidate["cost"] is None else candidate["cost"]
    odds = Odds.of(candidate["sigma"], candidate["error_rate"], candidate["shadow_price"])
    estimate = Estimate(candidate["latency_s"], 0.0, 0.0, 0.0, 0.0, False, odds, view, candidate["position"])
    return Option(candidate["wait_s"], candidate["latency_s"], cost, candidate["probe"], estimate)
