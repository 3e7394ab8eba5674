"""What comes back over HTTP: server-sent events, JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import from_json

from turnout_workers.providers.errors import malformed

DONE = b"[DONE]"
"""The data of the last event, in OpenAI's format."""
BOM = b"\xef\xbb\xbf"
"""Which a text in UTF-8 may begin with."""
MAX_PARTS = 500_000
"""Most lists, objects and fields of one JSON text. A chat answer has some ten, and one per token or so if it is JSON
itself; 30 MB of `[],` would be a gigabyte of them, and hold up all calls."""
MAX_COMMAS = 4_000_000
"""Most commas, for the same reason. Embeddings have one per number, of which 32 MB hold 3 million of ten digits."""
MAX_LINES = 1_000_000
"""Most lines of one stream: the longest answers have some 100,000 tokens, and each at most three lines."""


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Raises ProviderError if it has more lines than any answer."""
    begun: list[bytes] = []  # pieces of a line, joined once at its end: there may be thousands
    data: list[bytes] = []
    lines = 0
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        lines += len(ended)
        if lines > MAX_LINES:
            raise malformed(f"more than {MAX_LINES:,} lines")
        for line in ended:
            line = b"".join([*begun, line]).rstrip(b"\r").removeprefix(BOM)
            begun.clear()
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                if event := b"\n".join(data).strip():  # else it only kept the connection alive
                    yield event
                data = []
        begun.append(rest)
    if (line := b"".join(begun).removeprefix(BOM)).startswith(b"data:"):
        data.append(line[5:].strip())
    if data and isinstance(
        parse_json(event := b"\n".join(data).strip()), dict
    ):  # else it was cut off, or is the final one
        yield event


def gunzipped(raw: bytes, most: int) -> bytes:
    """What is in a body of gzip: some servers send it, asked for it or not. Nothing of one that is broken.

    most: bytes of the result. 64 KB of gzip can be 67 MB.
    """
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, most)
    except zlib.error:
        return b""


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text; None: no JSON, no UTF-8, nested too deep, of too many parts, or with a number of
    thousands of digits."""
    if len(raw) > MAX_PARTS and _has_too_many_parts(raw):
        return None
    try:
        return from_json(raw, cache_strings="keys")  # other strings are of this answer alone
    except ValueError:
        return _parsed_once_more(raw)


def at(value: Any, *path: str) -> Any:
    """What is there in nested JSON objects; None: nothing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def list_at(value: Any, *path: str) -> list[Any]:
    """The list that is there; an empty one: none is."""
    found = at(value, *path)
    return found if isinstance(found, list) else []


def _has_too_many_parts(raw: bytes) -> bool:
    return sum(map(raw.count, (b"[", b"{", b":"))) > MAX_PARTS or raw.count(b",") > MAX_COMMAS


def _parsed_once_more(raw: bytes) -> Any:
    """Half a surrogate pair, which JSON can spell and UTF-8 can't, becomes a question mark: the answer was paid for."""
    try:
        value = json.loads(raw)
        if b"\\ud" in raw or b"\\uD" in raw:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value
