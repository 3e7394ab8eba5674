"""Jobs waiting and at work, money, and the state of each endpoint: for the terminal, Flower and Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from turnout.ledger import Keys, Operation
from turnout.request import MICROUSD_PER_USD, Lane
from turnout_workers.deployment import Deployment
from turnout_workers.routing.fleet import EndpointView, Snapshot
from turnout_workers.routing.health import circuit
from turnout_workers.routing.latency import observed_quantile
from turnout_workers.state.fleet_view import health_word
from turnout_workers.state.redis_store import accounts_operation, latencies_operation, state_operation


def overview(here: Deployment) -> dict[str, Any]:
    """Everything as plain values, in one round trip."""
    keys = here.ledger.keys
    asked = (here.ledger.workers(), state_operation(keys), latencies_operation(keys))
    workers, (at, observed), latencies, *replies = here.ask(*asked, *backlog_operations(keys))
    rows = endpoints(here.fleet.snapshot(at, observed))
    for row in rows:
        seen = latencies.get(row["endpoint"], ())
        row |= {"p50_s": observed_quantile(seen, 0.5), "p99_s": observed_quantile(seen, 0.99)}
    return {
        "at": at,
        "configuration": here.settings.version,
        "workers": workers,
        **backlog(replies, at),
        "endpoints": rows,
    }


def backlog_operations(keys: Keys, accounts: Iterable[str] = ()) -> list[Operation[Any]]:
    """Operations for `backlog`, which reads their replies. The last one covers `accounts` as well."""
    return [
        *(call for lane in Lane for call in _lane_operations(keys, lane)),
        Operation(("ZCARD", keys.job_leases), int),
        Operation(("ZCARD", keys.parked), int),
        Operation(("HGETALL", keys.counts), _counts),
        accounts_operation(keys, ["total", *accounts]),
    ]


def _lane_operations(keys: Keys, lane: Lane) -> tuple[Operation[Any], ...]:
    return (
        Operation(("ZCARD", keys.pending(lane)), int),
        Operation(("ZLEXCOUNT", keys.awaiting_turn, f"[{lane} ", f"({lane}!"), int),
        Operation(("ZRANGE", keys.pending(lane), 0, 0, "WITHSCORES"), _oldest),
    )


def backlog(replies: Sequence[Any], now: float) -> dict[str, Any]:
    """Jobs and money as plain values. now: Redis's time, for the age of the oldest queued job."""
    *of_lanes, held, parked, counts, money = replies
    lanes: dict[str, dict[str, Any]] = {}
    for lane, published, in_line, since in zip(Lane, of_lanes[::3], of_lanes[1::3], of_lanes[2::3], strict=True):
        oldest_s = round(max(0.0, now - since), 1) if since else 0.0
        lanes[lane.value] = {"queued": published + in_line, "oldest_s": oldest_s}
    return {
        "lanes": lanes,
        "held": held,
        "parked": parked,
        "counts": counts,
        "money_usd": {kind: value / MICROUSD_PER_USD for kind, value in asdict(money["total"]).items()},
    }


def _oldest(reply: list[tuple[bytes, float]]) -> float | None:
    """When the lane's first job was queued (s)."""
    return reply[0][1] / 1000 if reply else None


def _counts(reply: dict[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(count) for name, count in reply.items()}


def endpoints(snapshot: Snapshot) -> list[dict[str, Any]]:
    """A row of plain values for each endpoint."""
    all_calls = sum(view.metrics.calls for view in snapshot.views) or 1
    return [_row(view, snapshot.at, all_calls) for view in snapshot.views]


def _row(view: EndpointView, now: float, all_calls: int) -> dict[str, Any]:
    health, metrics, load = view.health, view.metrics, view.load
    return {
        "endpoint": view.endpoint.id,
        "circuit": circuit(health, now).value,
        "health": health_word(health, now),
        "until_s": round(max(0.0, max(health.open_until, health.cooldown_until) - now), 1),
        "reason": health.why,
        "in_flight": load.in_flight,
        "slots": view.endpoint.limits.concurrency,
        "free": 0.0 if load.ready_at > now and not load.fits else round(load.free, 3),
        "full": load.full if load.ready_at > now else "",
        "full_s": round(max(0.0, load.ready_at - now), 1),
        "calls": metrics.calls,
        "share": round(metrics.calls / all_calls, 3),
        "failures": metrics.failures,
        "error_rate": round(metrics.error_rate, 3),
        "spent_usd": metrics.spent_microusd / MICROUSD_PER_USD,
        "priced": view.endpoint.price is not None,
        "simulated": view.endpoint.simulated,
    }
