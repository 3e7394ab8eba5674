"""`turnout run --dry-run`: what a file would cost and how long it would take, before anything is sent."""

from __future__ import annotations

import math
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from turnout.batch.line import Line, RequestOrProblem
from turnout.batch.source import Source, read
from turnout.result import Problem
from turnout_workers import config
from turnout_workers.commands.file_options import DONE, SOME_FAILED, defaults, refusal
from turnout_workers.commands.screen import add_row, counted, print_json, show, span, standard_output, steady_usd, table
from turnout_workers.config import endpoints, toml_lines
from turnout_workers.local.running import choose_fleet
from turnout_workers.routing.decision import rank
from turnout_workers.routing.fleet import Fleet, Limits
from turnout_workers.routing.profile import JobProfile
from turnout_workers.simulator.scenario import load
from turnout_workers.state.windows import KINDS, Use

SHOWN = 20
"""Problems listed one by one."""


class Share(NamedTuple):
    """The jobs that would go to one endpoint, or to several, if all goes well."""

    jobs: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    expected_microusd: int = 0
    most_microusd: int = 0
    work_s: float = 0.0

    @classmethod
    def sum(cls, shares: Iterable[Share]) -> Share:
        return cls(*map(sum, zip(*shares, strict=True)))


@dataclass(slots=True)
class Forecast:
    """The forecast for a whole file."""

    lines: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    shares: dict[str, Share] = field(default_factory=dict)
    """By endpoint id."""

    def problem(self, code: str, text: str) -> None:
        self.bad[code] += 1
        if len(self.problems) < SHOWN:
            self.problems.append(text)


def dry_run(source: Source, options: Mapping[str, Any]) -> int:
    """Run the command; returns its exit code."""
    fleet_source = choose_fleet(options["config"], options["scenario"])
    if isinstance(fleet_source, Path):
        simulated = load(fleet_source)
        tables = simulated.configuration(dict.fromkeys(simulated.providers, "http://127.0.0.1:9"))
        fleet_source = config.Source("the simulated fleet", toml_lines.dumps(tables))
    settings = config.load(fleet_source, os.environ)
    fleet = endpoints.fleet(settings)
    estimate = forecast(read(source, defaults(options)), fleet)
    slots = (options["concurrency"] or settings.config.worker.concurrency) * max(1, options["workers"])
    if options["as_json"]:
        print_json(summary(estimate, fleet, slots))
    else:
        show(standard_output(), *report(estimate, fleet, slots))
    return SOME_FAILED if estimate.bad else DONE


def forecast(lines: Iterable[tuple[Line, RequestOrProblem]], fleet: Fleet) -> Forecast:
    """Give each line to the endpoint that an idle, healthy fleet would choose for it."""
    now = time.time()
    estimate, snapshot, rng = Forecast(), fleet.snapshot(now, {}), random.Random(0)
    for line, request in lines:
        estimate.lines += 1
        if isinstance(request, Problem):
            estimate.problem(request.code, request.message)
            continue
        deadline = request.constraints.deadline_at(now)
        if deadline is not None and deadline <= now:
            estimate.problem("deadline", f"line {line.number}: its deadline has passed")
            continue
        profile = JobProfile.of(request, deadline=deadline)
        best = rank(profile, snapshot, now, rng).best
        if best is None:
            estimate.problem("refused", f"line {line.number}: {refusal(request, fleet)}")
            continue
        money = (best.expected_cost_microusd or 0, best.upper_cost_microusd or 0)
        input_tokens = profile.input_at(best.endpoint.image_rule).expected
        share = Share(1, input_tokens, profile.expected_output_tokens, *money, best.latency_s)
        estimate.shares[best.endpoint.id] = Share.sum((share, estimate.shares.get(best.endpoint.id, Share())))
    return estimate


def duration_s(estimate: Forecast, fleet: Fleet, slots: int) -> float:
    """Expected duration if these endpoints are used: that of the slowest under its limits, or of our own slots."""
    times = [Share.sum(estimate.shares.values()).work_s / slots]
    accounts: dict[tuple[str, Limits], list[Share]] = defaultdict(list)
    for endpoint in fleet.endpoints:
        if share := estimate.shares.get(endpoint.id):
            times.append(_under(endpoint.limits, share))
            accounts[endpoint.account_id, endpoint.shared_limits].append(share)
    times += [_under(limits, Share.sum(parts)) for (_, limits), parts in accounts.items()]
    return max(times)


def _under(limits: Limits, share: Share) -> float:
    """Seconds under these limits. A whole day's allowance may be used at its start."""
    use = Use(share.jobs, share.input_tokens, share.output_tokens)
    times = [share.work_s / (limits.concurrency or math.inf)]
    for name, kind in KINDS.items():
        if limit := getattr(limits, name):
            windows = kind.of(use) / limit
            times.append(windows * 60 if kind.window == "minute" else (math.ceil(windows) - 1) * 86_400)
    return max(times)


def summary(estimate: Forecast, fleet: Fleet, slots: int) -> dict[str, Any]:
    """For programs."""
    total = Share.sum(estimate.shares.values())
    return {
        "lines": estimate.lines,
        "bad": dict(estimate.bad),
        "problems": estimate.problems,
        "endpoints": {id: share._asdict() for id, share in estimate.shares.items()},
        "expected_microusd": total.expected_microusd,
        "most_microusd": total.most_microusd,
        "duration_s": round(duration_s(estimate, fleet, slots), 1),
    }


def report(estimate: Forecast, fleet: Fleet, slots: int) -> list[Table | Text]:
    """For people."""
    columns = ("\nendpoint", "\njobs", "tokens\nin", "tokens\nout", "cost\nexpected", "cost\nat most")
    by_endpoint = table(*columns, numbers=columns[1:])
    by_endpoint.title = "Dry run: nothing was sent"
    unpriced = {endpoint.id for endpoint in fleet.endpoints if endpoint.price is None}
    for id, share in sorted(estimate.shares.items(), key=lambda pair: -pair[1].jobs):
        money = [steady_usd(share.expected_microusd), steady_usd(share.most_microusd)]
        counts = (share.jobs, share.input_tokens, share.output_tokens)
        add_row(by_endpoint, id, *(f"{count:,}" for count in counts), *(["unknown"] * 2 if id in unpriced else money))
    total, time = Share.sum(estimate.shares.values()), span(duration_s(estimate, fleet, slots))
    totals = Text(
        f"{counted(estimate.lines, 'line')}, {total.jobs:,} of them valid: "
        f"about {steady_usd(total.expected_microusd)} and at most {steady_usd(total.most_microusd)}, "
        f"in about {time} with {counted(slots, 'call')} at a time"
    )
    problems = [Text(text, style="yellow") for text in estimate.problems]
    if (rest := estimate.bad.total() - len(problems)) > 0:
        problems.append(Text(f"and {rest:,} more", style="yellow"))
    return [by_endpoint, totals, *problems]
