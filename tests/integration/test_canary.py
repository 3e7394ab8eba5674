"""No prompt, no answer and no key where they don't belong, after a run with failures and with everything watching."""

from __future__ import annotations

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.chaos.stand import standing

from turnout.ledger import NewJob, run
from turnout.request import InferenceRequest
from turnout_workers import process

PROMPT, KEY = "canary-prompt-xyzzy", "canary-key-plugh"
FLEET = f"""
output_tokens = 8
[providers.sim-weak]
keys = ["{KEY}-1"]
models."llama-3.3-70b" = {{ price = {{ input = 0.1, output = 0.1 }} }}
faults = [{{ kind = "error", for_requests = 3 }}, {{ kind = "garbage", after_requests = 3, for_requests = 3 }}]
[providers.sim-good]
kind = "anthropic"
keys = ["{KEY}-2"]
models."llama-3.3-70b" = {{ price = {{ input = 5.0, output = 5.0 }} }}
"""
CONTENT = {"payload", "result"}
"""Fields of a job's record that hold what was asked and answered."""


class Overheard:
    """Everything that is published in Redis, but Celery's results for whoever waits."""

    def __init__(self, url: str) -> None:
        self.text = ""
        pubsub = redis.Redis.from_url(url).pubsub()
        pubsub.psubscribe(**{"*": self._hear})
        self._thread = pubsub.run_in_thread(sleep_time=0.01, daemon=True)

    def _hear(self, heard: dict[str, bytes]) -> None:
        if heard["channel"].startswith(b"celery-task-meta-"):
            return
        self.text += heard["data"].decode("utf-8", "replace")
        if b'"body_encoding": "base64"' in heard["data"]:  # one of Celery's events
            self.text += base64.b64decode(json.loads(heard["data"])["body"]).decode()

    def stop(self) -> None:
        self._thread.stop()
        self._thread.join(5)


def stored(client: redis.Redis) -> dict[str, str]:
    """All of Redis by key, but the content of jobs and Celery's results."""
    found = {}
    for key in client.scan_iter(count=1000):
        if key.startswith(b"celery-task-meta-"):
            continue
        kind = client.type(key)
        value: Any
        if kind == b"hash":
            value = {k: v for k, v in client.hgetall(key).items() if k.decode() not in CONTENT}
        elif kind == b"list":
            value = client.lrange(key, 0, -1)
        elif kind == b"zset":
            value = client.zrange(key, 0, -1, withscores=True)
        else:
            value = client.dump(key)
        found[key.decode()] = repr(value)
    return found


def test_content_and_keys_stay_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = process.free_port()
    monkeypatch.setenv("TURNOUT_METRICS_PORT", str(port))
    monkeypatch.setenv("TURNOUT_LOG_LEVEL", "debug")
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        stand.config.write_text(stand.config.read_text().replace("task_events = false", "task_events = true"))
        overheard = Overheard(stand.redis.url)
        stand.start_worker()
        ids = [str(number) for number in range(20)]
        jobs = [NewJob.of(i, InferenceRequest(prompt=f"{PROMPT} {i}", max_output_tokens=8)) for i in ids]
        run(stand.client, [stand.ledger.enqueue(job) for job in jobs])
        stand.until(lambda: stand.settled() == len(ids), 60)
        stand.until(lambda: overheard.text.count("task-succeeded") == len(ids), 20)
        answers = {r.response.text for r in stand.results(ids) if r and r.response}
        assert len(answers) > 5
        assert any(attempt.failure for r in stand.results(ids) if r for attempt in r.attempts)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            places = {"metrics": reply.read().decode()}
        places |= stored(stand.client)
        places |= {path.name: path.read_text("utf-8", "replace") for path in tmp_path.glob("worker-*.log")}
        overheard.stop()
        places["published"] = overheard.text
        stories = json.dumps(run(stand.client, [stand.ledger.story(job_id) for job_id in ids]))
        for secret in (PROMPT, KEY, *answers):
            assert [name for name, text in places.items() if secret in text] == []
            assert secret not in stories
