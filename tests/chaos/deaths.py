"""`python -m tests.chaos.deaths`: workers die at every point of an attempt, many times each, and everything is counted.

Each doomed worker has one job at a time, so that the counts are exact: a death before the call or after the settlement
costs no call, one between them costs the call that it cuts off. Prints the time from a job's claim until it is taken
back; exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import math
import random
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.fleet import two_providers
from tests.chaos.stand import Stand, standing

from turnout.ledger import run

FLEET = two_providers(0.12)
PLACES = {"claimed": 0, "before_call": 0, "during_call": 1, "after_call": 1, "after_settle": 0}
"""Where a worker can die, and how many calls that costs. On a busy machine `during_call` may precede its sending."""
AT_A_TIME = 20
TAKEN_BACK_WITHIN_S = 45.0
"""After the claim, with the default lease of 30 s."""


def die(stand: Stand, places: Sequence[str], rng: random.Random, wait: bool = True) -> list[str]:
    """Let one worker die at each of these points, then another one finish. Returns the jobs' ids.

    wait: whether to wait until the leases of the dead run out; otherwise end them when all have died.
    """
    ids = [f"job-{n}" for n in range(4 * len(places) + 10)]
    stand.submit(ids)
    for start in range(0, len(places), AT_A_TIME):
        doomed = [
            stand.start_worker((place, rng.randrange(1, 4)), wait=False, concurrency=1)
            for place in places[start : start + AT_A_TIME]
        ]
        for worker in doomed:
            assert worker.wait(120) == -signal.SIGKILL, "it has died at its point"
    if not wait:
        stand.end_leases()
    stand.start_worker(concurrency=20)
    stand.until(lambda: stand.settled() >= len(ids), 120)
    stand.until(
        lambda: stand.client.zcard(stand.ledger.keys.call_lease_ends) == 0, 60
    )  # money of the dead is unsure from now
    return ids


def faults(stand: Stand, ids: Sequence[str], places: Sequence[str]) -> list[str]:
    """Broken promises."""
    outcomes, poison = stand.outcomes(ids), stand.poisoned(ids)
    broken = []
    if outcomes.get("succeeded", 0) + len(poison) != len(ids) or stand.settled() != len(ids):
        broken.append(f"of {len(ids)} jobs: {outcomes}, {stand.settled()} settlements")
    calls, due = sum(stand.unrecorded_calls()), sum(PLACES[place] for place in places)
    if calls > due or calls < (0 if "during_call" in places else due):
        broken.append(f"{calls} calls were cut off, expected {due}")
    return broken + stand.money_faults()


def taken_back_after_s(stand: Stand, ids: Sequence[str]) -> list[float]:
    """Sorted times from a dead worker's claim until others could have the job again."""
    waits = []
    for story in run(stand.client, [stand.ledger.story(job_id) for job_id in ids]):
        claimed_at = 0.0
        for event in story:
            if event["event"] == "claimed":
                claimed_at = event["at"]
            elif event["event"] == "taken_back":
                waits.append((event["at"] - claimed_at) / 1000)
    return sorted(waits)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=200, help="deaths at each point")
    parser.add_argument("--lease", type=float, default=3.0, help="seconds for which a worker holds a job")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    failed = 0
    for place in PLACES:
        places = [place] * options.times
        with (
            tempfile.TemporaryDirectory(prefix="turnout-deaths-") as folder,
            standing(Path(folder), FLEET, lease_s=options.lease) as stand,
        ):
            ids = die(stand, places, random.Random(f"{options.seed}/{place}"))
            broken, waits = faults(stand, ids, places), taken_back_after_s(stand, ids)
        p99 = waits[math.ceil(0.99 * len(waits)) - 1] if waits else 0.0
        if p99 > TAKEN_BACK_WITHIN_S:
            broken.append("that is too late")
        found = "; ".join(broken) or "all promises kept"
        print(f"{place}: {options.times} deaths, taken back within {p99:.1f} s (p99 of claims): {found}", flush=True)
        failed += bool(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
