"""Made-up answers: the same question to the same model gives the same text, call, JSON or vector."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

_WORDS = ["signal", "track", "switch", "siding", "junction", "freight", "timetable", "platform", "driver", "guard", "bridge", "tunnel", "gauge", "sleeper", "ballast", "crossing", "whistle", "engine", "carriage", "yard", "depot", "branch", "loop", "gradient", "curve", "coupling", "brake", "boiler", "the", "a", "each", "one", "every", "this", "with", "from", "over", "under", "along", "before", "after", "while", "and", "then", "so", "where", "when", "because", "turns", "waits", "passes", "stops", "runs", "clears", "carries", "joins", "leaves", "returns", "slows", "starts", "holds", "keeps", "follows", "is"]
_TAPE = random.Random(0).choices(_WORDS, k=16_384)


@dataclass(frozen=True, slots=True)
class Call:
    """A request as all three wire formats mean it."""

    model: str
    """The provider's name of it."""
    texts: tuple[str, ...]
    embed: bool = False
    stream: bool = False
    stream_usage: bool = True
    max_output_tokens: int | None = None
    tools: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Name and parameters' schema; empty when none may be called now."""
    schema: Mapping[str, Any] | None = None
    dimensions: int = 256
    base64: bool = False

    @property
    def input_tokens(self) -> int:
        """About four bytes a token, four for the frame of each message."""
        return sum(-(-len(text.encode("utf-8", "replace")) // 4) + 4 for text in self.texts)


@dataclass(frozen=True, slots=True)
class Answer:
    id: str
    words: Sequence[str]
    """Text by tokens, each with the space that follows it."""
    input_tokens: int
    output_tokens: int
    finish: str
    """`stop`, `length` or `tool`."""
    tool: tuple[str, Any] | None = None
    vectors: tuple[tuple[float, ...], ...] = ()

    @property
    def text(self) -> str:
        return "".join(self.words)


def digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def answer(call: Call, provider: str, seed: int, median_tokens: int) -> Answer:
    """What `provider` says to `call`: nothing random but by `seed` and the call's own content."""
    key = digest(f"{seed}\0{provider}\0{call.model}\0" + "\0".join(call.texts))
    number, tokens_in = int(key, 16), call.input_tokens
    if call.embed:
        vectors = tuple(_vector(f"{call.model}\0{text}", call.dimensions) for text in call.texts)
        return Answer(key, (), tokens_in, 0, "stop", vectors=vectors)
    if call.tools:
        name, parameters = call.tools[number % len(call.tools)]
        arguments = example(parameters, number)
        return Answer(key, (), tokens_in, 8 + len(json.dumps(arguments)) // 4, "tool", (name, arguments))
    if call.schema is not None:
        text = json.dumps(example(call.schema, number), ensure_ascii=False)
        words: list[str] = [text[i : i + 4] for i in range(0, len(text), 4)]
    else:
        # Log-normal by a cheap quantile, so that lengths spread as real answers' do.
        spread = math.exp(((number >> 32) % 1000 / 500 - 1) * 0.8)
        start = number % (len(_TAPE) // 2)
        body = _TAPE[start : start + max(1, round(median_tokens * spread))]
        words = [f"{word} " for word in ("[simulated", f"by {provider}]", *body)]
    limit = call.max_output_tokens
    cut = limit is not None and len(words) > limit
    words = words[:limit] if cut else words
    return Answer(key, words, tokens_in, len(words), "length" if cut else "stop")


def pieces(words: Sequence[str], size: int = 8) -> Iterator[tuple[int, str]]:
    """The text in chunks, each with its number of tokens, as a stream sends it."""
    for start in range(0, len(words), size):
        chunk = words[start : start + size]
        yield len(chunk), "".join(chunk)


def _vector(text: str, dimensions: int) -> tuple[float, ...]:
    rng = random.Random(text)
    raw = [rng.gauss(0, 1) for _ in range(dimensions)]
    norm = math.sqrt(sum(x * x for x in raw)) or 1.0
    return tuple(x / norm for x in raw)


def example(schema: Mapping[str, Any], number: int, root: Mapping[str, Any] | None = None) -> Any:
    """A value that satisfies a JSON schema (as vendors support them: no patterns, no conditionals)."""
    root = schema if root is None else root
    if ref := schema.get("$ref"):
        target: Any = root
        for step in str(ref).removeprefix("#").strip("/").split("/"):
            target = target.get(step, {}) if isinstance(target, Mapping) and step else target
        return None if number > 1 << 70 else example(target, number << 1 | 1, root)
    if "const" in schema:
        return schema["const"]
    if options := schema.get("enum"):
        return options[number % len(options)]
    for union in ("anyOf", "oneOf"):
        if branches := schema.get(union):
            return example(branches[number % len(branches)], number, root)
    if parts := schema.get("allOf"):
        merged: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for part in parts:
            merged = {
                **merged,
                **part,
                "properties": {**merged.get("properties", {}), **part.get("properties", {})},
            }
        return example(merged, number, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = (kind[0] if isinstance(kind, list) else kind).lower()  # Gemini writes types in capitals
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: example(sub, number + i, root) for i, (name, sub) in enumerate(properties.items())}
    if kind == "array":
        low = schema.get("minItems", min(2, schema.get("maxItems", 2)))
        return [example(schema.get("items", {"type": "string"}), number + i, root) for i in range(low)]
    if kind in ("integer", "number"):
        return _number(schema, number, kind == "integer")
    if kind == "boolean":
        return bool(number & 1)
    return None if kind == "null" else _string(schema, number)


def _number(schema: Mapping[str, Any], number: int, whole: bool) -> int | float:
    step = schema.get("multipleOf", 1 if whole else 0.01)
    low = schema.get("minimum", schema.get("exclusiveMinimum", -step) + step)
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 100 * step + step) - step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    value = (first + number % max(1, last - first + 1)) * step
    return round(value) if whole else round(value, 6)


def _string(schema: Mapping[str, Any], number: int) -> str:
    formats = {
        "date": "2030-01-31",
        "date-time": "2030-01-31T12:00:00Z",
        "time": "12:00:00Z",
        "email": "someone@example.org",
        "uri": "https://example.org/",
        "uuid": f"00000000-0000-4000-8000-{number % 16**12:012x}",
        "ipv4": "192.0.2.1",
    }
    if (form := schema.get("format")) in formats:
        return formats[form]
    text = f"simulated {_TAPE[number % 8192]} {_TAPE[number % 8191]}"
    return text.ljust(schema.get("minLength", 0), ".")[: schema.get("maxLength", len(text) + 10_000)]
