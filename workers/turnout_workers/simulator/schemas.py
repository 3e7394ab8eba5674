"""Values that satisfy a JSON schema, like those of a model that follows one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]
_MAX_DEPTH = 5
_FORMATS = {
    "date": "2030-01-31",
    "date-time": "2030-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "duration": "PT1M",
    "email": "someone@example.org",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000001",
    "ipv4": "192.0.2.1",
}
_STRINGS = ("simulated value", "made-up text", "a simulated answer", "nothing real", "an example, no more")


def example(schema: Schema, number: int) -> Any:
    """One of many values, picked by `number`. Ignores patterns, `allOf` and conditionals."""
    return _value(schema, number, schema, 0)


def _value(schema: Schema, number: int, root: Schema, depth: int) -> Any:
    if ref := schema.get("$ref"):
        target: Any = root
        for step in filter(None, str(ref).removeprefix("#").split("/")):
            target = target[step]
        return _value(target, number, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if options := schema.get("enum"):
        return options[number % len(options)]
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        flat = [branch for branch in branches if "$ref" not in branch] if depth > _MAX_DEPTH else []
        branches = flat or branches
        return _value(branches[number % len(branches)], number, root, depth)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = (kind[0] if isinstance(kind, list) else kind).lower()  # Gemini writes types in capitals
    if kind == "object":
        required = schema.get("required", ())
        wanted = {n: s for n, s in schema.get("properties", {}).items() if depth <= _MAX_DEPTH or n in required}
        return {n: _value(sub, number + i, root, depth + 1) for i, (n, sub) in enumerate(wanted.items())}
    if kind == "array":
        usual = 0 if depth > _MAX_DEPTH else min(2, schema.get("maxItems", 2))
        first, items = schema.get("prefixItems", []), schema.get("items", {"type": "string"})
        each = [*first, *[items] * (schema.get("minItems", max(usual, len(first))) - len(first))]
        return [_value(item, number + i, root, depth + 1) for i, item in enumerate(each)]
    if kind in ("integer", "number"):
        return _number(schema, number, kind == "integer")
    if kind == "boolean":
        return bool(number & 1)
    return None if kind == "null" else _string(schema, number)


def _number(schema: Schema, number: int, whole: bool) -> int | float:
    step = schema.get("multipleOf", 1 if whole else 0.01)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 101 * step) - step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    value = float((first + number % max(1, last - first + 1)) * step)
    return round(value) if whole else round(value, 6)


def _string(schema: Schema, number: int) -> str:
    if (form := schema.get("format")) in _FORMATS:
        return _FORMATS[form]
    text = _STRINGS[number % len(_STRINGS)].ljust(schema.get("minLength", 0), ".")
    return text[: schema.get("maxLength")]
