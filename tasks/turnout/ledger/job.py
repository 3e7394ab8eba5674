"""What goes into the ledger and what comes out of it, and how the replies of its scripts are read."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from pydantic import ValidationError

from turnout.errors import Unreadable
from turnout.ledger.sealing import Keyring
from turnout.request import InferenceRequest, Lane
from turnout.result import JobResult

LIVE = frozenset({"queued", "delayed", "leased", "calling"})
"""States of a job that is not settled."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be accepted."""

    id: str
    payload: str
    """The request as canonical JSON."""
    fingerprint: str
    lane: Lane
    label: str
    """The wanted model, for people."""
    tenant: str | None = None
    batch: str | None = None
    deadline: float | None = None
    """Unix time."""
    deadline_s: float | None = None
    """From acceptance on; the earlier of both counts."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    embed: str | None = None
    """Callbacks and such, as JSON, of a job that a plain Celery app has sent."""
    stream: bool = False
    webhook: str | None = None
    trace: str | None = None
    """W3C trace context of whoever submitted it: `traceparent`, and on a second line `tracestate`."""
    publish: bool = True
    """False: its message is at hand already."""

    @classmethod
    def of(cls, job_id: str, request: InferenceRequest, payload: str | None = None, **options: Any) -> Self:
        """Of a request; payload: its canonical JSON, if that is at hand. Options are this class's other fields."""
        wish = request.constraints
        payload = payload or request.canonical_json()
        return cls(
            id=job_id,
            payload=payload,
            fingerprint=hashlib.sha256(payload.encode()).hexdigest()[:32],
            lane=wish.lane,
            label="|".join(request.models) or "auto",
            tenant=wish.tenant,
            deadline=wish.deadline.timestamp() if wish.deadline else None,
            deadline_s=wish.deadline_s,
            metadata=request.metadata,
            **options,
        )


class Intake(StrEnum):
    QUEUED = "queued"
    DUPLICATE = "duplicate"
    """The same job was accepted before: nothing was done."""
    CONFLICT = "conflict"
    """The id belongs to a job of other content."""
    FULL = "full"
    """Redis is short of memory; what was accepted must be settled first."""
    EXPIRED = "expired"
    """The deadline has passed already."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    outcome: Intake
    state: str
    """Of the job now; empty if it was not accepted."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that is this worker's until its lease ends. Times are Unix seconds on Redis's clock."""

    token: int
    request: InferenceRequest | Unreadable | ValidationError
    """Or why nobody can read it, for it was changed."""
    accepted_at: float
    deadline: float | None
    progress: str
    tenant: str | None
    batch: str | None
    lane: Lane
    embed: str | None
    stream: bool
    webhook: str | None
    trace: str | None
    crashes: int
    calls: int
    queued_for_s: float
    next_in_turn: str | None
    """Another job of its tenant, in line until now: to be brought."""
    any_parked: bool = False
    """Whether jobs are parked, this one's likes perhaps among them."""


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Not to be had: the state it is in, `none`, or `unknown_version` or `unknown_key`: these are left untouched."""

    state: str
    key: str = ""
    """The one that is missing."""


class Ending(StrEnum):
    SETTLED = "settled"
    SALVAGED = "salvaged"
    """A success of an attempt that had lost its lease."""
    REPEATED = "repeated"
    """This very attempt has settled it before."""
    DUPLICATE = "duplicate"
    """Another attempt has: this result is not kept."""
    FENCED = "fenced"
    """Another attempt has the job now."""
    REFUSED = "refused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Settlement:
    outcome: Ending
    state: str
    """Before."""

    @property
    def accepted(self) -> bool:
        return self.outcome in (Ending.SETTLED, Ending.SALVAGED, Ending.REPEATED)

    @property
    def duplicate(self) -> bool:
        return self.outcome is Ending.DUPLICATE


@dataclass(frozen=True, slots=True)
class Facts:
    """A job without its content."""

    state: str
    lane: Lane
    label: str
    batch: str | None
    tenant: str | None
    calls: int
    crashes: int
    accepted_at: float
    settled_at: float | None


def place(job_id: str, part: str) -> str:
    """Of a job's content, for its seal."""
    return f"{part} of job {job_id}"


CONTENT = {"text", "tool_calls", "refusal", "embeddings"}
"""Of a response, what is sealed. The rest tells who answered, when, and for how much."""


def write_result(result: JobResult, keyring: Keyring) -> str:
    """As JSON, with the content of its response sealed if there are keys."""
    if result.response is None or not keyring:
        return result.model_dump_json(exclude_defaults=True)
    stored = result.model_dump(mode="json", exclude_defaults=True, exclude={"response": CONTENT})
    content = result.response.model_dump_json(exclude_defaults=True, include=CONTENT).encode()
    stored["response"]["sealed"] = b64encode(keyring.seal(place(result.id, "answer"), content)).decode()
    return json.dumps(stored, ensure_ascii=False, separators=(",", ":"))


def open_result(stored: dict[str, Any], job_id: str, keyring: Keyring | None) -> JobResult:
    """Of its JSON. Without a keyring, what is sealed is left out. Raises Unreadable."""
    response = stored.get("response")
    if response and (sealed := response.pop("sealed", None)) and keyring is not None:
        response |= json.loads(keyring.open(place(job_id, "answer"), b64decode(sealed)))
    return JobResult.model_validate_json(json.dumps(stored))


def read_result(reply: list[bytes | None], job_id: str, keyring: Keyring | None) -> JobResult | None:
    """The stored result; one written without its worker (expired, cancelled, poison) lacks what the record has."""
    result, accepted_ms, settled_ms, progress, metadata = reply
    if result is None:
        return None
    stored = json.loads(result)
    stored.setdefault("accepted_at", int(accepted_ms or 0) / 1000)
    stored.setdefault("settled_at", int(settled_ms or 0) / 1000)
    if metadata and keyring is not None:
        stored["metadata"] = json.loads(keyring.open(place(job_id, "metadata"), metadata))
    if progress:
        known = json.loads(progress)
        attempts = known.get("attempts", [])
        stored |= {
            "attempts": attempts,
            "failovers": known.get("failovers", 0),
            "deferrals": known.get("deferrals", 0),
            "cost_microusd": sum(attempt.get("cost_microusd", 0) for attempt in attempts),
            "unsure_microusd": sum(attempt.get("unsure_microusd", 0) for attempt in attempts),
        }
    return open_result(stored, job_id, keyring)


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of an answer's stream."""

    entry: str
    """Its id in Redis."""
    call: str
    text: str | None
    """None: the call begins here."""
    ends: bool = False
    """The job has ended; there is no more."""


def read_pieces(reply: list[tuple[bytes, dict[bytes, bytes]]], job_id: str, keyring: Keyring) -> list[Piece]:
    found = []
    for entry, fields in reply:
        call, text = fields.get(b"call", b"").decode(), fields.get(b"text")
        if (sealed := fields.get(b"sealed")) is not None:
            text = keyring.open(place(job_id, f"call {call}"), sealed)
        found.append(Piece(entry.decode(), call, None if text is None else text.decode(), b"end" in fields))
    return found


@dataclass(frozen=True, slots=True)
class Hook:
    """A settled job that somebody is to be told of."""

    name: str
    """Of the webhook, in turnout.toml."""
    tries: int
    """Made before this one."""
    result: JobResult


def read_hook(reply: list[Any] | None, job_id: str, keyring: Keyring) -> Hook | None:
    if reply is None:
        return None
    name, tries, *rest = reply
    result = read_result(rest, job_id, keyring)
    assert result is not None
    return Hook(name.decode(), int(tries or 0), result)


def read_claim(reply: list[Any], job_id: str, keyring: Keyring) -> Claimed | NotClaimed:
    if reply[0] != b"claimed":
        return NotClaimed(*(part.decode() for part in reply))
    _, token, waited_ms, (payload, *fields), after, any_parked = reply
    texts = [None if value is None else value.decode() for value in fields]
    accepted, deadline, progress, tenant, batch, lane, embed, stream, webhook, trace, crashes, calls = texts
    request: InferenceRequest | Unreadable | ValidationError
    try:
        request = InferenceRequest.model_validate_json(keyring.open(place(job_id, "request"), payload or b""))
    except (Unreadable, ValidationError) as error:
        request = error
    return Claimed(
        token=token,
        request=request,
        accepted_at=int(accepted or 0) / 1000,
        deadline=int(deadline) / 1000 if deadline and deadline != "0" else None,
        progress=progress or "",
        tenant=tenant or None,
        batch=batch or None,
        lane=Lane(lane or Lane.STANDARD),
        embed=embed,
        stream=bool(stream),
        webhook=webhook,
        trace=trace,
        crashes=int(crashes or 0),
        calls=int(calls or 0),
        queued_for_s=waited_ms / 1000,
        next_in_turn=after.decode() or None,
        any_parked=bool(any_parked),
    )


def read_facts(reply: list[Any]) -> Facts | None:
    if reply[0] is None:
        return None
    state, lane, label, batch, tenant, calls, crashes, accepted, settled = (v.decode() if v else "" for v in reply)
    return Facts(
        state,
        Lane(lane),
        label,
        batch or None,
        tenant or None,
        int(calls or 0),
        int(crashes or 0),
        int(accepted or 0) / 1000,
        int(settled) / 1000 if settled else None,
    )
