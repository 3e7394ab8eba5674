"""What a job takes in Redis, and how fast one Redis does the ledger's part."""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from pathlib import Path

import redis
from tests import redis_server
from tests.benchmarks.measure import keep, keeping

from turnout.ledger import Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus

JOBS, BATCH = 5000, 250


def measure(client: redis.Redis, prompt_bytes: int) -> dict[str, float]:
    ledger, empty = Ledger(), client.info("memory")["used_memory"]
    prompt = ("word " * prompt_bytes)[:prompt_bytes]
    jobs = [NewJob.of(uuid.uuid4().hex, InferenceRequest(prompt=prompt)) for _ in range(JOBS)]
    chunks = [jobs[at : at + BATCH] for at in range(0, JOBS, BATCH)]
    began = time.perf_counter()
    for chunk in chunks:
        run(client, [ledger.enqueue(job) for job in chunk])
    queued_s = time.perf_counter() - began
    queued = (client.info("memory")["used_memory"] - empty) // JOBS
    client.delete("standard")
    began = time.perf_counter()
    for chunk in chunks:
        claims = run(client, [ledger.claim(job.id, "w", 30) for job in chunk])
        ends = [
            (claim.token, JobResult(id=job.id, status=JobStatus.SUCCEEDED))
            for job, claim in zip(chunk, claims, strict=True)
        ]
        run(client, [ledger.settle(*end, None, 86_400) for end in ends])
    done_s = time.perf_counter() - began
    settled = (client.info("memory")["used_memory"] - empty) // JOBS
    return {
        "bytes of prompt": prompt_bytes,
        "bytes queued": queued,
        "bytes settled, besides the answer": settled,
        "enqueued/s": round(JOBS / queued_s),
        "claimed and settled/s": round(JOBS / done_s),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    keeping(options)
    given = options.parse_args()
    raw = []
    for size in (100, 1000, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            server = redis_server.start(Path(folder))
            try:
                with redis.Redis.from_url(server.url) as client:
                    raw.append(measure(client, size))
            finally:
                server.stop()
        print(", ".join(f"{what} {figure}" for what, figure in raw[-1].items()))
    if given.keep:
        keep("redis_memory", {"raw": raw})


if __name__ == "__main__":
    main()
