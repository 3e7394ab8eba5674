"""A test stand: a real Redis, a simulated fleet in another process as the oracle, and workers to kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis
from tests import redis_server
from tests.chaos import crash_points
from tests.chaos.fleet import Fleet
from tests.forked import Forked

from turnout.ledger import Keys, Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult
from turnout_workers.background import housekeeping
from turnout_workers.config.tables import WorkerTable
from turnout_workers.local import process

LEASE_S = 3.0
"""For tests in which workers die: short, so that it is noticed soon. Others use the default, which outlasts any
stall."""
LOST_AFTER_S = housekeeping.LOST_AFTER_S
"""How soon the workers of a stand look again for lost messages; the tests make it short."""


class Stand(Fleet):
    def __init__(
        self, folder: Path, fleet: str, concurrency: int, lease_s: float, drain_s: float, task_events: bool
    ) -> None:
        worker = {"lease_s": lease_s, "drain_s": drain_s}
        super().__init__(folder, fleet, {"worker": worker, "monitoring": {"task_events": task_events}})
        self.folder = folder
        self.ledger = Ledger(Keys())
        self.redis = redis_server.start(folder)
        self.client = redis.Redis.from_url(self.redis.url)
        self._concurrency = concurrency
        self.workers: list[Forked] = []
        self._commands: list[Forked] = []
        self._started = 0

    @property
    def environ(self) -> dict[str, str]:
        """How commands find this Redis and this fleet."""
        return {"REDIS_URL": self.redis.url, "TURNOUT_CONFIG": str(self.config)}

    def close(self) -> None:
        for child in (*self.workers, *self._commands):
            child.kill()
            child.wait()
        super().close()
        self.client.close()
        self.redis.stop()

    def start_worker(
        self,
        crash: tuple[str, int] | None = None,
        wait: bool = True,
        redis_url: str = "",
        concurrency: int = 0,
        spool: str = "spool",
        lost_after_s: float | None = None,
    ) -> Forked:
        """A worker. crash: the point where it dies, and at which visit. redis_url: its way to Redis. spool: the folder
        for what it couldn't settle, by default one for all."""
        self._started += 1
        log = self.folder / f"worker-{self._started}.log"
        name = f"w{self._started}@%h"
        arguments = ["worker", "-n", name, "-c", str(concurrency or self._concurrency)]
        environ = self.environ | {"TURNOUT_SPOOL": str(self.folder / spool)}
        if redis_url:
            environ["REDIS_URL"] = redis_url
        worker = Forked(arguments, environ, log, partial(_prepare, lost_after_s or LOST_AFTER_S, crash))
        self.workers.append(worker)
        if wait:
            process.wait_until(lambda: " ready." in worker.said, worker, log, 60)
        return worker

    def start(self, *command: str, **environ: str) -> Forked:
        """Start another `turnout` command for this fleet. It ends with the stand at the latest."""
        self._commands.append(Forked(command, self.environ | environ, self.folder / f"{command[0]}.log"))
        return self._commands[-1]

    def stop_worker(self, worker: Forked) -> None:
        process.stop(worker)
        self.workers.remove(worker)

    def submit(self, ids: Sequence[str], **fields: Any) -> None:
        jobs = [NewJob.of(i, InferenceRequest(prompt=f"Question {i}?", max_output_tokens=8, **fields)) for i in ids]
        for start in range(0, len(jobs), 500):
            run(self.client, [self.ledger.enqueue(job) for job in jobs[start : start + 500]])

    def kill_worker(self, worker: Forked) -> None:
        """Kill it and end all leases, so that nothing waits for them."""
        worker.kill()
        worker.wait(60)
        self.workers.remove(worker)
        self.end_leases()

    def end_leases(self) -> None:
        """End all leases, as if they had run out, including those of living workers."""
        for index in (self.ledger.keys.job_leases, self.ledger.keys.call_lease_ends):
            self.client.zunionstore(index, {index: 0})

    def settled(self) -> int:
        """Number of settled jobs; -1 while Redis is away."""
        try:
            counts = {name.decode(): int(n) for name, n in self.client.hgetall(self.ledger.keys.counts).items()}
        except redis.RedisError:
            return -1
        return sum(count for name, count in counts.items() if name != "accepted")

    def until(
        self, happens: Callable[[], bool], limit_s: float = 60, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        ends_at = time.monotonic() + limit_s
        while not happens():
            assert time.monotonic() < ends_at, f"not in {limit_s:g} s; {self.settled()} settled"
            meanwhile()
            time.sleep(0.05)

    def outcomes(self, ids: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for job in run(self.client, [self.ledger.facts(i) for i in ids]):
            state = job.state if job else "lost"
            found[state] = found.get(state, 0) + 1
        return found

    def results(self, ids: Sequence[str]) -> list[JobResult | None]:
        return run(self.client, [self.ledger.result(i) for i in ids])

    def unrecorded_calls(self) -> list[int]:
        """For each job with calls: how many calls the oracle has seen beyond the job's attempts. Attempts include calls
        that were cut short because the providers stood still; these may not have reached them."""
        calls = {job_id: job["calls"] for job_id, job in self.oracle()["jobs"].items()}
        ended = zip(calls.values(), self.results(list(calls)), strict=True)
        return [max(0, made - len(result.attempts if result else ())) for made, result in ended]

    def poisoned(self, ids: Sequence[str]) -> list[str]:
        """Jobs that were given up because three workers died while they held them."""
        ended = zip(ids, self.results(ids), strict=True)
        return [job_id for job_id, result in ended if result and result.error and result.error.code == "poison"]

    def money(self) -> dict[str, int]:
        """The books; every call of every job is charged to the account `total`."""
        columns = self.client.hgetall(self.ledger.keys.money)
        return {name.decode(): int(value) for name, value in columns.items()}

    def money_faults(self) -> list[str]:
        """Where the books contradict the oracle's bill, once no call is in flight."""
        money, billed = self.money(), self.oracle()["billed_microusd"]
        spent, unsure = money.get("total|spent", 0), money.get("total|unsure", 0)
        if spent <= billed <= spent + unsure:
            return []
        return [f"billed {billed} µ$, but confirmed {spent} and unsure {unsure}"]


def _prepare(lost_after_s: float, crash: tuple[str, int] | None) -> None:
    """Runs in a worker's process before it starts."""
    housekeeping.LOST_AFTER_S = lost_after_s
    if crash:
        crash_points.lay(*crash)


@contextmanager
def standing(
    folder: Path,
    fleet: str,
    concurrency: int = 50,
    lease_s: float = WorkerTable().lease_s,
    drain_s: float = 10.0,
    *,
    task_events: bool = False,
) -> Iterator[Stand]:
    stand = Stand(folder, fleet, concurrency, lease_s, drain_s, task_events)
    try:
        yield stand
    finally:
        stand.close()
