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
    """Is told of a tally now and then, within a `with` block."""

    every_s: float
    """How often it shows something, at most."""

    def __init__(
        self, console: Console, title: str, total: int | None, ceiling_microusd: int | None, providers: Sequence[str]
    ) -> None:
        """total: lines; None: nobody knows."""
        self._console, self._title, self._total = console, title, total
        self._ceiling_microusd, self._providers = ceiling_microusd, providers
        self._began_at, self._shown_at = time.monotonic(), 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, tally: Tally, states: dict[str, str]) -> None:
        """`states`: what is wrong just now with a provider, by its name, or with the `workers`."""
        if (now := time.monotonic()) - self._shown_at >= self.every_s:
            self._shown_at = now
            self._show(tally, states)

    def _show(self, tally: Tally, states: dict[str, str]) -> None:
        raise NotImplementedError

    def _standing(self, tally: Tally) -> str:
        """Pace, when the rest will be done, money and trouble."""
        total = self._total
        rate = (tally.finished - tally.resumed) / (time.monotonic() - self._began_at)
        told = [f"{rate:,.0f} jobs/s" if rate >= 10 or not rate else f"{rate:.1f} jobs/s"]
        if total is not None:
            told.append(f"ETA {span((total - tally.finished) / rate) if rate else '–'}")
        told.append(under(self._ceiling_microusd, tally))
        return " · ".join([*told, f"{tally.failed:,} failed", counted(tally.failovers, "failover")])


class Bar(Progress):
    """A live display for a terminal: how far it is, and how each provider is."""

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
        shown.add_column(no_wrap=True, ratio=1)  # of a state, as much as there is room for
        names = [*self._providers, *(name for name in states if name not in self._providers)]
        for name in names:
            state = Text(states[name], style="yellow") if name in states else Text("up", style="green")
            part, known = tally.providers.get(name, ProviderTally()), name in self._providers
            jobs, cost = (counted(part.jobs, "job"), steady_usd(part.cost_microusd)) if known else ("", "")
            shown.add_row(Text(f"  {name}"), jobs, cost, state)
        return shown


class Lines(Progress):
    """A line of text now and then, for logs."""

    every_s = 5.0

    def _show(self, tally: Tally, states: dict[str, str]) -> None:
        total = f" of {self._total:,}" if self._total else ""
        troubles = [f"{name}: {state}" for name, state in states.items()]
        told = " · ".join([f"{tally.finished:,}{total}", self._standing(tally), *troubles])
        self._console.print(told, soft_wrap=True)


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
                **{count: getattr(one, count) for count in PROVIDER_COUNTS},
                "cost_microusd": one.cost_microusd,
                "p50_s": one.latency(0.5),
                "p99_s": one.latency(0.99),
            }
            for name, one in tally.providers.items()
        },
    }


def table(tally: Tally) -> Table:
    """The end of a batch, by provider."""
    made_up = {one.simulated for one in tally.providers.values() if one.jobs}
    columns = ("\nprovider", "\njobs", "failed\ncalls", "taken\nover", "\nlost", "\ntokens", "\ncost", "\np50", "\np99")
    made = screen.table(*columns, numbers=columns[1:], whole=columns[:1])
    if True in made_up:
        made.title = "Some answers are simulated" if False in made_up else "Simulated providers: no model was run"
    made.title_style, made.padding = "yellow", 0
    for name, one in sorted(tally.providers.items(), key=lambda pair: -pair[1].jobs):
        counts = (one.jobs, one.failures, one.failovers_in, one.failovers_out, one.input_tokens + one.output_tokens)
        took = (screen.seconds(one.latency(share), "–") for share in (0.5, 0.99))
        screen.add_row(made, name, *(f"{count:,}" for count in counts), steady_usd(one.cost_microusd), *took)
    return made


def closing_line(tally: Tally, took_s: float, ceiling_microusd: int | None) -> str:
    """The sum in one sentence."""
    ends = ", ".join(f"{count:,} {status}" for status, count in tally.done.most_common() if count)
    parts = [f"{counted(tally.finished, 'line')} in {span(took_s)}: {ends or 'nothing to do'}"]
    if tally.resumed:
        parts.append(f"{tally.resumed:,} of them done before, which --anew runs again")
    if tally.shared:
        parts.append(f"{tally.shared:,} answered as an identical line was")
    parts.append(counted(tally.failovers, "failover"))
    parts.append(f"{under(ceiling_microusd, tally)} spent")
    if tally.unsure_microusd:
        parts.append(f"up to {steady_usd(tally.unsure_microusd)} more that calls may have cost")
    if tally.unpriced:
        parts.append(f"{counted(tally.unpriced, 'call')} of unknown cost")
    if tally.warned:
        parts.append(f"{counted(tally.warned, 'answer')} with warnings")
    return " · ".join(parts)


def under(ceiling_microusd: int | None, tally: Tally) -> str:
    """What was spent, of how much, if there is a ceiling."""
    return steady_usd(tally.cost_microusd) + ("" if ceiling_microusd is None else f" of {dollars(ceiling_microusd)}")
