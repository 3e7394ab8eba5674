"""The job ledger: each accepted job is settled exactly once, whatever dies on the way.

    (none)   enqueue → queued | duplicate | conflict | full | expired
    queued   claim   → leased, with a token that fences all earlier ones
    leased   admit   → calling (the fleet's store does this, in the same step in which it grants the call)
    leased, calling   settle → succeeded | failed | expired;  requeue → queued;  defer → delayed
                      lease over: sweep → queued, or failed as poison when too many workers died with it
    delayed  wake    → queued
    any live one      cancel → cancelled;  queued, delayed past the deadline: expire → expired
    failed, expired, cancelled   replay → queued

Failures need the current token; a success is taken from any attempt while the job is unsettled, for it has been
paid for. Time is Redis's. Every method here builds a `Call`; who sends it is the caller's business.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from pydantic_core import to_json

from turnout.ledger.content import RESULT, Hook, Piece, place, read_hook, read_pieces, read_result, write_result
from turnout.ledger.job import (
    CLAIMED,
    FACTS,
    Claimed,
    Ending,
    Enqueued,
    Facts,
    Intake,
    NewJob,
    NotClaimed,
    Settlement,
    read_claim,
    read_facts,
)
from turnout.ledger.keys import Keys
from turnout.ledger.message import TEMPLATE
from turnout.ledger.script import CLOCK, Call, Script
from turnout.ledger.sealing import Keyring
from turnout.request import CONTRACT_VERSION, Lane
from turnout.result import JobResult, JobStatus, Problem, celery_record

TURNS = 4
"""Jobs of one tenant that stand in a lane at a time, at least. As each one claimed brings the next, few keep a worker
busy …"""
TURNS_A_SLOT = 1 / 8
"""… and many workers take more. So a job behind a flood waits an eighth of the time that a call takes."""

CONSTANTS = f"""local VERSION = '{CONTRACT_VERSION}'
local MESSAGE = [==[{TEMPLATE}]==]
local TURNS, TURNS_A_SLOT = {TURNS}, {TURNS_A_SLOT}
local CLAIMED, RESULT = {{'{"','".join(CLAIMED)}'}}, {{'{"','".join(RESULT)}'}}
"""


class Ledger:
    """Builds the ledger's operations for one namespace. `clock`: see `script.CLOCK`; `keyring`: seals content."""

    def __init__(self, keys: Keys | None = None, clock: str = CLOCK, keyring: Keyring | None = None) -> None:
        self.keys = keys or Keys()
        self.keyring = keyring or Keyring()
        shared = files("turnout.ledger").joinpath("lua", "shared.lua").read_text("utf-8")
        self._prelude = clock + CONSTANTS + shared

    def _call(
        self,
        name: str,
        *args: Any,
        decode: Any = bool,
        job: str = "",
        lane: str = "",
        batch: str | None = None,
        keys: Sequence[str] | None = None,
    ) -> Call[Any]:
        """keys: of a script that takes any; the others name theirs, which are then of this job, lane and batch."""
        script = Script.load("turnout.ledger", name, self._prelude)
        named = self.keys.named(script.keys, job, lane, batch or "") if keys is None else keys
        return script.call(named, args, decode)

    # --- producers -------------------------------------------------------------------------------------

    def enqueue(self, job: NewJob) -> Call[Enqueued]:
        record = {
            "v": CONTRACT_VERSION,
            "payload": self._sealed(job.id, "request", job.payload),
            "lane": job.lane.value,
            "label": job.label,
        }
        optional = {
            "tenant": job.tenant,
            "batch": job.batch,
            "embed": job.embed,
            "webhook": job.webhook,
            "trace": job.trace,
            "seal": self.keyring.ref,
            "stream": "1" if job.stream else "",
            "metadata": self._sealed(job.id, "metadata", json.dumps(dict(job.metadata))) if job.metadata else "",
        }
        record |= {name: value for name, value in optional.items() if value}
        args = (
            job.id,
            job.fingerprint,
            _ms(job.deadline),
            _ms(job.deadline_s),
            int(job.publish),
            *_flat(record.items()),
        )
        return self._call("enqueue", *args, decode=_enqueued, job=job.id, lane=job.lane)

    def watch(self, job_id: str, inbox: str, pieces: bool = False) -> Call[str]:
        """Have the job's id published on `inbox` when it settles. Gives its state now, '' if there is none.

        pieces: and `+ID` whenever its stream has grown.
        """
        return self._call("watch", inbox, int(pieces), decode=bytes.decode, job=job_id)

    def cancel(self, job_id: str, batch: str | None, result_ttl_s: float) -> Call[Settlement]:
        """Cancel a live job. A call in flight is aborted at its worker's next heartbeat."""
        result = JobResult.unanswered(job_id, JobStatus.CANCELLED, "cancelled", "cancelled on request")
        return self._end("cancel", result, result_ttl_s, batch)

    def replay(self, job_id: str, lane: Lane, batch: str | None = None) -> Call[bool]:
        """Run a settled job again that did not succeed, from the start and without its old deadline."""
        return self._call("replay", job_id, job=job_id, lane=lane, batch=batch)

    def purge(self, job_ids: Sequence[str]) -> Call[int]:
        """Delete settled jobs: record, story, result. Live ones stay. Gives the number of those deleted."""
        keys = self.keys
        doomed = [key(job_id) for job_id in job_ids for key in (keys.job, keys.story, keys.result, keys.stream)]
        return self._call("purge", *job_ids, decode=int, keys=[keys.failed, *doomed])

    # --- workers ---------------------------------------------------------------------------------------

    def claim(self, job_id: str, owner: str, ttl_s: float) -> Call[Claimed | NotClaimed]:
        args = (job_id, owner, _ms(ttl_s), *self.keyring.refs)
        return self._call("claim", *args, decode=self._opening(read_claim, job_id), job=job_id)

    def renew(self, held: Sequence[tuple[str, int]], ttl_s: float) -> Call[list[bool]]:
        """Prolong leases; tells of each whether it is still held."""
        keys = [self.keys.leases, *(self.keys.job(job_id) for job_id, _ in held)]
        return self._call("renew", _ms(ttl_s), *_flat(held), decode=lambda reply: [*map(bool, reply)], keys=keys)

    def settle(
        self,
        token: int,
        result: JobResult,
        record: bytes | None,
        result_ttl_s: float,
        batch: str | None = None,
        failed_ttl_s: float | None = None,
    ) -> Call[Settlement]:
        """End the job. `record`: the decision that led here, as JSON. Failed ones are kept longer, to be replayed."""
        return self._end("token", result, result_ttl_s, batch, token, record, failed_ttl_s)

    def fail_over(
        self,
        job_id: str,
        token: int,
        lane: Lane,
        progress: str,
        event: Mapping[str, Any],
        record: bytes | None = None,
    ) -> Call[bool]:
        """Back to its lane's front, to be done by another endpoint."""
        return self._requeue(job_id, token, lane, progress, _event(event, record), 1)

    def release(self, job_id: str, token: int, lane: Lane) -> Call[bool]:
        """Back to its lane's front, as it was: this worker stops. No crash is counted."""
        return self._requeue(job_id, token, lane, "", _event({"event": "handed_back"}), 0)

    def defer(
        self,
        job_id: str,
        token: int,
        wait_s: float,
        progress: str,
        event: Mapping[str, Any],
        line: str = "",
        record: bytes | None = None,
    ) -> Call[bool]:
        """Park it. `line`, a word: that of the jobs which wait for the same, by default one of its own."""
        args = (job_id, token, line or job_id.replace(" ", "_"), _ms(wait_s), progress, _event(event, record))
        return self._call("defer", *args, job=job_id)

    def following(self, line: str, count: int) -> Call[list[str]]:
        """The first jobs of a line of parked ones, to `wake` because there is room."""
        command = ("ZRANGE", self.keys.parked, f"[{line} ", f"({line}!", "BYLEX", "LIMIT", 0, count)
        return Call(command, lambda reply: [spot.split(" ", 2)[2] for spot in _texts(reply)])

    def hasten(self, limit: int) -> Call[int]:
        """Let the first of every line of parked jobs look for room at once. Gives the number of lines."""
        return self._call("hasten", limit, decode=int)

    # --- housekeeping: lists of ids, and what to do with each ------------------------------------------

    def due(self, limit: int) -> Call[list[str]]:
        """The first parked job of each line whose time has come, to be woken in this order: each goes to the front."""
        return self._call("firsts", limit, decode=lambda reply: _texts(reply[::-1]))

    def wake(self, job_id: str, lane: Lane, next_s: float | None = None) -> Call[bool]:
        """Publish a parked job, at its lane's front. `next_s`: only if its line is due, whose next job follows after
        so long, should this one not bring it; None: there is room for it now."""
        return self._call("wake", job_id, "" if next_s is None else _ms(next_s), job=job_id, lane=lane)

    def spare(self, limit: int) -> Call[list[str]]:
        """Give out turns that came free without a claim. Gives the jobs that have them now, to `bring`."""
        return self._call("spare", limit, decode=_texts)

    def bring(self, job_id: str, lane: Lane) -> Call[bool]:
        """Publish a job that waited in line and whose turn has come."""
        return self._call("bring", job_id, job=job_id, lane=lane)

    def lapsed(self, limit: int) -> Call[list[str]]:
        """Jobs whose lease is over."""
        return self._due(self.keys.leases, limit)

    def sweep(self, job_id: str, lane: Lane, max_crashes: int, max_lapses: int, respite_s: float) -> Call[str]:
        """`queued`, `none`, or why to `give_up`: `poison` after deaths of its workers, `lapsed` after as many lapses as
        are too many though they live. respite_s: for the last worker to show life."""
        args = (job_id, max_crashes, max_lapses, _ms(respite_s))
        return self._call("sweep", *args, decode=bytes.decode, job=job_id, lane=lane)

    def give_up(self, job_id: str, why: Problem, result_ttl_s: float, batch: str | None) -> Call[Settlement]:
        """Fail a job of which `sweep` has said so."""
        result = JobResult(id=job_id, status=JobStatus.FAILED, error=why)
        return self._end("sweep", result, result_ttl_s, batch)

    def overdue(self, limit: int) -> Call[list[str]]:
        """Live jobs past their deadline."""
        return self._due(self.keys.deadlines, limit)

    def expire(self, job_id: str, result_ttl_s: float, batch: str | None) -> Call[Settlement]:
        """Expire a job that waits. One that is being worked on is its worker's to expire."""
        late = "its deadline passed before it was done"
        return self._end(
            "expire", JobResult.unanswered(job_id, JobStatus.EXPIRED, "deadline", late), result_ttl_s, batch
        )

    def lost(self, lane: Lane, limit: int) -> Call[list[str]]:
        """Queued jobs that seem to have no message any more: candidates for `republish`."""
        return self._call("lost", limit, decode=_texts, lane=lane)

    def republish(self, job_id: str, lane: Lane, missing_s: float) -> Call[bool]:
        """Publish a job again that `lost` has named for so long; tells whether it did."""
        return self._call("republish", job_id, _ms(missing_s), job=job_id, lane=lane)

    def alive(self, worker: str, version: str, slots: int, silence_s: float) -> Call[None]:
        """Note that a worker lives, which configuration it follows and how many jobs it has room for; others, silent
        for so long, are forgotten."""
        return self._call("alive", f"{worker} {version} {slots}", _ms(silence_s), decode=_nothing)

    # --- batches ---------------------------------------------------------------------------------------

    def set_ceiling(self, batch: str, microusd: int | None) -> Call[None]:
        """What a batch may spend from now on, with what it has spent; None: as much as it takes."""
        field = (self.keys.ceilings, f"batch:{batch}")
        return Call(("HDEL", *field) if microusd is None else ("HSET", *field, microusd), _nothing)

    def fed(self, batch: str, number: int, jobs: int, expired: int = 0) -> Call[bool]:
        """Note that this chunk of a detached batch's input has been fed, and drop it.

        expired: those of its jobs that were not accepted, for their deadline had passed.
        """
        return self._call("fed", number, jobs, expired, batch=batch)

    # --- streams and webhooks --------------------------------------------------------------------------

    def stream(self, job_id: str, fields: Mapping[str, str], ttl_s: float) -> Call[None]:
        """Add to the answer's pieces: `call` and `text`, or `call` alone where a call begins."""
        stored: dict[str, str | bytes] = {**fields}
        if self.keyring and "text" in stored:
            stored["sealed"] = self._sealed(job_id, f"call {fields['call']}", fields["text"])
            del stored["text"]
        return self._call("stream", job_id, _ms(ttl_s), *_flat(stored.items()), decode=_nothing, job=job_id)

    def pieces(self, job_id: str, after: str) -> Call[list[Piece]]:
        """What was added to the stream after this entry (`0`: all), up to 1,000 entries."""
        return Call(
            ("XRANGE", self.keys.stream(job_id), f"({after}", "+", "COUNT", 1000), self._opening(read_pieces, job_id)
        )

    def due_hooks(self, limit: int) -> Call[list[str]]:
        """Settled jobs that somebody is to be told of now."""
        return self._due(self.keys.hooks, limit)

    def take_hook(self, job_id: str, for_s: float) -> Call[Hook | None]:
        """Have the telling of it for so long; None: another worker has it, or it is done."""
        return self._call("take_hook", job_id, _ms(for_s), decode=self._opening(read_hook, job_id), job=job_id)

    def put_off_hook(self, job_id: str, for_s: float) -> Call[None]:
        """Tell it again later."""
        return self._call("put_off_hook", job_id, _ms(for_s), decode=_nothing)

    def end_hook(self, job_id: str, event: Mapping[str, Any]) -> Call[None]:
        """It was told, or given up."""
        return self._call("end_hook", job_id, _event(event), decode=_nothing, job=job_id)

    # --- reads -----------------------------------------------------------------------------------------

    def facts(self, job_id: str) -> Call[Facts | None]:
        """What a job is and where it stands, without its content."""
        return Call(("HMGET", self.keys.job(job_id), *FACTS), read_facts)

    def result(self, job_id: str, content: bool = True) -> Call[JobResult | None]:
        """The result of a settled job; None if it is live, or gone. Raises Unreadable.

        content: False for those who have no key: without what is sealed.
        """
        keyring = self.keyring if content else None
        return Call(("HMGET", self.keys.job(job_id), *RESULT), lambda reply: read_result(reply, job_id, keyring))

    def story(self, job_id: str) -> Call[list[dict[str, Any]]]:
        """Its events, oldest first: `at` (ms), `event`, and what belongs to it."""
        return Call(("LRANGE", self.keys.story(job_id), 0, -1), lambda reply: [json.loads(one) for one in reply])

    def workers(self) -> Call[dict[str, str]]:
        """The workers that live, and the version of the configuration that each follows."""
        return Call(
            ("ZRANGE", self.keys.workers, 0, -1), lambda reply: dict(one.split(" ")[:2] for one in _texts(reply))
        )

    def failed(self, limit: int, offset: int = 0) -> Call[list[str]]:
        """Ids of failed jobs, the latest first."""
        command = ("ZRANGE", self.keys.failed, offset, offset + limit - 1, "REV")
        return Call(command, _texts)

    # --- shared ----------------------------------------------------------------------------------------

    def _sealed(self, job_id: str, part: str, text: str) -> bytes:
        return self.keyring.seal(place(job_id, part), text.encode())

    def _opening(self, read: Callable[[Any, str, Keyring], Any], job_id: str) -> Callable[[Any], Any]:
        return lambda reply: read(reply, job_id, self.keyring)

    def _due(self, index: str, limit: int) -> Call[list[str]]:
        return self._call("due", limit, decode=_texts, keys=[index])

    def _requeue(self, job_id: str, token: int, lane: Lane, progress: str, event: str, count: int) -> Call[bool]:
        return self._call("requeue", job_id, token, progress, event, count, job=job_id, lane=lane)

    def _end(
        self,
        authority: str,
        result: JobResult,
        result_ttl_s: float,
        batch: str | None,
        token: int = 0,
        record: bytes | None = None,
        failed_ttl_s: float | None = None,
    ) -> Call[Settlement]:
        text, status = write_result(result, self.keyring), result.status.value
        event = {"event": status} | ({"why": result.error.code} if result.error else {})
        stored = (text, celery_record(result, text), _event(event, record))
        ttl_ms = max(1, _ms(result_ttl_s))  # Redis takes no lifetime of nothing
        args = (result.id, authority, token, status, *stored, ttl_ms, max(ttl_ms, _ms(failed_ttl_s)), batch or "")
        return self._call("settle", *args, decode=_settled, job=result.id, batch=batch)


def _ms(seconds: float | None) -> int:
    return 0 if seconds is None else max(0, round(seconds * 1000))


def _event(event: Mapping[str, Any], record: bytes | None = None) -> str:
    """The inside of a JSON object: Lua puts the time before it."""
    inside = to_json(event)[1:-1]
    return (inside if record is None else b'%b,"decision":%b' % (inside, record)).decode()


def _texts(reply: list[bytes]) -> list[str]:
    return [one.decode() for one in reply]


def _flat(pairs: Iterable[Iterable[Any]]) -> Iterator[Any]:
    return chain.from_iterable(pairs)


def _nothing(reply: Any) -> None: ...


def _enqueued(reply: list[bytes]) -> Enqueued:
    return Enqueued(Intake(reply[0].decode()), reply[1].decode())


def _settled(reply: list[bytes]) -> Settlement:
    return Settlement(Ending(reply[0].decode()), reply[1].decode())
