"""Every key that Turnout keeps in Redis, in one place: its type, what it holds, and what it is sorted by.

A namespace's own keys share one hash tag; the lane queues and the results have none, because Celery names them. Scripts
touch both kinds together, so Redis Cluster, which needs a script's keys in one slot, isn't supported: one server, with
or without replicas, carries a namespace (docs/redis.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from turnout.request import Lane


def checked_namespace(namespace: str) -> str:
    """The namespace unchanged, if it is valid. Raises ValueError."""
    if not re.fullmatch("[A-Za-z0-9_.-]{1,64}", namespace):
        raise ValueError("must be 1 to 64 of the characters A-Z, a-z, 0-9, _, . and -")
    return namespace


class Keys:
    """The keys of one namespace. If there is one for each job, lane or batch, it is a function of that."""

    def __init__(self, namespace: str = "turnout") -> None:
        own = f"{{{namespace}}}:"

        # By job.
        self.job = f"{own}job:".__add__  # hash: the job's record, see `ledger.py`
        self.story = f"{own}story:".__add__  # list: its events as JSON, with the decisions, for `explain`
        self.stream = f"{own}stream:".__add__  # stream: its answer's pieces, when it streams
        self.result = "celery-task-meta-".__add__  # string: Celery's record of its result, and a channel of that name

        # Where jobs stand. See `lua/shared.lua` for positions, turns and wait groups.
        self.queue = "".__add__  # list, by lane: its messages, Celery's queue
        self.pending = f"{own}pending:".__add__  # zset, by lane: queued jobs by the position (ms) of their message
        self.all_pending = tuple(map(self.pending, Lane))
        self.all_lanes = (*self.all_pending, *map(self.queue, Lane))
        self.turns = own + "turns"  # zset: queued jobs of tenants that have their turn
        self.turns_each = own + "turns_each"  # string: the most jobs of one tenant that may have a turn in a lane
        self.awaiting_turn = own + "in_line"  # zset: queued jobs that await their turn
        self.job_leases = own + "leases"  # zset: jobs that a worker holds, by the end (ms) of its lease
        self.parked = own + "parked"  # zset: parked jobs, in wait groups
        self.delayed = own + "delayed"  # zset: wait groups, by when (ms) the head of each looks for room again
        self.deadlines = own + "deadlines"  # zset: live jobs by their deadline (ms), if they have one
        self.failed = own + "failed"  # zset: dead letters, failed jobs by when (ms) their record goes
        self.webhooks = own + "webhooks"  # zset: `WEBHOOK TIME ID` of deliveries, due from TIME (ms) on
        self.counts = own + "counts"  # hash: jobs accepted and settled, by outcome
        self.retention = own + "retention"  # string: how long (ms) workers keep results, for others that end jobs
        self.intake = own + "intake"  # string: exists while no new job is accepted, because memory is short
        self.inbox = f"{own}inbox:".__add__  # channel, by client and process: the jobs it watches, see `client/link.py`

        # By batch; `batch_lines` and `batch_input`, below, are lists.
        self.done = f"{own}done:".__add__  # list: its settled jobs, to be written out by `turnout run`
        self.batch = f"{own}batch:".__add__  # hash: a detached one's record and counts; its results are kept as long
        self.batches = own + "batches"  # zset: detached ones, by creation (s)

        # The fleet: see `state/record.py` of the workers.
        # A release that changes the layout of one changes the number, so that none reads what another has written.
        self.endpoints = own + "endpoints:37"  # hash: health, metrics and load of each, packed as so many numbers
        self.latencies = own + "endpoints:latencies"  # hash, by endpoint and bucket: how many answers took so long
        self.usage = f"{own}usage:37:".__add__  # hash, by endpoint or account: use of its limits, and by second, packed
        self.call_starts = f"{own}calls:37:".__add__  # zset, by endpoint or account: its calls' leases, by start (ms)
        self.call_lease = f"{own}lease:".__add__  # hash, by lease: what one call reserved
        self.call_lease_ends = own + "expiry:37"  # zset: call leases, by their end (ms)
        self.hanging = own + "hanging"  # hash, by worker: how many of its calls to which endpoint are overdue
        self.money = own + "money"  # hash: `ACCOUNT|spent`, `|reserved`, `|unsure`, `|duplicate` in micro-dollars
        self.ceilings = own + "ceilings"  # hash: what a batch may spend, by `batch:BATCH`, in micro-dollars
        self.workers = own + "workers"  # zset: `NAME VERSION SLOTS` (VERSION: of what it follows), by sign of life (ms)
        self.mutex = f"{own}mutex:".__add__  # string, by work: exists while one worker does it for all

    def batch_lines(self, batch: str) -> str:
        """Each line's job, or why it has none (JSON)."""
        return self.batch(f"{batch}:lines")

    def batch_input(self, batch: str) -> str:
        """Requests still to be fed, in compressed chunks."""
        return self.batch(f"{batch}:input")

    def named(self, names: Iterable[str], job: str, batch: str) -> list[str]:
        """The keys that a script names by their attributes here, for this job and batch."""
        keys: list[str] = []
        for name in names:
            key = getattr(self, name)
            if callable(key):
                keys.append(key(batch if name in ("done", "batch", "batch_input") else job))
            else:
                keys += [key] if isinstance(key, str) else key
        return keys
