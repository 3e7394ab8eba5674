"""Webhooks from a real worker to a real HTTP server, which is not always well."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from tests.chaos.stand import Stand
from tests.receiver import KEY, Receiver

from turnout import Client, JobResult
from turnout_workers.background import webhooks


def events(client: Client, job_id: str) -> list[str]:
    return [event["event"] for event in client.job(job_id).events()]


def due_in_s(stand: Stand, job_id: str) -> float:
    """When a job is to be told again; 0: never."""
    hook = stand.client.hget(stand.ledger.keys.job(job_id), "hook")
    return float(hook.split(b" ")[1]) / 1000 - stand.client.time()[0] if hook else 0.0


def make_due(stand: Stand, job_id: str) -> None:
    job, hooks = stand.ledger.keys.job(job_id), stand.ledger.keys.webhooks
    later = stand.client.hget(job, "hook")
    webhook, _, id = later.split(b" ", 2)
    now = b"%b %d %b" % (webhook, stand.client.time()[0] * 1000, id)
    stand.client.pipeline().hset(job, "hook", now).zrem(hooks, later).zadd(hooks, {now: 0}).execute()


def test_a_settled_job_is_told_once_and_signed(stand: Stand, receiver: Receiver, client: Client) -> None:
    job = client.submit("Say yes.", model="llama-3.3-70b", webhook="app", metadata={"ticket": "7"})
    stand.until(lambda: "webhook_told" in events(client, job.id), 20)
    [(headers, body)] = receiver.of(job.id)
    signing = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = base64.b64encode(hmac.digest(KEY, signing, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{digest}"
    told = json.loads(body)
    assert (told["type"], told["data"]["id"]) == ("job.succeeded", job.id)
    assert JobResult.model_validate(told["data"]) == job.result()
    assert told["data"]["response"]["text"] == job.wait(5).text
    assert told["data"]["metadata"] == {"ticket": "7"}


def test_it_is_told_again_until_it_is_heard(
    stand: Stand, receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.statuses = [500]
    job = client.submit("Say yes.", model="llama-3.3-70b", webhook="app")
    stand.until(lambda: len(receiver.of(job.id)) == 1, 20)
    stand.until(lambda: due_in_s(stand, job.id) > 1, 10)
    make_due(stand, job.id)  # the wait of 30 s is over
    stand.until(lambda: "webhook_told" in events(client, job.id), 20)
    assert len(receiver.of(job.id)) == 2


def test_what_is_never_heard_is_given_up_and_stays_in_the_story(
    stand: Stand, receiver: Receiver, client: Client
) -> None:
    tries = len(webhooks.RETRY_S) + 1
    receiver.statuses = [503] * tries
    job = client.submit("Say yes.", model="llama-3.3-70b", webhook="app")

    def hurry() -> None:
        begun = int(stand.client.hget(stand.ledger.keys.job(job.id), "hook_tries") or 0)
        # Of one begun, the receiver may not have heard yet; and the last one ends by itself.
        if begun == len(receiver.of(job.id)) < tries and due_in_s(stand, job.id) > 1:
            make_due(stand, job.id)

    stand.until(lambda: "webhook_failed" in events(client, job.id), 60, hurry)
    assert len(receiver.of(job.id)) == tries
    assert job.wait(5).text


def test_who_answers_that_it_is_gone_is_told_once(stand: Stand, receiver: Receiver, client: Client) -> None:
    receiver.statuses = [410]
    job = client.submit("Say yes.", model="llama-3.3-70b", webhook="app")
    stand.until(lambda: "webhook_failed" in events(client, job.id), 20)
    assert len(receiver.of(job.id)) == 1


def test_a_cancelled_job_is_told_too(stand: Stand, receiver: Receiver, client: Client) -> None:
    stand.fail("sim", kind="hang", for_requests=1)
    job = client.submit("Say yes.", model="llama-3.3-70b", webhook="app")
    stand.until(lambda: job.status() == "calling", 10)
    job.cancel()
    stand.until(lambda: len(receiver.of(job.id)) == 1, 20)
    assert json.loads(receiver.of(job.id)[0][1])["type"] == "job.cancelled"


def test_a_job_whose_webhook_is_not_configured_yet_is_done_and_tells_of_it_later(stand: Stand, client: Client) -> None:
    job = client.submit("Say yes.", model="llama-3.3-70b", webhook="elsewhere")
    assert job.wait(20).text
    key = stand.ledger.keys
    stand.until(lambda: stand.client.hget(key.job(job.id), "hook_tries") == b"1", 10)
    assert due_in_s(stand, job.id) > 1
