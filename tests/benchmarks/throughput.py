"""Jobs a second of one worker process, from queue to stored result, compared with its limit and its peers.

One run measures all in turn, against the same simulated provider, for answers without delay and after 200 ms. The
limits are bare asyncio loops without queue, routing or ledger: httpx with the aiohttp transport, and our own connector,
which uses aiohttp itself. The peers are in `peers.py`. Every queue is filled before its worker starts, and the pace is
taken from the first stored result to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import redis
from tests.benchmarks import peers
from tests.benchmarks.measure import Pace, add_keep_option, keep, pace, spread
from tests.chaos.stand import Stand, standing

from turnout.request import InferenceRequest
from turnout_workers.config import Source, accounts, load
from turnout_workers.config.tables import WorkerTable
from turnout_workers.local import process
from turnout_workers.providers import Http, build

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = {delay}
models."llama-3.3-70b" = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }}
"""
SLOTS = 1000
"""Calls in flight in a worker, and in each bare loop."""
LIMIT_S = 180.0
OURS = "turnout worker"
LIMITS = ("httpx in a bare loop (limit)", "our connector in a bare loop (limit)")


def serving(folder: Path, delay_s: float) -> AbstractContextManager[Stand]:
    """With the defaults: a lease of 30 s, and task events for Flower."""
    return standing(folder, FLEET.format(delay=delay_s), SLOTS, WorkerTable().lease_s, task_events=True)


def turnout(stand: Stand, jobs: int) -> Pace:
    before = stand.settled()
    ids = [f"{before}-{number}" for number in range(jobs)]
    stand.submit(ids)
    worker = stand.start_worker(wait=False)
    measured = pace(worker.pid, lambda: stand.settled() - before, jobs, LIMIT_S, stand.client)
    assert (outcomes := stand.outcomes(ids)) == {"succeeded": jobs}, outcomes
    stand.stop_worker(worker)
    return measured


def bare(stand: Stand, jobs: int) -> Pace:
    async def loop() -> None:
        http, free = Http(), asyncio.Semaphore(SLOTS)
        (account,) = accounts(load(Source(str(stand.config)), {}))
        connector = build(account, http)

        async def one(number: int) -> None:
            async with free:
                await connector.complete(InferenceRequest(prompt=f"Question {number}?", max_output_tokens=8))

        await asyncio.gather(*(one(number) for number in range(jobs)))
        await http.aclose()

    began, cpu = time.monotonic(), time.process_time()
    asyncio.run(loop())
    return Pace(jobs / (time.monotonic() - began), 1000 * (time.process_time() - cpu) / jobs)


def celery(stand: Stand, jobs: int, pool: str, slots: int) -> Pace:
    folder = stand.folder / "peer"
    folder.mkdir(exist_ok=True)
    (folder / "celery_peer.py").write_text(peers.CELERY_APP)
    (folder / "send.py").write_text(peers.CELERY_SENDER)
    results = redis.Redis.from_url(stand.redis.url.removesuffix("0") + "1")
    results.flushdb()
    address = stand.redis.url.removesuffix("/0")
    environ = {"BROKER": f"{address}/2", "RESULTS": f"{address}/1", "URL": stand.provider_url("sim")}
    environ |= {"PYTHONPATH": str(folder)}
    subprocess.run([peers.python(), str(folder / "send.py"), str(jobs)], env={**os.environ, **environ}, check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    command = [peers.python(), "-m", "celery", "-A", "celery_peer", "worker", "-P", pool, "-c", str(slots)]
    worker = process.start(command, folder / f"{pool}.log", environ)
    try:
        return pace(worker.pid, lambda: int(results.dbsize()), jobs, LIMIT_S, results)
    finally:
        process.stop(worker)
        results.close()


def looping(stand: Stand, jobs: int, loop: str) -> Pace:
    command = [peers.python(), "-c", loop, stand.provider_url("sim"), str(jobs), str(SLOTS)]
    reply = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return Pace(reply["rate"], reply["cpu_ms"])


CONTESTANTS: dict[str, tuple[Callable[[Stand, int], Pace], tuple[int, int]]] = {
    OURS: (turnout, (4000, 4000)),
    LIMITS[0]: (partial(looping, loop=peers.HTTPX_LOOP), (4000, 4000)),
    LIMITS[1]: (bare, (4000, 4000)),
    "litellm.Router in a bare loop": (partial(looping, loop=peers.LITELLM_LOOP), (400, 400)),
    "celery prefork -c 4, httpx": (partial(celery, pool="prefork", slots=4), (2000, 80)),
    "celery threads -c 200, httpx": (partial(celery, pool="threads", slots=200), (1000, 400)),
    "celery gevent -c 500, httpx": (partial(celery, pool="gevent", slots=500), (1000, 400)),
}
"""How to run each, and the number of jobs for answers of 0 and of 200 ms: fewer for the slow ones."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    add_keep_option(parser)
    options = parser.parse_args()
    chosen = dict(list(CONTESTANTS.items())[: 3 if options.no_peers else None])
    raw: dict[str, dict[str, list[Pace]]] = {}
    for nth, delay in enumerate((0.0, 0.2)):
        found: dict[str, list[Pace]] = {name: [] for name in chosen}
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder), delay) as stand:
            for _ in range(options.rounds):
                for name, (run, jobs) in chosen.items():
                    found[name].append(run(stand, jobs[nth]))
        rate = {name: statistics.median(one.rate for one in measured) for name, measured in found.items()}
        print(f"\n{delay * 1000:.0f} ms answers: median, minimum and maximum of {options.rounds} rounds")
        for name, measured in found.items():
            cpu_ms, trips = (statistics.median(one[figure] for one in measured) for figure in (1, 2))
            print(f"{name:36} {spread([one.rate for one in measured])} jobs/s   {cpu_ms:6.2f} CPU ms a job"
                  f"   {trips:5.2f} trips to Redis   ours is {rate[OURS] / rate[name]:5.2f} ×", flush=True)  # fmt: skip
        raw[f"{delay * 1000:.0f} ms"] = found
    if options.keep:
        keep("throughput", {"unit": "jobs/s, CPU ms a job, trips to Redis a job", "raw": raw})


if __name__ == "__main__":
    main()
