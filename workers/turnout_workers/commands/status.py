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
PACE_OVER = 20
"""Looks over which the pace is taken: ten seconds."""

COLUMNS = ("endpoint", "health", "in flight", "room", "p99", "errors", "spent")
"""Of endpoints, as many as fit 80 characters; `room` is what is left of the scarcest limit. `--json` has more."""


@click.command()
@click.option("--once", is_flag=True, help="Print once and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print once, as JSON.")
def status(once: bool, as_json: bool) -> None:
    """Show lanes, workers, providers, pace and spend. On a terminal it updates twice a second until Ctrl-C."""
    here, console = deployment(), standard_output()
    if as_json:
        print_json(overview(here))
        return
    if once or not (console.is_interactive and console.file.isatty()):  # FORCE_COLOR makes a terminal of any file
        show(console, *_drawn(overview(here), ""))
        return
    seen: deque[dict[str, Any]] = deque(maxlen=PACE_OVER)
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                try:
                    seen.append(overview(here))
                    drawn: Any = Group(*_drawn(seen[-1], _pace(seen[0], seen[-1])))
                except RedisError as error:  # it is away, and may come back
                    drawn = Text(explain(error))
                live.update(drawn, refresh=True)
                time.sleep(EVERY_S)
        except KeyboardInterrupt:
            return


def _pace(first: dict[str, Any], last: dict[str, Any]) -> str:
    """Jobs settled a second, and money an hour, from one look to another."""
    if (passed_s := last["at"] - first["at"]) <= 0:
        return ""
    jobs, money = (after - before for before, after in zip(_sums(first), _sums(last), strict=True))
    return f" · {jobs / passed_s:,.1f} jobs/s · {usd(money / passed_s * 3600)} an hour"


def _sums(told: dict[str, Any]) -> tuple[int, float]:
    settled = sum(count for name, count in told["counts"].items() if name != "accepted")
    return settled, told["money_usd"]["spent"]


def _workers(told: dict[str, Any]) -> str:
    """How many there are, and how many of them follow another configuration than the one here."""
    here, versions = told["configuration"], told["workers"].values()
    if not versions and (told["held"] or any(one["in_flight"] for one in told["endpoints"])):
        return "0 workers: what is at work or in flight is as the last one left it, until another starts"
    others = sum(version != here for version in versions)
    return counted(len(versions), "worker") + (f", {others:,} of them not on configuration {here}" if others else "")


def _drawn(told: dict[str, Any], pace: str) -> list[Table | Text]:
    lanes = table("lane", "queued", "oldest", numbers=("queued", "oldest"))
    for lane, numbers in told["lanes"].items():
        oldest = f"{numbers['oldest_s']:,.0f} s" if numbers["queued"] else ""
        add_row(lanes, lane, f"{numbers['queued']:,}", oldest)
    counts = [f"{told['held']:,} at work", f"{told['parked']:,} parked"]
    counts += [f"{count:,} {name}" for name, count in told["counts"].items()]
    money = [f"{usd(amount)} {name}" for name, amount in told["money_usd"].items() if amount or name == "spent"]
    fleet = table(*COLUMNS, numbers=COLUMNS[2:], whole=("health",))
    for one in told["endpoints"]:
        health = one["health"] + (f" {one['until_s']:.0f} s" if one["until_s"] else "")
        in_flight = f"{one['in_flight']}" + (f"/{one['slots']}" if one["slots"] else "")
        room, errors = f"{one['free']:.0%}", f"{one['error_rate']:.0%}"
        numbers = (in_flight, room, seconds(one["p99_s"]), errors, usd(one["spent_usd"]))
        add_row(fleet, one["endpoint"], health, *numbers, style="" if one["health"] == WELL else "yellow")
    lines = [_workers(told) + pace, " · ".join(counts), " · ".join(money)]
    return [lanes, *map(Text, lines), fleet, *map(Text, _notes(told["endpoints"]))]


def _notes(endpoints: list[dict[str, Any]]) -> Iterator[str]:
    """What is wrong with whom, and whose answers are made up."""
    yield from (f"{one['endpoint']}: {one['reason']}" for one in endpoints if one["health"] != WELL)
    if made_up := [one["endpoint"] for one in endpoints if one["simulated"]]:
        yield f"simulated: {'all of them' if len(made_up) == len(endpoints) else ', '.join(made_up)}"
