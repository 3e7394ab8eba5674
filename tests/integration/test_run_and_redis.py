"""`turnout run` with a Redis and workers that are there already, when that Redis goes and comes back, or moves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from tests import redis_server
from tests.chaos.stand import Stand, standing
from tests.tcp_proxy import between

from turnout import Client
from turnout.cli import main
from turnout_workers.local import process

FLEET = """
output_tokens = 8
[providers.sim]
ttft_s = 0.2
models."llama-3.3-70b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }
"""
LINES = 200


def test_all_go_on_at_the_primary_that_their_address_leads_to_though_the_old_one_keeps_its_connections(
    tmp_path: Path,
) -> None:
    source, output, log = (tmp_path / name for name in ("prompts.txt", "results.jsonl", "run.log"))
    source.write_text("".join(f"Question {n}?\n" for n in range(LINES)))
    with standing(tmp_path, FLEET, concurrency=20, lease_s=30.0) as stand, ExitStack() as open_:
        replica = redis_server.start(tmp_path / "replica", "--replicaof", "127.0.0.1", str(stand.redis.port))
        open_.callback(replica.stop)
        proxy = open_.enter_context(between(stand.redis.port))
        old, new = stand.client, open_.enter_context(redis.Redis(port=replica.port))
        stand.client = new  # which tells how many have settled
        stand.until(lambda: new.info("replication")["master_link_status"] == "up", 30)
        worker = stand.start_worker(redis_url=proxy.url)
        command = [sys.executable, "-m", "turnout", "run", str(source), "-o", str(output), "--workers", "0"]
        child = process.start(command, log, {"REDIS_URL": proxy.url, "TURNOUT_CONFIG": str(stand.config)})
        open_.callback(process.stop, child)
        client = open_.enter_context(Client(proxy.url))
        last = client.submit_many((f"Last {n}?" for n in range(40)), lane="batch", stream=True)[-2:]
        thread = open_.enter_context(ThreadPoolExecutor(2))
        waiting = [thread.submit(last[0].wait, 60), thread.submit(list, last[1].stream())]
        stand.until(lambda: stand.settled() > LINES // 4, 60)
        old.client_pause(60_000, all=False)
        written = old.info("replication")["master_repl_offset"]
        stand.until(lambda: new.info("replication")["slave_repl_offset"] >= written, 30)
        new.replicaof("NO", "ONE")
        old.replicaof("127.0.0.1", replica.port)
        proxy.lead_to(replica.port)
        old.client_unpause()
        assert [one.result(60) is not None for one in waiting] == [True, True]
        assert child.wait(60) == 0, log.read_text()
        assert worker.poll() is None
        assert {job["answered"] for job in stand.oracle()["jobs"].values()} == {1}
    assert [json.loads(line)["status"] for line in output.read_text().splitlines()] == ["succeeded"] * LINES


def test_a_run_stops_at_once_though_its_redis_is_away(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    with standing(tmp_path, FLEET) as stand:
        command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", "-", "--workers", "0"]
        log, here = tmp_path / "run.log", {"REDIS_URL": stand.redis.url, "TURNOUT_CONFIG": str(stand.config)}
        child = process.start(command, log, here)
        try:
            stand.until(lambda: stand.client.exists(stand.ledger.keys.pending("batch")), 60)
            stand.redis.kill()
            child.terminate()
            assert child.wait(60) == 3, log.read_text()
        finally:
            process.stop(child)
    assert "Stopped. What is done is kept" in log.read_text()


def test_a_simulated_run_has_a_redis_of_its_own_beside_a_live_fleets(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    (tmp_path / "scenario.toml").write_text(FLEET)
    output, log = tmp_path / "results.jsonl", tmp_path / "run.log"
    command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", str(output)]
    with standing(tmp_path, FLEET) as stand:
        stand.submit(["live"], constraints={"lane": "batch"})
        before = {*stand.client.keys()}
        child = process.start([*command, "--scenario", str(tmp_path / "scenario.toml")], log, stand_in(stand))
        try:
            assert child.wait(60) == 0, log.read_text()
        finally:
            process.stop(child)
        assert {*stand.client.keys()} == before
        assert stand.outcomes(["live"]) == {"queued": 1}
    assert json.loads(output.read_text())["simulated"]


def stand_in(stand: Stand) -> dict[str, str]:
    """The environment of a live fleet."""
    return {"REDIS_URL": stand.redis.url, "TURNOUT_CONFIG": str(stand.config)}


@pytest.mark.parametrize("level", ["info", "warning"])
def test_a_run_uses_the_redis_that_its_configuration_names_and_begins_however_little_is_logged(
    tmp_path: Path, level: str
) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    output, log = tmp_path / "results.jsonl", tmp_path / "run.log"
    command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", str(output)]
    with standing(tmp_path, FLEET) as stand:
        stand.config.write_text(f'redis_url = "{stand.redis.url}"\n' + stand.config.read_text())
        child = process.start(
            [*command, "--config", str(stand.config)], log, {"REDIS_URL": "", "TURNOUT_LOG_LEVEL": level}
        )
        try:
            assert child.wait(60) == 0, log.read_text()
        finally:
            process.stop(child)
        assert stand.settled() == 1
    assert json.loads(output.read_text())["status"] == "succeeded"


def test_a_run_without_workers_wants_a_redis_that_others_work_on(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    command = [sys.executable, "-m", "turnout", "run", "prompts.txt", "-o", "-", "--workers", "0", "--simulate"]
    environ = {**os.environ, "REDIS_URL": "redis://127.0.0.1:1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "set REDIS_URL or redis_url to their Redis" in done.stderr


def test_what_a_stopped_run_leaves_with_a_fleet_can_be_cancelled_and_is_before_a_run_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"Question {n}?\n" for n in range(20)))
    log = tmp_path / "run.log"
    command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", str(tmp_path / "out.jsonl")]
    with standing(tmp_path, FLEET) as stand:

        def queued() -> bool:
            return stand.client.zcard(stand.ledger.keys.pending("batch")) == 20

        def run_until_queued(end: int, *options: str) -> None:
            child = process.start([*command, "--workers", "0", *options], log, stand_in(stand))
            try:
                stand.until(queued, 60)
                child.send_signal(end)
                child.wait(60)
            finally:
                process.stop(child)

        run_until_queued(signal.SIGTERM, "--json", "--anew")
        said = [json.loads(line) for line in log.read_text().splitlines()]
        [told] = [line["message"] for line in said if "turnout batch cancel" in line.get("message", "")]
        assert told.startswith("20 jobs may still be done")
        assert said[-1]["message"].endswith(" --workers 0 --json"), "--anew would pay for all lines once more"
        for name, value in stand_in(stand).items():
            monkeypatch.setenv(name, value)
        cancelled = CliRunner().invoke(main, ["batch", "cancel", told.split()[-1]])
        assert cancelled.output == "20 jobs cancelled\n"
        assert not stand.client.exists(stand.ledger.keys.pending("batch"))

        run_until_queued(signal.SIGKILL, "--anew")
        child = process.start([*command, "--anew"], log, stand_in(stand))
        try:
            assert child.wait(60) == 0, log.read_text()
        finally:
            process.stop(child)
        assert len(stand.oracle()["jobs"]) == 20, "the killed run's are not called besides"


def test_a_run_takes_the_password_of_its_redis_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("A?\n")
    (tmp_path / "password").write_text("secret\n")
    with standing(tmp_path, FLEET) as stand:
        stand.client.config_set("requirepass", "secret")
        environ = {"REDIS_URL": stand.redis.url, "REDIS_PASSWORD_FILE": str(tmp_path / "password")}
        output = tmp_path / "results.jsonl"
        command = [sys.executable, "-m", "turnout", "run", str(tmp_path / "prompts.txt"), "-o", str(output)]
        child = process.start(command, tmp_path / "run.log", {**environ, "TURNOUT_CONFIG": str(stand.config)})
        try:
            assert child.wait(60) == 0, (tmp_path / "run.log").read_text()
        finally:
            process.stop(child)
    assert json.loads(output.read_text())["status"] == "succeeded"
