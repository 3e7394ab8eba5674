"""How calls travel: together, in order, each reply to who asked, over restarts and a full memory."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import uvloop
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from tests import redis_server
from tests.properties.ledger.bed import KEPT_S, Bed, ended, new_job
from tests.tcp_proxy import between

from turnout.ledger import Claimed, Coalescer, Facts, Intake, Ledger, run, sending
from turnout.ledger.job import Enqueued
from turnout.ledger.script import Operation, Script
from turnout.ledger.sending import MAX_BATCH, SendCommands, pipelined
from turnout.redis_address import connect_async
from turnout.redis_trouble import UNANSWERED
from turnout.request import MAX_NUMBER, InferenceRequest
from turnout.result import JobStatus
from turnout_workers.state import fast_pipeline

LEDGER = Ledger()


def test_calls_and_reads_run_in_order_also_the_first_time(flushed: redis.Redis) -> None:
    flushed.script_flush()
    calls = [LEDGER.enqueue(new_job()), LEDGER.facts("a"), LEDGER.claim("a", "w", 30), LEDGER.facts("a")]
    _, before, _, after = run(flushed, calls)
    assert (before.state, after.state) == ("queued", "leased")


def test_an_upgrade_in_place_brings_no_script_of_its_own_into_a_running_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a_release" / "lua"
    folder.mkdir(parents=True)
    for name in ("early", "late"):
        (folder / f"{name}.lua").write_text("return 'old'")
    monkeypatch.syspath_prepend(tmp_path)
    Script.load("a_release", "early")
    (folder / "late.lua").write_text("return 'new'")
    assert Script.load("a_release", "late").source.endswith("return 'old'")


def test_an_error_of_one_call_leaves_the_others_done(flushed: redis.Redis) -> None:
    wrong = LEDGER.settle(1, ended("a", JobStatus.SUCCEEDED, 1), None, KEPT_S, batch="not its own")
    with pytest.raises(redis.ResponseError, match="batch"):
        run(flushed, [LEDGER.enqueue(new_job()), LEDGER.claim("a", "w", 30), wrong, LEDGER.enqueue(new_job("b"))])
    assert [one.state for one in run(flushed, [LEDGER.facts("a"), LEDGER.facts("b")])] == ["leased", "queued"]


def test_calls_of_several_scripts_run_in_order_though_redis_knows_some_of_them(flushed: redis.Redis) -> None:
    flushed.script_flush()
    run(flushed, [LEDGER.claim("a", "w", 30)])
    _, claimed = run(flushed, [LEDGER.enqueue(new_job()), LEDGER.claim("a", "w", 30)])
    assert isinstance(claimed, Claimed)


def test_a_deadline_that_is_ages_away_is_a_deadline(flushed: redis.Redis) -> None:
    _, claimed = run(flushed, [LEDGER.enqueue(new_job(deadline_s=MAX_NUMBER)), LEDGER.claim("a", "w", 30)])
    assert claimed.deadline > MAX_NUMBER


def test_a_script_that_redis_cannot_load_is_told_as_that(flushed: redis.Redis) -> None:
    wrong = Ledger(clock="no Lua\n").enqueue(new_job())
    with pytest.raises(redis.ResponseError, match="compiling"):
        run(flushed, [LEDGER.facts("a"), wrong])


both_ways = pytest.mark.parametrize("exchange", [pipelined, fast_pipeline.send_commands])


@both_ways
async def test_scripts_that_redis_forgot_are_loaded_again(redis_url: str, exchange: SendCommands) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        call = Coalescer(client, send_commands=exchange)
        for name in "ab":
            job_ids = [f"{name}{number}" for number in range(20)]
            taken = await call.all(*(LEDGER.enqueue(new_job(job_id)) for job_id in job_ids))
            assert {one.outcome for one in taken} == {Intake.QUEUED}
            claims = await call.all(*(LEDGER.claim(job_id, "w", 30) for job_id in job_ids))
            assert [claim.token for claim in claims] == [1] * 20
            await client.script_flush()


@both_ways
async def test_a_redis_that_knows_no_script_and_takes_no_writes_tells_every_caller(
    flushed: redis.Redis, redis_url: str, exchange: SendCommands
) -> None:
    flushed.script_flush()
    flushed.config_set("min-replicas-to-write", 1)
    try:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            call = Coalescer(client, send_commands=exchange)
            asked = (call(LEDGER.enqueue(new_job(job_id))) for job_id in "abc")
            told = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        flushed.config_set("min-replicas-to-write", 0)
    assert ["NOREPLICAS" in str(error) for error in told] == [True] * 3


async def test_a_call_whose_script_is_forgotten_once_more_gets_no_other_calls_reply() -> None:
    forgotten, answers = NoScriptError("NOSCRIPT"), iter([["-", "-"], ["its SHA-1", "j1", "-"]])

    async def exchange(_client: object, _commands: object) -> list[Any]:
        return [forgotten if answer == "-" else answer for answer in next(answers)]

    call = Coalescer(redis.asyncio.Redis(), send_commands=exchange)
    script = LEDGER.enqueue(new_job()).script
    asked = (call(Operation(("EVALSHA",), str, script)) for _ in range(2))
    first, second = await asyncio.gather(*asked, return_exceptions=True)
    assert first == "j1"
    assert isinstance(second, NoScriptError)


async def test_while_redis_has_a_batch_the_next_is_sent_and_what_belongs_together_is_not_split() -> None:
    sent, replying = list[int](), asyncio.Event()

    async def exchange(_client: object, commands: Sequence[Any]) -> list[Any]:
        sent.append(len(commands))
        await replying.wait()
        return [name for (name,) in commands]

    def calls(word: str, count: int) -> list[Operation[str]]:
        return [Operation((f"{word}{number}",), str) for number in range(count)]

    send = Coalescer(redis.asyncio.Redis(), send_commands=exchange, max_round_trips=2)
    together = [asyncio.create_task(send.all(*calls(word, 100))) for word in "abc"]
    while len(sent) < 2:
        await asyncio.sleep(0)
    late = asyncio.create_task(send(*calls("d", 1)))
    await asyncio.sleep(0)
    assert sent == [200, 100]
    replying.set()
    assert await asyncio.gather(*together) == [[f"{word}{number}" for number in range(100)] for word in "abc"]
    assert await late == "d0"
    assert sent == [200, 100, 1]


@pytest.mark.parametrize("error", UNANSWERED)
async def test_what_waits_behind_a_call_that_redis_leaves_unanswered_fails_with_it(error: type[Exception]) -> None:
    """Else each batch would wait for as long as the one before it, and calls would end only after all of these."""
    sent, waiting = list[int](), asyncio.Event()

    async def exchange(_client: object, commands: Sequence[Any]) -> list[Any]:
        sent.append(len(commands))
        await waiting.wait()
        raise error("no answer")

    send = Coalescer(redis.asyncio.Redis(), send_commands=exchange)
    calls = [Operation((str(number),), str) for number in range(3 * MAX_BATCH)]
    asked = [asyncio.create_task(send(call)) for call in calls]
    asked.append(asyncio.create_task(send.uninterrupted(calls[0])))
    asked.append(asyncio.create_task(send.all(*calls)))  # type: ignore[arg-type]
    while not sent:
        await asyncio.sleep(0)
    waiting.set()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one) for one in told] == [error] * len(asked)
    assert len({id(one) for one in told}) == len(asked), "to each its own"
    assert sent == [MAX_BATCH]
    with pytest.raises(error):
        await send(calls[0])
    assert sent == [MAX_BATCH, 1], "what comes later is sent"


async def test_what_waits_behind_a_call_whose_connection_was_lost_goes_by_the_next() -> None:
    answers = iter([redis.ConnectionError("lost"), ["0"] * MAX_BATCH])

    async def exchange(_client: object, _commands: object) -> list[Any]:
        if isinstance(answer := next(answers), Exception):
            raise answer
        return answer

    send = Coalescer(redis.asyncio.Redis(), send_commands=exchange)
    told = await asyncio.gather(*(send(Operation(("0",), str)) for _ in range(2 * MAX_BATCH)), return_exceptions=True)
    assert [type(one) for one in told] == [redis.ConnectionError] * MAX_BATCH + [str] * MAX_BATCH


async def test_what_may_be_done_twice_is_sent_again_when_a_connection_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "RESEND_S", (0.0, 0.0))
    sent, losses = list[tuple[str, ...]](), 2

    async def exchange(_client: object, commands: Sequence[Any]) -> list[Any]:
        sent.append(tuple(name for (name,) in commands))
        if len(sent) <= losses:
            raise redis.ConnectionError("lost")
        return [*sent[-1]]

    send = Coalescer(redis.asyncio.Redis(), send_commands=exchange)
    calls = [Operation((name,), str, repeatable=name.isupper()) for name in "AbC"]
    told = await asyncio.gather(*map(send, calls), return_exceptions=True)
    assert (told[0], type(told[1]), told[2]) == ("A", redis.ConnectionError, "C")
    assert sent == [("A", "b", "C"), ("A", "C"), ("A", "C")]

    losses = 6
    calls *= MAX_BATCH
    told = await asyncio.gather(*map(send, calls), return_exceptions=True)
    assert [type(one) for one in told] == [redis.ConnectionError] * len(calls), "what waited behind them, too"
    assert len(sent) == 6


async def test_of_those_that_are_cancelled_before_they_are_sent_only_a_call_whose_outcome_must_be_known_is_sent() -> (
    None
):
    sent, go_on = list[str](), asyncio.Event()

    async def exchange(_client: object, commands: Sequence[Any]) -> list[Any]:
        names = [name for (name,) in commands]
        sent.extend(names)
        await go_on.wait()
        return names

    send = Coalescer(redis.asyncio.Redis(), send_commands=exchange)
    under_way = asyncio.create_task(send(Operation(("under way",), str)))
    while not sent:
        await asyncio.sleep(0)
    left, kept = (
        asyncio.create_task(ask(Operation((name,), str)))
        for ask, name in ((send, "left"), (send.uninterrupted, "kept"))
    )
    await asyncio.sleep(0)
    go_on.set()  # so that the next are chosen before either has woken
    left.cancel()
    kept.cancel()
    await asyncio.gather(under_way, left, kept, return_exceptions=True)
    assert sent == ["under way", "kept"]


async def test_very_many_calls_go_one_part_after_the_other() -> None:
    sent = list[int]()

    async def exchange(_client: object, commands: Sequence[Any]) -> list[Any]:
        sent.append(len(commands))
        return [name for (name,) in commands]

    send = Coalescer(redis.asyncio.Redis(), send_commands=exchange, max_round_trips=2)
    numbers = [str(number) for number in range(MAX_BATCH + 5)]
    assert await send.all(*(Operation((number,), str) for number in numbers)) == numbers
    assert sent == [MAX_BATCH, 5]
    assert await send.all() == []


@both_ways
async def test_a_cancelled_caller_leaves_the_others_their_own_replies(redis_url: str, exchange: SendCommands) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        call = Coalescer(client, send_commands=exchange)
        await call.all(*(LEDGER.enqueue(new_job(f"j{i}", payload=f'{{"prompt":"p{i}"}}')) for i in range(60)))
        claims = [asyncio.create_task(call(LEDGER.claim(f"j{i}", "w", 30))) for i in range(60)]
        await asyncio.sleep(0)
        for claim in claims[::3]:
            claim.cancel()
        await asyncio.gather(*claims, return_exceptions=True)
        kept = {i: claim.result() for i, claim in enumerate(claims) if not claim.cancelled()}
        assert len(kept) == 40
        assert all(claim.request == InferenceRequest(prompt=f"p{i}") for i, claim in kept.items())


@both_ways
@pytest.mark.parametrize("wrong", ["\ud800", None, True, {}], ids=repr)
async def test_what_can_not_be_sent_is_its_callers_own_error(
    redis_url: str, exchange: SendCommands, wrong: object
) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        call = Coalescer(client, send_commands=exchange)
        asked = (call(LEDGER.enqueue(new_job("a"))), call(Operation(("GET", wrong), str)), call(LEDGER.facts("a")))
        enqueued, error, facts = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(enqueued, Enqueued)
        assert isinstance(error, UnicodeError | TypeError | redis.DataError)
        assert isinstance(facts, Facts)


def test_with_memory_full_nothing_new_is_accepted_or_begun_and_what_is_held_goes_on(tmp_path: Path) -> None:
    """A job that is claimed then would be admitted nowhere, and its lease lapse, until it counts as poison."""
    server = redis_server.start(tmp_path)
    try:
        bed = Bed(server.url)
        ledger = bed.ledger
        for job_id in "abcde":
            bed.enqueue(job_id)
        held = {job_id: bed.claimed(job_id, ttl_s=1).token for job_id in "abc"}
        bed.advance(1000)
        bed.client.config_set("maxmemory", 1)
        republished = partial(bed, ledger.republish("d", bed.now, 0))
        for begun in (partial(bed.enqueue, "f"), partial(bed.claimed, "d"), republished):
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                begun()
        assert bed(ledger.take_mutex("w", 2))
        assert bed.settle(held["a"], job_id="a").accepted
        assert bed(ledger.renew([("b", held["b"])], 30)) == [True]
        assert bed(ledger.park("b", held["b"], 0, "", {"event": "deferred"}))
        assert bed(ledger.wake("b"))
        assert bed(ledger.sweep("c", 3, 9)) == "queued"
        assert bed(ledger.watch("e", "inbox")) == "queued"
        assert bed(ledger.cancel("e", None)).accepted
    finally:
        server.stop()


@pytest.mark.parametrize(
    "refusal",
    [("CONFIG", "SET", "maxmemory", 1), ("REPLICAOF", "127.0.0.1", 1), ("CONFIG", "SET", "min-replicas-to-write", 1)],
    ids=["memory is full", "it is a replica", "its replicas are gone"],
)
async def test_a_redis_that_takes_no_writes_is_away_to_a_worker(tmp_path: Path, refusal: tuple[str | int, ...]) -> None:
    """So an answer that is paid for waits on disk, and a request that only a message holds in memory."""
    server = redis_server.start(tmp_path)
    try:
        async with connect_async(server.url) as client:
            await client.execute_command(*refusal)
            call = Coalescer(client, send_commands=fast_pipeline.send_commands)
            with pytest.raises(redis.ConnectionError, match="takes no writes"):
                await call(LEDGER.enqueue(new_job("a")))
    finally:
        server.stop()


@both_ways
async def test_a_failure_is_each_callers_own(exchange: SendCommands) -> None:
    """Celery clears the frames of a failed task's traceback, and so ends any coroutine that is suspended in one."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = unheard.getsockname()
        client = redis.asyncio.Redis(host=address[0], port=address[1], retry=Retry(NoBackoff(), 0))
        call, failed, go_on = Coalescer(client, send_commands=exchange), asyncio.Event(), asyncio.Event()

        async def survivor() -> str:
            try:
                await call(Operation(("PING",), bool))
            except redis.ConnectionError:
                failed.set()
                await go_on.wait()
            return "survived"

        async def victim() -> None:
            await call(Operation(("PING",), bool))

        surviving, dying = asyncio.create_task(survivor()), asyncio.create_task(victim())
        await failed.wait()
        with pytest.raises(redis.ConnectionError) as caught:
            await dying
        traceback.clear_frames(caught.tb)
        go_on.set()
        assert await asyncio.wait_for(surviving, 60) == "survived"
        await client.aclose()


@both_ways
async def test_replies_are_read_as_redis_py_reads_them(redis_url: str, exchange: SendCommands) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        await client.zadd("z", {"a": 1})
        commands = [("PING",), ("GET", "z"), ("ZRANGE", "z", 0, -1, "WITHSCORES"), ("HGETALL", "none")]
        pong, refused, scores, fields = await exchange(client, commands)
        assert isinstance(refused, redis.ResponseError)
        assert (pong, fields) == (True, {})
        assert scores == await client.execute_command(*commands[2])
        await client.delete("z")


@both_ways
async def test_of_a_redis_that_answers_too_late_nobody_reads_the_answer(redis_url: str, exchange: SendCommands) -> None:
    port = urlsplit(redis_url).port
    assert port is not None
    with between(port) as proxy:
        client = redis.asyncio.Redis.from_url(proxy.url, socket_timeout=20, retry=Retry(NoBackoff(), 0))
        assert await exchange(client, [("ECHO", "first")]) == [b"first"]
        proxy.part()
        (connection,) = client.connection_pool._available_connections
        connection.socket_timeout = 0.2  # for this one alone: the others have the time that a busy machine takes
        with pytest.raises(redis.TimeoutError):
            await exchange(client, [("ECHO", "late")])
        connection.socket_timeout = 20
        proxy.rejoin()
        assert await exchange(client, [("ECHO", "next")]) == [b"next"]
        await client.aclose()


@both_ways
def test_a_connection_that_was_just_closed_is_a_connection_error_under_uvloop_too(
    redis_url: str, exchange: SendCommands
) -> None:
    async def closed_under_a_writer() -> None:
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            call = Coalescer(client, send_commands=exchange)
            assert await call(Operation(("PING",), bool))
            client.connection_pool._available_connections[0]._writer.transport.abort()
            await asyncio.sleep(0)
            with pytest.raises(redis.ConnectionError):
                await call(Operation(("PING",), bool))
            assert await call(Operation(("PING",), bool)), "the next call has a new connection"

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(closed_under_a_writer())
