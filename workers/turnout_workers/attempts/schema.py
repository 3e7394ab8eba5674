"""Whether an answer is what its job asked for, where it asked for JSON of a schema."""

from __future__ import annotations

import json
from collections.abc import Iterable

from turnout.request import InferenceRequest, InferenceResponse
from turnout.result import Attempt
from turnout_workers.routing.failure import Billed, Failure, FailureKind


def off_schema(request: InferenceRequest, response: InferenceResponse) -> Failure | None:
    """What is wrong with the answer, by place and rule and without a word of it; None if nothing is.

    A schema that can't be used is not the answer's fault, and is not held against it.
    """
    schema = request.response_format.json_schema
    if schema is None or response.tool_calls or response.refusal:
        return None
    # Some 3 MB, which a worker without such jobs can do without.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError, UnknownType, best_match
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        answer = json.loads(response.text)
    except (ValueError, RecursionError):
        return _failure("it is no JSON")
    try:
        # An empty registry: nothing that a schema refers to is ever fetched.
        error = best_match(Draft202012Validator(schema, registry=Registry()).iter_errors(answer))
    except (SchemaError, UnknownType, Unresolvable, RecursionError, ValueError, TypeError):
        return None
    if error is None:
        return None
    place = "/".join(str(part) if isinstance(part, int) else "…" for part in error.absolute_path)
    return _failure(f"at /{place}: {error.validator} is not met")


def unmended(request: InferenceRequest, attempts: Iterable[Attempt]) -> bool:
    """Whether answers have failed their schema so often that no other one is asked for."""
    failed = sum(attempt.failure == FailureKind.OFF_SCHEMA for attempt in attempts)
    return failed > request.response_format.max_repairs


def _failure(what: str) -> Failure:
    return Failure(FailureKind.OFF_SCHEMA, f"the answer fails its schema: {what}", Billed.YES, status=200)
