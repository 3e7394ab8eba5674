"""The requests of a detached batch as they wait in Redis: sealed chunks of some hundred.

Separate from the code that puts them there (`handover.py`), so that workers, which take them, load no file formats.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable

from pydantic import ValidationError

from turnout.ledger import Keyring, NewJob
from turnout.request import InferenceRequest, Lane, RoutingConstraints
from turnout.validation import is_of_a_later_release

MAX_CHUNK_JOBS = 200
CLOSED_BYTES = 512 * 1024
"""From this size on, a chunk takes no further job."""
MAX_CHUNK_BYTES = 8 * 1024 * 1024
"""Largest chunk. Its last job may come from a line of a million bytes, each of which takes up to seven as JSON in JSON,
or from a longer one with an image, whose bytes take one each."""
MAX_ENTRY_BYTES = MAX_CHUNK_BYTES - CLOSED_BYTES - MAX_CHUNK_JOBS
"""Largest job, whatever comes before it in its chunk."""


def encoded_job(job: str, payload: str) -> bytes:
    """One job of a chunk. payload: the canonical JSON of its request."""
    return json.dumps([job, payload], ensure_ascii=False).encode()


def packed(entries: Iterable[bytes], batch: str, keyring: Keyring) -> bytes:
    return keyring.seal(_content_name(batch), zlib.compress(b"\n".join(entries)))


def chunk_jobs(chunk: bytes, batch: str, keyring: Keyring) -> list[NewJob]:
    """The jobs of one chunk of a batch's input. Raises Unreadable, or ValueError, also if it is of a later release."""
    lines = _unpacked(keyring.open(_content_name(batch), chunk)).decode().split("\n", MAX_CHUNK_JOBS)
    if len(lines) > MAX_CHUNK_JOBS:
        raise ValueError(f"a chunk has more than {MAX_CHUNK_JOBS} lines")
    pairs = ((id, str(payload)) for id, payload in map(json.loads, lines))
    return [NewJob.of(id, _request(payload), payload, batch=batch) for id, payload in pairs]


def _request(payload: str) -> InferenceRequest:
    """The request, or a substitute for one that is no longer allowed. Its worker ends it, with the reason."""
    try:
        return InferenceRequest.model_validate_json(payload)
    except ValidationError as error:
        if not payload or is_of_a_later_release(error):
            raise
        return InferenceRequest(prompt="", constraints=RoutingConstraints(lane=Lane.BATCH))


def _unpacked(chunk: bytes) -> bytes:
    """Bounded, because a chunk of some hundred KB could otherwise fill the memory of one worker after the other."""
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(chunk, MAX_CHUNK_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacking.eof:
        raise ValueError(f"a chunk has more than {MAX_CHUNK_BYTES} bytes, or no end")
    return data


def _content_name(batch: str) -> str:
    """The name under which a batch's requests are sealed, see `Keyring.seal`."""
    return f"input of {batch}"
