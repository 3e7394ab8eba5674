"""The cost of a job's admit + report, and of a look at the fleet: µs of Redis and of the worker's CPU.

    python -m tests.benchmarks.state_admit

One job at a time shows the latency; many at once show what coalescing gives.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import redis.asyncio
from tests import redis_server
from tests.benchmarks.measure import add_keep_option, keep

from turnout.ledger import Coalescer
from turnout.ledger.keys import Keys
from turnout_workers.routing.fleet import Limits
from turnout_workers.state.fast_pipeline import send_commands
from turnout_workers.state.redis_store import RedisFleetStore
from turnout_workers.state.snapshot import MAX_POLLS_PER_S
from turnout_workers.state.store import Ask, Bid, Ceiling, Granted, ObservedLimit, Report

JOBS = 3000
LIMITS = Limits(requests_per_minute=10**7, tokens_per_minute=10**9, concurrency=10**4)
CEILINGS = (Ceiling("tenant:acme@2030-01", 10**12), Ceiling("batch:b1", 10**12))
HEADERS = (
    ObservedLimit("requests_per_minute", 10**7, 10**6, 30.0),
    ObservedLimit("tokens_per_minute", 10**9, 10**8, 30.0),
)


def bids(count: int) -> tuple[Bid, ...]:
    return tuple(Bid(f"provider{i}/llama-3.3-70b", LIMITS, 800, 400, 900) for i in range(count))


async def job(store: RedisFleetStore, name: str, candidates: int) -> None:
    grant = await store.admit(Ask(name, bids(candidates), 30.0, CEILINGS))
    assert isinstance(grant, Granted)
    used = {"input_tokens": 760, "output_tokens": 212, "cost_microusd": 610}
    seen = {"latency_s": 0.8, "ttft_s": 0.2, "predicted_s": 0.7, "limits": HEADERS}
    await store.report(Report(name, grant.endpoint_id, ok=True, **used, **seen))  # type: ignore[arg-type]


async def measure(client: redis.asyncio.Redis, at_once: int, candidates: int) -> dict[str, float]:
    store = RedisFleetStore(Coalescer(client, send_commands=send_commands), Keys("bench"))
    await client.flushall()
    await client.config_resetstat()
    await job(store, "first", candidates)
    names = iter(range(JOBS))

    async def work() -> None:
        for i in names:
            await job(store, f"job-{i}:1:1", candidates)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    stats = await client.info("commandstats")
    redis_us = stats["cmdstat_evalsha"]["usec"] / JOBS
    print(
        f"{candidates} candidates, {at_once:>3} at once: {redis_us:5.0f} µs of Redis, "
        f"{cpu / JOBS * 1e6:5.0f} µs of worker CPU, {JOBS / wall:6.0f} jobs/s"
    )
    return {
        "candidates": candidates,
        "at once": at_once,
        "µs of Redis": redis_us,
        "µs of worker CPU": cpu / JOBS * 1e6,
        "jobs/s": JOBS / wall,
    }


async def look(client: redis.asyncio.Redis, endpoints: int) -> None:
    """The cost of a look at the fleet, which every worker takes."""
    store = RedisFleetStore(Coalescer(client, send_commands=send_commands), Keys("bench"))
    await client.flushall()
    for bid in bids(endpoints):
        await store.admit(Ask(bid.endpoint_id, (bid,), 30.0))
        await store.report(Report(bid.endpoint_id, bid.endpoint_id, ok=True, latency_s=0.8))
    await client.config_resetstat()
    for _ in range(300):
        await store.state()
    took_us = (await client.info("commandstats"))["cmdstat_evalsha"]["usec_per_call"]
    share = took_us * MAX_POLLS_PER_S / 1e6
    print(f"a look at {endpoints:>3} endpoints: {took_us:.0f} µs of Redis, {share:.1%} of it at most")


async def main(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as directory:
        server = redis_server.start(Path(directory))
        client = redis.asyncio.Redis.from_url(server.url)
        try:
            ways = ((1, 1), (1, 4), (100, 1), (100, 4))
            raw = [await measure(client, at_once, candidates) for at_once, candidates in ways]
            for endpoints in (5, 50, 200, 500):
                await look(client, endpoints)
        finally:
            await client.aclose()
            server.stop()
    if options.keep:
        keep("state_admit", {"unit": "a job: admission and report", "raw": raw})


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_keep_option(options)
    asyncio.run(main(options.parse_args()))
