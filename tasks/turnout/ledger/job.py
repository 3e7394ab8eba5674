"""What goes into the ledger, and what comes out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, InstanceOf, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from turnout.errors import Unreadable
from turnout.ledger.content import content_name
from turnout.ledger.sealing import Keyring
from turnout.request import InferenceRequest, Lane
from turnout.value import Value

LIVE = frozenset({"queued", "delayed", "leased", "calling"})
"""States of a job that isn't settled."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be accepted."""

    id: str
    request: InferenceRequest
    payload: str = field(repr=False)
    """The request as canonical JSON."""
    fingerprint: str
    batch: str | None = None
    embed: str | None = field(default=None, repr=False)
    """Callbacks and the like, as JSON, if a plain Celery app has sent the job."""
    stream: bool = False
    webhook: str | None = None
    trace: str | None = None
    """The submitter's W3C trace context: `traceparent`, and on a second line `tracestate`."""
    publish: bool = True
    """False: it has a message already."""

    @classmethod
    def of(cls, job_id: str, request: InferenceRequest, payload: str | None = None, **options: Any) -> Self:
        """A job from a request. payload: its canonical JSON, if at hand. options: other fields."""
        payload = payload or request.canonical_json()
        fingerprint = hashlib.sha256(payload.encode()).hexdigest()[:32]
        return cls(job_id, request, payload, fingerprint, **options)


class Intake(StrEnum):
    QUEUED = "queued"
    DUPLICATE = "duplicate"
    """The same job was accepted before: nothing was done."""
    CONFLICT = "conflict"
    """The id belongs to a job with other content."""
    CANCELLED = "cancelled"
    """Its detached batch was cancelled."""
    FULL = "full"
    """Redis is short of memory; accepted jobs must be settled first."""
    EXPIRED = "expired"
    """The deadline has already passed."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    outcome: Intake
    state: str
    """The job's current state; empty if it was not accepted."""


Seconds = Annotated[float, BeforeValidator(lambda ms: int(ms) / 1000)]


def _present(names: Sequence[str], values: Sequence[bytes | None]) -> dict[str, bytes]:
    return {name: value for name, value in zip(names, values, strict=True) if value}


CLAIMED = ("accepted_ms", "deadline_ms", "progress", "tenant", "batch", "lane", "stream", "trace", "payload")
"""Fields of a job's record that its worker needs."""


@pydantic_dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(hide_input_in_errors=True))
class Claimed:
    """A job that is this worker's until its lease ends. Times are Unix seconds on Redis's clock.

    A dataclass with slots, because a worker holds thousands at a time: a pydantic model takes seven times the memory.
    """

    token: int
    request: InferenceRequest | InstanceOf[Unreadable] | InstanceOf[ValidationError]
    """Or the error if it can't be read, because it was changed in Redis."""
    accepted_at: Seconds = Field(validation_alias="accepted_ms")
    deadline: Annotated[float | None, BeforeValidator(lambda ms: int(ms) / 1000 or None)] = Field(
        None, validation_alias="deadline_ms"
    )
    progress: str = ""
    tenant: str | None = None
    batch: str | None = None
    lane: Lane
    stream: bool = False
    trace: str | None = None
    queued_for_s: float
    next_in_turn: str | None
    """Another job of its tenant, which has got the turn: see `Ledger.publish_turn`."""
    any_parked: bool
    """Whether there are parked jobs, which may wait for the same thing as this one."""


@dataclass(frozen=True, slots=True)
class NotClaimed:
    """Why a job can't be claimed: its state, or `none`. With `unknown_version` and `unknown_key` it is left to workers
    that can read it."""

    state: str
    key: str = ""
    """The name of the missing key."""


def read_claim(reply: list[Any], job_id: str, keyring: Keyring) -> Claimed | NotClaimed:
    if reply[0] != b"claimed":
        return NotClaimed(*(part.decode() for part in reply))
    _, token, waited_ms, next_in_turn, any_parked, values = reply
    record: dict[str, Any] = _present(CLAIMED, values)
    payload = record.pop("payload")
    try:
        record["request"] = InferenceRequest.model_validate_json(keyring.open(content_name(job_id, "request"), payload))
    except (Unreadable, ValidationError) as error:
        record["request"] = error
    record |= {"token": token, "queued_for_s": waited_ms / 1000}
    return Claimed(**record, next_in_turn=next_in_turn or None, any_parked=any_parked)


class Ending(StrEnum):
    SETTLED = "settled"
    SALVAGED = "salvaged"
    """It was a success, by an attempt that had lost its lease."""
    REPEATED = "repeated"
    """The same attempt has settled the job before."""
    DUPLICATE = "duplicate"
    """Another attempt has settled the job before: this result is dropped."""
    FENCED = "fenced"
    """Another attempt has the job now."""
    REFUSED = "refused"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Settlement:
    outcome: Ending
    state: str
    """The job's state before this."""

    @property
    def accepted(self) -> bool:
        return self.outcome in (Ending.SETTLED, Ending.SALVAGED, Ending.REPEATED)

    @property
    def duplicate(self) -> bool:
        return self.outcome is Ending.DUPLICATE


FACTS = ("state", "lane", "label", "batch", "accepted_ms", "settled_ms")


class Facts(Value):
    """A job without its content."""

    state: str
    lane: Lane
    label: str
    batch: str | None = None
    accepted_at: Seconds = Field(validation_alias="accepted_ms")
    settled_at: Seconds | None = Field(None, validation_alias="settled_ms")


def read_facts(reply: list[bytes | None]) -> Facts | None:
    return Facts.model_validate(_present(FACTS, reply)) if reply[0] else None
