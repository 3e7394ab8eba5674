"""The requests of a detached batch as they wait in Redis: sealed chunks of some hundred.

Apart from what puts them there (`handover.py`), so that workers, which take them, load nothing of files.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable

from turnout.ledger import Keyring, NewJob
from turnout.request import InferenceRequest


def entry(job: str, payload: str) -> bytes:
    """One job of a chunk. payload: the canonical JSON of its request."""
    return json.dumps([job, payload], ensure_ascii=False).encode()


def packed(entries: Iterable[bytes], batch: str, keyring: Keyring) -> bytes:
    return keyring.seal(_place(batch), zlib.compress(b"\n".join(entries)))


def chunk_jobs(chunk: bytes, batch: str, keyring: Keyring) -> list[NewJob]:
    """The jobs of one chunk of a batch's input. Raises Unreadable."""
    lines = zlib.decompress(keyring.open(_place(batch), chunk)).decode().split("\n")
    pairs = (json.loads(one) for one in lines)
    return [NewJob.of(id, InferenceRequest.model_validate_json(payload), batch=batch) for id, payload in pairs]


def _place(batch: str) -> str:
    """The name under which a batch's requests are sealed, see `Keyring.seal`."""
    return f"input of {batch}"
