"""Every key that Turnout keeps in Redis, in one place.

A namespace's own keys share one hash tag; the lane queues and the results stand outside of it, because Celery
names them. Scripts touch both kinds together, so Redis Cluster, which wants one slot for a script's keys, is not
supported: one server, or one with replicas, carries a namespace (docs/operations.md).

    {ns}:job:ID        hash    the job's record, see `ledger.py`
    {ns}:story:ID      list    its events as JSON, with the decisions: for `explain` and `job.events()`
    {ns}:stream:ID     stream  its answer's pieces, when it streams
    {ns}:pending:LANE  zset    queued jobs of a lane, by the place (ms) of their message in it, see `lua/shared.lua`
    {ns}:turns         zset    queued jobs that take turns with others of their tenant, see `lua/shared.lua`
    {ns}:turns_each    string  how many of them stand in a lane at a time: a part of all workers' slots
    {ns}:in_line       zset    queued jobs that wait in line for their turn
    {ns}:leases        zset    jobs that a worker holds, by the time (ms) at which its lease ends
    {ns}:parked        zset    parked jobs, in lines of those that wait for the same, see `lua/shared.lua`
    {ns}:delayed       zset    those lines, by the time (ms) at which the first of each looks for room again
    {ns}:deadlines     zset    live jobs that have a deadline, by that time (ms)
    {ns}:failed        zset    dead letters: failed jobs, by the time (ms) at which their record goes
    {ns}:counts        hash    jobs accepted and settled, by outcome
    {ns}:done:BATCH    list    settled job ids of a batch, to be written out by `turnout run`
    {ns}:batch:BATCH   hash    a detached batch's own record, with its counts; its jobs' results live as long
    {ns}:batch:BATCH:lines  list    which job each of its lines is, or why it is none (JSON)
    {ns}:batch:BATCH:input  list    requests that are still to be fed, in compressed chunks
    {ns}:batches       zset    batch ids, by creation (ms)
    {ns}:inbox:CLIENT  pub/sub a client's one channel: ids of jobs that it watches, see `client/link.py`
    {ns}:hooks         zset    settled jobs whose webhook is still to be told, by when (ms)
    {ns}:endpoints     hash    health, metrics and load of every endpoint, packed, see `state/record.py`
    {ns}:usage:E       hash    an endpoint's, or a whole account's, use of its rate limits, and by second, packed
    {ns}:calls:E       zset    its calls in flight: lease ids, by start (ms)
    {ns}:lease:ID      hash    what one call reserved
    {ns}:expiry        zset    call leases, by the time (ms) at which they end
    {ns}:waiting       hash    by worker: how many of its jobs wait for which endpoint
    {ns}:hanging       hash    by worker: how many of its calls to which endpoint are overdue
    {ns}:money         hash    `ACCOUNT|spent`, `|reserved`, `|unsure`, `|duplicate` in micro-dollars
    {ns}:ceilings      hash    what a batch may spend, by its account, `batch:BATCH`, in micro-dollars
    {ns}:intake        string  there while no new job is accepted, for want of memory
    {ns}:workers       zset    live workers, `NAME VERSION SLOTS` (version of what it follows), by sign of life (ms)
    {ns}:mutex:WORK    string  who does a round of fleet-wide housekeeping now

    interactive, standard, batch     list    Celery's lane queues
    celery-task-meta-ID              string  Celery's result record, and the pub/sub channel of the same name
"""

from __future__ import annotations

from collections.abc import Iterable

from turnout.request import Lane


class Keys:
    """The keys of one namespace. Those of which there are many are functions of what they belong to."""

    def __init__(self, namespace: str = "turnout") -> None:
        own = f"{{{namespace}}}:"
        self.turns = own + "turns"
        self.turns_each = own + "turns_each"
        self.in_line = own + "in_line"
        self.leases = own + "leases"
        self.delayed = own + "delayed"
        self.parked = own + "parked"
        self.deadlines = own + "deadlines"
        self.failed = own + "failed"
        self.counts = own + "counts"
        self.batches = own + "batches"
        self.hooks = own + "hooks"
        self.endpoints = own + "endpoints"
        self.expiry = own + "expiry"
        self.hanging = own + "hanging"
        self.waiting = own + "waiting"
        self.money = own + "money"
        self.ceilings = own + "ceilings"
        self.intake = own + "intake"
        self.workers = own + "workers"

        self.job = f"{own}job:".__add__
        self.story = f"{own}story:".__add__
        self.stream = f"{own}stream:".__add__
        self.result = "celery-task-meta-".__add__
        self.pending = f"{own}pending:".__add__
        self.queue = "".__add__
        self.done = f"{own}done:".__add__
        self.batch = f"{own}batch:".__add__
        self.inbox = f"{own}inbox:".__add__
        self.usage = f"{own}usage:".__add__
        self.calls = f"{own}calls:".__add__
        self.lease = f"{own}lease:".__add__
        self.mutex = f"{own}mutex:".__add__

        self.all_pending = tuple(map(self.pending, Lane))

    def batch_lines(self, batch: str) -> str:
        return self.batch(f"{batch}:lines")

    def batch_input(self, batch: str) -> str:
        return self.batch(f"{batch}:input")

    def named(self, names: Iterable[str], job: str, lane: str, batch: str) -> list[str]:
        """The keys that a script names by their attributes here; those of a job, lane or batch are of the given one."""
        belongs_to = {"pending": lane, "queue": lane, "done": batch, "batch": batch, "batch_input": batch}
        found: list[str] = []
        for name in names:
            key = getattr(self, name)
            if callable(key):
                found.append(key(belongs_to.get(name, job)))
            else:
                found += [key] if isinstance(key, str) else key
        return found
