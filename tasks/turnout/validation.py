"""What is wrong with a request, by field and without any of its content."""

from __future__ import annotations

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

MAX_ID_CHARS = 512
"""Longest id that a user may choose."""
TOO_DEEP = "the request is nested so deeply that no worker could read it"
MAX_UNCHECKED_BRACKETS = 150
"""With more brackets, a request may be nested deeper than JSON is read, some 200 levels."""
MAX_LISTED = 3
"""How many problems are listed; the others are counted."""
MAX_PROBLEMS = 1000
"""With more, none is listed: each takes longer to describe than to find. In a list only the first is found anyway."""
_UNION_MEMBERS = {"str", "constrained-str", "int", "float", "bool", "list", "dict", "none"}
_PLAINER = {
    "extra_forbidden": "unknown field",
    "timezone_aware": "must carry a time zone, for example 2030-01-31T12:00:00Z",
    "string_pattern_mismatch": "must be a name without spaces and control characters",
    # For a message's parts, the one union with a tag. Pydantic would quote the invalid tag.
    "union_tag_not_found": "type must be text or image_url",
    "union_tag_invalid": "type must be text or image_url",
}


def explain(error: ValidationError) -> str:
    """The most helpful problems."""
    if error.error_count() > MAX_PROBLEMS:
        return f"it has {error.error_count():,} problems, too many to list"
    messages = []
    for path, problem in innermost(error).items():
        message = _PLAINER.get(problem["type"], problem["msg"].removeprefix("Value error, "))
        messages.append(f"{'.'.join(path)}: {message}" if path else message)
    more = f"; and {len(messages) - MAX_LISTED} more" if len(messages) > MAX_LISTED else ""
    return "; ".join(messages[:MAX_LISTED]) + more


def innermost(error: ValidationError) -> dict[tuple[str, ...], ErrorDetails]:
    """The problem of each field. Of nested fields only the innermost, because each member of a union complains."""
    problems: dict[tuple[str, ...], ErrorDetails] = {}
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        path: tuple[str, ...] = ()
        for part in map(str, problem["loc"]):
            # A union adds its members' names to the path: `str`, `tuple[…]`, or a tag equal to its field.
            if part not in _UNION_MEMBERS and "[" not in part and part not in path[-1:]:
                path += (part[:100],)
        problems.setdefault(path, problem)
    outer = {path[:length] for path in problems for length in range(len(path))}
    return {path: problem for path, problem in problems.items() if path not in outer}


def is_of_a_later_release(error: ValidationError) -> bool:
    """Whether unknown fields are all that is wrong with a request."""
    if error.error_count() > MAX_PROBLEMS:
        return False
    return all(problem["type"] == "extra_forbidden" for problem in innermost(error).values())


def too_deep(payload: str) -> bool:
    """Whether a request's JSON, otherwise valid, is nested deeper than it can be read again."""
    if payload.count("[") + payload.count("{") > MAX_UNCHECKED_BRACKETS:
        try:
            from_json(payload)
        except ValueError:
            return True
    return False
