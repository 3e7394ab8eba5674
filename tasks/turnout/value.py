"""The base of all values in the contract: validated once at the edge, then frozen and freely shared.

Unknown fields are refused, so that a misspelt constraint is an error rather than silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""How values are stored. `json.dumps` would build such an encoder for each call."""

# No control or formatting characters, which terminals and pages would obey.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s\p{C}]+$")]

Several = Annotated[tuple[T, ...], Field(fail_fast=True)]
"""Only the first invalid item is reported, because a million of them would be a gigabyte of errors."""


class Value(BaseModel):
    """A frozen value that refuses unknown fields, NaN and infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


class Tolerant(Value):
    """A value written by another release: unknown fields are ignored, not refused."""

    model_config = ConfigDict(extra="ignore")


def without_unknown_fields(value: Any, model: type[BaseModel]) -> Any:
    """The same for a nested model that is strict because it is also part of a request."""
    if not (isinstance(value, Mapping) and isinstance(model, type) and issubclass(model, BaseModel)):
        return value
    return {
        name: without_unknown_fields(value[name], cast("Any", field.annotation))
        for name, field in model.model_fields.items()
        if name in value
    }
