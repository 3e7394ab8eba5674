"""Every key that Turnout keeps in Redis, in one place: its type, what it holds, and what it is sorted by.

A namespace's own keys share one hash tag; the lane queues and the results stand outside of it, because Celery
names them. Scripts touch both kinds together, so Redis Cluster, which wants one slot for a script's keys, is not
supported: one server, or one with replicas, carries a namespace (docs/redis.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from turnout.request import Lane


def checked_namespace(namespace: str) -> str:
    """The namespace as it is, if clients and workers can have it. Raises ValueError."""
    if not re.fullmatch("[A-Za-z0-9_.-]{1,64}", namespace):
        raise ValueError("must be 1 to 64 of the characters A-Z, a-z, 0-9, _, . and -")
    return namespace


class Keys:
    """The keys of one namespace. Where there is one for each job, lane or batch, it is a function of that."""

    def __init__(self, namespace: str = "turnout") -> None:
        own = f"{{{namespace}}}:"

        # By job.
        self.job = f"{own}job:".__add__  # hash: the job's record, see `ledger.py`
        self.story = f"{own}story:".__add__  # list: its events as JSON, with the decisions, for `explain`
        self.stream = f"{own}stream:".__add__  # stream: its answer's pieces, when it streams
        self.result = "celery-task-meta-".__add__  # string: Celery's record of its result, and a channel of that name

        # Where jobs stand. See `lua/shared.lua` for places, turns and lines.
        self.queue = "".__add__  # list, by lane: its messages, Celery's queue
        self.pending = f"{own}pending:".__add__  # zset, by lane: queued jobs by the place (ms) of their message
        self.all_pending = tuple(map(self.pending, Lane))
        self.all_lanes = (*self.all_pending, *map(self.queue, Lane))
        self.turns = own + "turns"  # zset: queued jobs that take turns with others of their tenant
        self.turns_each = own + "turns_each"  # string: how many of them stand in a lane, a part of all workers' slots
        self.awaiting_turn = own + "in_line"  # zset: queued jobs that wait for their turn
        self.job_leases = own + "leases"  # zset: jobs that a worker holds, by the end (ms) of its lease
        self.parked = own + "parked"  # zset: parked jobs, in lines of those that wait for the same
        self.delayed = own + "delayed"  # zset: those lines, by when (ms) the first of each looks for room again
        self.deadlines = own + "deadlines"  # zset: live jobs that have a deadline, by it (ms)
        self.failed = own + "failed"  # zset: dead letters, failed jobs by when (ms) their record goes
        self.webhooks = own + "webhooks"  # zset: `WEBHOOK TIME ID` of settled jobs to be told, from TIME (ms) on
        self.counts = own + "counts"  # hash: jobs accepted and settled, by outcome
        self.retention = own + "retention"  # string: how long (ms) workers keep results, for all who end jobs
        self.intake = own + "intake"  # string: there while no new job is accepted, for want of memory
        self.inbox = f"{own}inbox:".__add__  # channel, by client and process: the jobs it watches, see `client/link.py`

        # By batch; `batch_lines` and `batch_input`, below, are lists.
        self.done = f"{own}done:".__add__  # list: its settled jobs, to be written out by `turnout run`
        self.batch = f"{own}batch:".__add__  # hash: a detached one's record and counts; its results live as long
        self.batches = own + "batches"  # zset: detached ones, by creation (s)

        # The fleet: see `state/record.py` of the workers.
        self.endpoints = own + "endpoints:36"  # hash: health, metrics and load of each, packed as so many numbers
        self.latencies = own + "endpoints:latencies"  # hash, by endpoint and bucket: how many answers took so long
        self.usage = f"{own}usage:".__add__  # hash, by endpoint or account: use of its limits, and by second, packed
        self.call_starts = f"{own}calls:".__add__  # zset, by endpoint or account: leases of its calls, by start (ms)
        self.call_lease = f"{own}lease:".__add__  # hash, by lease: what one call reserved
        self.call_lease_ends = own + "expiry"  # zset: call leases, by their end (ms)
        self.hanging = own + "hanging"  # hash, by worker: how many of its calls to which endpoint are overdue
        self.money = own + "money"  # hash: `ACCOUNT|spent`, `|reserved`, `|unsure`, `|duplicate` in micro-dollars
        self.ceilings = own + "ceilings"  # hash: what a batch may spend, by `batch:BATCH`, in micro-dollars
        self.workers = own + "workers"  # zset: `NAME VERSION SLOTS` (VERSION: of what it follows), by sign of life (ms)
        self.mutex = f"{own}mutex:".__add__  # string, by work: there while somebody does it for all

    def batch_lines(self, batch: str) -> str:
        """Which job each of its lines is, or why it is none (JSON)."""
        return self.batch(f"{batch}:lines")

    def batch_input(self, batch: str) -> str:
        """Requests that are still to be fed, in compressed chunks."""
        return self.batch(f"{batch}:input")

    def named(self, names: Iterable[str], job: str, batch: str) -> list[str]:
        """The keys that a script names by their attributes here; those of a job or a batch are of the given one."""
        found: list[str] = []
        for name in names:
            key = getattr(self, name)
            if callable(key):
                found.append(key(batch if name in ("done", "batch", "batch_input") else job))
            else:
                found += [key] if isinstance(key, str) else key
        return found
