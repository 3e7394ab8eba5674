"""Task events as Flower receives them: many in a message, and none left behind by a worker that stops."""

from __future__ import annotations

import base64
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from celery import Celery
from tests.chaos.events import listening
from tests.chaos.fleet import one_provider
from tests.chaos.stand import standing
from tests.redis_server import Server
from tests.tcp_proxy import between

from turnout.ledger import run
from turnout_workers.celery_app import celery_app, celery_settings
from turnout_workers.consumer import PatientConsumer
from turnout_workers.monitoring.events import SLOW_S, Dispatcher, Events

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = 0.05
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }
[providers.sim-weak]
models."llama-3.3-70b" = { input_usd_per_mtok = 0.01, output_usd_per_mtok = 0.01 }
faults = [{ kind = "error", status = 504, for_requests = 3 }]
"""
IDS = [f"job-{n}" for n in range(300)]


def task_events(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Those in one published message."""
    body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    events = body if isinstance(body, list) else [body]
    return [event for event in events if event["type"].startswith("task-")]


def test_events_are_published_in_batches_and_the_last_of_them_before_a_worker_ends(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=50) as stand:
        stand.config.write_text(stand.config.read_text().replace("task_events = false", "task_events = true"))
        with redis.Redis.from_url(stand.redis.url) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
            heard.psubscribe("*celeryev*")
            heard.get_message(timeout=60)  # the subscription's own
            worker = stand.start_worker()
            stand.submit(IDS, constraints={"strategy": "cost"})
            stand.until(lambda: stand.settled() == len(IDS))
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
            client.publish("the end of celeryev", "")
            batches = []
            while (message := heard.get_message(timeout=60)) and message["data"]:
                batches.append(task_events(message))
    told = [event for batch in batches for event in batch]
    for kind in ("task-received", "task-succeeded"):
        assert {event["uuid"] for event in told if event["type"] == kind} == set(IDS)
    assert len(told) >= 10 * len([batch for batch in batches if batch])
    moved = [event for event in told if event["type"] == "task-retried"]
    assert any(event["exception"].endswith("failed (timed_out); moving to another endpoint") for event in moved), moved
    assert not any(event["traceback"] for event in moved), "to move on is no error"


def test_events_are_told_also_after_the_connection_was_lost(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, task_events=True) as stand, listening(stand.redis.url) as heard:
        stand.start_worker()
        stand.client.client_kill_filter(_type="normal", skipme=True)
        for name in ("first", "second"):
            stand.submit([name], constraints={"only": ["sim"]})
            stand.until(lambda name=name: name in heard.state.tasks and heard.state.tasks[name].state == "SUCCESS")


def test_a_silent_redis_holds_the_worker_up_once_and_what_was_to_be_told_is_kept(redis_server: Server) -> None:
    """Celery itself knows no limit, and tries to tell of its heartbeat until it succeeds: it couldn't be stopped."""
    with between(redis_server.port) as proxy:
        app, silent_s = Celery(events=Events), SLOW_S + 0.2
        app.conf.update(celery_settings(proxy.url))
        app.conf.broker_transport_options |= {"socket_timeout": silent_s}  # of a worker's three seconds
        with app.connection_for_write() as connection:
            dispatcher = app.events.Dispatcher(connection, buffer_group=["task"])
            dispatcher.send("task-started", uuid="a")
            proxy.part()
            try:
                began = time.monotonic()
                for _ in range(20):
                    dispatcher.send("worker-heartbeat", retry=True)
                assert time.monotonic() - began < 20 * silent_s
                dispatcher.close()
            finally:
                proxy.rejoin()
            kept = [key for _, key in dispatcher._outbound_buffer]
            assert kept == ["worker.heartbeat"] * 20 + ["task.multi"]
            connection.collect()


class Hub:
    """A worker's loop, whose time the test moves."""

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []

    def call_later(self, _seconds: float, call: Callable[[], None]) -> None:
        self.later.append(call)


class Away:
    """A producer that has lost its Redis."""

    def publish(self, *_: Any, **__: Any) -> None:
        raise redis.ConnectionError("away")


def test_what_could_not_be_told_is_told_though_nothing_else_happens(redis_server: Server) -> None:
    consumer, hub, app = object.__new__(PatientConsumer), Hub(), celery_app(redis_server.url, events=Events)
    consumer.hub = hub
    with app.connection_for_write() as connection, listening(redis_server.url) as heard:
        dispatcher: Dispatcher = app.events.Dispatcher(
            connection, buffer_group=["task"], on_send_buffered=consumer.on_send_event_buffered
        )
        consumer.event_dispatcher = dispatcher
        there, dispatcher.producer = dispatcher.producer, Away()
        dispatcher.send("task-started", uuid="a")
        for _ in range(3):
            hub.later.pop()()
        for _ in range(3):
            consumer.publish_events()  # as the pool does whenever a job has moved
        assert len(hub.later) == 1
        dispatcher.producer = there
        assert not heard.state.tasks
        hub.later.pop()()
        assert not hub.later, "nothing is left to be told"
        dispatcher.close()
    assert heard.state.tasks["a"].state == "STARTED"


ONE_AT_A_TIME = one_provider(ttft_s=60.0, concurrency=1)


def test_every_end_is_told_also_of_a_job_that_no_worker_has(tmp_path: Path) -> None:
    with standing(tmp_path, ONE_AT_A_TIME, task_events=True) as stand, listening(stand.redis.url) as heard:

        def cancel(*job_ids: str) -> None:
            run(stand.client, [stand.ledger.cancel(job_id, None) for job_id in job_ids])

        stand.submit(["queued"])
        cancel("queued")
        stand.start_worker()
        stand.submit(["called"])
        stand.until(lambda: stand.outcomes(["called"]) == {"calling": 1})
        stand.submit(["late"], constraints={"deadline_s": 3.0})
        stand.submit(["parked"])
        stand.until(lambda: stand.outcomes(["parked"]) == {"delayed": 1})
        cancel("called", "parked")
        due = {"queued": "REVOKED", "called": "REVOKED", "parked": "REVOKED", "late": "FAILURE"}
        stand.until(lambda: {name: task.state for name, task in heard.state.tasks.items()} == due)
