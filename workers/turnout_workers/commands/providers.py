"""`turnout providers`: what is configured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

import click

from turnout_workers.commands.screen import indented, standard_output
from turnout_workers.deployment import deployment
from turnout_workers.routing.fleet import OPERATOR, Endpoint, Limits

UNITS = {kind.name: kind.name.replace("_per_", " a ").replace("_", " ") for kind in fields(Limits)}
UNITS["concurrency"] = "at once"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def providers(as_json: bool) -> None:
    """List providers, models, prices (USD per million tokens) and limits.

    `turnout status` tells how each of them is, and `turnout doctor` whether it answers.
    """
    told = [_row(endpoint) for endpoint in deployment().fleet.endpoints]
    if as_json:
        click.echo(json.dumps({"endpoints": told}))
        return
    console = standard_output()
    for one in told:
        console.print(one["endpoint"])
        for line in _lines(one):
            console.print(indented(line, 4))


def _row(endpoint: Endpoint) -> dict[str, Any]:
    price = endpoint.price
    return {
        "endpoint": endpoint.id,
        "model": endpoint.model,
        "sent_as": endpoint.served_model,
        "input_usd_per_mtok": price.input if price else None,
        "output_usd_per_mtok": price.output if price else None,
        "price_from": price.source if price else None,
        "limits": _told(endpoint.limits),
        "shared_limits": _told(endpoint.shared_limits),
        "context_tokens": endpoint.context_tokens,
        "capabilities": sorted(endpoint.capabilities),
        "simulated": endpoint.simulated,
    }


def _told(limits: Limits) -> dict[str, int]:
    return {name: limit for name, limit in asdict(limits).items() if limit is not None}


def _lines(one: dict[str, Any]) -> Iterator[str]:
    if one["model"] != one["sent_as"]:
        yield f"sent as {one['sent_as']}"
    if one["input_usd_per_mtok"] is None:
        yield "price unknown"
    else:
        whose = "yours" if one["price_from"] == OPERATOR else one["price_from"]
        yield f"${one['input_usd_per_mtok']:g} in, ${one['output_usd_per_mtok']:g} out ({whose})"
    context = f"{one['context_tokens']:,} tokens of context" if one["context_tokens"] else "context unknown"
    yield ", ".join([context, *one["capabilities"], *(["simulated"] if one["simulated"] else [])])
    for limits, of in ((one["limits"], ""), (one["shared_limits"], ", all of its models together")):
        if limits:
            yield ", ".join(f"{value:,} {UNITS[name]}" for name, value in limits.items()) + of
