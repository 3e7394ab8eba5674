"""What a caller may say of a job, how a job is made of it, and why the ledger may refuse it. Pure."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypedDict, Unpack

from pydantic import BaseModel

from turnout.errors import FULL, Conflict, IntakeRefused
from turnout.ledger import Intake, NewJob
from turnout.messages import Message, ResponseFormat, Tool
from turnout.redis_address import with_password
from turnout.request import InferenceRequest, Lane, RoutingConstraints, merged_fields
from turnout.validation import TOO_DEEP, too_deep
from turnout.value import Name, Value

DEFAULT_URL = "redis://127.0.0.1:6379/0"
MAX_REQUEST_CHARS = 1_000_000
"""Longest request, as JSON, that a client accepts if it isn't told otherwise."""
MAX_CHUNK_JOBS = 500
"""Jobs at a round trip of `submit_many` …"""
CLOSED_CHARS = 4_000_000
"""… and of how many characters on no further one is added. What they take in memory on their way is some times that."""

Request = InferenceRequest | str | Mapping[str, Any]
"""What can be submitted: all of it, a prompt, or a mapping of options."""


def redis_url(url: str | None) -> str:
    """The address given, else `REDIS_URL` with the password of `REDIS_PASSWORD_FILE`, else this machine."""
    return url or with_password(os.environ).get("REDIS_URL") or DEFAULT_URL


class Options(TypedDict, total=False):
    """What can be given beside a request, or instead of one; None is as if not given. See also `InferenceRequest`."""

    lane: Lane | str | None
    """Interactive, unless this or the constraints say otherwise."""
    idempotency_key: str | None
    """The job's id follows from it: the same key and content are the same job."""
    stream: bool | None
    """Whether the answer's pieces can be read while they come."""
    webhook: str | None
    """The name, in the workers' configuration, of who is told when the job has ended."""
    response_model: type[BaseModel] | None
    """The answer is to be JSON of this model; `answer.parsed(Model)` gives the instance. A `response_format` beside it
    adds what it names: `max_repairs`, say."""
    metadata: Mapping[str, str] | None
    """The caller's own labels, given back with the result."""
    constraints: RoutingConstraints | Mapping[str, Any] | None
    messages: Sequence[Message | Mapping[str, Any]] | None
    prompt: str | None
    input: str | Sequence[str] | None
    model: str | Sequence[str] | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: Sequence[str] | None
    seed: int | None
    tools: Sequence[Tool | Mapping[str, Any]] | None
    tool_choice: str | None
    response_format: ResponseFormat | Mapping[str, Any] | None
    reasoning_effort: str | None
    dimensions: int | None
    timeout_s: float | None
    on_unsupported: str | None
    extras: Mapping[str, Mapping[str, Any]] | None


class Delivery(Value):
    """How the answer is to come: options that are none of the request's."""

    stream: bool = False
    webhook: Name | None = None
    response_model: type[BaseModel] | None = None


def chunks(
    requests: Iterable[Request], max_chars: int = MAX_REQUEST_CHARS, **options: Unpack[Options]
) -> Iterator[list[NewJob]]:
    """Jobs of many requests. An idempotency key is for the whole call; each job's key adds its number to it. What a
    request says itself counts before the options."""
    if isinstance(requests, str | Mapping | BaseModel):  # each can be iterated over, to no good
        raise TypeError("many requests are a list of them; this is a single one, for submit")
    for_all, key = _given(options), options.get("idempotency_key")
    chunk, chars = list[NewJob](), 0
    for number, request in enumerate(requests):
        if key:
            for_all["idempotency_key"] = f"{key}\0{number}"
        try:
            job = _job(max_chars, for_all, _given(request))
        except Exception as error:
            error.add_note(f"It is requests[{number}].")
            raise
        chunk.append(job)
        chars += len(job.payload)
        if len(chunk) == MAX_CHUNK_JOBS or chars >= CLOSED_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def new_job(request: Request | None = None, max_chars: int = MAX_REQUEST_CHARS, **options: Unpack[Options]) -> NewJob:
    """One job to be accepted. Raises pydantic.ValidationError for what is no request, and IntakeRefused."""
    return _job(max_chars, _given(request), _given(options))


def _job(max_chars: int, *places: Mapping[str, Any]) -> NewJob:
    """places: where the request and its delivery are given, the last of which counts."""
    # A caller that waits for one job is an interactive one, unless it says otherwise.
    given = merged_fields({"constraints": {"lane": Lane.INTERACTIVE}}, *places)
    key = given.pop("idempotency_key", None)
    delivery = Delivery.model_validate({name: given.pop(name) for name in Delivery.model_fields if name in given})
    beside = given.get("response_format", {})
    if delivery.response_model is not None and isinstance(beside, Mapping):
        if beside.get("json_schema") is not None:
            raise ValueError("response_format.json_schema: response_model has the schema; give one of the two")
        given["response_format"] = ResponseFormat.of(delivery.response_model).model_dump() | dict(beside)
    valid = InferenceRequest.model_validate(given)
    try:
        job = NewJob.of(job_id(key), valid, stream=delivery.stream, webhook=delivery.webhook, trace=_trace())
    except UnicodeEncodeError:
        raise IntakeRefused("a text has half a surrogate pair, which is no character") from None
    _check(job.payload, max_chars)
    return job


def _given(request: Request | Options | None) -> dict[str, Any]:
    """What is given there, its lane among its constraints."""
    if isinstance(request, str):
        return {"prompt": request}
    if request is not None and not isinstance(request, InferenceRequest | Mapping):
        raise TypeError(
            f"a request is a prompt, an InferenceRequest or a mapping of options, and no {type(request).__name__}"
        )
    fields: Mapping[str, Any] = _plain(request or {})
    given = {name: _plain(value) for name, value in fields.items() if value is not None}
    if (lane := given.pop("lane", None)) is not None:
        return merged_fields(given, {"constraints": {"lane": lane}})
    return given


def _plain(given: Any) -> Any:
    """Models as mappings, also in a list: all of it is validated afterwards, where pydantic takes models on trust."""
    if isinstance(given, list | tuple):
        return [*map(_plain, given)]
    if isinstance(given, Value):  # of which counts what was set, also to its default, or filled in: a mapping
        was_set = given.model_fields_set
        fields = vars(given).items()
        return {name: _plain(one) for name, one in fields if name in was_set or (one and isinstance(one, dict))}
    if not isinstance(given, BaseModel):
        return given
    # Of another library's, such as OpenAI's. Without warnings, which would quote a prompt.
    dump = partial(given.model_dump, warnings=False)
    return _filled_in(dump(exclude_unset=True), dump(exclude_defaults=True))


def _filled_in(was_set: Any, touched: Any) -> Any:
    """What was set, and of what differs from its default the lists and mappings: they were filled in in place."""
    if isinstance(was_set, list) and isinstance(touched, list) and len(was_set) == len(touched):
        return [*map(_filled_in, was_set, touched)]
    if not isinstance(was_set, dict) or not isinstance(touched, dict):
        return was_set
    more = {name: one for name, one in touched.items() if one and isinstance(one, list | dict)}
    return more | {name: _filled_in(one, touched.get(name)) for name, one in was_set.items()}


def _check(payload: str, max_chars: int) -> None:
    """Raises IntakeRefused for what is too deep or too long."""
    if too_deep(payload):
        raise IntakeRefused(TOO_DEEP)
    if (length := len(payload)) > max_chars:
        raise IntakeRefused(
            f"the request has {length:,} characters of JSON, more than the {max_chars:,} that this client accepts; "
            "shorten it, or set Client(max_request_chars=…)"
        )


def _trace() -> str | None:
    """The W3C trace context of whoever submits, `traceparent` and perhaps `tracestate`; None outside of a trace.

    An application that traces has imported OpenTelemetry; in one that has not, this costs a look into a dict.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return "\n".join(carrier.values()) or None


def refusal(job_id: str, outcome: Intake) -> IntakeRefused | None:
    """What to raise for a job that the ledger has not accepted; None: it has, now or before."""
    match outcome:
        case Intake.CONFLICT:
            return Conflict(job_id)
        case Intake.FULL:
            return IntakeRefused(FULL, retryable=True)
        case Intake.EXPIRED:
            return IntakeRefused("the job's deadline has passed already")
    return None


def job_id(idempotency_key: str | None) -> str:
    """A new id, or the one that belongs to the key."""
    if idempotency_key is None:
        return os.urandom(16).hex()
    if not idempotency_key:
        raise IntakeRefused("the idempotency key is empty, so all jobs would be one; give None for no key")
    return hashlib.sha256(f"idempotency\0{idempotency_key}".encode()).hexdigest()[:32]
