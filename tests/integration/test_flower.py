"""The real Flower watches a real worker: each job tells its story there, and nothing of what was asked or answered."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.test_main_job import until

from turnout import Client
from turnout_workers import local, process

SECRET = "xyzzy-plugh-4711"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[local.Local]:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with local.running(tmp_path, None, simulate=("--instant", "--no-faults")) as running:
        yield running


def test_flower_shows_the_story_and_no_content(here: local.Local, tmp_path: Path) -> None:
    port, log = process.free_port(), tmp_path / "flower.log"
    command = [sys.executable, "-m", "celery", "-A", "turnout_workers.app:app", "flower"]
    command += ["--address=127.0.0.1", f"--port={port}"]
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
        pages = [
            get(path) for path in ("/api/tasks", f"/api/task/info/{job.id}", f"/task/{job.id}", "/tasks", "/workers")
        ]
        for text in (*pages, log.read_text(), *(path.read_text() for path in tmp_path.glob("worker-*.log"))):
            assert SECRET not in text
            assert answer.text not in text
    finally:
        process.stop(flower)
    assert os.environ.get("REDIS_URL") is None
