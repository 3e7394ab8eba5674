"""`python -m tests.chaos.poison`: a job that kills every worker that takes it, among thousands that don't.

The same jobs run twice, without it and with it. It may be called three times at most (fewer if a worker dies before its
call is sent), and the others must keep 95 % of their pace. Workers are restarted when they die, as by a supervisor.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.fleet import one_provider
from tests.chaos.stand import LEASE_S, Stand, standing

FLEET = one_provider("sim-one", ttft_s=0.25)
WORKERS = 4
CONCURRENCY = 25
PACE = 0.95
"""Share of the pace without the poison job."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=12_000)
    options = parser.parse_args()
    paces = {}
    calls = 0
    for poisoned in (False, True):
        with (
            tempfile.TemporaryDirectory(prefix="turnout-poison-") as folder,
            standing(Path(folder), FLEET, lease_s=LEASE_S) as stand,
        ):
            paces[poisoned] = options.jobs / _run(stand, options.jobs, poisoned)
            if poisoned:
                assert stand.poisoned(["poison"]) == ["poison"], "it is options up"
                calls = stand.oracle()["jobs"]["poison"]["calls"]
    ratio = paces[True] / paces[False]
    print(f"{paces[False]:.0f} jobs/s without it, {paces[True]:.0f} with it: {ratio:.1%}; it was called {calls} times")
    return 0 if ratio >= PACE and calls <= 3 else 1


def _run(stand: Stand, jobs: int, poisoned: bool) -> float:
    """Seconds until all the others are settled."""
    for _ in range(WORKERS):
        stand.start_worker(concurrency=CONCURRENCY)
    ids = [f"job-{n}" for n in range(jobs)]
    began = time.monotonic()
    stand.submit(ids)
    if poisoned:
        stand.submit(["poison"], constraints={"lane": "interactive"})  # before the others, and watched from the start

    def meanwhile() -> None:
        state, owner = stand.client.hmget(stand.ledger.keys.job("poison"), "state", "owner")
        if state == b"calling":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(owner.split(b":")[1]), signal.SIGKILL)
        for worker in stand.workers:
            if worker.poll() is not None:
                stand.workers.remove(worker)
                stand.start_worker(wait=False, concurrency=CONCURRENCY)

    stand.until(lambda: stand.settled() >= jobs + poisoned, 600, meanwhile)
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
