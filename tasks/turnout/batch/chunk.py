"""The requests of a detached batch as they wait in Redis: sealed chunks of some hundred.

Apart from what puts them there (`handover.py`), so that workers, which take them, load nothing of files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable

from turnout.ledger import Keyring, NewJob
from turnout.request import InferenceRequest

LINES, CLOSED_BYTES = 200, 512 * 1024
"""Most jobs in a chunk, and the bytes from which on it is closed earlier."""
MOST_BYTES = 8 * 1024 * 1024
"""Most bytes of one. Its last job may be of a line of a million bytes, each of which JSON in JSON makes up to seven, or
of a longer one with an image, each byte of which is one here."""
MAX_ENTRY_BYTES = MOST_BYTES - CLOSED_BYTES - LINES
"""Most bytes of a job, whatever came before it."""


def entry(job: str, payload: str) -> bytes:
    """One job of a chunk. payload: the canonical JSON of its request."""
    return json.dumps([job, payload], ensure_ascii=False).encode()


def packed(entries: Iterable[bytes], batch: str, keyring: Keyring) -> bytes:
    return keyring.seal(_place(batch), zlib.compress(b"\n".join(entries)))


def chunk_jobs(chunk: bytes, batch: str, keyring: Keyring) -> list[NewJob]:
    """The jobs of one chunk of a batch's input. Raises Unreadable, or ValueError."""
    lines = _unpacked(keyring.open(_place(batch), chunk)).decode().split("\n", LINES)
    if len(lines) > LINES:
        raise ValueError(f"a chunk has {LINES} lines at most")
    pairs = (json.loads(one) for one in lines)
    return [NewJob.of(id, InferenceRequest.model_validate_json(payload), batch=batch) for id, payload in pairs]


def _unpacked(chunk: bytes) -> bytes:
    """Without a bound, a chunk of some hundred KB could fill the memory of every worker, one after the other."""
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(chunk, MOST_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacking.eof:
        raise ValueError(f"a chunk has {MOST_BYTES} bytes at most, and an end")
    return data


def _place(batch: str) -> str:
    """The name under which a batch's requests are sealed, see `Keyring.seal`."""
    return f"input of {batch}"
