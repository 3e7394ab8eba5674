"""`make chaos`: kill workers and Redis at random under load, take the best provider down, and count.

Prints its seed; the same seed kills at the same moments, as far as two machines can be alike. Exit code 1 if a promise
is broken: a job lost, a job settled twice, money that doesn't add up, or more extra calls than there were calls in
flight at the deaths.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.chaos.stand import LEASE_S, Stand, standing

FLEET = """
seed = {seed}
output_tokens = 8
[providers.sim-best]
ttft_s = 0.1
s_per_token = 0.002
jitter = 0.3
models."llama-3.3-70b" = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }}
[providers.sim-second]
ttft_s = 0.2
s_per_token = 0.002
jitter = 0.3
models."llama-3.3-70b" = {{ input_usd_per_mtok = 2.0, output_usd_per_mtok = 6.0 }}
[providers.sim-third]
kind = "anthropic"
ttft_s = 0.2
s_per_token = 0.002
jitter = 0.3
models."llama-3.3-70b" = {{ input_usd_per_mtok = 3.0, output_usd_per_mtok = 9.0 }}
"""
WORKERS = 4
CONCURRENCY = 20
EXTRA_CALLS = 0.01
"""Highest share of calls made again for jobs that were answered already."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--worker-kills", type=int, default=20)
    parser.add_argument("--redis-kills", type=int, default=5)
    parser.add_argument("--outage", type=float, default=60.0, help="seconds for which the best provider is down")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which the run counts as failed")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="turnout-chaos-") as folder,
        standing(Path(folder), FLEET.format(seed=options.seed), CONCURRENCY, LEASE_S) as stand,
    ):
        return _run(stand, options)


def _run(stand: Stand, options: argparse.Namespace) -> int:
    rng = random.Random(options.seed)
    ids = [f"job-{n}" for n in range(options.jobs)]
    for _ in range(WORKERS):
        stand.start_worker()
    began = time.monotonic()
    stand.submit(ids)
    stand.redis.on_disk()
    # Each event happens when this many jobs have settled.
    kills = options.worker_kills + options.redis_kills
    moments = sorted(rng.sample(range(options.jobs // 20, options.jobs * 9 // 10), kills))
    kinds = ["worker"] * options.worker_kills + ["redis"] * options.redis_kills
    rng.shuffle(kinds)
    events = list(zip(moments, kinds, strict=True))
    stand.fail("sim-best", kind="down", after_requests=options.jobs // 10, for_s=options.outage)
    settled = 0

    def meanwhile() -> None:
        nonlocal settled
        settled = max(settled, stand.settled())
        while events and settled >= events[0][0]:
            _, kind = events.pop(0)
            print(f"{time.monotonic() - began:6.1f} s  {settled:6} settled: kill a {kind}", flush=True)
            if kind == "redis":
                stand.redis.kill()
                stand.redis.restart()
            else:
                alive = [worker for worker in stand.workers if worker.poll() is None]
                if alive:
                    rng.choice(alive).kill()
                stand.start_worker(wait=False)

    stand.until(lambda: settled >= len(ids), options.limit, meanwhile)
    took_s = time.monotonic() - began
    # What was in flight at the last death becomes unsure money when its lease ends.
    stand.until(lambda: stand.client.zcard(stand.ledger.keys.call_lease_ends) == 0, 60)
    return _judge(stand, ids, took_s, options)


def _judge(stand: Stand, ids: list[str], took_s: float, options: argparse.Namespace) -> int:
    outcomes = stand.outcomes(ids)
    oracle = stand.oracle()
    calls = Counter(job["calls"] for job in oracle["jobs"].values())
    answered = Counter(job["answered"] for job in oracle["jobs"].values())
    extra = sum((times - 1) * jobs for times, jobs in answered.items() if times > 1)
    crashed = sum(worker.poll() not in (None, -9) for worker in stand.workers)
    money = stand.money()
    spent, unsure = money.get("total|spent", 0), money.get("total|unsure", 0)
    billed = oracle["billed_microusd"]
    print(f"{len(ids):,} jobs in {took_s:.0f} s: {outcomes}")
    print(
        f"calls a job {dict(sorted(calls.items()))}; answered {dict(sorted(answered.items()))}; {extra} answered again"
    )
    print(f"billed by the oracle {billed} µ$; confirmed {spent}, unsure {unsure}; workers that ended badly: {crashed}")
    faults = []
    poison = stand.poisoned(ids)
    if poison:
        print(f"{len(poison)} jobs were held by three killed workers, and ended as poison, as they should")
    if outcomes.get("succeeded", 0) + len(poison) != len(ids):
        faults.append("a job was lost or failed")
    if extra > EXTRA_CALLS * len(ids):
        faults.append(f"more than {EXTRA_CALLS:.0%} of the calls were extra")
    faults += stand.money_faults()
    if crashed:
        faults.append("a worker ended by itself")
    print("; ".join(faults) or f"all promises kept (seed {options.seed})")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
