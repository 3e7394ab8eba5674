"""Made-up answers: the same request to the same model gives the same text, tool call, JSON or vector."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from turnout_workers.simulator.schemas import example

_WORDS = """
signal track switch siding junction freight timetable platform driver guard bridge tunnel gauge
sleeper ballast crossing whistle engine carriage yard depot branch loop gradient curve coupling
brake boiler the a each one every this with from over under along before after while and then so
where when because turns waits passes stops runs clears carries joins leaves returns slows starts
holds keeps follows is
""".split()  # noqa: SIM905  (a list of eighty strings is harder to read)
_TAPE = random.Random(0).choices(_WORDS, k=16_384)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, independent of its wire format."""

    model: str
    """The provider's name for it."""
    texts: tuple[str, ...]
    embed: bool = False
    stream: bool = False
    stream_usage: bool = True
    max_output_tokens: int | None = None
    tools: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Name and parameters' schema; empty if none may be called."""
    schema: Mapping[str, Any] | None = None
    dimensions: int = 256

    @property
    def input_tokens(self) -> int:
        """About four bytes a token, and four tokens for each message's frame."""
        return sum(-(-len(text.encode("utf-8", "replace")) // 4) + 4 for text in self.texts)


@dataclass(frozen=True, slots=True)
class Answer:
    id: str
    words: Sequence[str]
    """The text's tokens, each with the space after it."""
    input_tokens: int
    output_tokens: int
    finish: str
    """`stop`, `length` or `tool`."""
    tool: tuple[str, Any] | None = None
    vectors: tuple[tuple[float, ...], ...] = ()

    @property
    def text(self) -> str:
        return "".join(self.words)


def make_answer(call: Call, provider: str, seed: int, median_tokens: int) -> Answer:
    """The answer of `provider` to `call`: random, but determined by `seed` and the call's content."""
    if not isinstance(call.model, str):
        raise TypeError("model")
    content = "\0".join((str(seed), provider, call.model, *call.texts))
    key = blake2b(content.encode("utf-8", "replace"), digest_size=8).hexdigest()
    number, tokens_in = int(key, 16), call.input_tokens
    if call.embed:
        vectors = tuple(_vector(f"{call.model}\0{text}", call.dimensions) for text in call.texts)
        return Answer(key, (), tokens_in, 0, "stop", vectors=vectors)
    if call.tools:
        name, parameters = call.tools[number % len(call.tools)]
        arguments = example({"type": "object", **parameters}, number)
        return Answer(key, (), tokens_in, 8 + len(json.dumps(arguments)) // 4, "tool", (name, arguments))
    if call.schema is not None:
        text = json.dumps(example(call.schema, number), ensure_ascii=False)
        words: list[str] = [text[i : i + 4] for i in range(0, len(text), 4)]
    else:
        # Log-normal by a cheap quantile, so that lengths vary like those of real answers.
        spread = math.exp(((number >> 32) % 1000 / 500 - 1) * 0.8)
        start = number % (len(_TAPE) // 2)
        body = _TAPE[start : start + max(1, round(median_tokens * spread))]
        words = [f"{word} " for word in ("[simulated", f"by {provider}]", *body)]
    limit = call.max_output_tokens
    cut = limit is not None and len(words) > limit
    words = words[:limit] if cut else words
    return Answer(key, words, tokens_in, len(words), "length" if cut else "stop")


def pieces(words: Sequence[str], size: int = 8) -> Iterator[tuple[int, str]]:
    """The text in chunks as a stream sends them, each with its number of tokens."""
    for start in range(0, len(words), size):
        chunk = words[start : start + size]
        yield len(chunk), "".join(chunk)


def _vector(text: str, dimensions: int) -> tuple[float, ...]:
    rng = random.Random(text)
    raw = [rng.gauss(0, 1) for _ in range(dimensions)]
    norm = math.sqrt(sum(x * x for x in raw)) or 1.0
    return tuple(x / norm for x in raw)
