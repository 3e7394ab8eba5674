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

from turnout.ledger import Read
from turnout.request import MICROUSD_PER_USD, Lane
from turnout.result import dollars
from turnout_workers.commands.setting import Setting, setting
from turnout_workers.routing.health import circuit


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
    keys = here.ledger.keys
    lanes = list(Lane)
    told = here.ask(
        *(Read(("LLEN", keys.queue(lane)), int) for lane in lanes),
        *(Read(("ZCARD", keys.pending(lane)), int) for lane in lanes),
        *(Read(("ZLEXCOUNT", keys.held, f"[{lane} ", f"({lane}!"), int) for lane in lanes),
        Read(("ZCARD", keys.leases), int),
        Read(("ZCARD", keys.delayed), int),
        here.ledger.workers(),
        Read(("HGETALL", keys.counts), _counts),
        Read(("HMGET", keys.money, "total|spent", "total|reserved", "total|unsure", "total|duplicate"), _sums),
    )
    messages, pending, in_line = (told[n * len(lanes) : (n + 1) * len(lanes)] for n in range(3))
    held, delayed, workers, counts, money = told[3 * len(lanes) :]
    queued = [published + behind for published, behind in zip(pending, in_line, strict=True)]
    snapshot = here.view.snapshot()
    calls = sum(view.metrics.calls for view in snapshot.views) or 1
    return {
        "lanes": {lane.value: {"queued": q, "messages": m} for lane, q, m in zip(lanes, queued, messages, strict=True)},
        "configuration": here.settings.version,
        "workers": Counter(workers.values()),
        "held_by_workers": held,
        "parked": delayed,
        "counts": counts,
        "money_usd": {name: value / MICROUSD_PER_USD for name, value in money.items()},
        "endpoints": [
            {
                "endpoint": view.endpoint.id,
                "circuit": circuit(view.health, snapshot.at).value,
                "until_s": round(max(0.0, max(view.health.open_until, view.health.blocked_until) - snapshot.at), 1),
                "reason": view.health.disabled or view.health.reason,
                "in_flight": view.load.in_flight,
                "slots": view.endpoint.limits.concurrency,
                "free": round(view.load.free, 3),
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


def _counts(reply: Any) -> dict[str, int]:
    pairs = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): int(count) for name, count in pairs}


def _sums(reply: Any) -> dict[str, int]:
    return {n: int(v or 0) for n, v in zip(("spent", "reserved", "unsure", "duplicate"), reply, strict=True)}


def _followers(workers: Mapping[str, int], here: str) -> str:
    """How many workers follow the configuration that is here, and which ones the others follow."""
    others = [f"{count:,} on {version}" for version, count in workers.items() if version != here]
    return ", ".join([f"{workers.get(here, 0):,} workers", *others])


def _drawn(told: dict[str, Any]) -> Group:
    lanes = Table("lane", "queued", "messages", title="Jobs", title_justify="left")
    for lane, numbers in told["lanes"].items():
        lanes.add_row(lane, f"{numbers['queued']:,}", f"{numbers['messages']:,}")
    workers = _followers(told["workers"], told["configuration"])
    money = {name: dollars(round(usd * MICROUSD_PER_USD)) for name, usd in told["money_usd"].items()}
    line = (
        f"configuration {told['configuration']}: {workers}\n"
        f"{told['held_by_workers']:,} with workers · {told['parked']:,} parked · "
        + " · ".join(f"{count:,} {name}" for name, count in told["counts"].items())
        + f"\n{money['spent']} spent · {money['reserved']} reserved · {money['unsure']} unsure"
    )
    columns = ("endpoint", "circuit", "for", "in flight", "calls", "share", "errors", "spent", "why")
    fleet = Table(*columns, title="Endpoints", title_justify="left")
    for one in told["endpoints"]:
        well = one["circuit"] == "closed" and not one["until_s"]
        fleet.add_row(
            one["endpoint"] + (" (simulated)" if one["simulated"] else ""),
            one["circuit"],
            f"{one['until_s']:.0f} s" if one["until_s"] else "",
            f"{one['in_flight']}" + (f"/{one['slots']}" if one["slots"] else ""),
            f"{one['calls']:,}",
            f"{one['share']:.0%}",
            f"{one['error_rate']:.0%}",
            dollars(round(one["spent_usd"] * MICROUSD_PER_USD)),
            "" if well else one["reason"][:60],
            style="" if well else "yellow",
        )
    return Group(lanes, line, fleet)
