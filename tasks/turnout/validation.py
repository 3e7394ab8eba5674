"""What is wrong with a request, by field and without any of its content."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

MAX_ID_CHARS = 512
"""Of an id that a user chose."""
TOO_DEEP = "the request is nested so deeply that no worker could read it"
DEEP = 150
"""Brackets from which on a request may be nested deeper than JSON is read, some 200 levels."""
SHOWN = 3
"""How many problems are listed; the others are counted."""
MANY = 1000
"""More are counted alone: each takes longer to be told than to be found. Of a list only the first is found at all."""
_UNION_MEMBERS = {"str", "constrained-str", "int", "float", "bool", "list", "dict", "none"}
_PLAINER = {
    "extra_forbidden": "unknown field",
    "timezone_aware": "must carry a time zone, for example 2030-01-31T12:00:00Z",
    "string_pattern_mismatch": "must be a name without spaces and control characters",
    # Of a message's parts, the one union that has a tag. Pydantic would quote the tag that was given.
    "union_tag_not_found": "type must be text or image_url",
    "union_tag_invalid": "type must be text or image_url",
}


def explain(error: ValidationError) -> str:
    """The most telling problems."""
    if error.error_count() > MANY:
        return f"it has {error.error_count():,} problems, too many to tell them"
    told = []
    for path, problem in innermost(error).items():
        message = _PLAINER.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        told.append(f"{'.'.join(path)}: {message}" if path else message)
    return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")


def innermost(error: ValidationError) -> dict[tuple[str, ...], ErrorDetails]:
    """What is wrong with which field: of nested fields the innermost alone, for of a union each member complains."""
    found: dict[tuple[str, ...], ErrorDetails] = {}
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        path: tuple[str, ...] = ()
        for part in map(str, problem["loc"]):
            # A union adds its members' names to the path: `str`, `tuple[…]`, or a tag equal to its field.
            if part not in _UNION_MEMBERS and "[" not in part and part not in path[-1:]:
                path += (part[:100],)
        found.setdefault(path, problem)
    outer = {path[:length] for path in found for length in range(len(path))}
    return {path: problem for path, problem in found.items() if path not in outer}


def too_deep(payload: str) -> bool:
    """Whether a request's JSON, which is good otherwise, is nested deeper than it can be read again."""
    if payload.count("[") + payload.count("{") > DEEP:
        try:
            from_json(payload)
        except ValueError:
            return True
    return False
