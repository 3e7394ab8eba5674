"""A job's content in Redis, sealed if there are keys: its request, its answer, the pieces of a stream, its labels."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from turnout.ledger.sealing import Keyring
from turnout.result import JobResult
from turnout.value import compact_json

CONTENT = {"text", "tool_calls", "refusal", "reasoning_content", "embeddings"}
"""Fields of a response that are sealed. The others say who answered, when, and for how much."""
RESULT = ("result", "settled_ms", "accepted_ms", "progress", "metadata")
"""Fields of a job's record that make its result. For a success the first is missing, because Celery's record has it."""


def content_name(job_id: str, part: str) -> str:
    """The name of a part of a job's content, under which it is sealed: it can't be opened under another."""
    return f"{part} of job {job_id}"


def write_result(result: JobResult, keyring: Keyring) -> str:
    """A result as JSON, with the content of its response sealed if there are keys."""
    if result.response is None or not keyring:
        return result.model_dump_json(exclude_defaults=True)
    stored = result.model_dump(mode="json", exclude_defaults=True, exclude={"response": CONTENT})
    content = result.response.model_dump_json(exclude_defaults=True, include=CONTENT).encode()
    stored["response"]["sealed"] = b64encode(keyring.seal(content_name(result.id, "answer"), content)).decode()
    return compact_json(stored)


def open_result(stored: dict[str, Any], job_id: str, keyring: Keyring | None) -> JobResult:
    """Read a result's JSON. Without a keyring, sealed content is left out. Raises Unreadable."""
    response = stored.get("response")
    if response and (sealed := response.pop("sealed", None)) and keyring is not None:
        response |= json.loads(keyring.open(content_name(job_id, "answer"), b64decode(sealed)))
    return JobResult.model_validate_json(json.dumps(stored))


def read_result(reply: Sequence[bytes | None], job_id: str, keyring: Keyring | None) -> JobResult | None:
    """A job's result. One that no worker wrote (expired, cancelled, poison) is completed from the job's record."""
    result, settled_ms, accepted_ms, progress, metadata = reply
    if result is None:
        return None
    stored = _stored(result)
    stored.setdefault("accepted_at", int(accepted_ms or 0) / 1000)
    stored.setdefault("settled_at", int(settled_ms or 0) / 1000)
    if metadata and keyring is not None:
        stored["metadata"] = json.loads(keyring.open(content_name(job_id, "metadata"), metadata))
    if progress:
        counts = json.loads(progress)
        attempts = counts.get("attempts", [])
        stored |= {
            "attempts": attempts,
            "failovers": counts.get("failovers", 0),
            "deferrals": counts.get("deferrals", 0),
            "cost_microusd": sum(attempt.get("cost_microusd", 0) for attempt in attempts),
            "unsure_microusd": sum(attempt.get("unsure_microusd", 0) for attempt in attempts),
        }
    return open_result(stored, job_id, keyring)


def _stored(text: bytes) -> Any:
    """The result's JSON, from a record of the ledger or of Celery."""
    stored = json.loads(text)
    return stored["result"] if "task_id" in stored else stored


@dataclass(frozen=True, slots=True)
class TakenEnd:
    """How a job has ended, for a worker that has a message of it."""

    result: JobResult
    """Without sealed content."""
    untold: bool
    """Celery hasn't been told: this worker must do it."""
    text: bytes = field(repr=False)

    def stored(self) -> Any:
        """The result as stored in Redis."""
        return _stored(self.text)


def read_end(reply: Sequence[Any], job_id: str) -> TakenEnd | None:
    untold, *values = reply
    result = read_result(values, job_id, None)
    return None if result is None else TakenEnd(result, bool(untold), values[0])


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of an answer's stream."""

    entry: str
    """Its id in Redis."""
    call: str
    text: str | None
    """None: the call begins here."""
    ends: bool = False
    """The job has ended; nothing follows."""


def read_pieces(reply: list[tuple[bytes, dict[bytes, bytes]]], job_id: str, keyring: Keyring) -> list[Piece]:
    pieces = []
    for entry, fields in reply:
        call, text = fields.get(b"call", b"").decode(), fields.get(b"text")
        if (sealed := fields.get(b"sealed")) is not None:
            text = keyring.open(content_name(job_id, f"call {call}"), sealed)
        pieces.append(Piece(entry.decode(), call, None if text is None else text.decode(), b"end" in fields))
    return pieces


class DueWebhook(NamedTuple):
    """A webhook delivery of a settled job, due at a time."""

    webhook: str
    """Its name in turnout.toml."""
    at_ms: str
    job_id: str

    @classmethod
    def read(cls, reply: bytes) -> DueWebhook:
        return cls(*reply.decode().split(" ", 2))


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """A delivery that a worker has taken."""

    due_again: DueWebhook
    """The next try, if this one fails."""
    tries: int
    """Including this one."""
    result: JobResult | None
    """None: it is no longer kept."""


def read_delivery(reply: list[Any] | None, job_id: str, keyring: Keyring) -> WebhookDelivery | None:
    if reply is None:
        return None
    due_again, tries, *rest = reply
    return WebhookDelivery(DueWebhook.read(due_again), int(tries), read_result(rest, job_id, keyring))
