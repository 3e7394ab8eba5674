"""What a caller may submit, how a job is made of it, and why the ledger may refuse it. Pure."""

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
"""Longest request, as JSON, that a client accepts by default."""
MAX_CHUNK_JOBS = 500
"""Most jobs in one round trip of `submit_many`."""
CLOSED_CHARS = 4_000_000
"""From this many characters on, a round trip takes no further job. On their way, they take a multiple of that in
memory."""

Request = InferenceRequest | str | Mapping[str, Any]
"""What can be submitted: all of it, a prompt, or a mapping of options."""


def redis_url(url: str | None) -> str:
    """This address, else `REDIS_URL` with the password of `REDIS_PASSWORD_FILE`, else this machine."""
    return url or with_password(os.environ).get("REDIS_URL") or DEFAULT_URL


class Options(TypedDict, total=False):
    """What can be passed with a request, or instead of one; None counts as not passed. See also `InferenceRequest`."""

    lane: Lane | str | None
    """Interactive, unless this or the constraints name another."""
    idempotency_key: str | None
    """The job's id is derived from it: the same key and content are the same job."""
    stream: bool | None
    """Whether the answer's pieces can be read as they come."""
    webhook: str | None
    """The name, in the workers' configuration, of the webhook to call when the job has ended."""
    response_model: type[BaseModel] | None
    """The answer must be JSON of this model; `answer.parsed(Model)` returns the instance. A `response_format` passed
    with it adds its own fields, such as `max_repairs`."""
    metadata: Mapping[str, str] | None
    """The caller's own labels, returned with the result."""
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
    """How the answer is delivered: options that are not part of the request."""

    stream: bool = False
    webhook: Name | None = None
    response_model: type[BaseModel] | None = None


def job_chunks(
    requests: Iterable[Request], max_chars: int = MAX_REQUEST_CHARS, **options: Unpack[Options]
) -> Iterator[list[NewJob]]:
    """Jobs of many requests. An idempotency key is for the whole call; each job's key adds its number to it. Each
    request's own fields override the options."""
    if isinstance(requests, str | Mapping | BaseModel):  # they can be iterated over, but not meaningfully
        raise TypeError("submit_many takes a list of requests; this is a single one, for submit")
    shared, key = _fields(options), options.get("idempotency_key")
    chunk, chars = list[NewJob](), 0
    for number, request in enumerate(requests):
        if key:
            shared["idempotency_key"] = f"{key}\0{number}"
        try:
            job = _job(max_chars, shared, _fields(request))
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
    """One job to be accepted. Raises pydantic.ValidationError for an invalid request, and IntakeRefused."""
    return _job(max_chars, _fields(request), _fields(options))


def _job(max_chars: int, *sources: Mapping[str, Any]) -> NewJob:
    """sources: fields of the request and its delivery; the last source counts."""
    # A caller that waits for one job is an interactive one, unless it says otherwise.
    fields = merged_fields({"constraints": {"lane": Lane.INTERACTIVE}}, *sources)
    key = fields.pop("idempotency_key", None)
    delivery = Delivery.model_validate({name: fields.pop(name) for name in Delivery.model_fields if name in fields})
    response_format = fields.get("response_format", {})
    if delivery.response_model is not None and isinstance(response_format, Mapping):
        if response_format.get("json_schema") is not None:
            raise ValueError("response_format.json_schema: response_model has the schema; give one of the two")
        fields["response_format"] = ResponseFormat.of(delivery.response_model).model_dump() | dict(response_format)
    request = InferenceRequest.model_validate(fields)
    try:
        job = NewJob.of(job_id(key), request, stream=delivery.stream, webhook=delivery.webhook, trace=_trace())
    except UnicodeEncodeError:
        raise IntakeRefused("a text contains a lone surrogate, which is not valid Unicode") from None
    _check(job.payload, max_chars)
    return job


def _fields(request: Request | Options | None) -> dict[str, Any]:
    """The fields that are set, the lane among the constraints."""
    if isinstance(request, str):
        return {"prompt": request}
    if request is not None and not isinstance(request, InferenceRequest | Mapping):
        raise TypeError(
            f"a request must be a prompt, an InferenceRequest or a mapping of options, not {type(request).__name__}"
        )
    plain: Mapping[str, Any] = _without_models(request or {})
    fields = {name: _without_models(value) for name, value in plain.items() if value is not None}
    if (lane := fields.pop("lane", None)) is not None:
        return merged_fields(fields, {"constraints": {"lane": lane}})
    return fields


def _without_models(value: Any) -> Any:
    """Models as mappings, also in lists. Everything is validated afterwards, where pydantic would trust models."""
    if isinstance(value, list | tuple):
        return [*map(_without_models, value)]
    if isinstance(value, Value):  # fields that were set, even to their default, and mappings filled in in place
        was_set = value.model_fields_set
        fields = vars(value).items()
        return {
            name: _without_models(one) for name, one in fields if name in was_set or (one and isinstance(one, dict))
        }
    if not isinstance(value, BaseModel):
        return value
    # Another library's model, such as OpenAI's. Without warnings, which would quote a prompt.
    dump = partial(value.model_dump, warnings=False)
    return _with_filled_in(dump(exclude_unset=True), dump(exclude_defaults=True))


def _with_filled_in(was_set: Any, non_default: Any) -> Any:
    """What was set, and the lists and mappings that differ from their default, because they were filled in in place."""
    if isinstance(was_set, list) and isinstance(non_default, list) and len(was_set) == len(non_default):
        return [*map(_with_filled_in, was_set, non_default)]
    if not isinstance(was_set, dict) or not isinstance(non_default, dict):
        return was_set
    filled_in = {name: one for name, one in non_default.items() if one and isinstance(one, list | dict)}
    return filled_in | {name: _with_filled_in(one, non_default.get(name)) for name, one in was_set.items()}


def _check(payload: str, max_chars: int) -> None:
    """Raises IntakeRefused for a payload that is too deep or too long."""
    if too_deep(payload):
        raise IntakeRefused(TOO_DEEP)
    if (length := len(payload)) > max_chars:
        raise IntakeRefused(
            f"the request has {length:,} characters of JSON, more than the {max_chars:,} that this client accepts; "
            "shorten it, or set Client(max_request_chars=…)"
        )


def _trace() -> str | None:
    """The caller's W3C trace context, `traceparent` and perhaps `tracestate`; None outside of a trace.

    An application that traces has imported OpenTelemetry; in any other, this costs a look into a dict.
    """
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return "\n".join(carrier.values()) or None


def refusal(job_id: str, outcome: Intake) -> IntakeRefused | None:
    """What to raise for a job that the ledger didn't accept; None: it did, now or before."""
    match outcome:
        case Intake.CONFLICT:
            return Conflict(job_id)
        case Intake.FULL:
            return IntakeRefused(FULL, retryable=True)
        case Intake.EXPIRED:
            return IntakeRefused("the job's deadline has already passed")
    return None


def job_id(idempotency_key: str | None) -> str:
    """A new id, or the one of this idempotency key."""
    if idempotency_key is None:
        return os.urandom(16).hex()
    if not idempotency_key:
        raise IntakeRefused("the idempotency key is empty, so all jobs would be one; give None for no key")
    return hashlib.sha256(f"idempotency\0{idempotency_key}".encode()).hexdigest()[:32]
