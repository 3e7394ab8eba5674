"""What a running batch shows: a bar on a terminal, plain lines elsewhere, JSON for machines; a table at the end."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any, Protocol

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from turnout.batch.tally import Tally
from turnout.request import MICROUSD_PER_USD
from turnout.result import dollars

RATE_WINDOW_S = 10.0
LINE_EVERY_S = 5.0


class Progress(Protocol):
    """Is told of a tally now and then."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *exc: object) -> None: ...

    def update(self, tally: Tally, states: dict[str, str]) -> None:
        """`states`: what is wrong with a provider just now, by its name."""


class Pace:
    """Jobs a second over the last moments, and when the rest will be done."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def rate(self, finished: int) -> float:
        now = time.monotonic()
        self._points.append((now, finished))
        while now - self._points[0][0] > RATE_WINDOW_S and len(self._points) > 2:
            self._points.popleft()
        began, count = self._points[0]
        return (finished - count) / (now - began) if now > began else 0.0


class Bar:
    """A live display for a terminal."""

    def __init__(self, console: Console, total: int | None, ceiling_microusd: int | None, title: str) -> None:
        self._console = console
        self._total = total
        self._ceiling = ceiling_microusd
        self._title = title
        self._pace = Pace()
        self._live = Live(console=console, refresh_per_second=8, transient=True)
        self._drawn_at = 0.0

    def __enter__(self) -> Bar:
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.__exit__(None, None, None)

    def update(self, tally: Tally, states: dict[str, str]) -> None:
        if time.monotonic() - self._drawn_at < 0.1:
            return
        self._drawn_at = time.monotonic()
        rate = self._pace.rate(tally.finished)
        total = self._total or max(tally.lines, 1)
        left = total - tally.finished
        spend = dollars(tally.cost_microusd)
        if self._ceiling is not None:
            spend += f" of {dollars(self._ceiling)}"
        eta = f"{left / rate:.0f} s" if rate > 0 else "–"
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=total, completed=tally.finished, width=40)
        head.add_row(self._title, bar, f"{tally.finished:,} of {total:,}")
        line = Text(
            f"{tally.failed:,} failed · {tally.failovers:,} failovers · {spend} · {rate:,.0f} jobs/s · ETA {eta}"
        )
        troubles = [Text(f"  {name}: {state}", style="yellow") for name, state in sorted(states.items())]
        self._live.update(Group(head, line, *troubles))


class Lines:
    """A line of text now and then, for logs; and at once when a provider's state changes."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._total = total
        self._pace = Pace()
        self._said_at = time.monotonic()
        self._states: dict[str, str] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def update(self, tally: Tally, states: dict[str, str]) -> None:
        rate = self._pace.rate(tally.finished)
        kinds = {name: state.split(":")[0] for name, state in states.items()}
        for name in kinds.keys() - self._states.keys():
            self._console.print(f"{name}: {states[name]}", highlight=False)
        for name in self._states.keys() - kinds.keys():
            self._console.print(f"{name}: back", highlight=False)
        self._states = kinds
        if time.monotonic() - self._said_at < LINE_EVERY_S:
            return
        self._said_at = time.monotonic()
        total = f" of {self._total:,}" if self._total else ""
        self._console.print(
            f"{tally.finished:,}{total} done, {tally.failed:,} failed, {tally.failovers:,} failovers, "
            f"{dollars(tally.cost_microusd)}, {rate:,.0f} jobs/s",
            highlight=False,
        )


class Json:
    """One JSON object a second on standard output."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said_at = 0.0

    def __enter__(self) -> Json:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def update(self, tally: Tally, states: dict[str, str]) -> None:
        if time.monotonic() - self._said_at >= 1:
            self._said_at = time.monotonic()
            self._console.out(json.dumps({**summary(tally), "providers_down": states}), highlight=False)


def summary(tally: Tally) -> dict[str, Any]:
    """A tally for machines."""
    return {
        "lines": tally.lines,
        "finished": tally.finished,
        "by_status": dict(tally.done),
        "resumed": tally.resumed,
        "failovers": tally.failovers,
        "deferrals": tally.deferrals,
        "cost_usd": tally.cost_microusd / MICROUSD_PER_USD,
        "unsure_usd": tally.unsure_microusd / MICROUSD_PER_USD,
        "providers": {
            name: {
                "jobs": one.jobs,
                "failures": one.failures,
                "failovers_in": one.failovers_in,
                "failovers_out": one.failovers_out,
                "input_tokens": one.input_tokens,
                "output_tokens": one.output_tokens,
                "cost_usd": one.cost_microusd / MICROUSD_PER_USD,
                "p50_s": one.latency.quantile(0.5),
                "p99_s": one.latency.quantile(0.99),
                "simulated": one.simulated,
            }
            for name, one in tally.providers.items()
        },
    }


def table(tally: Tally) -> Table:
    """The end of a batch, by provider."""
    made_up = any(one.simulated for one in tally.providers.values())
    title = "Simulated providers: no model was run" if made_up else None
    caption = "failed: calls; in and out: jobs taken over from another provider, and lost to one"
    shown = Table(title=title, title_style="yellow", caption=caption, box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ("provider", "jobs", "failed", "in", "out", "tokens", "cost", "p50", "p99")
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for name, one in sorted(tally.providers.items(), key=lambda pair: -pair[1].jobs):
        shown.add_row(
            name,
            f"{one.jobs:,}",
            f"{one.failures:,}",
            f"{one.failovers_in:,}",
            f"{one.failovers_out:,}",
            f"{one.input_tokens + one.output_tokens:,}",
            f"${one.cost_microusd / MICROUSD_PER_USD:,.4f}",
            _seconds(one.latency.quantile(0.5)),
            _seconds(one.latency.quantile(0.99)),
        )
    return shown


def closing_line(tally: Tally, took_s: float) -> str:
    """The sum in one sentence."""
    ends = ", ".join(f"{count:,} {status}" for status, count in tally.done.most_common())
    parts = [f"{tally.finished:,} lines in {took_s:.1f} s: {ends or 'nothing to do'}"]
    if tally.resumed:
        parts.append(f"{tally.resumed:,} of them done before")
    parts.append(f"{tally.failovers:,} failovers")
    parts.append(f"{dollars(tally.cost_microusd)} spent")
    if tally.unsure_microusd:
        parts.append(f"up to {dollars(tally.unsure_microusd)} more that a failed call may have cost")
    if tally.unpriced:
        parts.append(f"{tally.unpriced:,} calls of unknown price")
    return " · ".join(parts)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"
