"""What Celery's messages say: read and written in a part of the time that kombu takes, and unpacked up to a limit.

What only kombu can read or write, its typed values and half a surrogate pair, is left to it.
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
MAX_UNPACKED = 16 * 1024 * 1024
"""Most bytes of a message that came compressed."""
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}
"""Those whose output can be bounded. Messages compressed otherwise are not read."""


def read(raw: str | bytes) -> Any:
    """What is alike in all messages, two thirds of each, is in memory once."""
    typed = b'"__type__"' in raw if isinstance(raw, bytes) else '"__type__"' in raw
    try:
        return loads(raw) if typed else from_json(raw)
    except ValueError:
        return loads(raw)


def _written(events: Any) -> str:
    try:
        return to_json(events).decode()
    except PydanticSerializationError:
        return dumps(events)


def _unpacking(kind: str) -> Callable[[bytes], bytes]:
    """A decompressor that stops at the limit. Kombu's know none, and a megabyte can hold a gigabyte."""

    def unpacked(body: Any) -> bytes:
        unpacking = DECOMPRESSORS[kind]()
        whole: bytes = unpacking.decompress(body, MAX_UNPACKED)
        if not unpacking.eof:
            raise ValueError(f"the message breaks off, or holds more than {MAX_UNPACKED >> 20} MB")
        return whole

    return unpacked


register("json", dumps, read, "application/json")
register(EVENTS, _written, None, "application/json")
for _kind in compression.encoders():
    _packing = compression.get_encoder(_kind)[0]  # type: ignore[index]  # the stubs have it return one thing
    compression.register(_packing, _unpacking(_kind), _kind)
