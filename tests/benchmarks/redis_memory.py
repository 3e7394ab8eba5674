"""What a successful job with a one-word answer costs Redis: memory, and time of its one thread."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
import uuid
from pathlib import Path

import redis.asyncio
from pydantic_core import to_json
from tests import redis_server
from tests.benchmarks.measure import add_keep_option, keep

from turnout.ledger import Claimed, Coalescer, Ledger, NewJob
from turnout.request import InferenceRequest, InferenceResponse, Usage
from turnout.result import Attempt, JobResult, JobStatus
from turnout_workers.routing.decision import Decision, rank
from turnout_workers.routing.decision_log import to_json_dict
from turnout_workers.routing.fleet import Endpoint, Fleet, Limits, Load, Observed, Price, ProviderMetrics
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.fast_pipeline import send_commands
from turnout_workers.state.redis_store import RedisFleetStore
from turnout_workers.state.store import Ask, Bid, Fence, Granted, Report

JOBS, BATCH = 5000, 250
MODEL = "llama-3.3-70b"
KEPT_S = 86_400.0


def decided(request: InferenceRequest, count: int) -> Decision:
    """One decision in a fleet of this many endpoints, all of which can serve the job."""
    rng, now = random.Random(1), time.time()
    limits = Limits(requests_per_minute=10**7, tokens_per_minute=10**9)
    fleet = Fleet(
        Endpoint(f"provider-{i}", MODEL, MODEL, price=Price(rng.uniform(0.1, 3), rng.uniform(0.3, 9)), limits=limits)
        for i in range(count)
    )
    known = {
        endpoint.id: Observed(
            metrics=ProviderMetrics(rng.uniform(0.2, 1), rng.uniform(0.005, 0.02), 0.4, now - 1, 50, 0.02, 20.0),
            load=Load(in_flight=rng.randrange(20)),
        )
        for endpoint in fleet.endpoints
    }
    return rank(JobProfile.of(request), fleet.snapshot(now, known), now, rng)


def answered(job_id: str, endpoint: Endpoint) -> JobResult:
    now, whose = time.time(), {"provider": endpoint.provider, "model_requested": MODEL, "model_served": MODEL}
    usage = Usage(input_tokens=760, output_tokens=212)
    made = InferenceResponse(text="Yes.", usage=usage, cost_microusd=610, request_id="req_0011", latency_s=0.8, **whose)
    call = Attempt(
        endpoint=endpoint.id, provider=endpoint.provider, model=MODEL, started_at=now, duration_s=0.8, cost_microusd=610
    )
    times = {"accepted_at": now, "started_at": now, "settled_at": now}
    done = JobStatus.SUCCEEDED
    return JobResult(id=job_id, status=done, response=made, attempts=(call,), cost_microusd=610, **times)


async def work(job_id: str, decision: Decision, send: Coalescer, ledger: Ledger, store: RedisFleetStore) -> None:
    """What a worker sends for a successful job."""
    claim = await send(ledger.claim(job_id, "host.example:4711:0a1b2c", 30))
    assert isinstance(claim, Claimed)
    lease = f"{job_id}:{claim.token}:0"
    bids = tuple(map(Bid.of, decision.bids()))
    grant = await store.admit(Ask(lease, bids, 30.0, fence=Fence(job_id, claim.token)))
    assert isinstance(grant, Granted)
    chosen = next(one.endpoint for one in decision.candidates if one.endpoint.id == grant.endpoint_id)
    used = Report(lease, chosen.id, ok=True, input_tokens=760, output_tokens=212, cost_microusd=610, latency_s=0.8)
    await store.report(used)
    record = to_json(to_json_dict(decision, chosen.id))
    await send(ledger.settle(claim.token, answered(job_id, chosen), record, KEPT_S))


async def taken(client: redis.asyncio.Redis) -> tuple[int, float]:
    """Memory now, and microseconds of its thread so far."""
    info = await client.info()
    cpu_s = info["used_cpu_user_main_thread"] + info["used_cpu_sys_main_thread"]
    return info["used_memory"], 1e6 * cpu_s


async def measure(client: redis.asyncio.Redis, prompt_bytes: int, endpoints: int) -> dict[str, float]:
    send, ledger = Coalescer(client, send_commands), Ledger()
    store = RedisFleetStore(send, ledger.keys)
    request = InferenceRequest(prompt=("word " * prompt_bytes)[:prompt_bytes], model=MODEL)
    decision = decided(request, endpoints)
    jobs = [NewJob.of(uuid.uuid4().hex, request) for _ in range(JOBS)]
    chunks = [jobs[at : at + BATCH] for at in range(0, JOBS, BATCH)]
    empty, began = await taken(client)
    for chunk in chunks:
        await send.all(*map(ledger.enqueue, chunk))
    queued, accepted = await taken(client)
    await client.delete("standard")
    for chunk in chunks:
        await asyncio.gather(*(work(job.id, decision, send, ledger, store) for job in chunk))
    settled, done = await taken(client)
    return {
        "endpoints": endpoints,
        "bytes of prompt": prompt_bytes,
        "bytes queued": (queued - empty) // JOBS,
        "bytes settled, besides the answer": (settled - empty) // JOBS,
        "µs to accept it": (accepted - began) / JOBS,
        "µs to do it": (done - accepted) / JOBS,
    }


async def run(prompt_bytes: int, endpoints: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        server = redis_server.start(Path(folder))
        try:
            async with redis.asyncio.Redis.from_url(server.url) as client:
                return await measure(client, prompt_bytes, endpoints)
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_keep_option(parser)
    options = parser.parse_args()
    raw = []
    for endpoints, size in ((1, 100), (1, 1000), (1, 10_000), (5, 1000), (50, 1000)):
        raw.append(asyncio.run(run(size, endpoints)))
        print(", ".join(f"{what} {figure:,.0f}" for what, figure in raw[-1].items()))
    if options.keep:
        keep("redis_memory", {"raw": raw})


if __name__ == "__main__":
    main()
