"""The examples for web frameworks, each through its framework's own test client, with a real worker behind it."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.chaos.stand import Stand, standing

from turnout.webhook import signed

EXAMPLES = Path(__file__).parents[2] / "examples" / "web"
FLEET = """
output_tokens = 12
[providers.sim]
s_per_token = 0.005
models."llama-3.3-70b" = { price = { input = 0.1, output = 0.1 } }
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
Get = Callable[[str], tuple[int, str]]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("stand"), FLEET, concurrency=20) as stand:
        stand.start_worker()
        yield stand


def loaded(name: str, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("REDIS_URL", stand.redis.url)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def goes_through(stand: Stand, post: Callable[[str, dict[str, Any]], tuple[int, str]], get: Get) -> str:
    """Submit, stream, poll; gives the job's id."""
    order = uuid.uuid4().hex
    status, body = post("/questions", {"prompt": "Why is it called a turnout?", "order": order})
    assert status == 202
    job_id = str(json.loads(body)["id"])
    status, streamed = get(f"/questions/{job_id}/stream")
    assert status == 200
    events = [block.split("\n") for block in streamed.strip().split("\n\n")]
    text = "".join(json.loads(data.removeprefix("data: ")) for event, data in events if event == "event: token")
    assert events[-1][0] == "event: done"
    status, body = get(f"/questions/{job_id}")
    assert (status, json.loads(body)) == (200, {"status": "succeeded", "text": text})
    assert text.startswith("[simulated by sim]")
    assert get("/questions/unknown")[0] == 404
    again = {"prompt": "Why is it called a turnout?", "order": order}
    assert json.loads(post("/questions", again)[1])["id"] == job_id
    assert post("/questions", again | {"prompt": "Another?"})[0] == 409
    stand.submit([f"doomed-{job_id}"], model="a-model-that-nobody-serves")
    status, streamed = get(f"/questions/doomed-{job_id}/stream")
    assert (status, streamed.split("\n")[0]) == (200, "event: error")
    assert "no endpoint can serve this job" in streamed
    return job_id


def test_fastapi(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    module = loaded("fastapi_app", stand, monkeypatch)
    with TestClient(module.app) as http:

        def post(path: str, body: dict[str, Any]) -> tuple[int, str]:
            reply = http.post(path, json=body)
            return reply.status_code, reply.text

        def get(path: str) -> tuple[int, str]:
            reply = http.get(path)
            return reply.status_code, reply.text

        job_id = goes_through(stand, post, get)
        body = json.dumps({"type": "job.succeeded", "data": {"id": job_id}}).encode()
        headers = signed(SECRET, f"msg_{job_id}", int(time.time()), body)
        assert http.post("/hooks/turnout", content=body + b" ", headers=headers).status_code == 401
        assert http.post("/hooks/turnout", content=body, headers=headers).status_code == 204
        assert module.told == {job_id: "job.succeeded"}


def test_flask(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded("flask_app", stand, monkeypatch)
    http = module.app.test_client()

    def post(path: str, body: dict[str, Any]) -> tuple[int, str]:
        reply = http.post(path, json=body)
        return reply.status_code, reply.text

    def get(path: str) -> tuple[int, str]:
        reply = http.get(path)
        return reply.status_code, reply.text

    goes_through(stand, post, get)
    module.client.close()


def test_django(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    module = loaded("django_app", stand, monkeypatch)
    from django.test import Client as Http

    http = Http()

    def post(path: str, body: dict[str, Any]) -> tuple[int, str]:
        reply = http.post(path, json.dumps(body), content_type="application/json")
        return reply.status_code, reply.content.decode()

    def get(path: str) -> tuple[int, str]:
        reply = http.get(path)
        parts = reply.streaming_content if reply.streaming else [reply.content]
        return reply.status_code, b"".join(parts).decode()

    goes_through(stand, post, get)
    module.client.close()
