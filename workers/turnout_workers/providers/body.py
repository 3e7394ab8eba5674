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
"""A text in UTF-8 may begin with this."""
MAX_PARTS = 500_000
"""Lists, objects and fields in one JSON text. A chat answer has about ten, or one per token if it is JSON itself. 30 MB
of `[],` would take a gigabyte and hold up all calls."""
MAX_COMMAS = 4_000_000
"""For the same reason. Embeddings have one per number, and 32 MB hold 3 million numbers of ten digits."""
MAX_LINES = 1_000_000
"""In one stream. The longest answers have about 100,000 tokens, each at most three lines."""


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Raises ProviderError if the stream has more lines than any answer."""
    begun: list[bytes] = []  # pieces of the current line, joined once: there may be thousands
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
                if event := b"\n".join(data).strip():  # an empty one only keeps the connection alive
                    yield event
                data = []
        begun.append(rest)
    if (line := b"".join(begun).removeprefix(BOM)).startswith(b"data:"):
        data.append(line[5:].strip())
    if data and isinstance(
        parse_json(event := b"\n".join(data).strip()), dict
    ):  # otherwise it was cut off, or is the final one
        yield event


def gunzipped(raw: bytes, max_bytes: int) -> bytes:
    """The content of a gzip body, which some servers send unasked; empty if it is broken.

    max_bytes: of the result, because 64 KB of gzip can hold 67 MB.
    """
    try:
        return zlib.decompressobj(wbits=31).decompress(raw, max_bytes)
    except zlib.error:
        return b""


def parse_json(raw: bytes) -> Any:
    """The value of a JSON text. None if it isn't JSON or UTF-8, is nested too deeply, has too many parts, or a number
    of thousands of digits."""
    if len(raw) > MAX_PARTS and _has_too_many_parts(raw):
        return None
    try:
        return from_json(raw, cache_strings="keys")  # other strings don't recur
    except ValueError:
        return _parse_leniently(raw)


def at(value: Any, *path: str) -> Any:
    """The value at a path in nested JSON objects. None if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def list_at(value: Any, *path: str) -> list[Any]:
    """The list at that path; empty if there is none."""
    found = at(value, *path)
    return found if isinstance(found, list) else []


def _has_too_many_parts(raw: bytes) -> bool:
    return sum(map(raw.count, (b"[", b"{", b":"))) > MAX_PARTS or raw.count(b",") > MAX_COMMAS


def _parse_leniently(raw: bytes) -> Any:
    """Replace lone surrogates, which JSON can spell and UTF-8 can't, by question marks: the answer was paid for."""
    try:
        value = json.loads(raw)
        if b"\\ud" in raw or b"\\uD" in raw:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value
