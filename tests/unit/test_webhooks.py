"""Webhooks: whom they may reach, and how they are signed."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import socket
from base64 import b64encode
from collections.abc import Awaitable
from typing import ClassVar

import pytest
import redis
import redis.asyncio
from tests.receiver import receiving

from turnout.ledger import Claimed, Coalescer, DueWebhook, Keyring, Ledger, NewJob, Operation, WebhookDelivery, run
from turnout.request import InferenceRequest, InferenceResponse
from turnout.result import JobResult, JobStatus, Problem
from turnout.webhook import BadSignature, signed, verified
from turnout_workers.background import tasks, webhooks
from turnout_workers.background.tasks import cancel_all
from turnout_workers.background.webhooks import Webhooks, message_id
from turnout_workers.config import ConfigError, Source, load
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.public_addresses import address_problem, is_public
from turnout_workers.providers.account import Secret

PROVIDER = '[providers.a]\nkind = "openai"\nbase_url = "https://a.example/v1"\nmodels = ["m"]\n'
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def current(**urls: str) -> CurrentConfig:
    """The configuration that has webhooks of these names, in a network of its own."""
    webhook = '[webhooks.{}]\nurl = "{}"\nsecret_env = "HOOK"\nprivate = true\n'
    text = PROVIDER + "".join(webhook.format(*one) for one in urls.items())
    return CurrentConfig(load(Source("a test", text), {"HOOK": SECRET}))


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "::1", "fd00::1", "fe80::1", "0.0.0.0", "100.64.0.1",
     "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::10.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::", "localhost"],
)  # fmt: skip
def test_inner_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


async def test_no_name_and_no_spelling_leads_to_an_inner_address() -> None:
    """For whatever it is looked up as is looked at when connecting."""
    called: list[str] = []

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.append("by somebody")
        writer.close()

    ended = JobResult(id="a", status=JobStatus.CANCELLED, settled_at=1.0)
    hosts = ("localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0", "[::1]", "[::ffff:127.0.0.1]")
    hosts += ("127\u30020.0\uff0e1", "\uff11\uff12\uff17.0.0.1")
    async with await asyncio.start_server(answer, "localhost", 0) as server, webhooks._session(public=True) as session:
        port = server.sockets[0].getsockname()[1]
        for host in hosts:
            assert await webhooks._post(session, f"http://{host}:{port}/", Secret(SECRET), ended) is not None
    assert not called


def test_a_public_address_is() -> None:
    assert is_public("93.184.216.34")
    assert is_public("2606:2800:220:1::1")
    assert is_public("64:ff9b::93.184.216.34"), "as networks of IPv6 alone see it"


@pytest.mark.parametrize(
    ("url", "private", "trouble"),
    [
        ("https://app.example.com/hook", False, None),
        ("http://app.example.com/hook", False, "https"),
        ("http://app.example.com/hook", True, None),
        ("https://10.0.0.1/hook", False, "private address"),
        ("https://[::1]/hook", False, "private address"),
        ("https://10.0.0.1/hook", True, None),
        ("https://localhost/hook", False, None),
    ],
)
def test_only_the_operator_can_allow_an_inner_address(url: str, private: bool, trouble: str | None) -> None:
    told = address_problem(url, private)
    assert told is None if trouble is None else trouble in (told or "")


def test_a_replayed_jobs_second_end_is_another_message() -> None:
    """Receivers drop what they have had under the same id."""
    first = JobResult(id="a", status=JobStatus.FAILED, error=Problem(code="c", message="m"), settled_at=1000.5)
    assert message_id(first) == message_id(first.model_copy())
    assert message_id(first) != message_id(first.model_copy(update={"settled_at": 1007.25}))


def test_the_signature_is_that_of_the_specifications_own_example() -> None:
    headers = signed(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_that_signs_nothing_names_its_variable_and_line() -> None:
    text = PROVIDER + '[webhooks.orders]\nurl = "https://app.example.com/"\nsecret_env = "HOOK"\n'
    with pytest.raises(ConfigError, match=r"t.toml:5: webhooks.orders: no signing secret in HOOK"):
        load(Source("t.toml", text), {"HOOK": "short"})
    assert SECRET not in repr(load(Source("t.toml", text), {"HOOK": SECRET}))


def test_what_was_signed_is_verified_and_nothing_else() -> None:
    body = b'{"type":"job.succeeded","data":{"id":"a"}}'
    headers = signed(SECRET, "msg_a", 1000, body)
    assert verified(headers, body, SECRET, now=1010)["data"]["id"] == "a"
    for changed, at, secret in [
        (body + b" ", 1010, SECRET),
        (body, 2000, SECRET),
        (body, 1010, "whsec_" + "c2VjcmV0" * 4),
    ]:
        with pytest.raises(BadSignature):
            verified(headers, changed, secret, now=at)
    with pytest.raises(BadSignature):
        verified({}, body, SECRET, now=1010)
    with pytest.raises(BadSignature, match="the secret"):
        verified(headers, body, "whsec_cut", now=1010)
    with pytest.raises(BadSignature, match="missing"):
        verified(headers, body, None, now=1010)
    for odd in ("webhook-id", "\udcff"), ("webhook-timestamp", "9" * 400), ("webhook-signature", "v1,ü v1,\udcff"):
        with pytest.raises(BadSignature):
            verified(dict(headers, **dict([odd])), body, SECRET, now=1010)
    assert verified({name.title(): value for name, value in headers.items()}, body, SECRET, now=1010)
    assert verified(headers, body, f"{SECRET}\n", now=1010), "as a file holds it"
    while_rotating = headers | {"webhook-signature": f"v1,b2xk {headers['webhook-signature']}"}
    assert verified(while_rotating, body, SECRET, now=1010)


async def test_a_name_that_cannot_be_looked_up_is_a_telling_that_failed_and_no_end_of_all() -> None:
    ended = JobResult(id="a", status=JobStatus.CANCELLED, settled_at=1.0)
    async with webhooks._session(public=False) as session:
        failure = await webhooks._post(session, "https://a..b", Secret(SECRET), ended)
    assert failure in ("UnicodeError", "UnicodeEncodeError")  # the latter since Python 3.13


async def test_one_that_is_slow_to_hear_or_of_another_release_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    told = asyncio.Event()

    class Hooks:
        """Of three jobs: each is due once the one before it is being told."""

        taken: ClassVar[list[str]] = []

        async def due_webhooks(self, limit: int) -> list[DueWebhook]:
            name = ("strange", "slow", "quick", "quick")[len(self.taken)]
            return [DueWebhook(name, "1", name)]

        async def result(self, job_id: str) -> None:
            if job_id == "strange":
                self.taken.append(job_id)
                JobResult.model_validate({"a_new_field": 1})

        async def take_webhook(self, due: DueWebhook, waits_s: object) -> WebhookDelivery | None:
            if due.job_id in self.taken:
                return None
            self.taken.append(due.job_id)
            return WebhookDelivery(due, 1, JobResult(id=due.job_id, status=JobStatus.CANCELLED, settled_at=1.0))

        async def end_webhook(self, due: DueWebhook, event: dict[str, str]) -> None:
            assert (due.job_id, event["event"]) == ("quick", "webhook_told")
            told.set()

    async def called(call: Awaitable[object]) -> object:
        return await call

    with socket.create_server(("127.0.0.1", 0)) as silent, receiving() as receiver:
        urls = {"slow": f"http://127.0.0.1:{silent.getsockname()[1]}", "quick": receiver.url}
        running = Webhooks(Hooks(), called, current(**urls))  # type: ignore[arg-type]
        task = asyncio.create_task(running.run())
        await asyncio.wait_for(told.wait(), 60)
        task.cancel()
        await asyncio.wait([task])


async def test_however_much_is_to_be_told_to_one_that_does_not_answer_others_are_told_at_once(
    flushed: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    monkeypatch.setattr(webhooks, "MAX_DELIVERIES", 3)
    ledger = Ledger()
    for number in range(20):
        id, webhook = f"job {number}", "quick" if number % 10 == 9 else "silent"
        run(flushed, [ledger.enqueue(NewJob.of(id, InferenceRequest(prompt="A?"), webhook=webhook))])
        run(flushed, [ledger.cancel(id, None)])
    with socket.create_server(("127.0.0.1", 0)) as silent, receiving() as receiver:
        urls = {"silent": f"http://127.0.0.1:{silent.getsockname()[1]}", "quick": receiver.url}
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            task = asyncio.create_task(Webhooks(ledger, Coalescer(client), current(**urls)).run())
            async with asyncio.timeout(60):
                while not (receiver.of("job 9") and receiver.of("job 19")):
                    await asyncio.sleep(0.01)
            silent_ones = (ledger.keys.job(f"job {number}") for number in range(20) if number % 10 != 9)
            tries = [flushed.hget(job, "hook_tries") for job in silent_ones]
            await cancel_all([task])
    assert tries.count(b"1") == 3, "at a time to one of them"


async def test_a_worker_without_the_key_takes_no_telling_from_those_who_have_it(
    flushed: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    looks, often = itertools.count(1), asyncio.Event()

    class Lacking(Ledger):
        def due_webhooks(self, limit: int) -> Operation[list[DueWebhook]]:
            if next(looks) == 5:
                often.set()
            return super().due_webhooks(limit)

    having = Ledger(keyring=Keyring.of({"TURNOUT_PAYLOAD_KEYS": f"k:{b64encode(bytes(32)).decode()}"}))
    job = NewJob.of("a", InferenceRequest(prompt="A?", metadata={"ticket": "7"}), webhook="app")
    run(flushed, [having.enqueue(job)])
    run(flushed, [having.cancel("a", None)])
    due = flushed.zrange(having.keys.webhooks, 0, -1)
    with receiving() as receiver:
        known = current(app=receiver.url)
        async with redis.asyncio.Redis.from_url(redis_url) as client:
            running = [asyncio.create_task(Webhooks(Lacking(), Coalescer(client), known).run())]
            await asyncio.wait_for(often.wait(), 60)
            assert flushed.zrange(having.keys.webhooks, 0, -1) == due
            assert len(caplog.records) == 1, "it says so once"
            running.append(asyncio.create_task(Webhooks(having, Coalescer(client), known).run()))
            async with asyncio.timeout(60):
                while not receiver.of("a"):
                    await asyncio.sleep(0.01)
            await cancel_all(running)


async def test_a_worker_that_has_not_read_of_a_webhook_yet_ends_no_telling(
    flushed: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    monkeypatch.setattr(webhooks, "RETRY_S", (0.05,) * 1000)
    ledger = Ledger()
    run(flushed, [ledger.enqueue(NewJob.of("a", InferenceRequest(prompt="A?"), webhook="new"))])
    run(flushed, [ledger.cancel("a", None)])
    with receiving() as receiver:
        known = current()
        async with redis.asyncio.Redis.from_url(redis_url) as client, asyncio.timeout(60):
            task = asyncio.create_task(Webhooks(ledger, Coalescer(client), known).run())
            while not flushed.hget(ledger.keys.job("a"), "hook_tries"):
                await asyncio.sleep(0.01)
            known.settings = current(new=receiver.url).settings
            while not receiver.of("a"):
                await asyncio.sleep(0.01)
            await cancel_all([task])


async def test_what_is_no_longer_kept_when_it_is_to_be_told_again_is_given_up_aloud(
    flushed: redis.Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    caplog.set_level(logging.WARNING, webhooks.__name__)
    ledger = Ledger()
    for id in ("expired", "forgotten"):
        run(flushed, [ledger.enqueue(NewJob.of(id, InferenceRequest(prompt="A?"), webhook="app"))])
        claim = run(flushed, [ledger.claim(id, "w", 60)])[0]
        assert isinstance(claim, Claimed)
        answer = InferenceResponse(text="A.", provider="p", model_requested="m", model_served="m")
        done = JobResult(id=id, status=JobStatus.SUCCEEDED, response=answer)
        run(flushed, [ledger.settle(claim.token, done, None, 60)])
        flushed.delete(ledger.keys.result(id))
    flushed.delete(ledger.keys.job("expired"))
    async with redis.asyncio.Redis.from_url(redis_url) as client, asyncio.timeout(60):
        task = asyncio.create_task(Webhooks(ledger, Coalescer(client), current()).run())
        while flushed.zcard(ledger.keys.webhooks):
            await asyncio.sleep(0.01)
        await cancel_all([task])
    why = "its result is no longer kept"
    assert sorted(caplog.messages) == [
        f"webhook app of job expired is given up: {why}",
        f"webhook app of job forgotten is given up: {why}",
    ]
    last = run(flushed, [ledger.story("forgotten")])[0][-1]
    assert (last["event"], last["why"]) == ("webhook_failed", why)
    assert not flushed.exists(ledger.keys.job("expired"))


async def test_a_redis_that_stays_away_is_told_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "EVERY_S", 0.01)
    monkeypatch.setattr(tasks, "ERROR_PAUSE_S", 0)
    asked, often = itertools.count(1), asyncio.Event()

    async def away(_call: object) -> None:
        if next(asked) == 3:
            often.set()
        raise redis.ConnectionError("away")

    running = Webhooks(Ledger(), away, current(ours="http://127.0.0.1:9"))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(running.run())
        await asyncio.wait_for(often.wait(), 60)
    await cancel_all([task])
    assert [record.getMessage() for record in caplog.records] == ["webhook delivery waits: away"]


@pytest.mark.parametrize("secret", ["", " ", "whsec_", "***", "whsec_***"])
def test_a_secret_that_was_left_out_or_masked_lets_nobody_in(secret: str) -> None:
    body = b'{"type":"job.succeeded","data":{"id":"a"}}'
    forged = b64encode(hmac.digest(b"", b"msg_a.1000." + body, "sha256")).decode()
    headers = {"webhook-id": "msg_a", "webhook-timestamp": "1000", "webhook-signature": f"v1,{forged}"}
    with pytest.raises(BadSignature, match="secret"):
        verified(headers, body, secret, now=1010)
