"""Detached batches against a real Redis, and what may come between."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from turnout.batch.detached import Batches, NoSuchBatch
from turnout.batch.handover import chunk_jobs
from turnout.batch.line import Defaults, RawLine
from turnout.batch.record import State
from turnout.batch.source import Source
from turnout.errors import TurnoutError
from turnout.ledger import Coalescer, Ledger, NewJob
from turnout_workers.background import batch_feeding


class Interrupted(Source):
    """An input in the midst of which something else happens."""

    happens: Callable[[], None]

    def __iter__(self) -> Iterator[RawLine]:
        for raw in super().__iter__():
            yield raw
            self.happens()


@pytest.fixture
def source(tmp_path: Path) -> Interrupted:
    (tmp_path / "in.txt").write_text("A?\n")
    return Interrupted(str(tmp_path / "in.txt"))


def test_a_batch_that_is_deleted_while_it_is_handed_over_leaves_nothing(
    flushed: redis.Redis, source: Interrupted
) -> None:
    batches = Batches(flushed, Ledger())
    Interrupted.happens = staticmethod(lambda: batches.delete(batches.all()[0].id))
    with pytest.raises(NoSuchBatch, match="deleted while it was being handed over"):
        batches.submit(source, Defaults())
    assert not flushed.keys()


def test_a_batch_can_not_be_cancelled_while_it_is_handed_over(flushed: redis.Redis, source: Interrupted) -> None:
    batches = Batches(flushed, Ledger())

    def cancel() -> None:
        with pytest.raises(TurnoutError, match="delete it"):
            batches.cancel(batches.all()[0].id, 60)

    Interrupted.happens = staticmethod(cancel)
    assert batches.record(batches.submit(source, Defaults())).state is State.FEEDING


async def test_a_batch_that_is_cancelled_while_a_chunk_is_fed_leaves_no_job_alive(
    flushed: redis.Redis, redis_url: str, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(flushed, Ledger())
    Interrupted.happens = staticmethod(lambda: None)
    id = batches.submit(source, Defaults())

    def read_and_cancelled(*chunk: Any) -> list[NewJob]:
        assert batches.cancel(id, 60) == 0, "its job is not there yet"
        return chunk_jobs(*chunk)

    monkeypatch.setattr(batch_feeding, "chunk_jobs", read_and_cancelled)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await batch_feeding.BatchFeeding(client, Ledger(), Coalescer(client), 60).round()
    record = batches.record(id)
    assert (record.ended, record.counts) == (True, {"cancelled": 1})


async def test_a_batch_of_another_release_holds_up_no_other(
    flushed: redis.Redis, redis_url: str, source: Interrupted
) -> None:
    batches, keys = Batches(flushed, Ledger()), Ledger().keys
    Interrupted.happens = staticmethod(lambda: None)
    strange, later, known = (batches.submit(source, Defaults()) for _ in range(3))
    flushed.lset(keys.batch_input(strange), 0, "packed in another way")
    job, request = "j", '{"prompt":"A?","a_new_field":1}'
    flushed.lset(keys.batch_input(later), 0, zlib.compress(json.dumps([job, request]).encode()))
    flushed.hset(keys.batch(known), "a_new_field", 1)
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await batch_feeding.BatchFeeding(client, Ledger(), Coalescer(client), 60).round()
    assert [batches.record(id).counts for id in (strange, later, known)] == [
        {"waiting": 1},
        {"waiting": 1},
        {"under_way": 1},
    ]
