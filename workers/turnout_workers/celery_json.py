"""Celery's messages as JSON, read and written faster than kombu does, and decompressed up to a limit.

What only kombu can read or write, its typed values and lone surrogates, is left to it.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

from kombu import compression
from kombu.serialization import register
from kombu.utils.json import dumps, loads
from pydantic_core import PydanticSerializationError, from_json, to_json

EVENTS = "turnout-events"
"""The serializer of task events."""
MAX_DECOMPRESSED = 16 * 1024 * 1024
"""Most bytes of a message after decompression."""
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
"""Decompressors whose output can be limited. Messages compressed otherwise are refused."""


def read(raw: str | bytes) -> Any:
    """Parse a message. Strings that all messages share, two thirds of each, are kept in memory once."""
    typed = b'"__type__"' in raw if isinstance(raw, bytes) else '"__type__"' in raw
    try:
        return loads(raw) if typed else from_json(raw)
    except ValueError:
        return loads(raw)


def _to_json(events: Any) -> str:
    try:
        return to_json(events).decode()
    except PydanticSerializationError:
        return dumps(events)


def _limited_decompress(kind: str) -> Callable[[bytes], bytes]:
    """A function that decompresses up to the limit. Kombu's have none, and a megabyte can hold a gigabyte."""

    def decompress(body: Any) -> bytes:
        decompressor = DECOMPRESSORS[kind]()
        decompressed: bytes = decompressor.decompress(body, MAX_DECOMPRESSED)
        if not decompressor.eof:
            raise ValueError(f"the message is cut off, or larger than {MAX_DECOMPRESSED >> 20} MB")
        return decompressed

    return decompress


register("json", dumps, read, "application/json")
register(EVENTS, _to_json, None, "application/json")
for _kind in compression.encoders():
    _compress = compression.get_encoder(_kind)[0]  # type: ignore[index]  # the stubs have it return one value
    compression.register(_compress, _limited_decompress(_kind), _kind)
