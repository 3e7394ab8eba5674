"""A JSON schema as Claude takes it: every object closed, and no keyword that its grammar can't hold an answer to.

What is taken out is told in the description instead, as Anthropic's own clients do, and the answer is checked by the
caller's own schema in any case.
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
"""Of patterns some alone, such as those that look ahead; its own clients send none."""
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")


def closed_schema(schema: Any) -> Any:
    """The schema as Claude takes it. Raises ProviderError on what, closed, would mean something else: an open object
    that names no fields would be an empty one, and one that several parts describe would fit none of them."""
    if isinstance(schema, list):
        return [closed_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    several = [part for part in _parts(schema, "allOf") if _may_be_object(part)]
    choices = any(map(_may_be_object, [*_parts(schema, "anyOf"), *_parts(schema, "oneOf")]))
    if len(several) + choices + ("properties" in schema) + ("$ref" in schema) > 1:
        raise ProviderError.unsupported("Claude takes no schema that describes an object in several parts")
    taken: dict[str, Any] = {}
    told: dict[str, JsonValue] = {}
    for name, value in schema.items():
        if not _takes(name, value) or (name == "oneOf" and "anyOf" in schema):
            told[name] = value
        elif name in SCHEMAS_BY_NAME and isinstance(value, dict):
            taken[name] = {inner: closed_schema(one) for inner, one in value.items()}
        elif name in ("items", "anyOf", "allOf", "oneOf"):
            taken["anyOf" if name == "oneOf" else name] = closed_schema(value)
        else:
            taken[name] = value
    if is_object(schema) or "properties" in schema:
        open_to_all = schema.get("additionalProperties", "properties" not in schema) is not False
        if not schema.get("properties") and (open_to_all or "patternProperties" in schema):
            raise ProviderError.unsupported("Claude takes no schema with an object that names no fields")
        taken["additionalProperties"] = False
    if told:
        before = (str(taken["description"]),) if "description" in taken else ()
        taken["description"] = "\n\n".join((*before, json.dumps(told, ensure_ascii=False)))
    return taken


def _parts(schema: dict[str, Any], keyword: str) -> list[Any]:
    parts = schema.get(keyword)
    return parts if isinstance(parts, list) else []


def _may_be_object(part: Any) -> bool:
    return isinstance(part, dict) and (
        part.get("type") == "object" or not {"properties", "$ref", "allOf", "anyOf", "oneOf"}.isdisjoint(part)
    )


def _takes(keyword: str, value: Any) -> bool:
    if keyword == "format":
        return value in FORMATS
    if keyword == "minItems":
        return value in (0, 1)
    return keyword not in UNSUPPORTED
