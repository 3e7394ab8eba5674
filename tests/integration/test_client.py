"""Producers' clients against a real worker process and a simulated fleet without latency."""

from __future__ import annotations

import asyncio
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar, get_origin, get_type_hints

import pytest
import redis
import redis.asyncio
from celery import Celery
from pydantic import BaseModel, ValidationError, create_model
from redis.asyncio import Connection
from tests import redis_server
from tests.tcp_proxy import between

from turnout import AsyncClient, AsyncJob, Cancelled, Client, Conflict, Failed, InferenceRequest, IntakeRefused, Job
from turnout.client import link, nonblocking
from turnout.client.blocking import _each
from turnout.client.link import LoopLink, ThreadLink
from turnout.client.submission import Options, job_id, new_job
from turnout.ledger import Keys, Ledger, Operation, run
from turnout.ledger.sending import MAX_BATCH
from turnout.messages import ResponseFormat
from turnout.request import InferenceResponse
from turnout_workers import local

Kind = type[Client] | type[AsyncClient]
EITHER = pytest.mark.parametrize("kind", [Client, AsyncClient])


@pytest.fixture
def client(here: local.Local) -> Iterator[Client]:
    with Client(here.redis_url) as client:
        yield client


def test_an_answer_comes_back(client: Client) -> None:
    job = client.submit("What is a turnout?", model="llama-3.3-70b", max_output_tokens=20)
    answer = job.wait(60)
    assert answer.text.startswith("[simulated by")
    assert answer.simulated
    assert job.status() == "succeeded"
    assert [event["event"] for event in job.events()] == ["queued", "claimed", "routed", "succeeded"]
    assert client.job(job.id).result() == job.result()
    assert not job.cancel(), "there is nothing left to cancel"


def test_an_answer_that_was_deleted_is_not_waited_for(client: Client, here: local.Local) -> None:
    job = client.submit("What is a turnout?", max_output_tokens=5)
    job.wait(60)
    with Celery(broker=here.redis_url, backend=here.redis_url, set_as_current=False) as app:
        app.AsyncResult(job.id).forget()
    assert job.status() == "succeeded"
    for ask in (job.result, job.wait):
        with pytest.raises(LookupError, match="its answer was deleted"):
            ask()


def test_the_same_key_and_content_are_one_job_and_other_content_a_conflict(client: Client) -> None:
    first = client.submit("A?", idempotency_key="order-1")
    assert client.submit("A?", idempotency_key="order-1").id == first.id
    with pytest.raises(Conflict):
        client.submit("B?", idempotency_key="order-1")
    with pytest.raises(Conflict) as conflict:
        client.submit_many([*"C" * 600, {"prompt": "B?", "idempotency_key": "order-1"}])
    assert conflict.value.__notes__ == ["It is requests[600]."]


def test_a_repeated_submit_many_gives_the_same_jobs(client: Client) -> None:
    first = client.submit_many(["A?", "B?", "A?"], idempotency_key="order-2")
    again = client.submit_many(["A?", "B?", "A?"], idempotency_key="order-2")
    assert [job.id for job in first] == [job.id for job in again]
    assert len({job.id for job in first}) == 3


def test_an_empty_key_is_refused_for_it_would_make_all_jobs_one(client: Client) -> None:
    with pytest.raises(IntakeRefused, match="the idempotency key is empty"):
        client.submit("A?", idempotency_key="")
    with pytest.raises(IntakeRefused, match="the idempotency key is empty"):
        client.submit_many(["A?"], idempotency_key="")


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["gunicorn", "uWSGI, in C"])
def test_a_fork_hears_of_its_jobs_by_itself_whatever_threads_its_parent_had(
    here: local.Local, monkeypatch: pytest.MonkeyPatch, fork: Callable[[], int]
) -> None:
    """As under gunicorn with `--preload`: the thread that listens stays behind in the parent."""
    monkeypatch.setattr(nonblocking, "RECHECK_S", 60)  # nobody asks by himself
    monkeypatch.setattr(link, "LINGER_S", 60)
    with Client(here.redis_url, "nobody-serves-this") as lonely, redis.Redis.from_url(here.redis_url) as admin:
        job = lonely.submit("A?")
        with pytest.raises(TimeoutError):
            job.wait(0.2)  # now a thread listens
        reach = lonely._core._link
        assert isinstance(reach, ThreadLink)
        with reach._lock:  # as that thread has it now and then
            if not (child := fork()):
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(60)
                try:
                    job.wait(60)
                except Cancelled:
                    os._exit(0)
                finally:
                    os._exit(1)
        ends_at = time.monotonic() + 60
        while len(channels := admin.pubsub_channels(reach.channel.removesuffix(str(os.getpid())) + "*")) < 2:
            assert time.monotonic() < ends_at
            time.sleep(0.05)
        assert [count for _, count in admin.pubsub_numsub(*channels)] == [1, 1], "nobody reads another's streams"
        assert job.cancel()
        assert os.waitpid(child, 0)[1] == 0


def test_one_request_for_many_and_what_is_none_among_many_are_refused(client: Client) -> None:
    for single in ("A?", {"prompt": "A?"}, InferenceRequest(prompt="A?")):
        with pytest.raises(TypeError, match="a single one, for submit"):
            client.submit_many(single)  # type: ignore[arg-type]
    for strange, kind in ((5, TypeError), ({"prompt": 5}, ValidationError)):
        with pytest.raises(kind) as told:
            client.submit_many(["A?", strange])  # type: ignore[list-item]
        assert told.value.__notes__ == ["It is requests[1]."]


def test_one_of_many_may_have_options_of_its_own(client: Client) -> None:
    asked = {"prompt": "A?", "idempotency_key": "order-4", "metadata": {"order": "4"}, "stream": True}
    job, other = client.submit_many([asked, "B?"], max_output_tokens=5, metadata=None)
    assert job.id == client.submit(asked, max_output_tokens=5).id
    assert len({one.id for one in client.as_completed([job, other], 60)}) == 2
    assert [one.result().metadata for one in (job, other)] == [{"order": "4"}, {}]


def test_every_field_of_a_request_is_an_option_that_a_type_checker_knows() -> None:
    beside = {"lane", "idempotency_key", "stream", "webhook", "response_model"}
    assert Options.__annotations__.keys() == InferenceRequest.model_fields.keys() | beside


def test_what_can_be_closed_before_its_end_is_so_for_a_type_checker_too() -> None:
    for begun in (Client.as_completed, Job.stream):
        assert get_origin(get_type_hints(begun)["return"]) is Generator
    for begun in (AsyncClient.as_completed, AsyncJob.stream):
        assert get_origin(get_type_hints(begun)["return"]) is AsyncGenerator


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lane": "urgent"}, "constraints.lane\n.*'interactive', 'standard' or 'batch'"),
        ({"constraints": "cheap"}, "constraints\n"),
        ({"constraints": {"onyl": ["groq"]}}, "constraints.onyl\n"),
        ({"webhook": {"url": "https://example.com"}}, "webhook\n"),
        ({"webhook": "\ud800"}, "webhook\n"),
        ({"stream": "perhaps"}, "stream\n"),
        ({"metadata": {"\ud800": "1"}}, "metadata\n.*lone surrogate"),
        ({"response_model": {"type": "object"}}, "response_model\n"),
        ({"response_model": create_model("Any"), "response_format": "json"}, "response_format\n"),
        ({"response_model": create_model("Any"), "response_format": {"type": "json_object"}}, "response_format\n"),
        ({"response_model": create_model("Any"), "response_format": {"json_schema": {}}}, "give one of the two"),
    ],
)
def test_an_option_that_can_not_be_is_named(options: Options, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        new_job("A?", **options)


def nested(levels: int) -> Any:
    return [nested(levels - 1)] if levels else 1


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ("x" * 1_000_001, r"has 1,000,\d+ characters of JSON, more than the 1,000,000 .*max_request_chars"),
        ("\ud800", "lone surrogate"),
        *(({"prompt": "B?", "extras": {"groq": {"x": nested(n)}}}, "nested so deeply") for n in (200, 240)),
    ],
)
def test_what_no_worker_could_read_is_refused_before_it_is_sent(client: Client, request_: Any, told: str) -> None:
    with pytest.raises(IntakeRefused, match=told) as refused:
        client.submit_many(["A?", request_], idempotency_key="order-3")
    assert refused.value.__notes__ == ["It is requests[1]."]
    with pytest.raises(LookupError):
        client.job(job_id("order-3\0" + "0")).status()


T = TypeVar("T")


class Ticket(BaseModel):
    urgent: bool
    topics: list[str]


def test_a_response_model_gives_a_validated_instance_to_any_process_that_has_the_id(client: Client) -> None:
    job = client.submit("Sort this ticket.", response_model=Ticket)
    job.wait(60)
    assert isinstance(client.job(job.id).wait(60).parsed(Ticket), Ticket)


def test_an_answer_that_does_not_fit_the_model_is_an_error_that_names_the_field() -> None:
    answer = InferenceResponse(text='{"urgent": true}', provider="p", model_requested="m", model_served="m")
    with pytest.raises(ValidationError, match="topics"):
        answer.parsed(Ticket)


class Closed(BaseModel, extra="forbid"):
    ticket: Ticket


@pytest.mark.parametrize("beside", [{"max_repairs": 0}, ResponseFormat(max_repairs=0)])
def test_a_format_beside_a_response_model_adds_to_it(beside: ResponseFormat | dict[str, int]) -> None:
    asked = InferenceRequest.model_validate_json(new_job("A?", response_model=Ticket, response_format=beside).payload)
    assert asked.response_format == ResponseFormat.of(Ticket).model_copy(update={"max_repairs": 0})


def test_strictness_is_asked_for_only_where_every_object_is_closed() -> None:
    assert not ResponseFormat.of(Ticket).is_strict
    assert not ResponseFormat.of(Closed).is_strict, "it holds an open one"
    assert ResponseFormat.of(create_model("Flat", __config__={"extra": "forbid"}, urgent=(bool, ...))).is_strict


def test_a_generic_models_name_is_one_that_providers_take() -> None:
    class Page(BaseModel, Generic[T]):
        items: list[T]

    assert ResponseFormat.of(Page[Ticket]).name == "Page_Ticket_"


def connections(admin: redis.Redis, name: str) -> int:
    return sum(client["name"] == name for client in admin.client_list())


def test_a_thousand_waits_share_one_connection(here: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(Keys("nobody-serves-this"))
    monkeypatch.setitem(link.LIMITS, "client_name", "many")
    with Client(here.redis_url, "nobody-serves-this") as lonely, redis.Redis.from_url(here.redis_url) as admin:
        jobs = lonely.submit_many(f"Question {n}?" for n in range(1000))

        def end_all() -> int:
            while not admin.hget(ledger.keys.job(jobs[-1].id), "watchers"):
                time.sleep(0.02)
            held = connections(admin, "many")
            run(admin, [ledger.cancel(job.id, None) for job in reversed(jobs)])
            return held

        with ThreadPoolExecutor(1) as thread:
            held = thread.submit(end_all)
            ended = list(lonely.as_completed(jobs, 60))
        assert {job.id for job in ended} == {job.id for job in jobs}
        assert held.result() == 2, "one listens, and one has submitted"


async def test_a_thousand_waits_and_readers_share_one_connection_of_an_async_client(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(link.LIMITS, "client_name", "amany")
    monkeypatch.setitem(link.LIMITS, "socket_timeout", 60)  # a slow machine takes seconds for them all
    with redis.Redis.from_url(here.redis_url) as admin:
        async with AsyncClient(here.redis_url, "nobody-serves-this") as lonely:
            jobs = await lonely.submit_many([f"Question {n}?" for n in range(1000)], stream=True)
            readers = [asyncio.create_task(read(job)) for job in jobs[:500]]
            waits = [asyncio.create_task(job.wait(60)) for job in jobs[500:]]
            while not await asyncio.to_thread(all_have, "watchers", admin, jobs):
                await asyncio.sleep(0.05)
            assert connections(admin, "amany") == 2, "one listens, and one carries all calls"
            await asyncio.gather(*(job.cancel() for job in jobs))
            ended = await asyncio.gather(*readers, *waits, return_exceptions=True)
    assert {type(one) for one in ended} == {Cancelled}


def all_have(field: str, admin: redis.Redis, jobs: Iterable[Job | AsyncJob]) -> bool:
    with admin.pipeline(transaction=False) as asked:
        for job in jobs:
            asked.hget(Keys("nobody-serves-this").job(job.id), field)
        return all(asked.execute())


async def read(job: AsyncJob) -> list[str]:
    return [piece async for piece in job.stream()]


def test_threads_that_read_streams_hold_no_connection(here: local.Local) -> None:
    with Client(here.redis_url, "nobody-serves-this") as lonely, ThreadPoolExecutor(150) as threads:
        jobs = lonely.submit_many([f"Question {n}?" for n in range(150)], stream=True)
        readers = [threads.submit(lambda job: list(job.stream()), job) for job in jobs]
        with redis.Redis.from_url(here.redis_url) as admin:
            while not all_have("readers", admin, jobs):
                time.sleep(0.05)
        assert all(job.cancel() for job in jobs), "the pool has connections left"
        assert {type(one.exception(60)) for one in readers} == {Cancelled}


def wait(job: Job | AsyncJob) -> None:
    asyncio.run(job.wait(60)) if isinstance(job, AsyncJob) else job.wait(60)  # type: ignore[arg-type]


def stream(job: Job | AsyncJob) -> None:
    asyncio.run(read(job)) if isinstance(job, AsyncJob) else list(job.stream())


Read = Callable[[Job | AsyncJob], None]
READ = pytest.mark.parametrize("read", [wait, stream])


@EITHER
def test_a_wait_where_redis_is_away_says_so_at_once(kind: Kind, port: int) -> None:
    with pytest.raises(redis.ConnectionError):
        wait(kind(f"redis://127.0.0.1:{port}").job("a"))


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis_server.Server]:
    """A Redis that a test may harm, of which waits ask again at once."""
    monkeypatch.setattr(nonblocking, "RECHECK_S", 0.05)
    server = redis_server.start(tmp_path)
    yield server
    server.stop()


@EITHER
@READ
def test_a_wait_outlasts_a_restart_of_redis(
    own_server: redis_server.Server, monkeypatch: pytest.MonkeyPatch, kind: Kind, read: Read
) -> None:
    server, admin = own_server, redis.Redis.from_url(own_server.url)
    with admin, Client(server.url) as client, ThreadPoolExecutor(1) as thread:
        job = client.submit("A?", stream=True)
        reading = thread.submit(read, kind(server.url).job(job.id))
        while admin.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0) < 4:
            time.sleep(0.02)  # until it has asked again, after the first time
        server.on_disk()
        server.kill()
        with pytest.raises(redis.ConnectionError):
            client.submit("B?")
        time.sleep(0.3)  # for some asking in vain
        assert not reading.done()
        server.restart()
        assert job.cancel()
        assert type(reading.exception(60)) is Cancelled
        monkeypatch.setattr(link, "AWAY_S", 0.2)
        reading = thread.submit(read, kind(server.url).job(client.submit("A?").id))
        while not admin.pubsub_channels(Keys().inbox("*")):
            time.sleep(0.02)
        server.kill()
        assert type(reading.exception(60)) is redis.ConnectionError


@EITHER
@READ
def test_a_redis_that_takes_no_writes_refuses_new_jobs_and_is_waited_for(
    own_server: redis_server.Server, kind: Kind, read: Read
) -> None:
    server, admin = own_server, redis.Redis.from_url(own_server.url)

    def refused() -> int:
        return int(admin.info("errorstats").get("errorstat_NOREPLICAS", {}).get("count", 0))

    with admin, Client(server.url) as client, ThreadPoolExecutor(1) as thread:
        job = client.submit("A?", stream=True)
        admin.config_set("min-replicas-to-write", 1)
        with pytest.raises(IntakeRefused, match=r"takes no writes now .*NOREPLICAS") as told:
            client.submit("B?")
        assert told.value.retryable
        admin.config_set("min-replicas-to-write", 0)
        reading = thread.submit(read, kind(server.url).job(job.id))
        while not admin.pubsub_channels(Keys().inbox("*")) or not admin.hget(Keys().job(job.id), "watchers"):
            time.sleep(0.02)
        admin.config_set("min-replicas-to-write", 1)
        before = refused()
        while refused() < before + 2 and not reading.done():
            time.sleep(0.02)
        assert not reading.done()
        admin.config_set("min-replicas-to-write", 0)
        assert job.cancel()
        assert type(reading.exception(60)) is Cancelled


@EITHER
@READ
def test_a_redis_that_goes_away_at_any_moment_of_a_wait_is_waited_for(
    client: Client, here: local.Local, monkeypatch: pytest.MonkeyPatch, kind: Kind, read: Read
) -> None:
    monkeypatch.setattr(nonblocking, "RECHECK_S", 0.01)
    job = client.submit("A?", stream=True)
    job.wait(60)
    for lost in range(2, 5):
        waiting = kind(here.redis_url).job(job.id)
        reach = (waiting._core if isinstance(waiting, Job) else waiting)._client._link
        ask, asked = reach.ask, count(1)

        async def fragile(
            *calls: Operation[Any], ask: Any = ask, asked: Iterator[int] = asked, lost: int = lost
        ) -> Any:
            if next(asked) == lost:
                raise redis.ConnectionError("away for a moment")
            return await ask(*calls)

        monkeypatch.setattr(reach, "ask", fragile)
        read(waiting)


@contextmanager
def silent(server: redis_server.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs, Redis answers nothing. The block is to be over before it could have its limit twice."""
    limit_s = 3.5  # and so much more is a stall
    monkeypatch.setitem(link.LIMITS, "socket_timeout", limit_s)
    server.proc.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    try:
        yield
        assert time.monotonic() - began < 2 * limit_s
    finally:
        server.proc.send_signal(signal.SIGCONT)


@EITHER
def test_a_wait_gives_a_silent_redis_its_limit_once(
    own_server: redis_server.Server, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    with Client(own_server.url) as client:
        job = client.submit("A?")
    with silent(own_server, monkeypatch), pytest.raises(redis.TimeoutError):
        wait(kind(own_server.url).job(job.id))


async def test_however_many_coroutines_ask_at_once_a_silent_redis_has_its_limit_once(
    own_server: redis_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was never sent is no job later."""
    with silent(own_server, monkeypatch):
        async with AsyncClient(own_server.url) as client:
            asked = (client.submit("A?") for _ in range(3 * MAX_BATCH))
            told = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in told} == {redis.TimeoutError}
    async with AsyncClient(own_server.url) as client, redis.asyncio.Redis.from_url(own_server.url) as admin:
        await client.submit("B?")
        assert int(await admin.hget(Keys().counts, "accepted")) <= MAX_BATCH + 1


def test_however_many_threads_ask_at_once_a_silent_redis_has_its_limit_once(
    own_server: redis_server.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 3 * link.CONNECTIONS
    with ThreadPoolExecutor(count) as threads:
        with silent(own_server, monkeypatch):
            client = Client(own_server.url)
            told = [each.exception() for each in [threads.submit(client.submit, "A?") for _ in range(count)]]
        assert {type(one) for one in told} == {redis.TimeoutError}
        assert client.submit("B?")
        client.close()


class Cut(BaseException):
    """As out of a signal's handler: a time limit of Celery's or pytest's, Ctrl-C."""


def cut_short(call: Callable[[], Any], lines: int) -> bool:
    """Raise Cut once so many lines of redis-py or of ours have run; False: there were no more."""

    def trace(frame: FrameType, *_: object) -> Any:
        nonlocal lines
        if not {"redis", "turnout"} & {*Path(frame.f_code.co_filename).parts}:
            return None
        lines -= 1
        if lines < 0:
            sys.settrace(None)
            raise Cut
        return trace

    with suppress(Cut):
        sys.settrace(trace)
        call()
        sys.settrace(None)
    return lines < 0


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("connected", [True, False])
def test_an_exception_at_any_moment_leaves_no_reply_to_the_next_call_and_keeps_no_connection(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, connected: bool
) -> None:
    monkeypatch.setattr(link, "CONNECTIONS", 1)
    with Client(redis_url) as usual:
        waits, ended = (usual.submit("A?") for _ in range(2))
        ended.cancel()
        lines = 0
        while True:
            with nullcontext(usual) if connected else Client(redis_url) as client:
                if not cut_short(client.job(waits.id).status, lines):
                    break
                asked = (client.job(ended.id).status(), client.job(waits.id).status())
                assert asked == ("cancelled", "queued"), f"after {lines} lines"
                lines += 1 if connected else 31  # a greeting has thousands
        assert lines > 100


@EITHER
@READ
def test_what_was_said_while_nobody_could_hear_it_is_asked_for_as_soon_as_one_listens_again(
    own_server: redis_server.Server, monkeypatch: pytest.MonkeyPatch, kind: Kind, read: Read
) -> None:
    monkeypatch.setattr(nonblocking, "RECHECK_S", 600)
    ledger = Ledger(Keys())
    admin = redis.Redis.from_url(own_server.url)
    with admin, Client(own_server.url) as client, ThreadPoolExecutor(1) as thread:
        job = client.submit("A?", stream=True)
        reading = thread.submit(read, kind(own_server.url).job(job.id))
        while not admin.pubsub_channels(Keys().inbox("*")) or not admin.hget(Keys().job(job.id), "watchers"):
            time.sleep(0.02)
        cut: Operation[Any] = Operation(("CLIENT", "KILL", "TYPE", "pubsub"), int)
        run(admin, [cut, ledger.cancel(job.id, None)])
        assert type(reading.exception(60)) is Cancelled


@EITHER
def test_a_client_that_was_closed_says_so(here: local.Local, kind: Kind) -> None:
    async def used() -> None:
        async with AsyncClient(here.redis_url) as client:
            job = await client.submit("A?")
        await client.aclose()
        for ask in (client.submit("B?"), job.wait(), job.status(), read(job)):
            with pytest.raises(RuntimeError, match="this client is closed"):
                await ask

    def used_blocking() -> None:
        with Client(here.redis_url) as client:
            job = client.submit("A?")
        client.close()
        for ask in (lambda: client.submit("B?"), job.wait, job.status, lambda: list(job.stream())):
            with pytest.raises(RuntimeError, match="this client is closed"):
                ask()

    used_blocking() if kind is Client else asyncio.run(used())


@EITHER
async def test_a_job_is_cancelled_though_the_word_of_it_was_lost(redis_server: redis_server.Server, kind: Kind) -> None:
    """A client asks once more where no reply came, and then the job is cancelled already."""
    with between(redis_server.port) as proxy, Client(proxy.url) as client:
        assert client.submit("Q?").cancel(), "and Redis knows the script"
        job = client.submit("A?")
        proxy.cut_replies(Ledger().cancel(job.id, None).script.sha.encode(), times=1)
        if kind is Client:
            assert job.cancel()
        else:
            async with AsyncClient(proxy.url) as other:
                assert await other.job(job.id).cancel()
        assert proxy.cut == 1
        assert job.status() == "cancelled"


def test_clients_and_jobs_are_not_to_be_copied_to_another_process_used_or_not(redis_url: str) -> None:
    unused, other = Client(redis_url), AsyncClient(redis_url)
    with Client(redis_url) as used:
        for one in (unused, unused.job("a"), used, used.submit("A?"), other, other.job("a")):
            with pytest.raises(TypeError, match=r"pass job\.id on"):
                pickle.dumps(one)


def test_a_jobs_id_is_a_text(client: Client) -> None:
    for strange in (None, 5, b"a"):
        with pytest.raises(TypeError, match="a job's id must be a string, not "):
            client.job(strange)  # type: ignore[arg-type]


async def test_listening_ends_though_its_cancellation_is_lost_while_it_begins(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Connection._send_packed_command

    async def send_and_cancel(self: Connection, command: Iterable[bytes]) -> None:
        await send(self, command)
        if b"SUBSCRIBE" in b"".join(command):
            (task,) = (each for each in asyncio.all_tasks() if each.get_coro() is listening)
            asyncio.get_running_loop().call_soon(task.cancel)

    monkeypatch.setattr(Connection, "_send_packed_command", send_and_cancel)
    reach = LoopLink(here.redis_url, "a-channel")
    listening = reach._listen()
    done, _ = await asyncio.wait({asyncio.create_task(listening)}, timeout=60)
    assert done


async def test_a_connection_that_uvloop_finds_closed_is_one_to_be_opened_again(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, closed = Connection._send_packed_command, ["handler is closed"]

    async def send_unless_closed(self: Connection, command: Iterable[bytes]) -> None:
        if closed and b"SUBSCRIBE" in b"".join(command):
            raise RuntimeError(closed.pop())
        await send(self, command)

    monkeypatch.setattr(Connection, "_send_packed_command", send_unless_closed)
    monkeypatch.setattr(nonblocking, "RECHECK_S", 0.5)  # the job's end may be told before it is opened again
    async with AsyncClient(here.redis_url) as client:
        assert (await asyncio.wait_for((await client.submit("A?")).wait(), 60)).text
    assert not closed


def test_a_client_that_nobody_waits_with_any_more_holds_no_thread_nor_itself(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "LINGER_S", 0.1)
    client = Client(here.redis_url)
    client.submit("A?", max_output_tokens=5).wait(60)
    gone = threading.Event()
    weakref.finalize(client._core._link, gone.set)
    del client
    assert gone.wait(60)


def test_a_wait_that_got_no_thread_leaves_the_next_one_to_be_told(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(nonblocking, "RECHECK_S", 600)
    with Client(here.redis_url, "nobody-serves-this") as lonely, redis.Redis.from_url(here.redis_url) as admin:
        job = lonely.submit("A?")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", none_left)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                job.wait(60)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(job.wait, 60)
            while not waiting.done() and not admin.pubsub_channels(lonely._core._link.channel):
                time.sleep(0.02)
            assert job.cancel()
            assert type(waiting.exception()) is Cancelled


async def test_a_channel_on_which_nothing_is_said_stays_open_for_longer_than_an_answer_may_take(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(link.LIMITS, "socket_timeout", 0.2)
    async with AsyncClient(here.redis_url, "nobody-serves-this") as lonely, lonely._link.listening(["a"]) as heard:
        assert await heard.wait(60) == [link.RESUBSCRIBED]
        assert await heard.wait(1) == [], "as when it is opened again"


def test_a_blocking_stream_outlives_a_loop_in_which_it_was_begun() -> None:
    async def pieces() -> AsyncGenerator[str, None]:
        for piece in ("A", "B"):
            yield piece

    async def begun() -> Iterator[str]:
        stream = _each(pieces())
        assert next(stream) == "A"
        return stream

    assert list(asyncio.run(begun())) == ["B"]


def test_an_async_client_in_another_loop_says_so(here: local.Local) -> None:
    client = AsyncClient(here.redis_url)

    async def asked() -> str:
        return (await (await client.submit("A?", max_output_tokens=5)).wait(60)).text

    with asyncio.Runner() as runner:
        runner.run(asked())
        for elsewhere in (asked, client.aclose):
            with pytest.raises(RuntimeError, match="belongs to another event loop: open one in each"):
                asyncio.run(elsewhere())
        assert runner.run(asked())
        runner.run(client.aclose())


def test_a_wait_refused_in_another_loop_leaves_those_of_its_own_to_be_told(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonblocking, "RECHECK_S", 600)
    client = AsyncClient(here.redis_url, "nobody-serves-this")

    async def told(job: AsyncJob) -> None:
        waiting = asyncio.create_task(job.wait(60))
        async with redis.asyncio.Redis.from_url(here.redis_url) as admin:
            while not await admin.pubsub_channels(client._link.channel) and not waiting.done():
                await asyncio.sleep(0.02)
        assert await job.cancel()
        with pytest.raises(Cancelled):
            await waiting

    with asyncio.Runner() as own, asyncio.Runner() as other:
        job = own.run(client.submit("A?"))
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            other.run(job.wait())
        own.run(told(job))
        own.run(client.aclose())


async def test_the_async_client_awaits_jobs(here: local.Local) -> None:
    async with AsyncClient(here.redis_url) as client:
        jobs = await client.submit_many([f"Question {n}?" for n in range(50)], max_output_tokens=5)
        answers = await asyncio.gather(*jobs)
        assert len(answers) == 50
        assert {await job.status() for job in jobs} == {"succeeded"}
        assert await client.purge(jobs) >= 50


def test_an_unknown_job_says_so_whatever_it_is_asked(client: Client) -> None:
    for job in map(client.job, ("nope", "\ud800")):
        for ask in (job.wait, job.status, job.result, job.events, job.cancel, lambda job=job: list(job.stream())):
            with pytest.raises(LookupError, match="never existed"):
                ask()
    assert client.purge(["nope", "\ud800"]) == 0


def test_an_unknown_job_keeps_none_of_the_others_back(client: Client) -> None:
    unknown, job = client.job("nope"), client.submit("A?", max_output_tokens=5)
    assert list(client.as_completed([unknown, job], 60)) == [unknown, job]


def test_each_of_two_that_are_one_job_comes_when_it_has_ended(client: Client, here: local.Local) -> None:
    """As of two orders that are alike, under one idempotency key."""
    jobs = [client.submit("A?", max_output_tokens=5, idempotency_key="alike") for _ in range(2)]
    assert [*client.as_completed(jobs, 60)] == jobs

    async def awaited() -> None:
        async with AsyncClient(here.redis_url) as other:
            known = [other.job(job.id) for job in jobs]
            assert [job async for job in other.as_completed(known, 60)] == known

    asyncio.run(awaited())


def test_jobs_may_be_given_as_they_come_and_one_to_be_purged_by_its_id(client: Client) -> None:
    jobs = client.submit_many(["A?", "B?", "C?"], max_output_tokens=5)
    assert {job.id for job in client.as_completed((job for job in jobs), 60)} == {job.id for job in jobs}
    assert client.purge(jobs[0].id) == 1
    assert client.purge(job for job in jobs) == 2


def test_a_wait_that_takes_too_long_ends_and_says_whether_a_worker_is_there(here: local.Local) -> None:
    with Client(here.redis_url, "nobody-serves-this") as lonely, redis.Redis.from_url(here.redis_url) as direct:
        job = lonely.submit("A?")
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=r"1 of 1 jobs had not ended after 0\.3 s; no .* nobody-serves-this"):
            job.wait(0.3)
        assert time.monotonic() - began < 20
        run(direct, [Ledger(Keys("nobody-serves-this")).alive("w", "v", slots=1, silence_s=60, results_s=60)])
        with pytest.raises(TimeoutError, match="they go on"):
            job.wait(0)


def test_clients_are_of_the_namespace_that_the_environment_gives_their_workers(
    here: local.Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_NAMESPACE", "shop")
    with Client(here.redis_url) as ours, Client(here.redis_url, "shop") as named:
        assert named.job(ours.submit("A?").id).status() == "queued"


@EITHER
@pytest.mark.parametrize("namespace", ["prod ", "prod\n", "a{b", "x" * 65])
def test_a_namespace_in_which_no_worker_can_be_is_refused(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, namespace: str
) -> None:
    with pytest.raises(ValueError, match=r"^namespace must be 1 to 64 "):
        kind(namespace=namespace)
    monkeypatch.setenv("TURNOUT_NAMESPACE", namespace)
    with pytest.raises(ValueError, match=r"^TURNOUT_NAMESPACE must be 1 to 64 "):
        kind()


@pytest.mark.parametrize(
    ("args", "kwargs", "told"),
    [
        ([], {"request": {"promt": "A?"}}, "promt: "),
        ([], {"requests": {"prompt": "A?"}}, "requests: "),
        ([], {}, "got none"),
        ([], {"request": None}, "valid dictionary"),
        ([], {"request": {"prompt": "\ud800"}}, "lone surrogate"),
        ([], {"request": {"prompt": "A?", "metadata": {"\ud800": "1"}}}, "lone surrogate"),
        ([], {"request": {"prompt": "A?"}, "constraints": {"only": ["nobody"]}}, "only nobody may be used"),
        (["A?"], {"constraints": {"only": ["nobody"]}}, "only nobody may be used"),
        (["A?"], {"webhook": "app"}, "webhook: unknown field"),
        (["A?", {"only": ["nobody"]}], {}, "valid dictionary"),
    ],
)
def test_what_a_plain_celery_app_asks_amiss_fails_its_task(
    here: local.Local, args: list[Any], kwargs: dict[str, Any], told: str
) -> None:
    app = Celery(broker=here.redis_url, backend=here.redis_url)
    sent = app.send_task("turnout.infer", args, kwargs, queue="standard")
    with pytest.raises(Exception, match=told):
        sent.get(timeout=60)


def test_a_plain_celery_apps_id_that_would_break_lines_is_refused(here: local.Local) -> None:
    app = Celery(broker=here.redis_url, backend=here.redis_url)
    sent = app.send_task("turnout.infer", ["A?"], task_id="two\nlines", queue="standard")
    with pytest.raises(Failed, match="task_id"):
        sent.get(timeout=60)
