"""Submitting: jobs a second compared with stock Celery, one submit's latency, and how soon a waiting client has the
end.

All on one private Redis, in turns. Celery's `send_task`, on which `apply_async` stands, sends one message a call. The
wake-up is the time from the start of the settling call, made by another process, to the return of `Job.wait` here, so
that it includes one round trip of that call and one for the result.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from tests import redis_server
from tests.benchmarks.measure import add_keep_option, keep

from turnout import Client

SETTLER = """
import sys, time
import redis
from turnout.ledger import Keys, Ledger, run
from turnout.request import InferenceResponse
from turnout.result import JobResult, JobStatus
client, ledger = redis.Redis.from_url(sys.argv[1]), Ledger(Keys())
answer = InferenceResponse(text="yes", provider="p", model_requested="m", model_served="m")
for line in sys.stdin:
    job_id = line.strip()
    token = run(client, [ledger.claim(job_id, "bench", 30)])[0].token
    time.sleep(0.02)  # the client is waiting by now
    result = JobResult(id=job_id, status=JobStatus.SUCCEEDED, response=answer)
    began = time.monotonic()
    run(client, [ledger.settle(token, result, None, 60)])
    print(began, flush=True)
"""


def rate(send: Callable[[int], object], count: int) -> float:
    began = time.monotonic()
    send(count)
    return count / (time.monotonic() - began)


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    add_keep_option(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = redis_server.start(Path(folder))
        try:
            found = _measure(server.url, options.jobs, options.rounds)
        finally:
            server.stop()
    if options.keep:
        keep("submit_many", found)


def _measure(url: str, jobs: int, rounds: int) -> dict[str, Any]:
    celery = Celery(broker=url, backend=url, set_as_current=False)
    with Client(url) as client, redis.Redis.from_url(url) as admin:

        def ours(count: int) -> None:
            client.submit_many((f"Question {n}?" for n in range(count)), model="llama-3.3-70b", max_output_tokens=8)

        def stock(count: int) -> None:
            for n in range(count):
                request = {"prompt": f"Question {n}?", "model": "llama-3.3-70b", "max_output_tokens": 8}
                celery.send_task("turnout.infer", kwargs={"request": request}, queue="standard")

        rates: dict[str, list[float]] = {"submit_many": [], "send_task": []}
        for _ in range(rounds):
            for name, send, count in (("submit_many", ours, jobs), ("send_task", stock, jobs // 5)):
                admin.flushall()
                rates[name].append(rate(send, count))
        for name, found in rates.items():
            print(f"{name:12} {statistics.median(found):8,.0f} jobs/s ({min(found):,.0f}-{max(found):,.0f})")
        admin.flushall()
        single = []
        for n in range(2000):
            began = time.monotonic()
            client.submit(f"Question {n}?")
            single.append(1000 * (time.monotonic() - began))
        took = {"one `submit`": single, "from settling to a waiting client": _wake_ups(client, url, 200)}
        shares = {name: [percentile(times, 0.5), percentile(times, 0.99)] for name, times in took.items()}
        for name, (middle_ms, p99_ms) in shares.items():
            print(f"{name:35} p50 {middle_ms:.2f} ms   p99 {p99_ms:.2f} ms")
        return {"unit": "jobs/s; ms", "rates": rates, "ms": shares}


def _wake_ups(client: Client, url: str, count: int) -> list[float]:
    command = [sys.executable, "-c", SETTLER, url]
    took = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as settler:
        assert settler.stdin is not None
        assert settler.stdout is not None
        for n in range(count):
            job = client.submit(f"Wait {n}?")
            print(job.id, file=settler.stdin, flush=True)
            job.wait(10)
            ended = time.monotonic()
            took.append(1000 * (ended - float(settler.stdout.readline())))
        settler.stdin.close()
    return took


if __name__ == "__main__":
    main()
