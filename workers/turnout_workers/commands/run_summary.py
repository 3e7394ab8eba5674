"""What `turnout run` says at the end: a table by provider and a sentence for people, an object for machines."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from turnout.batch.tally import Tally
from turnout.request import MICROUSD_PER_USD
from turnout.result import dollars
from turnout_workers.commands import screen

PROVIDER_COUNTS = ("jobs", "failures", "failovers_in", "failovers_out", "input_tokens", "output_tokens", "simulated")


def summary(tally: Tally) -> dict[str, Any]:
    """A tally for machines."""
    return {
        "lines": tally.lines,
        "finished": tally.finished,
        "by_status": dict(+tally.done),
        "resumed": tally.resumed,
        "shared": tally.shared,
        "failovers": tally.failovers,
        "deferrals": tally.deferrals,
        "warned": tally.warned,
        "cost_usd": tally.cost_microusd / MICROUSD_PER_USD,
        "unsure_usd": tally.unsure_microusd / MICROUSD_PER_USD,
        "providers": {
            name: {
                **{count: getattr(one, count) for count in PROVIDER_COUNTS},
                "cost_usd": one.cost_microusd / MICROUSD_PER_USD,
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
        screen.add(made, name, *(f"{count:,}" for count in counts), steady_usd(one.cost_microusd), *took)
    return made


def closing_line(tally: Tally, took_s: float, ceiling_microusd: int | None) -> str:
    """The sum in one sentence."""
    ends = ", ".join(f"{count:,} {status}" for status, count in tally.done.most_common() if count)
    parts = [f"{screen.counted(tally.finished, 'line')} in {span(took_s)}: {ends or 'nothing to do'}"]
    if tally.resumed:
        parts.append(f"{tally.resumed:,} of them done before, which --anew runs again")
    if tally.shared:
        parts.append(f"{tally.shared:,} answered as an identical line was")
    parts.append(screen.counted(tally.failovers, "failover"))
    parts.append(f"{under(ceiling_microusd, tally)} spent")
    if tally.unsure_microusd:
        parts.append(f"up to {steady_usd(tally.unsure_microusd)} more that a failed call may have cost")
    if tally.unpriced:
        parts.append(f"{screen.counted(tally.unpriced, 'call')} of unknown price")
    if tally.warned:
        parts.append(f"{screen.counted(tally.warned, 'answer')} with warnings")
    return " · ".join(parts)


def span(seconds: float) -> str:
    """A length of time for people: `14 s`, `3 min 20 s`, `2 h 5 min`, `1 d 4 h`."""
    whole = math.ceil(seconds)
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def under(ceiling_microusd: int | None, tally: Tally) -> str:
    """What was spent, of how much, if there is a ceiling."""
    return steady_usd(tally.cost_microusd) + ("" if ceiling_microusd is None else f" of {dollars(ceiling_microusd)}")


def steady_usd(microusd: int) -> str:
    """Money with as many decimals as keep it from jumping."""
    whole = microusd / MICROUSD_PER_USD
    return f"${whole:,.2f}" if whole >= 10 else f"${whole:.4f}"
