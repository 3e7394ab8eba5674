"""`python -m tests.chaos.events`: Flower shows the truth. Whatever happens to jobs and workers, each job's last state
according to Celery's events (`celery.events.state`, which is what Flower shows) is how it ended in the ledger.

Jobs are answered, fail over, are parked, refused, late, and cancelled by clients and by Celery's `revoke`, while
workers stop and, with `--kills`, are killed: no event reports the last moment of those. Prints its seed; exit code 1 if
any other job is shown wrongly.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from celery import Celery
from celery.events.state import State
from tests.chaos.stand import Stand, standing
from tests.forked import Forked

from turnout.ledger import run
from turnout_workers.celery_app import celery_settings

FLEET = """
seed = {seed}
output_tokens = 8
[providers.sim-one]
ttft_s = 0.1
jitter = 0.5
concurrency = 8
models."llama-3.3-70b" = {{ input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.3 }}
faults = [{{ kind = "error", status = 503, share = 0.2 }}, {{ kind = "error", status = 500, share = 0.1 }}]
[providers.sim-two]
ttft_s = 0.05
jitter = 0.5
concurrency = 8
models."llama-3.3-70b" = {{ input_usd_per_mtok = 0.2, output_usd_per_mtok = 0.4 }}
faults = [{{ kind = "error", status = 429, share = 0.1, retry_after_s = 1.0 }}, {{ kind = "down", share = 0.05 }}]
"""
SHOWN = {"succeeded": "SUCCESS", "failed": "FAILURE", "expired": "FAILURE", "cancelled": "REVOKED"}
"""Celery's names of the ends."""
UNCLAIMED = ("expired", "cancelled")
"""Ends that may happen without a worker: the message that informs one may be lost with a killed worker."""
WORKERS, CONCURRENCY, LEASE_S, DRAIN_S = 3, 20, 1.5, 0.3
KINDS = {"plain": 80, "refused": 5, "late": 15}
"""Of a hundred jobs."""


class EventState:
    """All published events, as a state like Flower's."""

    def __init__(self, url: str) -> None:
        self.state = State(max_tasks_in_memory=1_000_000)
        self.story: dict[str, list[str]] = {}
        self._client = redis.Redis.from_url(url)
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.psubscribe("*celeryev*")
        self._subscription.get_message(timeout=5)  # the subscription's own
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        message = None
        while message or not self._ends.is_set():
            if message := self._subscription.get_message(timeout=0.2):
                body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
                for event in body if isinstance(body, list) else [body]:
                    self.state.event({**event, "local_received": time.time()})
                    if "uuid" in event:
                        self.story.setdefault(event["uuid"], []).append(event["type"].removeprefix("task-"))

    def close(self) -> None:
        """Close after all published events were read."""
        self._ends.set()
        self._thread.join()
        self._client.close()


@contextmanager
def listening(url: str) -> Iterator[EventState]:
    events = EventState(url)
    try:
        yield events
    finally:
        events.close()


def submit(stand: Stand, jobs: int, rng: random.Random) -> list[str]:
    ids = [f"{rng.choices(list(KINDS), list(KINDS.values()))[0]}-{n}" for n in range(jobs)]
    stand.submit([i for i in ids if i.startswith("plain")])
    stand.submit([i for i in ids if i.startswith("refused")], constraints={"only": ["nobody"]})
    stand.submit([i for i in ids if i.startswith("late")], constraints={"deadline_s": 2.0})
    return ids


def disturb(stand: Stand, ids: list[str], app: Celery, rng: random.Random) -> None:
    """Do one random thing."""
    some = rng.sample(ids, 3)
    match rng.choice(["cancel", "revoke", "terminate", "stop", "stop", "nothing"]):
        case "cancel":
            run(stand.client, [stand.ledger.cancel(job_id, None) for job_id in some])
        case "revoke":
            app.control.revoke(some)
        case "terminate":
            app.control.revoke(some, terminate=True)
        case "stop":
            rng.choice(stand.workers).send_signal(signal.SIGTERM)
        case _:
            pass


def faults(folder: Path, jobs: int, seed: int, kills: int = 1, limit_s: float = 300.0) -> list[str]:
    """Run it. Returns what Flower would show wrongly."""
    rng = random.Random(seed)
    with standing(folder, FLEET.format(seed=seed), CONCURRENCY, LEASE_S, DRAIN_S, task_events=True) as stand:
        app = Celery("chaos")
        app.conf.update(**celery_settings(stand.redis.url))
        with listening(stand.redis.url) as events:
            for _ in range(WORKERS):
                stand.start_worker()
            ids, ended = submit(stand, jobs, rng), list[Forked]()
            moments = sorted(rng.sample(range(jobs // 10, jobs * 8 // 10), jobs // 40))
            killed = sorted(rng.sample(moments, kills))

            def meanwhile() -> None:
                while moments and stand.settled() >= moments[0]:
                    if moments.pop(0) in killed:
                        rng.choice(stand.workers).kill()
                    else:
                        disturb(stand, ids, app, rng)
                for worker in [worker for worker in stand.workers if worker.poll() is not None]:
                    stand.workers.remove(worker)
                    ended.append(worker)
                    stand.start_worker()

            stand.until(lambda: stand.settled() >= len(ids), limit_s, meanwhile)
            time.sleep(2)
            for worker in stand.workers:
                worker.send_signal(signal.SIGTERM)
            for worker in stand.workers:
                worker.wait(20)
                ended.append(worker)
        app.close()
        excused = 0
        wrong = [
            f"a worker ended by itself: {worker.returncode}" for worker in ended if worker.returncode not in (0, -9)
        ]
        lost = {str(worker.pid) for worker in ended if worker.returncode == -9}
        facts = run(stand.client, [stand.ledger.facts(job_id) for job_id in ids])
        stories = run(stand.client, [stand.ledger.story(job_id) for job_id in ids])
        for job_id, job, story in zip(ids, facts, stories, strict=True):
            task = events.state.tasks.get(job_id)
            shown = task.state if task else None
            state = job.state if job else "lost"
            if shown == SHOWN.get(state):
                continue
            owners = [event["by"].split(":")[1] for event in story if event["event"] == "claimed"]
            if lost and (state in UNCLAIMED or (owners and owners[-1] in lost)):
                excused += 1
                continue
            ledgers = [event["event"] for event in story]
            wrong.append(f"{job_id} is {state}, shown as {shown}: {events.story.get(job_id)}; {ledgers}")
        states = dict(Counter(job.state for job in facts if job))
        print(f"{states}; shown wrongly: {len(wrong)}, and {excused} of killed workers", flush=True)
        return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="turnout-events-") as folder:
        wrong = faults(Path(folder), options.jobs, options.seed, options.kills)
    print("\n".join(wrong) or "every job is shown as it ended")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
