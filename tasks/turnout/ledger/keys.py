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
    {ns}:fleet         hash    health and metrics of every endpoint, `ENDPOINT|field`
    {ns}:window:E      hash    an endpoint's, or a whole account's, use of its rate limits, by second
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

from turnout.request import Lane

_WHOSE = {"pending": 1, "queue": 1, "done": 2, "batch": 2}
"""What a key is of: a job (0), a lane (1), a batch (2)."""


class Keys:
    """The keys of one namespace. Those of which it has one are made once, for every call asks for some."""

    def __init__(self, namespace: str = "turnout") -> None:
        self.namespace = namespace
        self.turns = self._("turns")
        self.turns_each = self._("turns_each")
        self.in_line = self._("in_line")
        self.leases = self._("leases")
        self.delayed = self._("delayed")
        self.parked = self._("parked")
        self.deadlines = self._("deadlines")
        self.failed = self._("failed")
        self.counts = self._("counts")
        self.batches = self._("batches")
        self.hooks = self._("hooks")
        self.fleet = self._("fleet")
        self.expiry = self._("expiry")
        self.hanging = self._("hanging")
        self.waiting = self._("waiting")
        self.money = self._("money")
        self.ceilings = self._("ceilings")
        self.intake = self._("intake")
        self.workers = self._("workers")
        self.all_pending = tuple(self.pending(lane) for lane in Lane)
        self._beginnings: dict[tuple[str, ...], list[tuple[str, int]]] = {}

    def _(self, *parts: str) -> str:
        return ":".join((f"{{{self.namespace}}}", *parts))

    def named(self, names: tuple[str, ...], job: str, lane: str, batch: str) -> list[str]:
        """The keys that a script names, as attributes here: those of a job, a lane or a batch are of the one given."""
        if (beginnings := self._beginnings.get(names)) is None:
            beginnings = self._beginnings[names] = [each for name in names for each in self._of(name)]
        given = (job, lane, batch, "")
        return [beginning + given[whose] for beginning, whose in beginnings]

    def _of(self, name: str) -> list[tuple[str, int]]:
        """Of a key, or several: how it begins, and what goes on with it."""
        key = getattr(self, name)
        if callable(key):
            return [(key(""), _WHOSE.get(name, 0))]
        return [(one, 3) for one in ([key] if isinstance(key, str) else key)]

    def job(self, job_id: str) -> str:
        return self._("job", job_id)

    def story(self, job_id: str) -> str:
        return self._("story", job_id)

    def stream(self, job_id: str) -> str:
        return self._("stream", job_id)

    def pending(self, lane: Lane | str) -> str:
        return self._("pending", lane)

    def done(self, batch: str) -> str:
        return self._("done", batch)

    def batch(self, batch: str, part: str = "") -> str:
        """Its record; or, by `part`, its `lines` or its `input`."""
        return self._("batch", batch, part) if part else self._("batch", batch)

    def inbox(self, client: str) -> str:
        return self._("inbox", client)

    def window(self, endpoint: str) -> str:
        return self._("window", endpoint)

    def calls(self, endpoint: str) -> str:
        return self._("calls", endpoint)

    def lease(self, lease: str) -> str:
        return self._("lease", lease)

    def mutex(self, work: str) -> str:
        return self._("mutex", work)

    @staticmethod
    def queue(lane: Lane | str) -> str:
        return str(lane)

    @staticmethod
    def result(job_id: str) -> str:
        return f"celery-task-meta-{job_id}"
