"""What comes back over HTTP: bytes unpacked under a cap, server-sent events, JSON."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic_core import from_json

from turnout_workers.providers.errors import ProviderError, malformed
from turnout_workers.routing.failure import Billed, Failure, FailureKind

MAX_BODY = 32 * 1024 * 1024
"""Most decoded bytes of one answer."""
DONE = b"[DONE]"
"""The data of the last event, in OpenAI's format."""
MOST_PARTS = 1_000_000
"""Most lists and objects in one answer: 30 MB of `[],` would be a gigabyte of them, and hold up all calls."""


class Unpacked:
    """Decompresses a body piece by piece, and no more than the cap in all: 64 KB of gzip can hold 67 MB."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding not in ("identity", "gzip", ""):
            raise malformed(f"content-encoding {encoding[:40]!r}, which we did not offer", headers)
        self._inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS + 16) if encoding == "gzip" else None
        self._headers = headers
        self._total = 0

    def __call__(self, chunk: bytes) -> bytes:
        if self._inflate is not None:
            # zlib would keep what follows the end, and copy all of it with each piece.
            chunk = b"" if self._inflate.eof else self._inflate.decompress(chunk, MAX_BODY + 1 - self._total)
        self._total += len(chunk)
        if self._total > MAX_BODY:
            raise malformed(f"more than {MAX_BODY >> 20} MB", self._headers)
        return chunk

    def end(self) -> None:
        """To be called at the end of the body. Raises ProviderError if the compressed data breaks off."""
        if self._inflate is not None and not self._inflate.eof:
            raise ProviderError(Failure(FailureKind.INTERRUPTED, "the compressed answer ends early", Billed.MAYBE))


async def server_sent(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    begun: list[bytes] = []  # pieces of a line, joined once at its end: there may be thousands
    data: list[bytes] = []
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for line in ended:
            line = b"".join([*begun, line]).rstrip(b"\r")
            begun.clear()
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
        begun.append(rest)
    if (line := b"".join(begun)).startswith(b"data:"):
        data.append(line[5:].strip())
    if data and isinstance(parsed(event := b"\n".join(data)), dict):  # else it was cut off, or is the final one
        yield event


def parsed(raw: bytes) -> Any:
    """The value of a JSON text; None: no JSON, no UTF-8, nested too deep, of too many parts, or with a number of
    thousands of digits."""
    if raw.count(b"[") + raw.count(b"{") > MOST_PARTS:
        return None
    try:
        return from_json(raw, cache_strings="keys")  # other strings are of this answer alone
    except ValueError:
        return _parsed_once_more(raw)


def _parsed_once_more(raw: bytes) -> Any:
    """Half a surrogate pair, which JSON can spell and UTF-8 can't, becomes a question mark: the answer was paid for."""
    try:
        value = json.loads(raw)
        if b"\\ud" in raw or b"\\uD" in raw:
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return value
