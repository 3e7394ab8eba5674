"""Celery's own command starts the same worker as `turnout worker`, or says what to leave out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing

from turnout_workers.local import process

COMMAND = [sys.executable, "-m", "celery", "-A", "turnout_workers.app:app", "worker"]
FLEET = one_provider()


@pytest.mark.parametrize("given", [[], ["-c", "7"]])
def test_a_worker_of_celerys_command_does_jobs_in_as_many_slots_as_are_configured_or_asked(
    given: list[str], tmp_path: Path
) -> None:
    with standing(tmp_path, FLEET) as stand:
        log = tmp_path / "worker.log"
        environ = stand.environ | {"TURNOUT_SPOOL": str(tmp_path)}
        worker = process.start([*COMMAND, *given], log, environ)
        try:
            stand.submit(["a"])
            stand.until(lambda: stand.outcomes(["a"]) == {"succeeded": 1}, 60)
            assert slots(stand) == ([7] if given else [100])
        finally:
            process.stop(worker)


def slots(stand: Stand) -> list[int]:
    return [int(sign.split()[-1]) for sign in stand.client.zrange(stand.ledger.keys.workers, 0, -1)]


def test_a_queue_besides_the_lanes_gets_no_more_slots_than_there_are(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand, Celery(broker=stand.redis.url, set_as_current=False) as app:
        stand.fail("sim", kind="hang")
        log, environ = tmp_path / "worker.log", stand.environ | {"TURNOUT_SPOOL": str(tmp_path)}
        worker = process.start([*COMMAND, "-c", "3", "-Q", "ai,standard", "-l", "INFO"], log, environ)
        try:
            process.wait_until(lambda: " ready." in log.read_text(), worker, log, 60)
            told = app.control.cancel_consumer("standard", reply=True, timeout=30, limit=1)
            assert "no longer consuming" in str(told)
            for _ in range(10):
                app.send_task("turnout.infer", [{"prompt": "Wait.", "constraints": {"lane": "standard"}}], queue="ai")
            stand.until(lambda: stand.client.hget(stand.ledger.keys.counts, "accepted") == b"3", 20)
            assert stand.client.llen("ai") == 7
        finally:
            process.stop(worker)


def test_a_worker_that_leaves_its_terminal_logs_to_the_file_that_is_named(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        stand.submit(["a"])
        log, pid = tmp_path / "%n.log", tmp_path / "worker.pid"
        detached = ["--detach", f"--logfile={log}", f"--pidfile={pid}", "-n", "w9@%h", "-l", "INFO"]
        environ = os.environ | stand.environ | {"TURNOUT_SPOOL": str(tmp_path)}
        subprocess.run([*COMMAND, *detached], env=environ, check=True, timeout=60)
        try:
            stand.until(lambda: stand.outcomes(["a"]) == {"succeeded": 1}, 60)
        finally:
            stand.until(pid.exists, 60)
            os.kill(int(pid.read_text()), signal.SIGTERM)
            stand.until(lambda: not pid.exists(), 60)
        assert "serves 1 endpoints" in (tmp_path / "w9.log").read_text()


def test_a_worker_without_a_lane_is_refused() -> None:
    tried = subprocess.run([*COMMAND, "-Q", "ai"], capture_output=True, text=True, timeout=60)
    assert tried.returncode == 1
    assert "name at least one of interactive, standard, batch with -Q" in tried.stderr


@pytest.mark.parametrize("given", [["-P", "threads"], ["--autoscale", "10,1"]])
def test_another_pool_or_a_size_that_changes_is_refused(given: list[str]) -> None:
    tried = subprocess.run([*COMMAND, *given], capture_output=True, text=True, timeout=60)
    assert tried.returncode == 1
    assert "leave out -P and --autoscale, and set the size with -c" in tried.stderr
