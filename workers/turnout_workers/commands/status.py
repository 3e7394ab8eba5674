"""`turnout status`: lanes, workers, providers, pace and money at a glance."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import click
from redis.exceptions import RedisError
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from turnout.redis_trouble import explain
from turnout_workers.commands.screen import add_row, counted, print_json, seconds, show, standard_output, table, usd
from turnout_workers.deployment import deployment
from turnout_workers.monitoring.overview import overview
from turnout_workers.state.fleet_view import WELL

EVERY_S = 0.5
PACE_LOOKS = 20
"""Looks over which the pace is measured: ten seconds."""

COLUMNS = ("endpoint", "health", "in flight", "room", "p99", "errors", "spent")
"""Of the table of endpoints, for 80 characters; `room` is what is left of the scarcest limit. `--json` has more."""


@click.command()
@click.option("--once", is_flag=True, help="Print once and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print once, as JSON.")
def status(once: bool, as_json: bool) -> None:
    """Show lanes, workers, providers, pace and spend. On a terminal it updates twice a second until Ctrl-C."""
    here, console = deployment(), standard_output()
    if as_json:
        print_json(overview(here))
        return
    if once or not (console.is_interactive and console.file.isatty()):  # with FORCE_COLOR, any file is interactive
        show(console, *_drawn(overview(here), ""))
        return
    seen: deque[dict[str, Any]] = deque(maxlen=PACE_LOOKS)
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                try:
                    seen.append(overview(here))
                    drawn: Any = Group(*_drawn(seen[-1], _pace(seen[0], seen[-1])))
                except RedisError as error:  # Redis may come back
                    drawn = Text(explain(error))
                live.update(drawn, refresh=True)
                time.sleep(EVERY_S)
        except KeyboardInterrupt:
            return


def _pace(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Jobs per second and money per hour between two looks."""
    if (passed_s := last["at"] - first["at"]) <= 0:
        return ""
    jobs, money = (after - before for before, after in zip(_sums(first), _sums(last), strict=True))
    return f" · {jobs / passed_s:,.1f} jobs/s · {usd(money / passed_s * 3600)} an hour"


def _sums(view: dict[str, Any]) -> tuple[int, float]:
    settled = sum(count for name, count in view["counts"].items() if name != "accepted")
    return settled, view["money_usd"]["spent"]


def _workers(view: dict[str, Any]) -> str:
    """Number of workers, and of those with another configuration than the one here."""
    here, versions = view["configuration"], view["workers"].values()
    if not versions and (view["held"] or any(row["in_flight"] for row in view["endpoints"])):
        return "0 workers: jobs at work and calls in flight stay as the last worker left them until another starts"
    others = sum(version != here for version in versions)
    return counted(len(versions), "worker") + (f", {others:,} of them not on configuration {here}" if others else "")


def _drawn(view: dict[str, Any], pace: str) -> list[Table | Text]:
    lanes = table("lane", "queued", "oldest", numbers=("queued", "oldest"))
    for lane, numbers in view["lanes"].items():
        oldest = f"{numbers['oldest_s']:,.0f} s" if numbers["queued"] else ""
        add_row(lanes, lane, f"{numbers['queued']:,}", oldest)
    counts = [f"{view['held']:,} at work", f"{view['parked']:,} parked"]
    counts += [f"{count:,} {name}" for name, count in view["counts"].items()]
    money = [f"{usd(amount)} {name}" for name, amount in view["money_usd"].items() if amount or name == "spent"]
    fleet = table(*COLUMNS, numbers=COLUMNS[2:], whole=("health",))
    for row in view["endpoints"]:
        health = row["health"] + (f" {row['until_s']:.0f} s" if row["until_s"] else "")
        in_flight = f"{row['in_flight']}" + (f"/{row['slots']}" if row["slots"] else "")
        room, errors = f"{row['free']:.0%}", f"{row['error_rate']:.0%}"
        numbers = (in_flight, room, seconds(row["p99_s"]), errors, usd(row["spent_usd"]))
        add_row(fleet, row["endpoint"], health, *numbers, style="" if row["health"] == WELL else "yellow")
    lines = [_workers(view) + pace, " · ".join(counts), " · ".join(money)]
    return [lanes, *map(Text, lines), fleet, *map(Text, _notes(view["endpoints"]))]


def _notes(endpoints: list[dict[str, Any]]) -> Iterator[str]:
    """Problems of endpoints, and endpoints of unknown price or with made-up answers."""
    yield from (f"{row['endpoint']}: {row['reason']}" for row in endpoints if row["health"] != WELL)
    for row in endpoints:
        if row["full"]:
            yield f"{row['endpoint']}: {row['full']} has room again in {row['full_s']:.0f} s"
    if unpriced := [f"{row['endpoint']} ({counted(row['calls'], 'call')})" for row in endpoints if not row["priced"]]:
        yield f"price unknown, not in any sum: {', '.join(unpriced)}"
    if made_up := [row["endpoint"] for row in endpoints if row["simulated"]]:
        yield f"simulated: {'all of them' if len(made_up) == len(endpoints) else ', '.join(made_up)}"
