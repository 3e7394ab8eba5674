"""Schemas as Claude takes them. What it refuses is from its documentation and answers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from turnout.messages import ResponseFormat
from turnout_workers.providers.claude_schema import closed_schema
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import FailureKind


class Place(BaseModel):
    name: str = Field(min_length=1, max_length=80)


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel, extra="allow"):
    kind: Literal["dog"]


class Ticket(BaseModel):
    stars: int = Field(ge=1, le=5, description="of five")
    price: Decimal
    tags: set[str]
    pair: tuple[int, Place]
    log: Path | None = None
    place: Place = Field(description="where")
    places: list[Place] = Field(min_length=1)
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pattern: str
    """A field, and no keyword."""


def refusals(schema: Any) -> Iterator[str]:
    """What Claude would answer to it."""
    if isinstance(schema, list):
        for one in schema:
            yield from refusals(one)
    if not isinstance(schema, dict):
        return
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
    for name in ("minimum", "maximum", "minLength", "maxLength", "maxItems", "uniqueItems", "prefixItems", "pattern"):
        if name in schema:
            yield f"property '{name}' is not supported"
    if "oneOf" in schema:
        yield "Schema type 'oneOf' is not supported"
    for name, value in schema.items():
        yield from refusals(list(value.values()) if name in ("properties", "$defs") else value)


def test_of_an_ordinary_model_nothing_is_left_that_claude_refuses() -> None:
    schema = ResponseFormat.of(Ticket).json_schema
    before = copy.deepcopy(schema)
    assert len(set(refusals(schema))) >= 9
    sent = closed_schema(schema)
    assert list(refusals(sent)) == []
    assert schema == before, "by which the answer is checked"
    fields = sent["properties"]
    assert list(fields) == list(Ticket.model_fields), "in their order"
    assert fields["stars"]["description"] == 'of five\n\n{"maximum": 5, "minimum": 1}'
    assert (fields["places"]["minItems"], "description" in fields["places"]) == (1, False)
    assert fields["log"]["anyOf"][0] == {"type": "string", "description": '{"format": "path"}'}


@pytest.mark.parametrize(
    "field",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"type": ["object", "null"]},
        {"type": "object", "properties": {}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {}, "additionalProperties": True},
        {"type": "object", "properties": {}, "patternProperties": {"^a": {"type": "integer"}}},
    ],
    ids=str,
)
def test_an_object_that_names_no_fields_is_left_to_other_providers(field: dict[str, Any]) -> None:
    """Closed, it would be an empty one: an answer that fits, and says nothing."""
    with pytest.raises(ProviderError, match="an object that names no fields") as error:
        closed_schema({"type": "object", "properties": {"counts": field}})
    assert error.value.failure.kind is FailureKind.UNSUPPORTED


def test_an_object_without_fields_is_one() -> None:
    assert closed_schema({"type": "object", "properties": {}})["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"$ref": "#/$defs/base"}, {"type": "object", "properties": {"b": {"type": "string"}}}]},
        {"properties": {"b": {"type": "string"}}, "allOf": [{"$ref": "#/$defs/base"}]},
        {"properties": {"b": {"type": "string"}}, "$ref": "#/$defs/base"},
        {"properties": {"b": {}}, "anyOf": [{"properties": {"b": {"const": 1}}}, {"required": ["b"]}]},
    ],
    ids=str,
)
def test_an_object_in_several_parts_is_left_to_other_providers(schema: dict[str, Any]) -> None:
    """Each of them closed, no answer would fit all."""
    base = {"type": "object", "properties": {"a": {"type": "string"}}}
    with pytest.raises(ProviderError, match="an object in several parts"):
        closed_schema({"$defs": {"base": base}, **schema})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string"}}, "allOf": [{"if": {}, "then": {"required": ["a"]}}]},
        {"allOf": [{"type": "integer"}, {"minimum": 3}]},
        {"properties": {"a": {"type": "string"}}, "anyOf": [{"required": ["a"]}]},
    ],
    ids=str,
)
def test_parts_of_which_one_alone_is_an_object_contradict_nothing(schema: dict[str, Any]) -> None:
    assert closed_schema(schema).keys() <= {*schema, "additionalProperties", "description"}


def test_one_of_two_choices_is_told_in_words() -> None:
    sent = closed_schema({"anyOf": [{"type": "string"}], "oneOf": [{"type": "string"}]})
    assert sent == {"anyOf": [{"type": "string"}], "description": '{"oneOf": [{"type": "string"}]}'}


def test_an_object_is_known_by_its_fields_where_no_type_is_given() -> None:
    assert closed_schema({"properties": {"a": {"type": "string"}}})["additionalProperties"] is False


@pytest.mark.parametrize(
    "schema", [True, {"properties": 7}, {"anyOf": 7}, {"allOf": 7}, {"format": []}, {"type": 7}], ids=str
)
def test_what_is_no_schema_is_left_for_claude_to_refuse(schema: Any) -> None:
    closed_schema(schema)
