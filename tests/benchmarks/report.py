"""Makes the report and its charts from the raw numbers in docs/benchmarks."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import KEPT
from tests.benchmarks.monitoring import OFF
from tests.benchmarks.redis_memory import BATCH, JOBS
from tests.benchmarks.tenants import p95
from tests.benchmarks.throughput import LIMITS, OURS

REPORT = KEPT.with_suffix(".md")
LEVERS = KEPT / "levers.md"
"""Which changes gave what: written by hand, from their commits."""
ROW, LEFT, WIDTH = 26, 230, 720


def bars(title: str, values: Mapping[str, float], unit: str, note: str = "") -> str:
    """A bar chart as SVG; ours stands out."""
    most = max(values.values())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{ROW * (len(values) + 2)}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for row, (name, value) in enumerate(values.items(), 1):
        y, length = ROW * row + 4, (WIDTH - LEFT - 110) * value / most
        fill = "#1a7f5a" if name == OURS else "#9aa5b1"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{ROW - 8}" fill="{fill}"/>',
            f'<text x="{LEFT + length + 6:.1f}" y="{y + 14}">{value:,.0f} {escape(unit)}</text>',
        ]
    parts.append(
        f'<text x="8" y="{ROW * (len(values) + 2) - 8}" fill="#555" font-size="11">{escape(note)}</text></svg>'
    )
    return "\n".join(parts) + "\n"


def middle(measured: Sequence[Sequence[float]], index: int = 0) -> float:
    return statistics.median(one[index] for one in measured)


def ranged(measured: Sequence[Sequence[float]], index: int = 0, digits: int = 0) -> str:
    values = [one[index] for one in measured]
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} … {max(values):,.{digits}f})"


def throughput(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Jobs a second of one worker process", ""]
    for delay, found in data["raw"].items():
        ours = middle(found[OURS])
        lines += [
            f"**Answers after {delay}**, {len(found[OURS])} rounds in turns; median, with the least and the most:",
            "",
        ]
        lines += ["| | jobs/s | CPU ms a job | trips to Redis a job | ours is |", "|---|---|---|---|---|"]
        for name, measured in found.items():
            rate, cpu_ms, trips = (middle(measured, figure) for figure in range(3))
            lines.append(f"| {name} | {ranged(measured)} | {cpu_ms:.2f} | {trips:.1f} | {ours / rate:.2f} × |")
        chart = KEPT / f"throughput-{delay.removesuffix(' ms')}.svg"
        rates = {name: middle(measured) for name, measured in found.items() if name not in LIMITS}
        chart.write_text(bars(f"Queue to stored result, answers after {delay}", rates, "jobs/s", "one worker process"))
        lines += ["", f"![{chart.stem}](benchmarks/{chart.name})", ""]
    return lines


def outage(data: Mapping[str, Any]) -> list[str]:
    lines = [
        "## A provider dies at job 500 of 1,000, at 100 a second",
        "",
        "| it | who | calls to the dead | failed | p99 before (s) | p99 after (s) |",
        "|---|---|---|---|---|---|",
    ]
    for death, found in data["raw"].items():
        for name, rounds in found.items():
            facts = " | ".join(", ".join(str(one[fact]) for one in rounds) for fact in rounds[0])
            lines.append(f"| {death} | {name} | {facts} |")
    return [*lines, ""]


def footprint(data: Mapping[str, Any]) -> list[str]:
    alone = "Each in an environment where nothing else is installed."
    lines = ["## Starting, holding, growing", "", alone, "", "| | s | MB |", "|---|---|---|"]
    for name, measured in data["starts"].items():
        lines.append(f"| {name} | {ranged(measured, 0, 2)} | {middle(measured, 1):.0f} |")
    held = data["held"]
    lines += [
        "",
        f"2,000 calls of 10 s in flight in one process: {held['share']:.0%} of the possible pace, "
        f"at most {held['mb']:.0f} MB.",
        "",
        "Worker processes, on the cores that Redis and the provider share with them; for each as much work as for one. "
        "Cores full: calls that answer at once. Room left: calls of 1 s, 200 at a time in each process.",
        "",
        "| processes | " + " | ".join(f"{name}, jobs/s | of one" for name in data["processes"]) + " |",
        "|---|" + "---|---|" * len(data["processes"]),
    ]
    curves = [{int(count): statistics.median(rates) for count, rates in c.items()} for c in data["processes"].values()]
    for count in curves[0]:
        cells = " | ".join(f"{curve[count]:,.0f} | {curve[count] / curve[1]:.2f} ×" for curve in curves)
        lines.append(f"| {count} | {cells} |")
    return [*lines, ""]


def monitoring(data: Mapping[str, Any]) -> list[str]:
    found: dict[str, list[list[float]]] = data["raw"]
    without = middle(found[OFF])
    lines = ["## What watching costs", "", "Answers after 200 ms, one worker process, in turns.", ""]
    lines += ["| | jobs/s | CPU ms a job | of the throughput |", "|---|---|---|---|"]
    for name, measured in found.items():
        rate = middle(measured)
        lines.append(f"| {name} | {ranged(measured)} | {middle(measured, 1):.2f} | {rate / without:.0%} |")
    return [*lines, ""]


def submit_many(data: Mapping[str, Any]) -> list[str]:
    stock = statistics.median(data["rates"]["send_task"])
    lines = ["## Submitting", "", "| | jobs/s | |", "|---|---|---|"]
    for name, rates in data["rates"].items():
        times = f"{statistics.median(rates) / stock:.1f} × `send_task`"
        lines.append(f"| `{name}` | {ranged([[one] for one in rates])} | {times} |")
    lines += ["", "| | median | p99 |", "|---|---|---|"]
    for name, (median_ms, p99_ms) in data["ms"].items():
        lines.append(f"| {name} | {median_ms:.2f} ms | {p99_ms:.2f} ms |")
    return [*lines, ""]


def routing_speed(data: Mapping[str, Any]) -> list[str]:
    found: dict[str, list[float]] = data["raw"]
    base = statistics.median(next(iter(found.values())))
    lines = ["## A routing decision", "", "| | µs | of the first |", "|---|---|---|"]
    for name, times in found.items():
        times_first = f"{statistics.median(times) / base:,.1f} ×"
        lines.append(f"| {name} | {ranged([[one] for one in times], 0, 1)} | {times_first} |")
    return [*lines, ""]


def routing_race(data: Mapping[str, Any]) -> list[str]:
    """For each fault, the strategies and baselines: means over the seeds."""
    shown = {"goodput": "in time, %", "spend": "spend, × the bound", "p99": "p99, s", "wasted": "wasted calls"}
    shown |= {"notice": "noticed after, s", "back": "traffic regained after, s"}
    lines = [
        "## Eight routers over a simulated fleet, in virtual time",
        "",
        "Interactive, standard and batch jobs at five endpoints; the fault is at the cheapest, for a minute. The bound",
        "on spend knows all arrivals, limits and faults in advance. Noticed: ejected, after the first failed call.",
        "Regained: 70 % of its former traffic, after the fault's end. Means over the seeds; –: not each has one.",
        "",
        "| fault | who | " + " | ".join(shown.values()) + " |",
        "|---|---|" + "---|" * len(shown),
    ]
    for fault, racers in data["raw"].items():
        for name, results in racers.items():
            cells = (mean_of([one[key] for one in results]) for key in shown)
            lines.append(f"| {fault} | {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def mean_of(values: Sequence[float | None]) -> str:
    """A dash unless all runs have a value: the mean of the rest would be luck."""
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.4g}" if len(known) == len(values) else "–"


def state_admit(data: Mapping[str, Any]) -> list[str]:
    about = "Of one job, with limits, two ceilings and a provider's headers."
    return ["## Admission and report", "", about, "", *table(data["raw"])]


def parked(data: Mapping[str, Any]) -> list[str]:
    about = f"One worker and its Redis: idle, and with {data['jobs']:,} parked jobs, behind a limit of {data['limit']}."
    rows = [("idle", data["idle"]), *(("parked", cost) for cost in data["parked"])]
    lines = [
        "| | worker, of a core | Redis, of a core | commands/s | worker MB | Redis MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, (worker, redis, commands, worker_mb, redis_mb) in rows:
        lines.append(f"| {name} | {worker:.1%} | {redis:.1%} | {commands:,.0f} | {worker_mb:.0f} | {redis_mb:.0f} |")
    return ["## Jobs that wait", "", about, "", *lines, ""]


def tenants(data: Mapping[str, Any]) -> list[str]:
    about = f"One job now and then, alone and beside another tenant's {data['flood']:,}; seconds, 95th percentile."
    lines = ["| scarce | alone | beside the flood | ratio |", "|---|---|---|---|"]
    for scarce, took_s in data["seconds"].items():
        alone, beside = p95(took_s["lone"]), p95(took_s["beside"])
        lines.append(f"| {scarce} | {alone:.2f} | {beside:.2f} | {beside / alone:.2f} |")
    return ["## A tenant beside another's flood", "", about, "", *lines, ""]


def redis_memory(data: Mapping[str, Any]) -> list[str]:
    about = f"{JOBS:,} jobs, {BATCH} at a time; all endpoints of the fleet can serve them."
    return ["## A job in one Redis", "", about, "", *table(data["raw"])]


def table(rows: Sequence[Mapping[str, float]]) -> list[str]:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(f"{value:,.0f}" for value in row.values()) + " |" for row in rows]
    return [*lines, ""]


def million_lines(data: Mapping[str, Any]) -> list[str]:
    fifths = ", ".join(f"{pace:,.0f}" for pace in data["by_fifths"])
    resumed = ", ".join(f"{what} {took_s:.0f} s" for what, took_s in data["resumed_s"])
    return [
        "## A file of many lines, with kills on the way",
        "",
        f"{data['lines']:,} lines in {data['took_s']:,.0f} s; lines a second by fifths of the file: {fifths}. "
        f"At most {data['command_mb']:.0f} MB in the command, {data['redis_mb']:.0f} MB in Redis. Killed, and back at "
        f"work after: {resumed or 'nothing was'}.",
        "",
    ]


PARTS = {
    part.__name__: part
    for part in (
        throughput,
        outage,
        footprint,
        monitoring,
        submit_many,
        routing_speed,
        routing_race,
        state_admit,
        parked,
        tenants,
        redis_memory,
        million_lines,
    )
}


def main() -> None:
    kept: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench`, or by `python -m tests.benchmarks.report` from the raw numbers in `docs/benchmarks/`.",
        "Providers are simulated; every job's result was checked. Machines differ: take the ratios, each of one run.",
        "",
    ]
    for name, write in PARTS.items():
        if name in kept:
            about = kept[name]["about"]
            lines += write(kept[name])
            parts = ", ".join(f"{part} {version}" for part, version in about["parts"].items())
            machine = f"{about['cores']} cores, Python {about['python']}"
            lines += [f"<sub>`{about['command']}`, {about['date']}, {machine}; {parts}.</sub>", ""]
    REPORT.write_text("\n".join([*lines, LEVERS.read_text()]))
    print(f"{REPORT.relative_to(Path.cwd())}: {', '.join(kept)}")


if __name__ == "__main__":
    main()
