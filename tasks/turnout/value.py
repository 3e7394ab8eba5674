"""What all values of the contract are: validated once at the edge, frozen, and shared freely afterwards.

Unknown fields are refused, so that a misspelt constraint is an error and never a constraint silently ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

compact_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""As values are stored. `json.dumps` would make such an encoder for each."""

# Without control and formatting characters, which terminals and pages would obey.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\s\p{C}]+$")]

Several = Annotated[tuple[T, ...], Field(fail_fast=True)]
"""The first that is wrong is the only one that is told: a million of them would be a gigabyte of errors."""


class Value(BaseModel):
    """A frozen value that refuses unknown fields, NaN and infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True, protected_namespaces=()
    )


class Told(Value):
    """A value that another release may have written, and that is only read: what is unknown of it is left out."""

    model_config = ConfigDict(extra="ignore")


def known(told: Any, model: type[BaseModel]) -> Any:
    """What another release has told of a value that is no `Told`, for it may be asked, too: the fields that it has."""
    if not (isinstance(told, Mapping) and isinstance(model, type) and issubclass(model, BaseModel)):
        return told
    fields = model.model_fields.items()
    return {name: known(told[name], cast("Any", field.annotation)) for name, field in fields if name in told}
