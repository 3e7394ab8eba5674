"""The examples for web frameworks, each through its framework's own test client, with a real worker behind it."""

from __future__ import annotations

import importlib.util
import json
import sys
import uuid
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand
from tests.receiver import Receiver

FLEET = one_provider(model="gpt-oss-120b", s_per_token=0.005)
EXAMPLES = Path(__file__).parents[2] / "examples" / "web"
Post = Callable[[str, bytes, Mapping[str, str]], tuple[int, str]]
Get = Callable[[str], tuple[int, str]]


@dataclass
class Walk:
    """What a browser and the workers do with an example."""

    stand: Stand
    receiver: Receiver
    module: ModuleType
    post: Post
    get: Get

    def submitted(self, prompt: str, order: str) -> tuple[int, str]:
        body = json.dumps({"prompt": prompt, "order": order}).encode()
        status, text = self.post("/questions", body, {"content-type": "application/json"})
        return status, str(json.loads(text).get("id")) if status == 202 else text

    def __call__(self) -> None:
        order = uuid.uuid4().hex
        status, job_id = self.submitted("Why is it called a turnout?", order)
        assert status == 202
        self.streams_and_polls(job_id)
        assert self.submitted("Why is it called a turnout?", order) == (202, job_id)
        assert self.submitted("Another?", order)[0] == 409
        assert self.submitted("Why?", "")[0] == 422
        for body in (b"{}", b'{"prompt": 5, "order": "1"}', b"[", b"\xff"):
            assert self.post("/questions", body, {"content-type": "application/json"})[0] in (400, 422)
        self.is_told(job_id)
        self.tells_of_failure(f"doomed-{job_id}")
        self.outlasts_redis(job_id)

    def streams_and_polls(self, job_id: str) -> None:
        status, streamed = self.get(f"/questions/{job_id}/stream")
        assert status == 200
        events = [block.split("\n") for block in streamed.strip().split("\n\n")]
        text = "".join(json.loads(data.removeprefix("data: ")) for event, data in events if event == "event: token")
        assert events[-1][0] == "event: done"
        status, body = self.get(f"/questions/{job_id}")
        assert (status, json.loads(body)) == (200, {"status": "succeeded", "text": text})
        assert text.startswith("[simulated by sim]")
        assert self.get("/questions/unknown")[0] == 404

    def is_told(self, job_id: str) -> None:
        self.stand.until(lambda: bool(self.receiver.of(job_id)), 20)
        headers, body = self.receiver.of(job_id)[0]
        signed = {name: value for name, value in headers.items() if name.startswith(("webhook-", "content-type"))}
        assert self.post("/hooks/turnout", body + b" ", signed)[0] == 401
        assert self.module.ended == {}
        assert self.post("/hooks/turnout", body, signed)[0] == 204
        assert self.module.ended == {job_id: "job.succeeded"}

    def tells_of_failure(self, job_id: str) -> None:
        self.stand.submit([job_id], model="a-model-that-nobody-serves")
        status, streamed = self.get(f"/questions/{job_id}/stream")
        assert (status, streamed.split("\n")[0]) == (200, "event: failed")
        assert "no endpoint can serve this job" in streamed

    def outlasts_redis(self, job_id: str) -> None:
        """A stream that ends without `done` or `failed` is one that EventSource opens again; of a 503 it would not."""
        self.stand.redis.kill()
        try:
            assert self.submitted("Why?", "during an outage")[0] == 503
            assert self.get(f"/questions/{job_id}")[0] == 503
            assert self.get(f"/questions/{job_id}/stream") == (200, "")
        finally:
            self.stand.redis.restart()
        assert self.get(f"/questions/{job_id}/stream")[1].endswith("event: done\ndata: {}\n\n")


@pytest.fixture
def loaded(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        monkeypatch.setenv("REDIS_URL", stand.redis.url)
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_fastapi(stand: Stand, receiver: Receiver, loaded: Callable[[str], ModuleType]) -> None:
    from fastapi.testclient import TestClient

    module = loaded("fastapi_app")
    with TestClient(module.app) as http:

        def post(path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
            reply = http.post(path, content=body, headers=dict(headers))
            return reply.status_code, reply.text

        def get(path: str) -> tuple[int, str]:
            reply = http.get(path)
            return reply.status_code, reply.text

        Walk(stand, receiver, module, post, get)()


def test_flask(stand: Stand, receiver: Receiver, loaded: Callable[[str], ModuleType]) -> None:
    module = loaded("flask_app")
    http = module.app.test_client()

    def post(path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        reply = http.post(path, data=body, headers=headers)
        return reply.status_code, reply.text

    def get(path: str) -> tuple[int, str]:
        reply = http.get(path)
        return reply.status_code, reply.text

    with closing(module.client):
        Walk(stand, receiver, module, post, get)()


def test_django(stand: Stand, receiver: Receiver, loaded: Callable[[str], ModuleType]) -> None:
    module = loaded("django_app")
    from django.test import Client as Http

    http = Http(enforce_csrf_checks=True)

    def post(path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, str]:
        reply = http.post(path, body, content_type=headers["content-type"], headers=headers)
        return reply.status_code, reply.content.decode()

    def get(path: str) -> tuple[int, str]:
        reply = http.get(path)
        parts: Any = reply.streaming_content if reply.streaming else [reply.content]
        return reply.status_code, b"".join(parts).decode()

    with closing(module.client):
        Walk(stand, receiver, module, post, get)()
