"""Task events as Flower receives them: many in a message, and none left behind by a worker that stops."""

from __future__ import annotations

import base64
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import redis
from tests.chaos.stand import standing

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = 0.05
models."llama-3.3-70b" = { price = { input = 0.1, output = 0.1 } }
"""
IDS = [f"job-{n}" for n in range(300)]


def task_events(message: dict[str, Any]) -> list[tuple[str, str]]:
    """Type and job of each event in one published message."""
    body = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    events = body if isinstance(body, list) else [body]
    return [(event["type"], event["uuid"]) for event in events if event["type"].startswith("task-")]


def test_events_are_published_in_batches_and_the_last_of_them_before_a_worker_ends(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=50) as stand:
        stand.config.write_text(stand.config.read_text().replace("task_events = false", "task_events = true"))
        with redis.Redis.from_url(stand.redis.url) as client, client.pubsub(ignore_subscribe_messages=True) as heard:
            heard.psubscribe("*celeryev*")
            heard.get_message(timeout=5)  # the subscription's own
            worker = stand.start_worker()
            stand.submit(IDS)
            stand.until(lambda: stand.settled() == len(IDS), 30)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(20) == 0
            batches = []
            while (message := heard.get_message(timeout=0.5)) is not None:
                batches.append(task_events(message))
    told = Counter(event for batch in batches for event in batch)
    for kind in ("task-received", "task-succeeded"):
        assert {job for type, job in told if type == kind} == set(IDS)
    assert sum(told.values()) >= 10 * len([batch for batch in batches if batch])
