"""What monitoring costs: a worker with task events, metrics scraped each second and JSON logs, and one with none.

In turns in one run, against the same simulated provider, whose answers come after 200 ms. Flower listens to the events,
on the same cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from tests.benchmarks.measure import Pace, add_keep_option, keep, spread
from tests.benchmarks.throughput import FLEET, SLOTS, turnout
from tests.chaos.stand import Stand, standing
from tests.flower import flower

from turnout_workers.local import process

ON, OFF = "Flower, metrics each second, JSON logs", "none of it"
EVENTS, REST = "Flower alone", "metrics and JSON logs alone"
PARTS = {ON: (True, True), OFF: (False, False), EVENTS: (True, False), REST: (False, True)}
"""By name: with task events and Flower? with metrics and JSON logs?"""


@contextmanager
def scraped(port: int) -> Iterator[None]:
    done = threading.Event()

    def scrape() -> None:
        while not done.wait(1.0):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                reply.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def shown(stand: Stand) -> Iterator[None]:
    with flower(stand.folder, stand.environ) as watching:
        watching.until(lambda: stand.client.pubsub_numpat() > 0)
        yield
        assert "turnout.infer" in watching.get("/api/tasks?limit=1"), "Flower has heard of no task"


def watched(stand: Stand, jobs: int, events: bool, rest: bool) -> Pace:
    text = stand.config.read_text()
    stand.config.write_text(text.replace(f"task_events = {str(not events).lower()}", f"task_events = {events}".lower()))
    os.environ["TURNOUT_LOG_LEVEL"] = "info" if rest else "warning"
    with process.reserved_port() as port:
        if rest:
            os.environ |= {"TURNOUT_METRICS_PORT": str(port), "TURNOUT_LOG_FORMAT": "json"}
        try:
            with shown(stand) if events else nullcontext(), scraped(port) if rest else nullcontext():
                return turnout(stand, jobs)
        finally:
            for name in ("TURNOUT_METRICS_PORT", "TURNOUT_LOG_FORMAT", "TURNOUT_LOG_LEVEL"):
                os.environ.pop(name, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--parts", action="store_true", help="also the two halves alone")
    add_keep_option(parser)
    options = parser.parse_args()
    chosen = PARTS if options.parts else {name: PARTS[name] for name in (ON, OFF)}
    found: dict[str, list[Pace]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder, standing(Path(folder), FLEET.format(delay=0.2), SLOTS) as stand:
        for _ in range(options.rounds):
            for name, (events, rest) in chosen.items():
                found[name].append(watched(stand, options.jobs, events, rest))
    without = statistics.median(one.rate for one in found[OFF])
    for name, measured in found.items():
        rates, cpu_ms = [one.rate for one in measured], statistics.median(one.cpu_ms for one in measured)
        print(f"{name:45} {spread(rates)} jobs/s   {cpu_ms:5.2f} CPU ms a job"
              f"   {statistics.median(rates) / without:.0%}")  # fmt: skip
    if options.keep:
        keep("monitoring", {"unit": "jobs/s, CPU ms a job", "raw": found})


if __name__ == "__main__":
    main()
