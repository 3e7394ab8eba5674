"""What both clients share: from a caller's words to a job, and from the ledger's answer to an error. Pure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import BaseModel

from turnout.client import trace
from turnout.errors import Conflict, IntakeRefused
from turnout.ledger import LIVE, Enqueued, Intake, NewJob
from turnout.redis_address import with_password
from turnout.request import InferenceRequest, Lane, Message, ResponseFormat, RoutingConstraints

DEFAULT_URL = "redis://127.0.0.1:6379/0"
MAX_REQUEST_CHARS = 1_000_000
"""Longest request, as JSON, that a client accepts if it isn't told otherwise."""
CHUNK = 500
"""Jobs at a round trip of `submit_many`."""
RESULT_TTL_S = 86_400.0
"""How long a cancelled job's record is kept, as the workers' default is for others."""

Request = InferenceRequest | str | Mapping[str, Any]
"""What can be submitted: all of it, a prompt, or a mapping of its fields."""


def redis_url(url: str | None) -> str:
    """The address given, else `REDIS_URL` with the password of `REDIS_PASSWORD_FILE`, else this machine."""
    return url or with_password(os.environ).get("REDIS_URL") or DEFAULT_URL


def chunks(requests: Iterable[Request], idempotency_key: str | None = None, **options: Any) -> Iterator[list[NewJob]]:
    """Jobs of many requests. The key is that of the whole call: each job's has its number besides."""
    rest = enumerate(requests)
    while chunk := list(islice(rest, CHUNK)):
        keys = [None if idempotency_key is None else f"{idempotency_key}\0{number}" for number, _ in chunk]
        yield [new_job(request, idempotency_key=key, **options) for key, (_, request) in zip(keys, chunk, strict=True)]


def new_job(
    request: Request | None,
    *,
    messages: Sequence[Message | Mapping[str, Any]] | None = None,
    constraints: RoutingConstraints | Mapping[str, Any] | None = None,
    lane: Lane | str | None = None,
    idempotency_key: str | None = None,
    metadata: Mapping[str, str] | None = None,
    stream: bool = False,
    webhook: str | None = None,
    response_model: type[BaseModel] | None = None,
    **fields: Any,
) -> NewJob:
    """A job of a request, a prompt, messages or a mapping; `fields` are further ones of InferenceRequest.

    stream: the answer's pieces can be read while they come. webhook: the name, in the workers' configuration, of
    who is told when the job has ended. response_model: the answer is to be JSON of this model; `answer.parsed(Model)`
    gives the instance. With an idempotency key the id follows from it: the same key and content are the same job.
    Raises pydantic.ValidationError for what is no request, and IntakeRefused.
    """
    if isinstance(request, InferenceRequest):
        given: dict[str, Any] = request.model_dump(exclude_unset=True)
    elif isinstance(request, str):
        given = {"prompt": request}
    else:
        given = dict(request or {})
    given |= fields
    if messages is not None:
        given["messages"] = list(messages)
    wish = constraints if constraints is not None else given.get("constraints")
    if isinstance(wish, RoutingConstraints):
        wish = wish.model_dump(exclude_unset=True)
    wish = dict(wish or {})
    # A caller that waits for one job is an interactive one, unless it says otherwise.
    wish["lane"] = Lane(lane) if lane is not None else wish.get("lane", Lane.INTERACTIVE)
    given["constraints"] = wish
    if response_model is not None:
        given["response_format"] = ResponseFormat.of(response_model)
    if metadata is not None:
        given["metadata"] = dict(metadata)
    valid = InferenceRequest.model_validate(given)
    try:
        return NewJob.of(job_id(idempotency_key), valid, stream=stream, webhook=webhook, trace=trace.current())
    except UnicodeEncodeError:
        raise IntakeRefused("a text has half a surrogate pair, which is no character") from None


def fitting(jobs: Sequence[NewJob], max_chars: int) -> Sequence[NewJob]:
    """The jobs, of which none is larger. Raises IntakeRefused."""
    largest = max((len(job.payload) for job in jobs), default=0)
    if largest > max_chars:
        raise IntakeRefused(
            f"the request has {largest:,} characters of JSON, more than the {max_chars:,} that this client accepts; "
            "shorten it, or set Client(max_request_chars=…)"
        )
    return jobs


def job_id(idempotency_key: str | None) -> str:
    """A new id, or the one that belongs to the key."""
    if idempotency_key is None:
        return os.urandom(16).hex()
    return hashlib.sha256(f"idempotency\0{idempotency_key}".encode()).hexdigest()[:32]


def check(job: NewJob, answer: Enqueued) -> None:
    """Raise what the ledger's answer means. A repetition of an accepted job is none."""
    match answer.outcome:
        case Intake.CONFLICT:
            raise Conflict(job.id)
        case Intake.FULL:
            raise IntakeRefused(
                "Redis is short of memory, so no new jobs are accepted; try again later", retryable=True
            )
        case Intake.EXPIRED:
            raise IntakeRefused("the job's deadline has passed already")


def is_settled(state: str) -> bool:
    return state != "" and state not in LIVE
