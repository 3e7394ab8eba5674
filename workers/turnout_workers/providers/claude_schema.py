"""A JSON schema as Claude accepts it: every object closed, and only keywords that its grammar can enforce.

What is removed goes into the description instead, as Anthropic's own clients do. The answer is still checked against
the caller's schema.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import JsonValue

from turnout.messages import SCHEMAS_BY_NAME, is_object
from turnout_workers.providers.errors import ProviderError

UNSUPPORTED = frozenset(
    {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
        "maxItems", "uniqueItems", "prefixItems", "contains", "minContains", "maxContains",
        "minProperties", "maxProperties", "patternProperties", "propertyNames", "dependentRequired", "dependentSchemas",
        "unevaluatedItems", "unevaluatedProperties", "if", "then", "else", "not",
    }
)  # fmt: skip
"""Of `pattern`, it refuses only some, such as those with lookahead; its own clients send none."""
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")


def closed_schema(schema: Any) -> Any:
    """The schema as Claude accepts it. Raises ProviderError if closing would change its meaning: an open object that
    names no fields would become an empty one, and one described by several parts would fit none of them."""
    if isinstance(schema, list):
        return [closed_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    several = [part for part in _parts(schema, "allOf") if _may_be_object(part)]
    choices = any(map(_may_be_object, [*_parts(schema, "anyOf"), *_parts(schema, "oneOf")]))
    if len(several) + choices + ("properties" in schema) + ("$ref" in schema) > 1:
        raise ProviderError.unsupported("Claude does not support a schema that describes an object in several parts")
    accepted: dict[str, Any] = {}
    removed: dict[str, JsonValue] = {}
    for name, value in schema.items():
        if not _supports(name, value) or (name == "oneOf" and "anyOf" in schema):
            removed[name] = value
        elif name in SCHEMAS_BY_NAME and isinstance(value, dict):
            accepted[name] = {inner: closed_schema(one) for inner, one in value.items()}
        elif name in ("items", "anyOf", "allOf", "oneOf"):
            accepted["anyOf" if name == "oneOf" else name] = closed_schema(value)
        else:
            accepted[name] = value
    if is_object(schema) or "properties" in schema:
        open_to_all = schema.get("additionalProperties", "properties" not in schema) is not False
        if not schema.get("properties") and (open_to_all or "patternProperties" in schema):
            raise ProviderError.unsupported("Claude does not support a schema with an object that names no fields")
        accepted["additionalProperties"] = False
    if removed:
        before = (str(accepted["description"]),) if "description" in accepted else ()
        accepted["description"] = "\n\n".join((*before, json.dumps(removed, ensure_ascii=False)))
    return accepted


def _parts(schema: dict[str, Any], keyword: str) -> list[Any]:
    parts = schema.get(keyword)
    return parts if isinstance(parts, list) else []


def _may_be_object(part: Any) -> bool:
    return isinstance(part, dict) and (
        part.get("type") == "object" or not {"properties", "$ref", "allOf", "anyOf", "oneOf"}.isdisjoint(part)
    )


def _supports(keyword: str, value: Any) -> bool:
    if keyword == "format":
        return value in FORMATS
    if keyword == "minItems":
        return value in (0, 1)
    return keyword not in UNSUPPORTED
