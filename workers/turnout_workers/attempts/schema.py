"""Whether an answer fits the JSON schema that its job asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import cache, lru_cache
from time import thread_time
from typing import Any

from pydantic_core import SchemaValidator, core_schema

from turnout.request import FinishReason, InferenceRequest, InferenceResponse
from turnout.result import Attempt
from turnout_workers.routing.failure import Billed, Failure, FailureKind

MAX_CPU_S = 0.5
"""Processor time for checking one answer. One that takes longer is accepted unchecked."""
_until: ContextVar[float] = ContextVar("until")
_sorted = json.JSONEncoder(sort_keys=True).encode


def off_schema(request: InferenceRequest, response: InferenceResponse) -> Failure | None:
    """What is wrong with the answer, by place and rule, without quoting it; None: nothing.

    A schema that can't be used isn't held against the answer.
    """
    schema = request.response_format.json_schema
    if schema is None or response.tool_calls or response.refusal:
        return None
    try:
        answer = json.loads(response.text)
    except (ValueError, RecursionError):
        if response.finish is FinishReason.LENGTH:
            return _failure("it was cut off at max_output_tokens")
        return _failure("it isn't JSON")
    from jsonschema.exceptions import best_match
    from referencing import Registry

    _until.set(thread_time() + MAX_CPU_S)
    try:
        # With an empty registry, nothing that a schema refers to is fetched.
        error = best_match(_validator()(schema, registry=Registry()).iter_errors(answer))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a schema may hold anything, and keywords break on it in many ways: some panic
        return None
    if error is None:
        return None
    place = "/".join(str(part) if isinstance(part, int) else "…" for part in error.absolute_path)
    return _failure(f"at /{place}: {error.validator} is not met")


@cache
def _validator() -> Any:
    """JSON Schema's validator, without what could stall the whole worker. Its library uses Python's regular
    expressions, which take forever on some texts: patterns are matched by pydantic's instead, and property names by
    none. It compares each unique item with all others. And a few references can demand checks without end."""
    # Imported here: some 3 MB that a worker without such jobs doesn't need.
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    keywords = Draft202012Validator.VALIDATORS

    def additional(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        if "patternProperties" in schema:
            return ()
        return keywords["additionalProperties"](validator, value, instance, schema)

    unchecked = dict.fromkeys(("patternProperties", "unevaluatedProperties", "unevaluatedItems"), lambda *_: ())
    ours = {"pattern": _pattern, "uniqueItems": _unique, "additionalProperties": additional, **unchecked}
    validator: Any = extend(Draft202012Validator, ours)

    def evolve(self: Any, **changes: Any) -> Any:
        """Keep this class whatever `$schema` a part names; the library would switch to its own."""
        return validator(**{"schema": self.schema, "registry": self._registry, "_resolver": self._resolver, **changes})

    validator.evolve = evolve
    validator.iter_errors, validator.descend = _in_time(validator.iter_errors), _in_time(validator.descend)
    return validator


def _in_time(errors: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same errors, with a check of the time before each: there may be a million, or none in a million parts."""

    def checked(*args: Any, **kwargs: Any) -> Iterator[Any]:
        _raise_if_late()
        for error in errors(*args, **kwargs):
            _raise_if_late()
            yield error

    return checked


def _raise_if_late() -> None:
    if thread_time() > _until.get():
        raise TimeoutError


def _unique(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    seen = set[str]()
    for item in instance if wanted and isinstance(instance, list) else ():
        _raise_if_late()
        if (written := _sorted(item)) in seen:
            yield ValidationError("two are the same")
            return
        seen.add(written)


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError

    if isinstance(instance, str) and not _expression(pattern).isinstance_python(instance):
        yield ValidationError("it doesn't match")


@lru_cache
def _expression(pattern: str) -> SchemaValidator:
    """Raises SchemaError for a pattern that can't be matched in linear time, such as `(?=…)`."""
    return SchemaValidator(core_schema.str_schema(pattern=pattern))


def repairs_used_up(request: InferenceRequest, attempts: Iterable[Attempt]) -> bool:
    """Whether answers failed their schema so often that no other one is asked for."""
    failed = sum(attempt.failure == FailureKind.OFF_SCHEMA for attempt in attempts)
    return failed > request.response_format.max_repairs


def _failure(problem: str) -> Failure:
    return Failure(FailureKind.OFF_SCHEMA, f"the answer fails its schema: {problem}", Billed.YES)
