"""`turnout providers`: what is configured, and whether it answers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict, fields
from typing import Any

import click
import redis

from turnout_workers.commands.screen import indented, print_json, standard_output
from turnout_workers.config import Settings, accounts
from turnout_workers.deployment import Deployment, deployment
from turnout_workers.providers import CloudProviderBase, Http, build
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import FailureKind
from turnout_workers.routing.fleet import OPERATOR, EndpointView, Limits
from turnout_workers.state.fleet_view import WELL, health_problem, health_word
from turnout_workers.state.redis_store import state_operation

UNITS = {kind.name: kind.name.replace("_per_", " a ").replace("_", " ") for kind in fields(Limits)}
UNITS["concurrency"] = "at once"
ADVICE = {
    FailureKind.UNAUTHORIZED: "put a good key where this one came from",
    FailureKind.BILLING: "add credit, or raise the spend limit, at the provider",
    FailureKind.FORBIDDEN: "this key may not list models; calls don't need that, or grant it the right",
    FailureKind.MODEL_NOT_FOUND: "either it has no free health check, or base_url or version is wrong",
    FailureKind.UNAVAILABLE: "check base_url, the network, and whether it needs a proxy",
    FailureKind.TIMED_OUT: "check base_url and the network",
    FailureKind.MALFORMED: "check base_url: something else answers there",
    FailureKind.RATE_LIMITED: "nothing: the key is good",
}
"""What to do about a health check that failed."""


@click.command()
@click.option("--check", is_flag=True, help="Ask each provider's free health endpoint, with each key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def providers(check: bool, as_json: bool) -> None:
    """List providers, models, prices, limits and health. Prices are in USD per million tokens."""
    here = deployment(with_keys=check)
    rows = _rows(here)
    problems = asyncio.run(health_checks(here.settings)) if check else {}
    if as_json:
        print_json({"endpoints": rows, **({"checks": problems} if check else {})})
    else:
        console = standard_output()
        for row in rows:
            health = row["health"] or "health unknown: Redis can't be reached"
            console.print(f"{row['endpoint']}: {health}", style="" if health == WELL else "yellow")
            for line in _lines(row):
                console.print(indented(line, 4))
        for name, problem in problems.items():
            click.echo(f"{name}: {problem or 'answers'}")
    sys.exit(1 if any(problems.values()) else 0)


def _rows(here: Deployment) -> list[dict[str, Any]]:
    """All endpoints, as plain values. `health` is None if Redis can't be reached."""
    try:
        state, reached = here.ask(state_operation(here.ledger.keys))[0], True
    except redis.RedisError:
        state, reached = (0.0, {}), False
    snapshot = here.fleet.snapshot(*state)
    return [_row(view, snapshot.at) | ({} if reached else {"health": None}) for view in snapshot.views]


def _row(view: EndpointView, at: float) -> dict[str, Any]:
    endpoint, price, wrong = view.endpoint, view.endpoint.price, health_problem(view.health, at)
    return {
        "endpoint": endpoint.id,
        "model": endpoint.model,
        "sent_as": endpoint.served_model,
        "input_usd_per_mtok": price.input if price else None,
        "output_usd_per_mtok": price.output if price else None,
        "price_from": price.source if price else None,
        "limits": _set_limits(endpoint.limits),
        "shared_limits": _set_limits(endpoint.shared_limits),
        "context_tokens": endpoint.context_tokens,
        "capabilities": sorted(endpoint.capabilities),
        "health": wrong[1] if wrong else health_word(view.health, at),
        "simulated": endpoint.simulated,
    }


def _set_limits(limits: Limits) -> dict[str, int]:
    return {name: limit for name, limit in asdict(limits).items() if limit is not None}


def _lines(row: dict[str, Any]) -> Iterator[str]:
    if row["model"] != row["sent_as"]:
        yield f"sent as {row['sent_as']}"
    if row["input_usd_per_mtok"] is None:
        yield "price unknown"
    else:
        whose = "yours" if row["price_from"] == OPERATOR else row["price_from"]
        yield f"${row['input_usd_per_mtok']:g} in, ${row['output_usd_per_mtok']:g} out ({whose})"
    context = f"{row['context_tokens']:,} tokens of context" if row["context_tokens"] else "context unknown"
    yield ", ".join([context, *row["capabilities"], *(["simulated"] if row["simulated"] else [])])
    shared = row["shared_limits"]
    own = {name: limit for name, limit in row["limits"].items() if shared.get(name) != limit}
    for limits, of in ((own, ""), (shared, ", all of its models together")):
        if limits:
            yield ", ".join(f"{value:,} {UNITS[name]}" for name, value in limits.items()) + of


async def health_checks(settings: Settings) -> dict[str, str]:
    """Check every account's free health endpoint. Returns what is wrong and what to do, or an empty text."""

    async def check(connector: CloudProviderBase) -> str:
        try:
            await connector.check_health()
        except ProviderError as error:
            advice = ADVICE.get(error.failure.kind)
            return f"{error}; {advice}" if advice else str(error)
        return ""

    async with aclosing(Http()) as http:
        checks = {config.endpoints[0].account_id: check(build(config, http)) for config in accounts(settings)}
        return dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
