"""What `turnout run` shows.

While it runs: a bar on a terminal, plain lines elsewhere, JSON for machines. At the end: a table by provider and a
sentence for people, an object for machines.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from turnout.batch.tally import ProviderTally, Tally
from turnout.result import dollars
from turnout_workers.commands import screen
from turnout_workers.commands.screen import counted, span, steady_usd, to_json_line

PROVIDER_COUNTS = ("jobs", "failures", "failovers_in", "failovers_out", "input_tokens", "output_tokens", "simulated")


class Progress:
    """Shows a tally from time to time, within a `with` block."""

    every_s: float
    """Shortest time between two updates."""

    def __init__(
        self, console: Console, title: str, total: int | None, ceiling_microusd: int | None, providers: Sequence[str]
    ) -> None:
        """total: number of lines; None: unknown."""
        self._console, self._title, self._total = console, title, total
        self._ceiling_microusd, self._providers = ceiling_microusd, providers
        self._began_at, self._shown_at = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, tally: Tally, states: dict[str, str]) -> None:
        """states: current problems, by the provider's name or `workers`."""
        if (now := time.monotonic()) - self._shown_at >= self.every_s:
            self._shown_at = now
            self._show(tally, states)

    def _show(self, tally: Tally, states: dict[str, str]) -> None:
        raise NotImplementedError

    def _standing(self, tally: Tally) -> str:
        """Pace, time left, money and failures."""
        total = self._total
        rate = (tally.finished - tally.resumed) / (time.monotonic() - self._began_at)
        parts = [f"{rate:,.0f} jobs/s" if rate >= 10 or not rate else f"{rate:.1f} jobs/s"]
        if total is not None:
            parts.append(f"ETA {span((total - tally.finished) / rate) if rate else '–'}")
        parts.append(spent_of(self._ceiling_microusd, tally))
        return " · ".join([*parts, f"{tally.failed:,} failed", counted(tally.failovers, "failover")])


class Bar(Progress):
    """A live display for a terminal: progress, and the state of each provider."""

    every_s = 0.1

    def __enter__(self) -> Self:
        self._live = Live(console=self._console, refresh_per_second=8, transient=True)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _show(self, tally: Tally, states: dict[str, str]) -> None:
        total = self._total or max(tally.lines, 1)
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=total, completed=tally.finished, width=40)
        head.add_row(Text(self._title), bar, f"{tally.finished:,} of {total:,}{'' if self._total else ' so far'}")
        self._live.update(Group(head, Text(self._standing(tally)), self._table(tally, states)))

    def _table(self, tally: Tally, states: dict[str, str]) -> Table:
        shown = Table.grid(padding=(0, 2), expand=True)
        for justify in ("left", "right", "right"):
            shown.add_column(justify=justify, no_wrap=True)
        shown.add_column(no_wrap=True, ratio=1)  # cut off if there isn't room
        names = [*self._providers, *(name for name in states if name not in self._providers)]
        for name in names:
            state = Text(states[name], style="yellow") if name in states else Text("up", style="green")
            part, is_provider = tally.providers.get(name, ProviderTally()), name in self._providers
            jobs, cost = (counted(part.jobs, "job"), steady_usd(part.cost_microusd)) if is_provider else ("", "")
            shown.add_row(Text(f"  {name}"), jobs, cost, state)
        return shown


class Lines(Progress):
    """A line of text every few seconds, for logs."""

    every_s = 5.0

    def _show(self, tally: Tally, states: dict[str, str]) -> None:
        total = f" of {self._total:,}" if self._total else ""
        problems = [f"{name}: {state}" for name, state in states.items()]
        line = " · ".join([f"{tally.finished:,}{total}", self._standing(tally), *problems])
        self._console.print(line, soft_wrap=True)


class Json(Progress):
    """One JSON object a second."""

    every_s = 1.0

    def _show(self, tally: Tally, states: dict[str, str]) -> None:
        self._console.out(to_json_line({**summary(tally), "providers_down": states}))


def summary(tally: Tally) -> dict[str, Any]:
    """A tally for programs."""
    return {
        "lines": tally.lines,
        "finished": tally.finished,
        "by_status": dict(+tally.done),
        "resumed": tally.resumed,
        "shared": tally.shared,
        "failovers": tally.failovers,
        "deferrals": tally.deferrals,
        "warned": tally.warned,
        "cost_microusd": tally.cost_microusd,
        "unsure_microusd": tally.unsure_microusd,
        "providers": {
            name: {
                **{count: getattr(provider, count) for count in PROVIDER_COUNTS},
                "cost_microusd": provider.cost_microusd,
                "p50_s": provider.latency(0.5),
                "p99_s": provider.latency(0.99),
            }
            for name, provider in tally.providers.items()
        },
    }


def table(tally: Tally) -> Table:
    """A finished run, by sums."""
    made_up = {sums.simulated for sums in tally.providers.values() if sums.jobs}
    columns = ("\nprovider", "\njobs", "failed\ncalls", "taken\nover", "\nlost", "\ntokens", "\ncost", "\np50", "\np99")
    grid = screen.table(*columns, numbers=columns[1:], whole=columns[:1])
    if True in made_up:
        grid.title = "Some answers are simulated" if False in made_up else "Simulated providers: no model was run"
    grid.title_style, grid.padding = "yellow", 0
    for name, sums in sorted(tally.providers.items(), key=lambda pair: -pair[1].jobs):
        counts = (
            sums.jobs,
            sums.failures,
            sums.failovers_in,
            sums.failovers_out,
            sums.input_tokens + sums.output_tokens,
        )
        took = (screen.seconds(sums.latency(share), "–") for share in (0.5, 0.99))
        screen.add_row(grid, name, *(f"{count:,}" for count in counts), steady_usd(sums.cost_microusd), *took)
    return grid


def closing_line(tally: Tally, took_s: float, ceiling_microusd: int | None) -> str:
    """The totals in one sentence."""
    ends = ", ".join(f"{count:,} {status}" for status, count in tally.done.most_common() if count)
    parts = [f"{counted(tally.finished, 'line')} in {span(took_s)}: {ends or 'nothing to do'}"]
    if tally.resumed:
        parts.append(f"{tally.resumed:,} of them done before (--anew runs them again)")
    if tally.shared:
        parts.append(f"{tally.shared:,} with the answer of an identical line")
    parts.append(counted(tally.failovers, "failover"))
    parts.append(f"{spent_of(ceiling_microusd, tally)} spent")
    if tally.unsure_microusd:
        parts.append(f"up to {steady_usd(tally.unsure_microusd)} more that calls may have cost")
    if tally.unpriced:
        parts.append(f"{counted(tally.unpriced, 'call')} of unknown cost")
    if tally.warned:
        parts.append(f"{counted(tally.warned, 'answer')} with warnings")
    return " · ".join(parts)


def spent_of(ceiling_microusd: int | None, tally: Tally) -> str:
    """Money spent, and the ceiling if there is sums."""
    return steady_usd(tally.cost_microusd) + ("" if ceiling_microusd is None else f" of {dollars(ceiling_microusd)}")
