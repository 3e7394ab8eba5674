"""The examples for web frameworks, each through its framework's own test client, with a real worker behind it."""

from __future__ import annotations

import base64
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from types import ModuleType
from typing import Any

import pytest
from tests.chaos.stand import Stand, standing

EXAMPLES = Path(__file__).parents[2] / "examples" / "web"
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
FLEET = """
output_tokens = 20
[providers.sim]
s_per_token = 0.005
models."llama-3.3-70b" = { price = { input = 0.1, output = 0.1 } }
"""
LIMIT_S = 20


@dataclass
class Reply:
    status: int
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Site:
    """An example, and how its framework's test client sends to it: method, path, body, headers."""

    module: ModuleType
    send: Callable[[str, str, bytes | None, dict[str, str]], Reply]

    def ask(self, text: str, **headers: str) -> Reply:
        return self.send("POST", "/questions", json.dumps({"text": text}).encode(), headers)

    def get(self, path: str) -> Reply:
        return self.send("GET", path, None, {})


class Receiver(ThreadingHTTPServer):
    """Where the worker sends its webhooks, kept to be handed to the example under test."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: Queue[tuple[bytes, dict[str, str]]] = Queue()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.put((body, {n: v for n, v in self.headers.items() if n.lower().startswith("webhook-")}))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Stand]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        stand = stack.enter_context(standing(tmp_path_factory.mktemp("stand"), FLEET, concurrency=20))
        patch.setenv("REDIS_URL", stand.redis.url)
        patch.setenv("ANSWERS_WEBHOOK", "app")
        patch.setenv("ANSWERS_SECRET", SECRET)
        with stand.config.open("a") as config:
            config.write(
                f'\n[webhooks.app]\nurl = "http://127.0.0.1:{receiver.server_port}/"\n'
                'secret_env = "ANSWERS_SECRET"\nprivate = true\n'
            )
        stand.start_worker()
        yield stand


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fastapi_site(stack: ExitStack) -> Site:
    from fastapi.testclient import TestClient

    module = load("fastapi_app")
    client = stack.enter_context(TestClient(module.app))

    def send(method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        reply = client.request(method, path, content=body, headers={"content-type": "application/json", **headers})
        return Reply(reply.status_code, reply.text)

    return Site(module, send)


def flask_site(stack: ExitStack) -> Site:
    module = load("flask_app")
    stack.callback(module.turnout.close)
    client = module.app.test_client()

    def send(method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        reply = client.open(path, method=method, data=body, headers=headers, content_type="application/json")
        return Reply(reply.status_code, reply.get_data(as_text=True))

    return Site(module, send)


def django_site(stack: ExitStack) -> Site:
    import django
    from django.test import Client, override_settings

    module = load("django_app")
    django.setup()
    stack.callback(module.turnout.close)
    stack.enter_context(override_settings(ROOT_URLCONF=tuple(module.urlpatterns)))
    client = Client()

    def send(method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        reply = client.generic(method, path, body or b"", "application/json", headers=headers)
        raw = b"".join(reply) if reply.streaming else reply.content
        return Reply(reply.status_code, raw.decode())

    return Site(module, send)


@pytest.fixture(scope="module", params=[fastapi_site, flask_site, django_site])
def site(request: pytest.FixtureRequest, stand: Stand) -> Iterator[Site]:
    with ExitStack() as stack:
        yield request.param(stack)


def events(body: str) -> list[tuple[str, str]]:
    lines = [event.split("\n") for event in body.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in lines]


def test_a_question_is_streamed_then_polled(site: Site) -> None:
    asked = site.ask("What is a turnout?")
    assert asked.status == 202
    path = f"/questions/{asked.json['id']}"
    told = events(site.get(f"{path}/stream").body)
    assert {name for name, _ in told[:-1]} == {"piece"}
    assert told[-1][0] == "end"
    assert len(told) > 2
    assert site.get(path).json == {"status": "succeeded", "text": "".join(piece for _, piece in told)}


def test_a_repeated_question_is_the_same_job_and_another_one_a_conflict(site: Site) -> None:
    key = {"Idempotency-Key": site.module.__name__}
    first = site.ask("A?", **key)
    assert site.ask("A?", **key).json == first.json
    assert site.ask("B?", **key).status == 409


def test_an_unknown_job_is_not_found(site: Site) -> None:
    assert site.get("/questions/nope").status == 404
    assert events(site.get("/questions/nope/stream").body) == [("failed", "LookupError")]


def test_the_app_is_told_of_the_end_and_believes_only_what_is_signed(site: Site, receiver: Receiver) -> None:
    job_id = site.ask("Tell me when you are done.").json["id"]
    while True:  # other tests' jobs are told of, too
        body, headers = receiver.heard.get(timeout=LIMIT_S)
        if json.loads(body)["data"]["id"] == job_id:
            break
    assert site.send("POST", "/answers", body + b" ", headers).status == 401
    assert job_id not in site.module.told
    assert site.send("POST", "/answers", body, headers).status == 204
    assert site.module.told[job_id] == "succeeded"
