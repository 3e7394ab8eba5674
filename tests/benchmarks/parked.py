"""What jobs cost while they wait for a provider that has no room: `python -m tests.benchmarks.parked`

One worker, with nothing to do at first; then with many parked jobs, of which the provider's limit lets few go at a
time. Compared, in one run: CPU of the worker and of Redis, commands a second, and memory.

With `--lines N` the jobs are of N tenants, each at its ceiling for the day and in a line of its own; then a job now and
then of nobody's, for which there is room, shows whether they hold others up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from tests.benchmarks.measure import cpu_s, keep, keeping, rss_mb, spread
from tests.chaos.stand import Stand, standing

from turnout.request import RoutingConstraints

CEILINGS = """
[ceilings.tenants."*"]
per_day_usd = 0.000001
"""
FRESH = 10
"""Jobs for which there is room, after each measurement."""
FLEET = """
output_tokens = 8
[providers.sim-one]
ttft_s = 0.1
{limit}
models."llama-3.3-70b" = {{ input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.3 }}
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one worker and its Redis, over a stretch of time."""

    worker_cpu: float
    """Part of a core."""
    redis_cpu: float
    commands: float
    """A second."""
    worker_mb: float
    redis_mb: float

    def __str__(self) -> str:
        worker, redis, commands, worker_mb, redis_mb = astuple(self)
        return (
            f"worker {worker:6.1%} of a core, {worker_mb:4.0f} MB; "
            f"Redis {redis:6.1%} of a core, {commands:5.0f} commands/s, {redis_mb:4.0f} MB"
        )


def watched(stand: Stand, for_s: float) -> Cost:
    """What they cost from now on, with nobody looking on."""
    pids = (stand.workers[0].pid, stand.redis.proc.pid)
    before = [cpu_s(pid) for pid in pids]
    commands = stand.client.info("stats")["total_commands_processed"]
    began = time.monotonic()
    time.sleep(for_s)
    took_s = time.monotonic() - began
    worker, redis = ((cpu_s(pid) - was) / took_s for pid, was in zip(pids, before, strict=True))
    done = stand.client.info("stats")["total_commands_processed"] - commands
    memory = stand.client.info("memory")["used_memory"] / 1e6
    return Cost(worker, redis, done / took_s, rss_mb(pids[0]), memory)


def waiting(stand: Stand) -> int:
    """Jobs that no worker holds and that have no message."""
    keys = stand.ledger.keys
    return sum(map(stand.client.zcard, (keys.parked, keys.awaiting_turn)))


def fresh(stand: Stand, name: str) -> list[float]:
    """How long jobs take for which there is room, in seconds, one after the other."""
    took_s = []
    for n in range(FRESH):
        before, began = stand.settled(), time.monotonic()
        stand.submit([f"{name}-{n}"])
        stand.until(lambda before=before: stand.settled() > before, 60)
        took_s.append(time.monotonic() - began)
    return took_s


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=100_000)
    options.add_argument("--lines", type=int, default=1, help="what they wait for is so many different things")
    options.add_argument("--for", type=float, default=20.0, dest="for_s", help="seconds of each measurement")
    options.add_argument("--times", type=int, default=5, help="measurements of the parked")
    options.add_argument("--limit", default="requests_per_minute = 60", help="the provider's, as in turnout.toml")
    keeping(options)
    given = options.parse_args()
    if given.keep and given.lines > 1:
        options.error("what is kept, and the report tells of, is one line")
    with (
        tempfile.TemporaryDirectory(prefix="turnout-parked-") as folder,
        standing(Path(folder), FLEET.format(limit=given.limit), 200) as stand,
    ):
        if given.lines > 1:
            stand.config.write_text(stand.config.read_text() + CEILINGS)
        stand.start_worker()
        idle = watched(stand, given.for_s)
        print("idle:  ", idle, flush=True)
        began = time.monotonic()
        for line in range(given.lines):
            tenant = RoutingConstraints(tenant=f"tenant-{line}") if given.lines > 1 else RoutingConstraints()
            stand.submit([f"job-{n}" for n in range(line, given.jobs, given.lines)], constraints=tenant)
        stand.until(lambda: waiting(stand) >= 0.95 * given.jobs, 900)
        print(f"parked after {time.monotonic() - began:.0f} s", flush=True)
        settled = stand.settled()
        costs = []
        for _ in range(given.times):
            costs.append(watched(stand, given.for_s))
            print("parked:", costs[-1], flush=True)
            if given.lines > 1:
                print("room:   after", spread(fresh(stand, f"fresh-{time.monotonic()}")), "s", flush=True)
        went = (stand.settled() - settled) / (given.times * given.for_s)
        if given.lines == 1:
            print(f"{went:.2f} jobs/s went on meanwhile")
        if given.keep:
            keep(
                "parked",
                {"jobs": given.jobs, "limit": given.limit, "idle": astuple(idle), "parked": [*map(astuple, costs)]},
            )


if __name__ == "__main__":
    main()
