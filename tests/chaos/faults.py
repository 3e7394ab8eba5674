"""`python -m tests.chaos.faults`: single faults at full size, each on its own stand, and everything is counted.

A hundred fetches whose replies are lost with their messages; calls that outlast every lease while other workers are
killed; a stop with a thousand calls in flight. Prints its seed; exit code 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.chaos.fleet import two_providers
from tests.chaos.stand import Stand, standing
from tests.tcp_proxy import between

from turnout.ledger import Script, run
from turnout_workers.background import housekeeping

Fault = Callable[[Path, random.Random], list[str]]
"""Causes a fault, in a folder for its stand; returns broken promises."""
LOST = 100
REPUBLISHED_WITHIN_S = 30.0
CALLS = 1000
GRACE_S, STOPPED_WITHIN_S = 1.0, 5.0


def lost_replies(folder: Path, rng: random.Random) -> list[str]:
    """A hundred of 300 messages are lost on their way."""
    ids = [f"job-{n}" for n in rng.sample(range(10_000), 3 * LOST)]
    with standing(folder, two_providers(0.05), concurrency=1) as stand, between(stand.redis.port) as proxy:
        fetch = Script.load("turnout_workers", "fetch")
        stand.client.script_load(fetch.source)
        proxy.cut_replies(fetch.sha.encode(), times=LOST)
        stand.submit(ids)
        for _ in range(5):
            stand.start_worker(redis_url=proxy.url, wait=False, lost_after_s=housekeeping.LOST_AFTER_S)
        stand.until(lambda: stand.settled() >= len(ids), 90)
        broken = _broken(stand, ids)
        events = [event for story in run(stand.client, [stand.ledger.story(i) for i in ids]) for event in story]
        again_at = sorted(event["at"] / 1000 for event in events if event["event"] == "republished")
        if not len(proxy.cut_at) == len(again_at) == LOST:
            broken.append(f"{proxy.cut} messages were lost, {len(again_at)} were republished")
        longest_s = max((again - lost for lost, again in zip(proxy.cut_at, again_at, strict=False)), default=0.0)
        if longest_s > REPUBLISHED_WITHIN_S:
            broken.append(f"one of them after {longest_s:.0f} s")
        return broken


def long_calls(folder: Path, rng: random.Random, lease_s: float = 1.0, call_s: float = 5.0) -> list[str]:
    """Calls outlast their leases; their worker lives while others die."""
    ids = [f"long-{n}" for n in range(8)]
    with standing(folder, two_providers(call_s), concurrency=8, lease_s=lease_s) as stand:
        stand.start_worker()
        stand.submit(ids)
        stand.until(lambda: stand.outcomes(ids) == {"calling": len(ids)})
        while stand.settled() < len(ids):
            other = stand.start_worker(wait=False)
            time.sleep(rng.uniform(0.2, 1.5))
            other.kill()
        return _broken(stand, ids)


def stop(folder: Path, rng: random.Random, within_s: float = STOPPED_WITHIN_S) -> list[str]:
    """A thousand calls are in flight when their worker is told to stop. It stops `within_s` of its grace period's
    end."""
    ids = [f"job-{n}" for n in range(CALLS)]
    with standing(folder, two_providers(60.0), concurrency=CALLS, drain_s=GRACE_S) as stand:
        first = stand.start_worker()
        stand.submit(ids)
        stand.until(lambda: stand.outcomes(ids) == {"calling": CALLS}, 60)
        time.sleep(rng.uniform(0, 0.5))
        first.send_signal(signal.SIGTERM)
        try:
            broken = [] if first.wait(GRACE_S + within_s) == 0 else [f"it ended with {first.returncode}"]
        except subprocess.TimeoutExpired:
            return ["it did not stop in time"]
        if (left := stand.outcomes(ids)) != {"queued": CALLS}:
            broken.append(f"it left {left}")
        stand.hurry()
        stand.start_worker()
        stand.until(lambda: stand.settled() >= CALLS, 120)
        return broken + _broken(stand, ids, unrecorded=1)


def _broken(stand: Stand, ids: list[str], unrecorded: int = 0) -> list[str]:
    """Broken promises. unrecorded: how many calls of a job may have been cut off with its worker."""
    broken = []
    if (outcomes := stand.outcomes(ids)) != {"succeeded": len(ids)} or stand.settled() != len(ids):
        broken.append(f"of {len(ids)} jobs: {outcomes}, {stand.settled()} settlements")
    if (most := max(stand.unrecorded_calls())) > unrecorded:
        broken.append(f"a job has {most} more calls than attempts")
    return broken


FAULTS: dict[str, Fault] = {
    f"{LOST} lost replies to fetches": lost_replies,
    "calls of five leases while other workers die": long_calls,
    f"a stop with {CALLS} calls in flight": stop,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    failed = 0
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory(prefix="turnout-faults-") as folder:
            broken = fault(Path(folder), random.Random(f"{options.seed}/{name}"))
        print(f"{name}: {'; '.join(broken) or 'all promises kept'}", flush=True)
        failed += bool(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
