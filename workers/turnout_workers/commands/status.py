"""`turnout status`: lanes, providers and money at a glance."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from turnout.request import MICROUSD_PER_USD
from turnout.result import dollars
from turnout_workers.commands.setting import Setting, setting
from turnout_workers.monitoring import backlog
from turnout_workers.routing.health import circuit
from turnout_workers.state.store import EndpointState


@click.command()
@click.option("--once", is_flag=True, help="Print once, and end.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, once.")
def status(once: bool, as_json: bool) -> None:
    """Show lanes, jobs, providers and spend; until Ctrl-C, twice a second."""
    here = setting()
    if as_json:
        click.echo(json.dumps(look(here)))
        return
    if once:
        Console().print(_drawn(look(here)))
        return
    with Live(refresh_per_second=4, screen=False) as live:
        try:
            while True:
                live.update(_drawn(look(here)))
                time.sleep(0.5)
        except KeyboardInterrupt:
            return


def look(here: Setting) -> dict[str, Any]:
    """All of it, as plain values."""
    workers, *replies = here.ask(here.ledger.workers(), *backlog.reads(here.ledger.keys))
    snapshot, observed = here.view.read()
    calls = sum(view.metrics.calls for view in snapshot.views) or 1
    return {
        "configuration": here.settings.version,
        "workers": Counter(workers.values()),
        **backlog.told(replies, snapshot.at),
        "endpoints": [
            {
                "endpoint": view.endpoint.id,
                "circuit": circuit(view.health, snapshot.at).value,
                "until_s": round(max(0.0, max(view.health.open_until, view.health.blocked_until) - snapshot.at), 1),
                "reason": view.health.disabled or view.health.reason,
                "in_flight": view.load.in_flight,
                "slots": view.endpoint.limits.concurrency,
                "free": round(view.load.free, 3),
                "p50_s": _latency(observed, view.endpoint.id, 0.5),
                "p99_s": _latency(observed, view.endpoint.id, 0.99),
                "calls": view.metrics.calls,
                "share": round(view.metrics.calls / calls, 3),
                "failures": view.metrics.failures,
                "error_rate": round(view.metrics.error_rate, 3),
                "spent_usd": view.metrics.spent_microusd / MICROUSD_PER_USD,
                "simulated": view.endpoint.simulated,
            }
            for view in snapshot.views
        ],
    }


def _latency(observed: Mapping[str, EndpointState], endpoint_id: str, share: float) -> float | None:
    """Upper bound of that share of its successful calls (s); None before there was any."""
    found = observed[endpoint_id].latency_quantile(share) if endpoint_id in observed else None
    return None if found is None else round(found, 3)


def _followers(workers: Mapping[str, int], here: str) -> str:
    """How many workers follow the configuration that is here, and which ones the others follow."""
    others = [f"{count:,} on {version}" for version, count in workers.items() if version != here]
    return ", ".join([f"{workers.get(here, 0):,} workers", *others])


def _drawn(told: dict[str, Any]) -> Group:
    lanes = Table("lane", "queued", "oldest", "messages", title="Jobs", title_justify="left")
    for lane, numbers in told["lanes"].items():
        lanes.add_row(lane, f"{numbers['queued']:,}", f"{numbers['oldest_s']:.0f} s", f"{numbers['messages']:,}")
    workers = _followers(told["workers"], told["configuration"])
    money = {name: dollars(round(usd * MICROUSD_PER_USD)) for name, usd in told["money_usd"].items()}
    line = (
        f"configuration {told['configuration']}: {workers}\n"
        f"{told['held']:,} with workers · {told['parked']:,} parked · "
        + " · ".join(f"{count:,} {name}" for name, count in told["counts"].items())
        + f"\n{money['spent']} spent · {money['reserved']} reserved · {money['unsure']} unsure"
    )
    columns = ("endpoint", "circuit", "for", "in flight", "p50", "p99", "calls", "share", "errors", "spent", "why")
    fleet = Table(*columns, title="Endpoints", title_justify="left")
    for one in told["endpoints"]:
        well = one["circuit"] == "closed" and not one["until_s"]
        fleet.add_row(
            one["endpoint"] + (" (simulated)" if one["simulated"] else ""),
            one["circuit"],
            f"{one['until_s']:.0f} s" if one["until_s"] else "",
            f"{one['in_flight']}" + (f"/{one['slots']}" if one["slots"] else ""),
            *("" if one[p] is None else f"{one[p]:.2f} s" for p in ("p50_s", "p99_s")),
            f"{one['calls']:,}",
            f"{one['share']:.0%}",
            f"{one['error_rate']:.0%}",
            dollars(round(one["spent_usd"] * MICROUSD_PER_USD)),
            "" if well else one["reason"][:60],
            style="" if well else "yellow",
        )
    return Group(lanes, line, fleet)
