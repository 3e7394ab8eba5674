"""`turnout providers`: what is configured, and whether it answers."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import click
import redis
from rich.console import Console
from rich.table import Table

from turnout_workers.commands.check import answers_of
from turnout_workers.commands.screen import add, table
from turnout_workers.deployment import Deployment, deployment
from turnout_workers.routing.fleet import OPERATOR, EndpointView, Limits
from turnout_workers.state.fleet_view import trouble
from turnout_workers.state.redis import state_call

UNITS = {
    "requests_per_minute": "rpm",
    "tokens_per_minute": "tpm",
    "input_tokens_per_minute": "input tpm",
    "output_tokens_per_minute": "output tpm",
    "requests_per_day": "requests a day",
    "tokens_per_day": "tokens a day",
    "concurrency": "at once",
}


@click.command()
@click.option("--check", is_flag=True, help="Ask each provider's free health endpoint, with each key.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def providers(check: bool, as_json: bool) -> None:
    """List providers, models, prices (USD per million tokens), limits and health."""
    here = deployment(with_keys=check)
    told = _look(here)
    answers = asyncio.run(answers_of(here.settings)) if check else {}
    if as_json:
        click.echo(json.dumps({"endpoints": told, **({"checks": answers} if check else {})}))
    else:
        Console().print(_drawn(told))
        for name, wrong in answers.items():
            click.echo(f"{name}: {wrong or 'answers'}")
    sys.exit(1 if any(answers.values()) else 0)


def _look(here: Deployment) -> list[dict[str, Any]]:
    """All endpoints, as plain values. `health` is None where Redis can't be asked."""
    views: dict[str, EndpointView] = {}
    at = 0.0
    try:
        snapshot = here.fleet.snapshot(*here.ask(state_call(here.ledger.keys))[0])
        at, views = snapshot.at, {view.endpoint.id: view for view in snapshot.views}
    except redis.RedisError:
        pass
    found = []
    for endpoint in here.fleet.endpoints:
        price = endpoint.price
        wrong = trouble(views[endpoint.id].health, at) if endpoint.id in views else None
        found.append(
            {
                "endpoint": endpoint.id,
                "sent_as": endpoint.served_model,
                "input_usd_per_mtok": price.input if price else None,
                "output_usd_per_mtok": price.output if price else None,
                "price_from": price.source if price else None,
                "limits": _told(endpoint.limits),
                "shared_limits": _told(endpoint.shared_limits),
                "context_tokens": endpoint.context_tokens,
                "capabilities": sorted(endpoint.capabilities),
                "health": None if endpoint.id not in views else wrong[1] if wrong else "well",
                "simulated": endpoint.simulated,
            }
        )
    return found


def _told(limits: Limits) -> dict[str, int]:
    return {name: value for name in UNITS if (value := getattr(limits, name)) is not None}


def _drawn(told: list[dict[str, Any]]) -> Table:
    columns = ("endpoint", "in", "out", "price", "limits", "context", "can", "health")
    made = table(*columns, numbers=("in", "out", "context"), whole=("limits",))
    for one in told:
        renamed = "" if one["endpoint"].partition("/")[2].split("#")[0] == one["sent_as"] else f"\n= {one['sent_as']}"
        prices = (one["input_usd_per_mtok"], one["output_usd_per_mtok"])
        add(
            made,
            one["endpoint"] + (" (simulated)" if one["simulated"] else "") + renamed,
            *("?" if price is None else f"{price:g}" for price in prices),
            {None: "?", OPERATOR: "yours"}.get(one["price_from"], "list"),
            "\n".join(f"{value:,} {UNITS[name]}" for name, value in one["limits"].items()),
            f"{one['context_tokens']:,}" if one["context_tokens"] else "?",
            "\n".join(one["capabilities"]),
            one["health"] or "no Redis",
            style="" if one["health"] in ("well", None) else "yellow",
        )
    return made
