"""Detached batches against a real Redis, and what may come between."""

from __future__ import annotations

import contextlib
import json
import os
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from pydantic import ValidationError
from tests.tcp_proxy import between

from turnout.batch.chunk import chunk_jobs, encoded_job
from turnout.batch.detached import Batches
from turnout.batch.handover import pages
from turnout.batch.line import MAX_LINE_BYTES, Defaults, RawLine
from turnout.batch.record import State
from turnout.batch.source import Source
from turnout.errors import IntakeRefused, TurnoutError
from turnout.ledger import Claimed, Coalescer, Keyring, Keys, Ledger, NewJob, run
from turnout_workers.background import batch_feeding
from turnout_workers.background.batch_feeding import BatchFeeding


class Interrupted(Source):
    """An input in the midst of which something else happens."""

    happens: Callable[[], object] = staticmethod(lambda: None)

    def __iter__(self) -> Iterator[RawLine]:
        for raw in super().__iter__():
            yield raw
            self.happens()


@pytest.fixture
def source(tmp_path: Path) -> Interrupted:
    (tmp_path / "in.txt").write_text("A?\n")
    return Interrupted(str(tmp_path / "in.txt"))


@pytest.fixture
def batches(flushed: redis.Redis) -> Batches:
    return Batches(flushed, Ledger())


@pytest.fixture
async def feeding(redis_url: str) -> AsyncIterator[BatchFeeding]:
    """What one worker feeds."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        yield BatchFeeding(Ledger(), Coalescer(client))


def test_a_batch_is_there_when_all_of_it_is_and_half_of_one_is_kept_for_an_hour(
    flushed: redis.Redis, batches: Batches, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.batch.handover.MAX_CHUNK_JOBS", 1)
    Path(source.path).write_text("A?\nB?\n")
    lives = []

    def look() -> None:
        assert batches.all() == []
        lives.extend(flushed.ttl(key) for key in flushed.scan_iter())

    monkeypatch.setattr(Interrupted, "happens", staticmethod(look))
    id = batches.submit(source, Defaults())
    assert lives
    assert all(3500 < life <= 3600 for life in lives)
    assert batches.record(id).counts == {"waiting": 2}
    kept = [flushed.ttl(key) for key in flushed.scan_iter() if key != Ledger().keys.batches.encode()]
    assert len(kept) == 3
    assert min(kept) > 6 * 86_400


def test_a_batch_whose_first_lines_have_expired_before_the_last_one_came_is_none(
    flushed: redis.Redis, batches: Batches, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout.batch.handover.MAX_CHUNK_JOBS", 1)
    Path(source.path).write_text("A?\nB?\n")
    monkeypatch.setattr(Interrupted, "happens", staticmethod(flushed.flushdb))
    with pytest.raises(TurnoutError, match=r"^only 0 of 2 lines are in Redis"):
        batches.submit(source, Defaults())
    assert not flushed.keys()


def test_a_batch_that_was_handed_over_with_its_reply_lost_is_there_once_and_goes_on(
    flushed: redis.Redis, redis_url: str, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with between(urlsplit(redis_url).port or 0) as proxy, redis.Redis.from_url(proxy.url) as client:
        proxy.cut_replies(b"ZADD", times=1)
        batches, begin, tries = Batches(client, Ledger()), Batches._begin, 0

        def fed_meanwhile(self: Batches, id: str, record: Mapping[str, Any]) -> None:
            nonlocal tries
            tries += 1
            if tries == 2:
                flushed.hset(self._keys.batch(id), "fed", 1)
            begin(self, id, record)

        monkeypatch.setattr(Batches, "_begin", fed_meanwhile)
        id = batches.submit(source, Defaults())
        assert (tries, proxy.cut) == (2, 1)
        assert [(one.id, one.fed) for one in batches.all()] == [(id, 1)]


def test_a_batch_that_was_perhaps_handed_over_is_named(
    flushed: redis.Redis, redis_url: str, source: Interrupted
) -> None:
    with between(urlsplit(redis_url).port or 0) as proxy, redis.Redis.from_url(proxy.url) as client:
        proxy.cut_replies(b"ZADD", times=100)
        with pytest.raises(TurnoutError, match=r"batch (batch-\w+) may have been handed over: `turnout batch show \1`"):
            Batches(client, Ledger()).submit(source, Defaults())


def test_a_file_may_have_a_name_that_is_no_utf_8(batches: Batches, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.txt")
    path.write_text("A?\n")
    assert batches.record(batches.submit(Source(str(path)), Defaults())).source.endswith(r"\udcff.txt")


@pytest.mark.parametrize("trips", range(4))
def test_a_batch_is_cancelled_for_good_between_whichever_commands_of_a_pause_it_comes(
    batches: Batches, redis_url: str, source: Interrupted, trips: int
) -> None:
    id = batches.submit(source, Defaults())
    left = 100

    class Delayed(redis.Connection):
        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                batches.cancel(id)
            super().send_packed_command(command, check_health)

    with redis.Redis.from_url(redis_url, connection_class=Delayed) as client, contextlib.suppress(TurnoutError):
        client.ping()  # connected
        left = trips
        Batches(client, Ledger()).pause(id)
    if left >= 0:
        batches.cancel(id)
    assert batches.record(id).state is State.CANCELLED


@pytest.mark.parametrize("deleted", [False, True])
async def test_of_a_batch_that_is_cancelled_while_a_chunk_is_fed_no_job_is_accepted(
    flushed: redis.Redis,
    batches: Batches,
    feeding: BatchFeeding,
    source: Interrupted,
    monkeypatch: pytest.MonkeyPatch,
    deleted: bool,
) -> None:
    """Whoever feeds it may die the next moment, and nobody would cancel them."""
    keys = Ledger().keys
    id = batches.submit(source, Defaults())

    def read_and_cancelled(*chunk: Any) -> list[NewJob]:
        assert batches.cancel(id) == 0, "its job is not there yet"
        if deleted:
            batches.delete(id)
        return chunk_jobs(*chunk)

    monkeypatch.setattr(batch_feeding, "chunk_jobs", read_and_cancelled)
    await feeding.round()
    assert not flushed.exists(keys.counts, keys.pending("batch"))
    if deleted:
        assert not flushed.exists(keys.batch(id)), "counts of nothing"
    else:
        assert (batches.record(id).ended, batches.record(id).counts) == (True, {"cancelled": 1})


def test_each_line_counts_once_though_a_chunk_was_cancelled_before_it_was_noted_as_fed(
    flushed: redis.Redis, batches: Batches, tmp_path: Path
) -> None:
    """By a worker that died then."""
    (tmp_path / "in.txt").write_text("A?\n" * 300)
    ledger = Ledger()
    id = batches.submit(Source(str(tmp_path / "in.txt")), Defaults())
    chunk: Any = flushed.lindex(ledger.keys.batch_input(id), 0)
    run(flushed, [ledger.enqueue(job, detached=True) for job in chunk_jobs(chunk, id, ledger.keyring)[:150]])
    assert batches.record(id).counts == {"waiting": 300}
    assert batches.cancel(id) == 150
    assert batches.record(id).counts == {"cancelled": 300}


async def test_of_lines_that_wait_to_be_fed_redis_is_asked_nothing(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commands() -> int:
        told: Any = flushed.info("stats")
        return int(told["total_commands_processed"])

    monkeypatch.setattr(batch_feeding, "MAX_CHUNKS", 1)
    (tmp_path / "in.txt").write_text("".join(f"{n}?\n" for n in range(3000)))
    id = batches.submit(Source(str(tmp_path / "in.txt")), Defaults())
    await feeding.round()
    assert batches.cancel(id) == 200
    for look in (lambda: list(batches.output(id)), lambda: batches.retry_failed(id), lambda: batches.cancel(id)):
        before = commands()
        look()
        assert commands() - before < 3000
    assert batches.record(id).counts == {"cancelled": 3000}
    assert sum(json.loads(line)["status"] == "cancelled" for _, line in batches.output(id)) == 3000


async def test_a_round_feeds_so_many_chunks_and_the_next_one_goes_on_with_the_next_batch(
    batches: Batches, feeding: BatchFeeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many large batches one round took half a minute, in which parked jobs and those of the dead had to wait."""
    monkeypatch.setattr(batch_feeding, "MAX_CHUNKS", 2)
    monkeypatch.setattr(batch_feeding, "MAX_CHUNKS_IN_ALL", 3)
    (tmp_path / "in.txt").write_text("".join(f"{n}?\n" for n in range(600)))
    ids = [batches.submit(Source(str(tmp_path / "in.txt")), Defaults()) for _ in range(4)]
    fed = []
    for _ in range(5):
        await feeding.round()
        fed.append([batches.record(id).chunks_fed for id in ids])
    assert fed == [[2, 1, 0, 0], [2, 1, 2, 1], [3, 3, 2, 1], [3, 3, 3, 3], [3, 3, 3, 3]]


async def test_a_batch_that_is_fed_to_its_end_is_not_read_in_every_round(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted
) -> None:
    fed, paused, cancelled = (batches.submit(source, Defaults()) for _ in range(3))
    batches.pause(paused)
    batches.cancel(cancelled)
    for _ in range(2):  # fed in the first, found fed in the second
        await feeding.round()
    before = flushed.info("commandstats")["cmdstat_hgetall"]["calls"]
    await feeding.round()
    assert flushed.info("commandstats")["cmdstat_hgetall"]["calls"] == before + 1, "the paused one"
    batches.resume(paused)
    await feeding.round()
    assert batches.record(paused).counts == batches.record(fed).counts == {"under_way": 1}


async def test_a_result_that_can_not_be_read_is_the_end_of_its_line_alone(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("A?\nB?\nC?\n")
    ledger = Ledger()
    id = batches.submit(Source(str(tmp_path / "in.txt")), Defaults())
    await feeding.round()
    batches.cancel(id)
    jobs = [one.job for page in pages(flushed, ledger.keys.batch_lines(id)) for one in page]
    answer = {"provider": "p", "model_requested": "m", "model_served": "m"}
    sealed = {"id": jobs[0], "status": "succeeded", "response": {**answer, "sealed": b64encode(b"sealed:k:~").decode()}}
    flushed.hset(ledger.keys.job(jobs[0]), "result", json.dumps(sealed))
    flushed.hset(ledger.keys.job(jobs[1]), "result", '{"status":')
    told = [json.loads(line)["error"] for _, line in batches.output(id)]
    assert [error["code"] for error in told] == ["unreadable", "unreadable", "cancelled"]
    assert "sealed with the key k, and TURNOUT_PAYLOAD_KEYS is not set; add that key" in told[0]["message"]


async def test_a_batch_of_another_release_holds_up_no_other(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted
) -> None:
    keys = Ledger().keys
    strange, later, known = (batches.submit(source, Defaults()) for _ in range(3))
    flushed.lset(keys.batch_input(strange), 0, "packed in another way")
    job, request = "j", '{"prompt":"A?","a_new_field":1}'
    flushed.lset(keys.batch_input(later), 0, zlib.compress(json.dumps([job, request]).encode()))
    flushed.hset(keys.batch(known), "a_new_field", 1)
    await feeding.round()
    assert [batches.record(id).counts for id in (strange, later, known)] == [
        {"waiting": 1},
        {"waiting": 1},
        {"under_way": 1},
    ]


@pytest.mark.parametrize("stored", ['{"prompt":"B?","timeout_s":"long"}', '{"prompt":', 5])
async def test_a_request_that_is_no_longer_allowed_holds_up_no_other_of_its_batch(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted, stored: Any
) -> None:
    """It is left to the worker that takes it, which ends it with the reason."""
    ledger = Ledger()
    Path(source.path).write_text("A?\nB?\nC?\n")
    id = batches.submit(source, Defaults())
    chunk: Any = flushed.lindex(ledger.keys.batch_input(id), 0)
    first, (job, _), last = map(json.loads, zlib.decompress(chunk).splitlines())
    changed = b"\n".join(encoded_job(*one) for one in (first, (job, stored), last))
    flushed.lset(ledger.keys.batch_input(id), 0, zlib.compress(changed))
    await feeding.round()
    assert batches.record(id).counts == {"under_way": 3}
    (claimed,) = run(flushed, [ledger.claim(job, "a worker", 60.0)])
    assert isinstance(claimed, Claimed)
    assert isinstance(claimed.request, ValidationError)
    assert claimed.lane == "batch"


async def test_a_chunk_that_would_fill_a_workers_memory_is_not_unpacked_and_tried_once(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    """A producer, who is trusted half, can put one there."""
    keys = Ledger().keys
    large, many, known = (batches.submit(source, Defaults()) for _ in range(3))
    flushed.lset(keys.batch_input(large), 0, zlib.compress(bytes(100_000_000)))
    flushed.lset(keys.batch_input(many), 0, zlib.compress(b"\n".join([encoded_job("j", '{"prompt":"A?"}')] * 1000)))
    tracemalloc.start()
    for _ in range(3):
        await feeding.round()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    assert [batches.record(id).fed for id in (large, many, known)] == [0, 0, 1]
    assert len(caplog.messages) == 2, "and told of once"


async def test_the_largest_line_is_fed_whatever_it_grows_to(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, tmp_path: Path
) -> None:
    """Each byte is escaped as six in the request's JSON, and as seven in the chunk's."""
    (tmp_path / "in.txt").write_text("A" * 500_000 + "\n" + "\1" * MAX_LINE_BYTES + "\n")
    id = batches.submit(Source(str(tmp_path / "in.txt")), Defaults())
    assert flushed.llen(Ledger().keys.batch_input(id)) == 1
    await feeding.round()
    assert batches.record(id).fed == 2


async def test_a_line_of_megabytes_is_fed_and_one_that_no_worker_would_unpack_is_told_of(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, tmp_path: Path
) -> None:
    images = (f"data:image/png;base64,{'A' * size}" for size in (400_000, 7_400_000, 8_000_000))
    parts = ({"type": "image_url", "image_url": {"url": url}} for url in images)
    lines = [json.dumps({"messages": [{"role": "user", "content": [part]}]}) for part in parts]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    id = batches.submit(Source(str(tmp_path / "in.jsonl"), max_line_bytes=10_000_000), Defaults())
    await feeding.round()
    assert batches.record(id).fed == 2
    (last,) = flushed.lrange(Ledger().keys.batch_lines(id), -1, -1)
    assert "that can be handed over; `turnout run` takes it" in last.decode()


async def test_a_batch_that_goes_on_outlives_its_seven_days(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is what holds a paused batch back, and what its ceiling hangs on."""
    monkeypatch.setattr(batch_feeding, "RENEW_S", 0.0)
    keys = Ledger().keys
    under_way, paused, cancelled = (batches.submit(source, Defaults()) for _ in range(3))
    await feeding.round()
    batches.pause(paused)
    batches.cancel(cancelled)
    waiting = batches.submit(source, Defaults())
    batches.pause(waiting)
    for key in flushed.keys(keys.batch("*")):
        flushed.expire(key, 1000)
    await feeding.round()
    renewed = {key for key in flushed.keys(keys.batch("*")) if flushed.ttl(key) > 1000}
    going_on = {key(id) for id in (under_way, paused, waiting) for key in (keys.batch, keys.batch_lines)}
    assert renewed == {key.encode() for key in {*going_on, keys.batch_input(waiting)}}


async def test_a_batch_that_is_fed_to_its_end_is_looked_at_again_after_an_hour(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Ledger().keys.batch
    id = batches.submit(source, Defaults())
    for _ in range(2):
        await feeding.round()
    for look_s, renewed in ((batch_feeding.RENEW_S, False), (0.0, True)):
        monkeypatch.setattr(batch_feeding, "RENEW_S", look_s)
        flushed.expire(key(id), 1000)
        await feeding.round()
        assert (flushed.ttl(key(id)) > 1000) == renewed


async def test_a_record_that_can_not_be_read_holds_up_no_other_batch(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Ledger().keys
    later, odd, known = (batches.submit(source, Defaults()) for _ in range(3))
    flushed.hset(keys.batch(later), "state", "verifying")
    flushed.hset(keys.batch(odd), "succeeded", b"\xff")
    for _ in range(3):
        await feeding.round()
    assert [record.id for record in batches.all()] == [known]
    assert batches.record(known).fed == 1
    assert len(caplog.messages) == 4, "told of once by the worker, and in the list"
    with pytest.raises(TurnoutError, match=f"{later} was changed in Redis, or is of another release: state: "):
        batches.record(later)


async def test_while_redis_is_short_of_memory_one_chunk_a_round_is_tried(
    flushed: redis.Redis, batches: Batches, feeding: BatchFeeding, source: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[str]()
    ids = [batches.submit(source, Defaults()) for _ in range(3)]

    def noted(chunk: bytes, id: str, keyring: Keyring) -> list[NewJob]:
        tried.append(id)
        return chunk_jobs(chunk, id, keyring)

    monkeypatch.setattr(batch_feeding, "chunk_jobs", noted)
    flushed.set(Ledger().keys.intake, "memory")
    await feeding.round()
    assert len(tried) == 1
    flushed.delete(Ledger().keys.intake)
    await feeding.round()
    assert all(batches.record(id).fed == 1 for id in ids)


def test_no_batch_is_taken_while_redis_is_short_of_memory(flushed: redis.Redis, tmp_path: Path) -> None:
    ledger = Ledger(Keys("t"))
    (path := tmp_path / "in.jsonl").write_text('{"prompt": "A?"}\n')
    flushed.set(ledger.keys.intake, 1)
    with pytest.raises(IntakeRefused, match="short of memory"):
        Batches(flushed, ledger).submit(Source(str(path)), Defaults())
    assert not flushed.keys("*batch*")
