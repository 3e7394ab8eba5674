"""Made-up answers are plausible: they satisfy what was asked for, and repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from turnout_workers.config.toml_lines import ConfigError
from turnout_workers.simulator.answers import Call, make_answer
from turnout_workers.simulator.scenario import load
from turnout_workers.simulator.schemas import example

TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name", "children"],
        }
    },
}
LEAVES: list[tuple[dict[str, Any], Any]] = [  # schema, what every example of it is
    ({"const": 3}, lambda v: v == 3),
    ({"enum": ["a", "b"]}, lambda v: v in ("a", "b")),
    ({"type": "string"}, lambda v: isinstance(v, str)),
    ({"type": "STRING"}, lambda v: isinstance(v, str)),
    ({"type": "string", "minLength": 40}, lambda v: len(v) >= 40),
    ({"type": "string", "maxLength": 3}, lambda v: len(v) <= 3),
    ({"type": "integer"}, lambda v: type(v) is int),
    ({"type": "integer", "minimum": -2, "maximum": 2}, lambda v: -2 <= v <= 2),
    ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 6}, lambda v: v == 5),
    ({"type": "number", "minimum": 0.5, "maximum": 0.75}, lambda v: 0.5 <= v <= 0.75),
    ({"type": "number", "multipleOf": 2.5}, lambda v: v % 2.5 == 0),
    ({"type": "boolean"}, lambda v: type(v) is bool),
    ({"type": "null"}, lambda v: v is None),
    ({"type": ["integer", "null"]}, lambda v: v is None or type(v) is int),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, lambda v: len(v) >= 3),
    ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, lambda v: len(v) <= 1),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "minItems": 2, "maxItems": 2},
        lambda v: [*map(type, v)] == [int, bool],
    ),
    (
        {"type": "array", "prefixItems": [{"type": "boolean"}], "items": {"type": "integer"}, "minItems": 3},
        lambda v: [*map(type, v)] == [bool, int, int],
    ),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, lambda v: v is None or type(v) is int),
]


@pytest.mark.parametrize(
    ("schema", "holds"), LEAVES, ids=lambda value: str(value)[:40] if isinstance(value, dict) else ""
)
@given(number=st.integers(0, 2**64))
def test_an_example_satisfies_its_schema(schema: dict[str, Any], holds: Any, number: int) -> None:
    assert holds(example(schema, number))


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("date", "datetime.date"),
        ("date-time", "datetime.datetime"),
        ("duration", "datetime.timedelta"),
        ("uuid", "uuid.UUID"),
        ("ipv4", "ipaddress.IPv4Address"),
    ],
)
def test_a_format_is_kept(form: str, kind: str) -> None:
    module, name = kind.split(".")
    adapter = TypeAdapter(getattr(__import__(module), name))
    adapter.validate_python(example({"type": "string", "format": form}, 7))
    with pytest.raises(ValidationError):
        adapter.validate_python(example({"type": "string"}, 7))


def test_a_recursive_schema_ends() -> None:
    assert set(example(TREE, 5)) == {"name", "children"}


def test_the_same_call_gets_the_same_answer_and_another_provider_another() -> None:
    call = Call("m", ("hello",))
    assert make_answer(call, "p", 1, 80) == make_answer(call, "p", 1, 80)
    assert len({make_answer(call, provider, seed, 80).text for provider in "pq" for seed in (1, 2)}) == 4


@given(st.text(), st.integers(1, 400))
def test_an_answer_keeps_to_its_limit_and_says_when_it_was_cut(prompt: str, limit: int) -> None:
    given_ = make_answer(Call("m", (prompt,), max_output_tokens=limit), "p", 1, 80)
    assert given_.output_tokens == len(given_.words) <= limit
    if given_.finish == "length":
        assert given_.output_tokens == limit


def test_a_wrong_scenario_is_refused_with_file_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text("seed = 1\n[providers.a]\nttft = 3\nmodels = []\n")
    with pytest.raises(ConfigError, match=r"s.toml:3: providers.a.ttft: there is no such field; did you mean ttft_s\?"):
        load(path)
