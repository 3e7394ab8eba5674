"""What Celery's messages say is read and written faster than kombu does it, and no differently."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kombu import compression, serialization
from kombu.utils.json import dumps as kombu_writes
from kombu.utils.json import loads as kombu_reads

from turnout_workers import celery_json

TEXTS = (
    '[["id"], {}, {"callbacks": null, "chain": [1, 2.5, true]}]',
    '{"at": {"__type__": "datetime", "__value__": "2030-01-31T12:00:00"}}',
    '"half a pair: \\ud800"',
    '"ä and \\ud83d\\ude00"',
    "[" * 500 + "]" * 500,
    str(10**30),
)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [str, str.encode])
def test_json_is_read_as_kombu_reads_it(text: str, kind: Any) -> None:
    assert celery_json.read  # its import is what registers it
    read = serialization.loads(kind(text), "application/json", "utf-8", accept={"application/json"})
    assert read == kombu_reads(text)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "lzma"])
def test_a_compressed_message_is_unpacked_up_to_a_limit(kind: str) -> None:
    packed, _ = compression.compress(b" " * celery_json.MAX_DECOMPRESSED, kind)
    assert len(compression.decompress(packed, kind)) == celery_json.MAX_DECOMPRESSED
    for wrong in (packed[:-9], compression.compress(b" " * (celery_json.MAX_DECOMPRESSED + 1), kind)[0]):
        with pytest.raises(ValueError, match="larger than 16 MB"):
            compression.decompress(wrong, kind)


@pytest.mark.parametrize("said", ["sim · llama · $0.01", "half a pair: \ud800"])
def test_events_are_written_so_that_anybody_reads_them(said: str) -> None:
    told = [{"type": "task-succeeded", "result": said, "runtime": 0.25, "clock": 7, "eta": None}]
    kind, encoding, text = serialization.dumps(told, celery_json.EVENTS)
    assert (kind, encoding) == ("application/json", "utf-8")
    assert json.loads(text) == json.loads(kombu_writes(told)) == told
