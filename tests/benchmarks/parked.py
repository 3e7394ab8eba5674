"""What jobs cost while they wait for a full provider: `python -m tests.benchmarks.parked`

One worker, first idle, then with many parked jobs, of which the provider's limit lets few go at a time. One run
compares CPU of the worker and of Redis, commands a second, and memory.

With `--lines N` the jobs belong to N tenants, each at its ceiling for the day and waiting separately. Jobs without a
tenant, for which there is room, show whether those hold others up.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

from tests.benchmarks.measure import add_keep_option, cpu_s, keep, rss_mb, spread
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
    """What they cost from now on, undisturbed."""
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
    """Seconds that jobs take for which there is room, one after the other."""
    took_s = []
    for n in range(FRESH):
        before, began = stand.settled(), time.monotonic()
        stand.submit([f"{name}-{n}"])
        stand.until(lambda before=before: stand.settled() > before, 60)
        took_s.append(time.monotonic() - began)
    return took_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--lines", type=int, default=1, help="number of different things that they wait for")
    parser.add_argument("--for", type=float, default=20.0, dest="for_s", help="seconds of each measurement")
    parser.add_argument("--times", type=int, default=5, help="measurements of the parked")
    parser.add_argument("--limit", default="requests_per_minute = 60", help="the provider's, as in turnout.toml")
    add_keep_option(parser)
    options = parser.parse_args()
    if options.keep and options.lines > 1:
        parser.error("--keep needs --lines 1, which the report is about")
    with (
        tempfile.TemporaryDirectory(prefix="turnout-parked-") as folder,
        standing(Path(folder), FLEET.format(limit=options.limit), 200) as stand,
    ):
        if options.lines > 1:
            stand.config.write_text(stand.config.read_text() + CEILINGS)
        stand.start_worker()
        idle = watched(stand, options.for_s)
        print("idle:  ", idle, flush=True)
        began = time.monotonic()
        for line in range(options.lines):
            tenant = RoutingConstraints(tenant=f"tenant-{line}") if options.lines > 1 else RoutingConstraints()
            stand.submit([f"job-{n}" for n in range(line, options.jobs, options.lines)], constraints=tenant)
        stand.until(lambda: waiting(stand) >= 0.95 * options.jobs, 900)
        print(f"parked after {time.monotonic() - began:.0f} s", flush=True)
        settled = stand.settled()
        costs = []
        for _ in range(options.times):
            costs.append(watched(stand, options.for_s))
            print("parked:", costs[-1], flush=True)
            if options.lines > 1:
                print("room:   after", spread(fresh(stand, f"fresh-{time.monotonic()}")), "s", flush=True)
        went = (stand.settled() - settled) / (options.times * options.for_s)
        if options.lines == 1:
            print(f"{went:.2f} jobs/s went on meanwhile")
        if options.keep:
            keep(
                "parked",
                {"jobs": options.jobs, "limit": options.limit, "idle": astuple(idle), "parked": [*map(astuple, costs)]},
            )


if __name__ == "__main__":
    main()
