"""From the raw numbers in docs/benchmarks to the report beside them, and its charts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import KEPT
from tests.benchmarks.monitoring import OFF
from tests.benchmarks.throughput import LIMIT, OURS

REPORT = KEPT.with_suffix(".md")
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


def throughput(told: Mapping[str, Any]) -> list[str]:
    lines = ["## Jobs a second of one worker process", ""]
    for delay, found in told["raw"].items():
        ours = middle(found[OURS])
        lines += [
            f"**Answers after {delay}**, {len(found[OURS])} rounds in turns; median, with the least and the most:",
            "",
        ]
        lines += ["| | jobs/s | CPU ms a job | ours is |", "|---|---|---|---|"]
        for name, measured in found.items():
            lines.append(
                f"| {name} | {ranged(measured)} | {middle(measured, 1):.2f} | {ours / middle(measured):.2f} × |"
            )
        chart = KEPT / f"throughput-{delay.removesuffix(' ms')}.svg"
        rates = {name: middle(measured) for name, measured in found.items() if name != LIMIT}
        chart.write_text(bars(f"Queue to stored result, answers after {delay}", rates, "jobs/s", "one worker process"))
        lines += ["", f"![{chart.stem}](benchmarks/{chart.name})", ""]
    return lines


def outage(told: Mapping[str, Any]) -> list[str]:
    lines = [
        "## A provider dies at job 500 of 1,000, at 100 a second",
        "",
        "| it | who | calls to the dead | failed | p99 before (s) | p99 after (s) |",
        "|---|---|---|---|---|---|",
    ]
    for death, found in told["raw"].items():
        for name, rounds in found.items():
            facts = " | ".join(", ".join(str(one[fact]) for one in rounds) for fact in rounds[0])
            lines.append(f"| {death} | {name} | {facts} |")
    return [*lines, ""]


def footprint(told: Mapping[str, Any]) -> list[str]:
    lines = ["## Starting, holding, growing", "", "| | s | MB |", "|---|---|---|"]
    for name, measured in told["starts"].items():
        lines.append(f"| {name} | {ranged(measured, 0, 2)} | {middle(measured, 1):.0f} |")
    held = told["held"]
    lines += [
        "",
        f"2,000 calls of 10 s in flight in one process: {held['share']:.0%} of the possible pace, "
        f"at most {held['mb']:.0f} MB.",
        "",
        "Worker processes, on the cores that Redis and the provider share with them: "
        + ", ".join(f"{count}: {statistics.median(rates):,.0f} jobs/s" for count, rates in told["processes"].items())
        + ".",
        "",
    ]
    return lines


def monitoring(told: Mapping[str, Any]) -> list[str]:
    found: dict[str, list[list[float]]] = told["raw"]
    without = middle(found[OFF])
    lines = ["## What watching costs", "", "Answers after 200 ms, one worker process, in turns.", ""]
    lines += ["| | jobs/s | CPU ms a job | of the throughput |", "|---|---|---|---|"]
    for name, measured in found.items():
        rate = middle(measured)
        lines.append(f"| {name} | {ranged(measured)} | {middle(measured, 1):.2f} | {rate / without:.0%} |")
    return [*lines, ""]


PARTS = {"throughput": throughput, "outage": outage, "footprint": footprint, "monitoring": monitoring}


def main() -> None:
    kept: dict[str, Any] = {path.stem: json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))}
    lines = [
        "# Benchmarks",
        "",
        "Made by `python -m tests.benchmarks.report` from the raw numbers in `docs/benchmarks/`. Providers are",
        "simulated; every job's result was checked. Machines differ: take the ratios, which are of one run each.",
        "",
    ]
    for name, write in PARTS.items():
        if name in kept:
            about = kept[name]["about"]
            lines += write(kept[name])
            parts = ", ".join(f"{part} {version}" for part, version in about["parts"].items())
            machine = f"{about['cores']} cores, Python {about['python']}"
            lines += [f"<sub>`{about['command']}`, {about['date']}, {machine}; {parts}.</sub>", ""]
    REPORT.write_text("\n".join(lines))
    print(f"{REPORT.relative_to(Path.cwd())}: {', '.join(kept)}")


if __name__ == "__main__":
    main()
