"""What `turnout run` shows while it runs: a bar on a terminal, plain lines elsewhere, JSON for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from turnout.batch.tally import ProviderTally, Tally
from turnout_workers.commands.run_summary import span, steady_usd, summary, under
from turnout_workers.commands.screen import counted


class Progress:
    """Is told of a tally now and then, within a `with` block."""

    every_s: float
    """How often it shows something, at most."""

    def __init__(self, console: Console, total: int | None = None, ceiling_microusd: int | None = None) -> None:
        """total: lines; None: nobody knows."""
        self._console, self._total, self._ceiling_microusd = console, total, ceiling_microusd
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

    def __init__(
        self, console: Console, total: int | None, ceiling_microusd: int | None, title: str, providers: Sequence[str]
    ) -> None:
        super().__init__(console, total, ceiling_microusd)
        self._title, self._providers = title, providers
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
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
        self._console.out(json.dumps({**summary(tally), "providers_down": states}))
