"""The real Flower watches a real worker: each job tells its story there, and nothing of what was asked or answered."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.integration.test_main_job import until

from turnout import Client
from turnout_workers import local, process
from turnout_workers.commands.flower import flower as flower_command

SECRET = "xyzzy-plugh-4711"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local.Local]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with local.running(tmp_path, None, simulate=("--instant", "--no-faults")) as running:
        yield running


def test_flower_shows_the_story_and_no_content(here: local.Local, tmp_path: Path) -> None:
    port, log = process.free_port(), tmp_path / "flower.log"
    command = [sys.executable, "-m", "turnout", "flower", "--port", str(port), "--db", str(tmp_path / "flower")]
    flower = process.start(command, log, {**here.environ, "FLOWER_UNAUTHENTICATED_API": "true"})

    def get(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
                return str(reply.read().decode())
        except urllib.error.URLError:
            return ""

    try:
        process.wait_until(lambda: get("/healthcheck") == "OK", flower, log, 60)
        # Events are not kept for late comers: Flower has heard of the worker when it listens.
        until(lambda: "turnout-1@" in get("/api/workers"), 30)
        with Client(here.redis_url) as client:
            job = client.submit(f"Remember {SECRET}", model="llama-3.3-70b", metadata={"note": SECRET})
            answer = job.wait(30)
            refused = client.submit(f"Refuse {SECRET}", constraints={"only": ["nobody"]})
            until(lambda: refused.status() == "failed", 20)
        until(lambda: '"SUCCESS"' in get("/api/tasks") and '"FAILURE"' in get("/api/tasks"), 30)
        told = json.loads(get("/api/tasks"))
        shown = told[job.id]
        assert shown["name"] == "turnout.infer"
        assert shown["args"] == "interactive · llama-3.3-70b"
        assert shown["result"].startswith(f"{answer.provider} · llama-3.3-70b · ")
        assert "simulated" in shown["result"]
        endpoint = f"{answer.provider}/llama-3.3-70b"
        told = {one["endpoint"]: one for one in json.loads(get("/api/providers"))["endpoints"]}
        assert told[endpoint]["calls"] >= 1
        assert told[endpoint]["p50_s"] is not None
        assert f'<tr id="{endpoint}">' in get("/providers")
        assert ">Providers</a>" in get("/tasks")
        paths = ("/api/tasks", f"/api/task/info/{job.id}", f"/task/{job.id}", "/tasks", "/workers", "/providers")
        pages = [get(path) for path in paths]
        for text in (*pages, log.read_text(), *(path.read_text() for path in tmp_path.glob("worker-*.log"))):
            assert SECRET not in text
            assert answer.text not in text
    finally:
        process.stop(flower)
    assert os.environ.get("REDIS_URL") is None


@pytest.fixture
def guarded(here: local.Local, tmp_path: Path) -> Iterator[Guarded]:
    port, log = process.free_port(), tmp_path / "flower.log"
    command = [sys.executable, "-m", "turnout", "flower", "--port", str(port), "--db", str(tmp_path / "flower")]
    password = tmp_path / "login"
    password.write_text("ada:lovelace\n")
    flower = process.start(command, log, {**here.environ, "FLOWER_BASIC_AUTH_FILE": str(password)})
    try:
        process.wait_until(lambda: "Flower: " in log.read_text(), flower, log, 60)
        yield Guarded(f"http://127.0.0.1:{port}")
    finally:
        process.stop(flower)


class Guarded:
    """A client of a Flower that wants a login."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.cookie = ""

    def ask(self, path: str, login: bool = True, **form: str) -> tuple[int, str]:
        headers = {"Authorization": "Basic " + b64encode(b"ada:lovelace").decode()} if login else {}
        body = urllib.parse.urlencode(form).encode() if form else None
        request = urllib.request.Request(self._url + path, body, {**headers, "Cookie": self.cookie})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                self.cookie = (reply.headers["Set-Cookie"] or self.cookie).partition(";")[0]
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


def test_the_providers_tab_wants_the_login_and_its_buttons_a_token(guarded: Guarded) -> None:
    assert guarded.ask("/providers", login=False)[0] == 401
    assert guarded.ask("/api/providers", login=False)[0] == 401
    endpoint = "sim-swift/llama-3.3-70b"
    assert guarded.ask("/providers", endpoint=endpoint, action="isolated")[0] == 403

    def circuit() -> str:
        told = json.loads(guarded.ask("/api/providers")[1])
        return {one["endpoint"]: one["circuit"] for one in told["endpoints"]}[endpoint]

    token = guarded.ask("/providers")[1].partition('name="_xsrf" value="')[2].partition('"')[0]
    assert guarded.ask("/providers", endpoint="nobody/nothing", action="isolated", _xsrf=token)[0] == 400
    assert circuit() == "closed"
    assert guarded.ask("/providers", endpoint=endpoint, action="isolated", _xsrf=token)[0] == 200
    assert circuit() == "isolated"
    assert guarded.ask("/providers", endpoint=endpoint, action="restored", _xsrf=token)[0] == 200
    assert circuit() == "closed"


def test_a_public_address_wants_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLOWER_BASIC_AUTH", "FLOWER_BASIC_AUTH_FILE", "FLOWER_AUTH"):
        monkeypatch.delenv(name, raising=False)
    told = CliRunner().invoke(flower_command, ["--address", "0.0.0.0"])
    assert told.exit_code == 1
    assert "set FLOWER_BASIC_AUTH=user:password" in told.output
