"""Answers that were to be JSON of a schema."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from turnout.messages import ResponseFormat
from turnout.request import InferenceRequest, InferenceResponse
from turnout_workers.attempts.schema import off_schema
from turnout_workers.routing.failure import Billed, FailureKind

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "ages": {"type": "array", "items": {"type": "integer", "minimum": 0}}},
    "required": ["name"],
}


def wrong(text: str, schema: dict[str, Any] = SCHEMA, **how: Any) -> str | None:
    wanted = ResponseFormat(type="json_schema", json_schema=schema)
    request = InferenceRequest(prompt="Who?", response_format=wanted)
    response = InferenceResponse(text=text, provider="p", model_requested="m", model_served="m", **how)
    failure = off_schema(request, response)
    if failure is None:
        return None
    assert (failure.kind, failure.billed) == (FailureKind.OFF_SCHEMA, Billed.YES)
    return failure.message


def test_an_answer_of_the_schema_is_right() -> None:
    assert wrong('{"name": "Ada", "ages": [36]}') is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Ada, 36", "isn't JSON"),
        ('{"ages": [36]}', "at /: required"),
        ('{"name": "Ada", "ages": [3, -1]}', "at /…/1: minimum"),
        ("[" * 100_000, "isn't JSON"),
    ],
)
def test_a_wrong_answer_is_reported_by_place_and_rule_without_quoting_it(text: str, why: str) -> None:
    message = wrong(text) or ""
    assert why in message
    assert "Ada" not in message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        # It would be fetched by a validator that follows references.
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "#/nowhere"},
        {"properties": []},
        {"properties": {"n": {"multipleOf": 0}}},
        {"properties": {"name": {"pattern": "("}}},
        {"properties": {"name": {"pattern": "^(?=A)"}}},
        {"patternProperties": {"(": {}}, "additionalProperties": False},
    ],
    ids=str,
)
def test_a_schema_that_cannot_be_used_is_not_held_against_the_answer(schema: dict[str, Any]) -> None:
    assert wrong('{"name": "Ada", "n": 1}', schema) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"type": "object"}, {"$ref": "#"}]},
        {"type": "object", "not": {"$ref": "#"}},
        {"$defs": {"x": {"oneOf": [{"type": "string"}, {"$ref": "#/$defs/x"}]}}, "$ref": "#/$defs/x"},
    ],
    ids=str,
)
def test_a_schema_that_goes_round_in_circles_ends_no_worker(schema: dict[str, Any]) -> None:
    """Where Python's stack ends within what is written in Rust, it panics, with no Exception."""

    def from_depth(frames: int) -> str | None:
        return from_depth(frames - 1) if frames else wrong("{}", schema)

    assert [from_depth(frames) for frames in range(40)] == [None] * 40


@pytest.mark.parametrize(
    ("pattern", "name", "why"),
    [
        (r"^\p{L}+$", "Žižek", None),  # of JSON Schema, and unknown to Python
        (r"^\p{L}+$", "R2D2", "pattern"),
        ("d", "Ada", None),
        ("(a+)+$", "a" * 200_000 + "!", "pattern"),  # which would take Python's own for ever
    ],
)
def test_a_pattern_is_looked_for_in_linear_time(pattern: str, name: str, why: str | None) -> None:
    message = wrong(json.dumps({"name": name}), {"properties": {"name": {"pattern": pattern}}})
    assert message == (why and f"the answer fails its schema: at /…: {why} is not met")


def test_names_that_a_pattern_allows_are_no_additional_ones() -> None:
    schema = {"patternProperties": {"^(x+)+$": {"type": "integer"}}, "additionalProperties": False}
    assert wrong(json.dumps({"x" * 200 + "!": 1}), schema) is None


def test_a_check_that_would_never_end_is_broken_off() -> None:
    """Each reference here is followed twice, forty times over."""
    steps = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)}
    assert wrong("1", {"$defs": {**steps, "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}) is None


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        ({"contains": True, "unevaluatedItems": False}, 40_000),  # takes the square of it
        ({"items": {}}, 1_000_000),
        ({"contains": {}}, 1_000_000),
        ({"contains": False}, 1_000_000),
        ({"uniqueItems": True}, 1_000_000),
        ({"items": {"propertyNames": False}}, 1_000_000),
        ({"anyOf": [{"items": {"propertyNames": False}}]}, 1_000_000),
    ],
    ids=str,
)
def test_no_schema_takes_much_longer_than_half_a_second_for_a_large_answer(schema: dict[str, Any], count: int) -> None:
    fields = json.dumps(dict.fromkeys(map(str, range(count // 4)), 1))
    text = f"[{fields}]" if "propertyNames" in str(schema) else json.dumps(list(range(count)))
    begun = time.thread_time()
    assert wrong(text, schema) is None
    assert time.thread_time() - begun < 3


@pytest.mark.parametrize("schema", [
    {"items": {"$schema": "https://json-schema.org/draft/2020-12/schema", "pattern": "(a+)+$"}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "type": ["array", "string"], "pattern": "(a+)+$",
     "items": {"$ref": "#"}},
], ids=str)  # fmt: skip
def test_a_part_that_names_its_draft_is_looked_at_in_linear_time_too(schema: dict[str, Any]) -> None:
    assert "at /0: pattern" in (wrong(json.dumps(["a" * 100 + "!"]), schema) or "")


@pytest.mark.parametrize(
    ("items", "same"), [([{"a": 1, "b": 2}, {"b": 2, "a": 1}], True), ([1, True, "1", None, [1], {"a": 1}], False)]
)
def test_items_that_are_to_be_unique_are_compared_as_json(items: list[Any], same: bool) -> None:
    message = wrong(json.dumps(items), {"uniqueItems": True})
    assert message == ("the answer fails its schema: at /: uniqueItems is not met" if same else None)


def test_an_answer_that_was_cut_off_is_reported_as_such() -> None:
    assert "cut off at max_output_tokens" in (wrong('{"name": "A', finish="length") or "")
    assert wrong('{"name": "Ada", "ages": [36]}', finish="length") is None


def test_free_text_is_never_looked_at() -> None:
    response = InferenceResponse(text="Ada", provider="p", model_requested="m", model_served="m")
    assert off_schema(InferenceRequest(prompt="Who?"), response) is None
