"""Jobs a second of one worker process, from queue to stored result, beside a bare asyncio loop that only calls.

Both in one run against the same simulated provider, for answers without delay and after 200 ms. The bare loop is the
limit: the same HTTP client, with no queue, no routing, no ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path

from tests.chaos.stand import Stand, standing

from turnout.request import InferenceRequest
from turnout_workers.config import load
from turnout_workers.endpoints import accounts
from turnout_workers.providers import Http, build

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = {delay}
models."llama-3.3-70b" = {{ price = {{ input = 1.0, output = 3.0 }} }}
"""


def ours(stand: Stand, jobs: int, round: int) -> tuple[float, float]:
    """Jobs a second, and the CPU time of the worker for each, in ms."""
    ids = [f"{round}-{n}" for n in range(jobs)]
    before = stand.settled()
    (worker,) = stand.workers
    began, cpu_s = time.monotonic(), _cpu_s(worker.pid)
    stand.submit(ids)
    stand.until(lambda: stand.settled() == before + jobs, 120)
    took_s, cpu_s = time.monotonic() - began, _cpu_s(worker.pid) - cpu_s
    assert stand.outcomes(ids) == {"succeeded": jobs}
    return jobs / took_s, 1000 * cpu_s / jobs


def _cpu_s(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def bare(stand: Stand, jobs: int, slots: int) -> float:
    http = Http()
    (account,) = accounts(load(stand.config, {}))
    connector, free = build(account, http), asyncio.Semaphore(slots)

    async def one(number: int) -> None:
        async with free:
            await connector.complete(InferenceRequest(prompt=f"Question {number}?", max_output_tokens=8))

    began = time.monotonic()
    await asyncio.gather(*(one(number) for number in range(jobs)))
    took_s = time.monotonic() - began
    await http.aclose()
    return jobs / took_s


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", type=int, default=3000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--slots", type=int, default=500)
    given = options.parse_args()
    for delay in (0.0, 0.2):
        with (
            tempfile.TemporaryDirectory() as folder,
            standing(Path(folder), FLEET.format(delay=delay), given.slots) as stand,
        ):
            stand.start_worker()
            worker, loop, cpu_ms = [], [], []
            for round in range(given.rounds):
                loop.append(asyncio.run(bare(stand, given.jobs, given.slots)))
                rate, cost_ms = ours(stand, given.jobs, round)
                worker.append(rate)
                cpu_ms.append(cost_ms)
            ratio = statistics.median(worker) / statistics.median(loop)
            print(
                f"{delay * 1000:3.0f} ms answers: worker {', '.join(f'{rate:.0f}' for rate in worker)} jobs/s; "
                f"bare loop {', '.join(f'{rate:.0f}' for rate in loop)} calls/s; ratio of medians {ratio:.2f}; "
                f"worker's CPU {statistics.median(cpu_ms):.2f} ms a job",
                flush=True,
            )


if __name__ == "__main__":
    main()
