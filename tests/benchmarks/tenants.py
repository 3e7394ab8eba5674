"""What one tenant's flood costs another: `python -m tests.benchmarks.tenants`

The quiet tenant submits a job every now and then, first alone, then during a flood of another's, to the same worker,
which is short of slots, or to the same provider, which allows few calls at a time or a minute. Compared, in one run:
the 95th percentile of the time from acceptance to settlement. At most twice that of the lone run is asked for.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measure import add_keep_option, keep, spread
from tests.chaos.stand import Stand, standing

from turnout.ledger import run
from turnout.request import RoutingConstraints

FLEET = """
output_tokens = 8
[providers.sim-one]
ttft_s = 0.3
jitter = 0.2
{limit}
models."llama-3.3-70b" = {{ input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.3 }}
"""
SCARCE = {
    "slots of the worker": (20, "concurrency = 1000"),
    "calls at a time": (100, "concurrency = 20"),
    "requests a minute": (100, "requests_per_minute = 1200"),
}
"""Slots of the worker, and the provider's limit."""
ASKED = 2.0


def p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def latencies(stand: Stand, name: str, count: int, rng: random.Random) -> list[float]:
    """Latencies of the quiet tenant's jobs, submitted at random moments."""
    ids = [f"{name}-{n}" for n in range(count)]
    for job_id in ids:
        stand.submit([job_id], constraints=RoutingConstraints(tenant="quiet"))
        time.sleep(rng.expovariate(4.0))
    stand.until(lambda: stand.outcomes(ids) == {"succeeded": count}, 120)
    facts = run(stand.client, [stand.ledger.facts(job_id) for job_id in ids])
    return [job.settled_at - job.accepted_at for job in facts if job and job.settled_at]


def compared(scarce: str, count: int, flood: int, rng: random.Random) -> tuple[list[float], list[float]]:
    """Latencies alone, and during the flood."""
    slots, limit = SCARCE[scarce]
    with (
        tempfile.TemporaryDirectory(prefix="turnout-tenants-") as folder,
        standing(Path(folder), FLEET.format(limit=limit), concurrency=slots) as stand,
    ):
        stand.start_worker()
        latencies(stand, "warm", 10, rng)
        lone = latencies(stand, "lone", count, rng)
        settled = stand.settled()
        stand.submit([f"loud-{n}" for n in range(flood)], constraints=RoutingConstraints(tenant="loud"))
        stand.until(lambda: stand.settled() >= settled + 100, 60)
        beside = latencies(stand, "beside", count, rng)
        assert stand.settled() < settled + count + flood, "the flood has lasted"
        return lone, beside


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help="of the quiet tenant, in each run")
    parser.add_argument("--flood", type=int, default=20_000, help="jobs of the other")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    add_keep_option(parser)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rng = random.Random(options.seed)
    figures = {}
    for scarce in SCARCE:
        lone, beside = compared(scarce, options.jobs, options.flood, rng)
        ratio = p95(beside) / p95(lone)
        figures[scarce] = {"lone": lone, "beside": beside}
        print(f"{scarce}: alone {spread(lone)} s, beside the flood {spread(beside)} s; p95 {ratio:.2f} x", flush=True)
    if options.keep:
        keep("tenants", {"flood": options.flood, "seconds": figures})
    return int(any(p95(each["beside"]) > ASKED * p95(each["lone"]) for each in figures.values()))


if __name__ == "__main__":
    raise SystemExit(main())
