"""No prompt, no answer and no key where they don't belong, after a run with failures and with everything watching.

And with keys to seal them, no prompt and no answer anywhere in Redis, or in what it has ever written to its disk.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from click.testing import CliRunner
from tests.chaos.stand import standing
from tests.flower import flower

from turnout import Client, Failed, Restarted, Unreadable
from turnout.batch.detached import Batches
from turnout.batch.line import Defaults
from turnout.batch.source import Source
from turnout.cli import main
from turnout.ledger import Keyring, Ledger, NewJob, run
from turnout.request import InferenceRequest

PROMPT, KEY, PASSWORD = "canary-prompt-xyzzy", "canary-key-plugh", "canary-password-xyzzy"
FLEET = f"""
output_tokens = 8
[providers.sim-weak]
api_key = ["{KEY}-1"]
models."llama-3.3-70b" = {{ input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }}
faults = [{{ kind = "error", for_requests = 3 }}, {{ kind = "garbage", after_requests = 3, for_requests = 3 }}]
[providers.sim-good]
kind = "anthropic"
api_key = ["{KEY}-2"]
models."llama-3.3-70b" = {{ input_usd_per_mtok = 5.0, output_usd_per_mtok = 5.0 }}
"""
CONTENT = {"payload", "result", "metadata"}
"""Fields of a job's record that hold what was asked and answered."""


class Overheard:
    """Everything that is published in Redis; Celery's results, for whoever waits, only if asked for."""

    def __init__(self, url: str, results: bool = False) -> None:
        self.text = ""
        self._results = results
        pubsub = redis.Redis.from_url(url).pubsub()
        pubsub.psubscribe(**{"*": self._hear})
        self._thread = pubsub.run_in_thread(sleep_time=0.01, daemon=True)

    def _hear(self, heard: dict[str, bytes]) -> None:
        if heard["channel"].startswith(b"celery-task-meta-") and not self._results:
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


def pushed(commands: Any, count: int) -> str:
    """The broker's messages, as the ledger's scripts push them on the lanes."""
    found: list[str] = []
    while len(found) < count:
        told = commands.next_command()
        if told["client_type"] == "lua" and told["command"].startswith(("LPUSH standard ", "RPUSH standard ")):
            found.append(told["command"])
    return "\n".join(found)


def test_content_and_keys_stay_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("TURNOUT_METRICS_PORT", str(port))
    monkeypatch.setenv("TURNOUT_LOG_LEVEL", "debug")
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        stand.config.write_text(stand.config.read_text().replace("task_events = false", "task_events = true"))
        stand.client.config_set("requirepass", PASSWORD)
        url = f"redis://:{PASSWORD}@127.0.0.1:{stand.redis.port}/0"
        stand.client = redis.Redis.from_url(url)
        overheard = Overheard(url)
        worker = stand.start_worker(redis_url=url)
        with flower(tmp_path, stand.environ | {"REDIS_URL": url}) as watching:
            get = watching.get
            watching.until(lambda: watching.has_heard_of("w1@"))
            ids = [str(number) for number in range(20)]
            jobs = [NewJob.of(i, InferenceRequest(prompt=f"{PROMPT} {i}", max_output_tokens=8)) for i in ids]
            nobody = {"only": ["nobody"]}
            jobs.append(
                NewJob.of("refused", InferenceRequest(prompt=PROMPT, constraints=nobody, metadata={"a": PROMPT}))
            )
            with stand.client.monitor() as commands:
                run(stand.client, [stand.ledger.enqueue(job) for job in jobs])
                messages = pushed(commands, len(jobs))
            # Its own message holds its prompt, but nothing that tells of it.
            asked = {"request": {"prompt": PROMPT, "max_output_tokens": 8}}
            plain = Celery(broker=url, set_as_current=False).send_task("turnout.infer", kwargs=asked, queue="standard")
            stand.until(lambda: stand.settled() == len(jobs) + 1)
            stand.until(lambda: get("/api/tasks").count('"SUCCESS"') == len(ids) + 1)
            stand.until(lambda: '"broker_url"' in get("/api/workers?refresh=1"))  # a slow worker's answer may be missed
            answers = {r.response.text for r in stand.results(ids) if r and r.response}
            assert len(answers) > 5
            assert any(attempt.failure for r in stand.results(ids) if r for attempt in r.attempts)
            paths = ["/api/workers?refresh=1", "/api/tasks", "/providers", "/api/providers", "/workers", "/broker"]
            paths += [f"/worker/w1@{socket.gethostname()}", f"/task/{plain.id}", *(f"/task/{job.id}" for job in jobs)]
            places = {f"Flower's {path}": get(path) for path in paths}
            assert [path for path, text in places.items() if not text] == []
        os.kill(worker.pid, signal.SIGUSR1)  # of which Celery would make all frames with all their variables
        stand.until(lambda: "(most recent call first)" in worker.said)
        assert "LOCAL VARIABLES" not in worker.said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as reply:
            places["metrics"] = reply.read().decode()
        places |= stored(stand.client)
        places |= {path.name: path.read_text("utf-8", "replace") for path in tmp_path.glob("*.log")}
        places |= {path.name: path.read_bytes().decode("latin-1") for path in tmp_path.glob("flower*")}
        overheard.stop()
        places["published"] = overheard.text
        places["messages"] = messages
        places["stories"] = json.dumps(run(stand.client, [stand.ledger.story(job_id) for job_id in ids]))
        for job_id in ids:
            for form in ([], ["--json"]):
                told = CliRunner().invoke(main, ["explain", job_id, *form], env=stand.environ | {"REDIS_URL": url})
                places[f"explain {job_id} {form}"] = told.output
                assert told.exit_code == 0
        assert "Traceback" in places["Flower's /task/refused"], "tracebacks are looked through, too"
        assert '"broker_url"' in places["Flower's /api/workers?refresh=1"], "and so are Celery's settings"
        assert re.search(r"failed \(\w+\); moving to another endpoint", places["published"])
        assert messages.count("turnout.infer") >= len(jobs)
        for secret in (PROMPT, KEY, PASSWORD, *answers):
            assert [name for name, text in places.items() if secret in text] == []
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits), "a crash leaves no copy of its memory"


SEALED_FLEET = """
output_tokens = 30
[providers.sim]
s_per_token = 0.005
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.1 }
faults = [{ kind = "truncate", for_requests = 1 }]
"""
ANSWERS = b"[simulated"
"""What the simulator's answers begin with, also in their first streamed piece."""


def test_sealed_content_is_nowhere_in_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"2026a:{base64.b64encode(os.urandom(32)).decode()}")
    with standing(tmp_path, SEALED_FLEET, concurrency=10) as stand:
        overheard = Overheard(stand.redis.url, results=True)
        keyless = stand.start_worker()
        monkeypatch.setenv("TURNOUT_PAYLOAD_KEYS_FILE", str(keys))
        client = Client(stand.redis.url)
        job = client.submit(PROMPT, model="llama-3.3-70b", stream=True, metadata={"label": PROMPT})
        stand.until(lambda: f"job {job.id} is left queued: its request: sealed with the key 2026a#" in keyless.said)
        assert job.status() == "queued"
        moved = client.submit("another's", model="llama-3.3-70b")
        stand.client.hset(
            f"{{turnout}}:job:{moved.id}", "payload", stand.client.hget(f"{{turnout}}:job:{job.id}", "payload")
        )
        stand.stop_worker(keyless)
        stand.start_worker()
        pieces = list(job.stream())
        assert any(isinstance(piece, Restarted) for piece in pieces)
        answer = job.wait(60)
        with pytest.raises(Failed, match=f"unreadable: request of job {moved.id}: what is stored there was changed"):
            moved.wait(60)
        assert "".join(pieces).endswith(answer.text)
        assert answer.text.encode().startswith(ANSWERS)
        assert job.result() == client.job(job.id).result()
        celery = Celery(broker=stand.redis.url, set_as_current=False)
        link = celery.signature("shop.keep", queue="shop")
        sent = celery.send_task("turnout.infer", kwargs={"request": {"prompt": "A?"}}, queue="standard", link=link)
        stand.until(lambda: stand.client.llen("shop") == 1)
        ((given,), *_) = json.loads(base64.b64decode(json.loads(stand.client.lindex("shop", 0))["body"]))
        assert "text" not in given["response"]
        assert given["response"]["sealed"]
        assert client.job(sent.id).result().response.text.encode().startswith(ANSWERS)
        batches = Batches(stand.client, Ledger(keyring=Keyring.of(os.environ)))
        (tmp_path / "in.jsonl").write_text(json.dumps({"prompt": PROMPT, "id": "first"}) + "\n")
        batch = batches.submit(Source(str(tmp_path / "in.jsonl")), Defaults())
        stand.until(lambda: batches.record(batch).counts == {"succeeded": 1})
        assert ANSWERS in next(batches.output(batch))[1]
        monkeypatch.delenv("TURNOUT_PAYLOAD_KEYS_FILE")
        told = CliRunner().invoke(main, ["explain", job.id], env=stand.environ)
        assert "sim · llama-3.3-70b · 44 tokens" in " ".join(told.output.split()), "the story needs no key"
        with (
            Client(stand.redis.url) as without_key,
            pytest.raises(Unreadable, match=f"of job {job.id}: sealed with"),
        ):
            without_key.job(job.id).wait(5)
        client.close()
        overheard.stop()
        written = {file.name: file.read_bytes() for file in (tmp_path / "appendonlydir").iterdir()}
        written["published"] = overheard.text.encode()
    assert b"2026a#" in b"".join(written.values()), "what is looked through has it all"
    for secret in (PROMPT.encode(), ANSWERS):
        assert [name for name, text in written.items() if secret in text] == []
