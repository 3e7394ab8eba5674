"""The job ledger: each accepted job is settled exactly once, whatever dies on the way.

    (none)   enqueue → queued | duplicate | conflict | cancelled | full | expired
    queued   claim   → leased, with a token that fences all earlier ones
    leased   admit   → calling (the fleet's store does this, in the same step in which it grants the call)
    leased, calling   settle → succeeded | failed | expired;  requeue → queued;  park → delayed
                      lease over: sweep → queued, or failed as poison when too many workers died with it
    delayed  wake    → queued
    any live one      cancel → cancelled;  queued, delayed past the deadline: expire → expired
    failed, expired, cancelled   replay → queued

A job's record is a hash of

    what was submitted    v (the contract), fingerprint, payload, seal (its key), metadata, lane, label, tenant, batch,
                          stream, webhook, trace, embed (sent along by a Celery app)
    where it stands       state, token, owner, claim (its number among the owner's), progress, accepted_ms, queued_ms,
                          deadline_ms; turn (among its tenant's), spot (among the parked): see `lua/shared.lua`
    what went wrong       requeues (failovers), republished, suspect (the last lapse: when, and whose lease), crashes
                          (points for lapses: see `sweep`)
    whom to notify        watchers, readers, hook (its member of `webhooks`), hook_tries, unheard (1: Celery hasn't been
                          told of the end, which the first worker with a message of the job does; 0: one does)
    how it ended          settled_ms, settled_token, and result, except of a success, which Celery's record has

A failure needs the current token. A success is taken from any attempt while the job is unsettled, because it has been
paid for. Time is Redis's. Every method here builds an `Operation`; the caller sends it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from turnout.ledger.content import (
    DueWebhook,
    Piece,
    TakenEnd,
    WebhookDelivery,
    read_delivery,
    read_end,
    read_pieces,
    read_result,
)
from turnout.ledger.job import (
    FACTS,
    Claimed,
    Enqueued,
    Facts,
    Intake,
    NewJob,
    NotClaimed,
    Settlement,
    read_claim,
    read_facts,
)
from turnout.ledger.operations import Operations, event_json, flat, ms, nothing, texts
from turnout.ledger.script import Operation
from turnout.request import CONTRACT_VERSION, Lane
from turnout.result import JobResult, JobStatus
from turnout.value import compact_json

TIMED_GROUP = "at:"
"""Prefix of wait groups that wait only for a certain time."""
_CLAIMS = itertools.count()
"""Numbers the claims of a process, so that a resent claim isn't taken for another one of the same job."""


class Ledger(Operations):
    """All operations of one namespace."""

    # --- producers -------------------------------------------------------------------------------------

    def enqueue(self, job: NewJob, *, detached: bool = False) -> Operation[Enqueued]:
        """Accept a job and publish its message. detached: it is of a detached batch, which must not be cancelled."""
        request, constraints = job.request, job.request.constraints
        record = {
            "v": CONTRACT_VERSION,
            "payload": self.sealed(job.id, "request", job.payload),
            "lane": constraints.lane.value,
            "label": "|".join(request.models) or "auto",  # for people
            "tenant": constraints.tenant,
            "batch": job.batch,
            "embed": job.embed,
            "webhook": job.webhook,
            "trace": job.trace,
            "seal": self.keyring.ref,
            "stream": "1" if job.stream else "",
            "metadata": self.sealed(job.id, "metadata", compact_json(request.metadata)) if request.metadata else "",
        }
        fields = [(name, value) for name, value in record.items() if value]
        # The earlier one holds; the second is relative to when the job is accepted.
        deadlines = (constraints.deadline.timestamp() if constraints.deadline else None, constraints.deadline_s)
        deadlines_ms = [0 if one is None else max(1, ms(one)) for one in deadlines]
        args = (job.id, job.fingerprint, *deadlines_ms, int(job.publish), int(detached), *flat(fields))
        return self.operation("enqueue", *args, decode=_enqueued, job=job.id, batch=job.batch)

    def watch(self, job_id: str, inbox: str, pieces: bool = False) -> Operation[str]:
        """Ask for notices on the channel `inbox`: the job's id when it settles, and with `pieces` also `+ID` whenever
        its stream has grown. Returns the job's current state, '' if there is no such job."""
        return self.operation("watch", inbox, int(pieces), decode=bytes.decode, job=job_id)

    def cancel(self, job_id: str, batch: str | None) -> Operation[Settlement]:
        """Cancel a live job. A call in flight is aborted at its worker's next heartbeat."""
        result = JobResult.unanswered(job_id, JobStatus.CANCELLED, "cancelled", "cancelled on request")
        return self.end("cancel", result, batch)

    def replay(self, job_id: str, batch: str | None = None) -> Operation[bool]:
        """Run a settled job that did not succeed again: from the start, and without its old deadline."""
        return self.operation("replay", job_id, decode=bool, job=job_id, batch=batch)

    def purge(self, job_ids: Sequence[str]) -> Operation[int]:
        """Delete settled jobs with everything that belongs to them; live ones stay. Returns how many were deleted."""
        keys = self.keys
        doomed = [key(job_id) for job_id in job_ids for key in (keys.job, keys.story, keys.result, keys.stream)]
        return self.operation("purge", *job_ids, decode=int, keys=[keys.failed, *doomed])

    # --- workers ---------------------------------------------------------------------------------------

    def claim(self, job_id: str, owner: str, ttl_s: float) -> Operation[Claimed | NotClaimed]:
        args = (job_id, owner, ms(ttl_s), next(_CLAIMS), *self.keyring.refs)
        return self.operation("claim", *args, decode=self.opening(read_claim, job_id), job=job_id, repeatable=True)

    def renew(self, held: Sequence[tuple[str, int]], ttl_s: float) -> Operation[list[bool]]:
        """Prolong leases: pairs of job id and token. Returns for each whether it is still held."""
        keys = [self.keys.job_leases, *(self.keys.job(job_id) for job_id, _ in held)]
        return self.operation("renew", ms(ttl_s), *flat(held), decode=lambda reply: [*map(bool, reply)], keys=keys)

    def settle(
        self,
        token: int,
        result: JobResult,
        decision_json: bytes | None,
        result_ttl_s: float,
        batch: str | None = None,
        failed_ttl_s: float | None = None,
        *,
        from_spool: bool = False,
    ) -> Operation[Settlement]:
        """End the job. decision_json: the decision that led here. failed_ttl_s: how long it is kept if it failed, for
        replays. from_spool: the worker no longer has the job's Celery task, so another must tell Celery."""
        authority = "spool" if from_spool else "token"
        return self.end(authority, result, batch, token, decision_json, result_ttl_s, failed_ttl_s)

    def take_end(self, job_id: str) -> Operation[TakenEnd | None]:
        """How the job of a message has ended; None if it is live, or gone. If Celery hasn't been told, only this worker
        learns that, and must do it."""
        return self.operation("take_end", decode=lambda reply: read_end(reply, job_id), job=job_id)

    def requeue(
        self,
        job_id: str,
        token: int,
        progress: str,
        event: Mapping[str, Any],
        decision_json: bytes | None = None,
        *,
        failovers: int = 0,
    ) -> Operation[bool]:
        """Put it back at the front of its lane, to be done elsewhere. This counts as no lapse.

        failovers: how many to add to those that Celery and Flower show as retries.
        """
        args = (job_id, token, progress, event_json(event, decision_json), failovers)
        return self.operation("requeue", *args, decode=bool, job=job_id, repeatable=True)

    def park(
        self,
        job_id: str,
        token: int,
        wait_s: float,
        progress: str,
        event: Mapping[str, Any],
        group: str = "",
        decision_json: bytes | None = None,
    ) -> Operation[bool]:
        """Park it. `group`, one word, is the same for jobs that wait for the same thing; '': a group of its own."""
        group = group or job_id.replace(" ", "_")
        args = (job_id, token, group, ms(wait_s), progress, event_json(event, decision_json))
        return self.operation("park", *args, decode=bool, job=job_id, repeatable=True)

    def park_until(
        self, job_id: str, token: int, wait_s: float, progress: str, event: Mapping[str, Any]
    ) -> Operation[bool]:
        """Park it until a certain time: `make_groups_due` leaves it alone."""
        return self.park(job_id, token, wait_s, progress, event, TIMED_GROUP + job_id.replace(" ", "_"))

    def head_of_group(self, group: str, count: int) -> Operation[list[str]]:
        """The first parked jobs of a wait group, to `wake` because there is room."""
        command = ("ZRANGE", self.keys.parked, f"[{group} ", f"({group}!", "BYLEX", "LIMIT", 0, count)
        return Operation(command, lambda reply: [member.split(" ", 2)[2] for member in texts(reply)])

    def make_groups_due(self) -> Operation[None]:
        """Let the first parked job of every wait group look for room now."""
        return self.operation("make_groups_due", TIMED_GROUP, decode=nothing)

    # --- housekeeping: lists of at most `limit` job ids, and what to do with each ------------------------

    def take_mutex(self, owner: str, for_s: float) -> Operation[bool]:
        """Reserve the housekeeping for `owner` for this long; returns whether it may do it.

        Each contract has its own: a worker of another release leaves our records untouched, and so must not keep us
        from looking after them for as long as it lives.
        """
        mutex = self.keys.mutex(f"housekeeping:{CONTRACT_VERSION}")
        return self.operation("take_mutex", owner, ms(for_s), decode=bool, keys=[mutex])

    def due_heads(self, limit: int) -> Operation[list[str]]:
        """The first parked job of each wait group whose time has come. `wake` them in this order: the last one woken is
        the first in its lane."""
        return self.operation("due_heads", limit, decode=lambda reply: texts(reply[::-1]))

    def wake(self, job_id: str, next_s: float | None = None) -> Operation[bool]:
        """Publish a parked job at the front of its lane; returns whether it did.

        next_s: wake it only if its group is due, and let the next of the group follow after this time, unless this one
        wakes it earlier. None: wake it in any case, because there is room.
        """
        after_ms = "" if next_s is None else ms(next_s)
        return self.operation("wake", job_id, after_ms, decode=bool, job=job_id)

    def hand_out_turns(self, limit: int) -> Operation[list[str]]:
        """Hand out turns that came free without a claim. Returns the jobs that got one, to `publish_turn`."""
        return self.operation("hand_out_turns", limit, decode=texts)

    def publish_turn(self, job_id: str) -> Operation[None]:
        """Publish a job that has got its turn."""
        return self.operation("publish_turn", job_id, decode=nothing, job=job_id)

    def lapsed(self, limit: int) -> Operation[list[str]]:
        """Jobs whose lease is over."""
        return self._members_due(self.keys.job_leases, limit)

    def sweep(self, job_id: str, points_if_dead: int, poison_from: int) -> Operation[str]:
        """Take back a job whose lease is over. Returns `queued`, `none` for nothing to do, or `poison`: give it up.

        A lapse counts `points_if_dead`, or 1 if its worker turns out to live. From `poison_from` points on, the job is
        poison.
        """
        return self.operation("sweep", job_id, points_if_dead, poison_from, decode=bytes.decode, job=job_id)

    def give_up(
        self, job_id: str, why: str, batch: str | None, failed_ttl_s: float | None = None
    ) -> Operation[Settlement]:
        """Fail a job that `sweep` calls poison. failed_ttl_s: see `settle`."""
        result = JobResult.unanswered(job_id, JobStatus.FAILED, "poison", why)
        return self.end("sweep", result, batch, failed_ttl_s=failed_ttl_s)

    def overdue(self, limit: int) -> Operation[list[str]]:
        """Live jobs whose deadline has passed."""
        return self._members_due(self.keys.deadlines, limit)

    def expire(self, job_id: str, batch: str | None) -> Operation[Settlement]:
        """Expire a waiting job. One that is being worked on is expired by its worker."""
        why = "its deadline passed before it was done"
        result = JobResult.unanswered(job_id, JobStatus.EXPIRED, "deadline", why)
        return self.end("expire", result, batch)

    def close_account(self, job_id: str) -> Operation[None]:
        """Drop what a job that has ended, or is gone, has spent of its own ceiling. A live one's stays."""
        return self.operation("close_account", job_id, decode=nothing, job=job_id, repeatable=True)

    def without_message(self, lane: Lane, before: int, limit: int) -> Operation[tuple[int, list[str]]]:
        """The position of the lane's front, and the queued jobs to `republish`: those that have no message now and had
        none when the front was at `before`, as an earlier look returned it."""
        args = (lane.value, before, limit)
        return self.operation("without_message", *args, decode=lambda reply: (reply[0], texts(reply[1])))

    def republish(self, job_id: str, before: int, again_s: float) -> Operation[bool]:
        """Publish a job `without_message` again; returns whether it did.

        again_s: from the second time on it is left alone for this long, then ever longer.
        """
        return self.operation("republish", job_id, before, ms(again_s), decode=bool, job=job_id)

    def alive(self, worker: str, version: str, slots: int, silence_s: float, results_s: float) -> Operation[int]:
        """Note that a worker lives, which version of the configuration it follows, how many jobs it has room for (none:
        it has ended), and how long it keeps results. Workers that have been silent for `silence_s` are forgotten.
        Returns how many live."""
        return self.operation("alive", worker, version, slots, ms(silence_s), max(1, ms(results_s)), decode=int)

    # --- webhooks ---------------------------------------------------------------------------------------

    def due_webhooks(self, limit: int) -> Operation[list[DueWebhook]]:
        """The webhook deliveries due now, at most `limit` of each webhook."""
        return self.operation("due_webhooks", limit, decode=lambda reply: [*map(DueWebhook.read, reply)])

    def take_webhook(self, due: DueWebhook, waits_s: Sequence[float]) -> Operation[WebhookDelivery | None]:
        """Reserve a webhook delivery for this worker. None: another worker has it, or it is done.

        waits_s: how long after its first try, its second … it is due again; each longer than a try takes.
        """
        decode = self.opening(read_delivery, due.job_id)
        args = (" ".join(due), due.job_id, *map(ms, waits_s))
        return self.operation("take_webhook", *args, decode=decode, job=due.job_id)

    def end_webhook(self, due_again: DueWebhook, event: Mapping[str, Any]) -> Operation[None]:
        """The webhook was delivered, or given up. due_again: see `WebhookDelivery`."""
        args = (" ".join(due_again), event_json(event))
        return self.operation("end_webhook", *args, decode=nothing, job=due_again.job_id)

    def _members_due(self, index: str, limit: int) -> Operation[list[str]]:
        return self.operation("members_due", limit, decode=texts, keys=[index])

    # --- batches ---------------------------------------------------------------------------------------

    def set_ceiling(self, batch: str, microusd: int | None) -> Operation[None]:
        """Set what a batch may spend, including what it has spent already. None: no ceiling."""
        field = (self.keys.ceilings, f"batch:{batch}")
        return Operation(("HDEL", *field) if microusd is None else ("HSET", *field, microusd), nothing)

    def money(self, batch: str) -> Operation[tuple[int, int]]:
        """Micro-dollars that its calls have cost, and those that calls of unknown outcome may have cost in addition."""
        fields = (f"batch:{batch}|spent", f"batch:{batch}|unsure")
        return Operation(("HMGET", self.keys.money, *fields), lambda reply: (int(reply[0] or 0), int(reply[1] or 0)))

    def finish_chunk(self, batch: str, number: int, jobs: int, expired: int = 0) -> Operation[bool]:
        """Note that this chunk of a detached batch's input has been fed, and drop it.

        expired: how many of its jobs were not accepted because their deadline had passed.
        """
        return self.operation("finish_chunk", number, jobs, expired, decode=bool, batch=batch)

    def move_batch(self, batch: str, before: Sequence[str], fields: Mapping[str, Any]) -> Operation[str]:
        """Change the record of a detached batch, usually its `state`, if it is in one of the states `before`.

        Returns the state that it was in; '' if there is no such batch.
        """
        args = (f" {' '.join(before)} ", *flat(fields.items()))
        return self.operation("move_batch", *args, decode=bytes.decode, batch=batch)

    # --- streams ---------------------------------------------------------------------------------------

    def stream(self, job_id: str, fields: Mapping[str, str], ttl_s: float) -> Operation[None]:
        """Add a piece of the answer: `call` and `text`, or `call` alone when a call begins."""
        stored: dict[str, str | bytes] = {**fields}
        if self.keyring and "text" in stored:
            stored["sealed"] = self.sealed(job_id, f"call {fields['call']}", fields["text"])
            del stored["text"]
        return self.operation("stream", job_id, ms(ttl_s), *flat(stored.items()), decode=nothing, job=job_id)

    def pieces(self, job_id: str, after: str) -> Operation[list[Piece]]:
        """The stream's entries after this one (`0`: from the beginning), up to 1,000."""
        command = ("XRANGE", self.keys.stream(job_id), f"({after}", "+", "COUNT", 1000)
        return Operation(command, self.opening(read_pieces, job_id))

    # --- reads -----------------------------------------------------------------------------------------

    def facts(self, job_id: str) -> Operation[Facts | None]:
        """What a job is and where it stands, without its content."""
        return Operation(("HMGET", self.keys.job(job_id), *FACTS), read_facts)

    def result(self, job_id: str, content: bool = True) -> Operation[JobResult | None]:
        """The result of a settled job; None if it is live, or gone. Raises Unreadable.

        content: False leaves out what is sealed, for readers without a key.
        """
        keyring = self.keyring if content else None
        return self.operation("result", decode=lambda reply: read_result(reply, job_id, keyring), job=job_id)

    def story(self, job_id: str) -> Operation[list[dict[str, Any]]]:
        """Its events, oldest first: `at` (ms), `event`, and what belongs to it."""
        return Operation(("LRANGE", self.keys.story(job_id), 0, -1), lambda reply: [json.loads(one) for one in reply])

    def workers(self) -> Operation[dict[str, str]]:
        """The living workers, each with the version of the configuration that it follows."""
        command = ("ZRANGE", self.keys.workers, 0, -1)
        return Operation(command, lambda reply: dict(one.split(" ")[:2] for one in texts(reply)), repeatable=True)

    def failed(self, limit: int, offset: int = 0) -> Operation[list[str]]:
        """Ids of failed jobs, the latest first."""
        command = ("ZRANGE", self.keys.failed, offset, offset + limit - 1, "REV")
        return Operation(command, texts)


def _enqueued(reply: list[bytes]) -> Enqueued:
    return Enqueued(Intake(reply[0].decode()), reply[1].decode())
