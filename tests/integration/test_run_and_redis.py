"""`turnout run` with a Redis and workers that are there already, when that Redis goes and comes back, or moves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from tests import redis_server
from tests.chaos.fleet import one_provider
from tests.chaos.stand import Stand, standing
from tests.forked import Forked
from tests.tcp_proxy import between

from turnout import Client
from turnout.cli import main

FLEET = one_provider(ttft_s=0.2)
LINES = 200


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with standing(tmp_path, FLEET, concurrency=20) as stand:
        yield stand


def run(stand: Stand, lines: int, *options: str, **environ: str) -> Forked:
    """`turnout run` of a file of so many lines, in the stand's folder."""
    source = stand.folder / "prompts.txt"
    source.write_text("".join(f"Question {n}?\n" for n in range(lines)))
    return stand.start("run", str(source), "-o", str(stand.folder / "out.jsonl"), *options, **environ)


def statuses(stand: Stand) -> list[str]:
    return [json.loads(line)["status"] for line in (stand.folder / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("gone", [True, False], ids=["nobody reads", "its disk is full"])
def test_a_run_whose_progress_can_not_be_shown_goes_on(stand: Stand, gone: bool, as_json: list[str]) -> None:
    stand.start_worker()
    source = stand.folder / "prompts.txt"
    source.write_text("A?\nB?\n")
    command = [sys.executable, "-m", "turnout", "run", str(source), "-o", str(stand.folder / "out.jsonl"), *as_json]
    if gone:
        ours, theirs = os.pipe()
        os.close(ours)
    elif sys.platform == "linux":
        theirs = os.open("/dev/full", os.O_WRONLY)
    else:
        pytest.skip("there is no disk that is always full")
    environ = {**os.environ, **stand.environ}
    ended = subprocess.run([*command, "--workers", "0"], env=environ, stderr=theirs, timeout=60, check=False)
    os.close(theirs)
    assert ended.returncode == 0
    assert statuses(stand) == ["succeeded"] * 2


def test_all_go_on_at_the_primary_that_their_address_leads_to_though_the_old_one_keeps_its_connections(
    stand: Stand, tmp_path: Path
) -> None:
    with ExitStack() as open_:
        replica = redis_server.start(tmp_path / "replica", "--replicaof", "127.0.0.1", str(stand.redis.port))
        open_.callback(replica.stop)
        proxy = open_.enter_context(between(stand.redis.port))
        old, new = stand.client, open_.enter_context(redis.Redis(port=replica.port))
        stand.client = new  # which tells how many have settled
        stand.until(lambda: new.info("replication")["master_link_status"] == "up", 30)
        worker = stand.start_worker(redis_url=proxy.url)
        running = run(stand, LINES, "--workers", "0", REDIS_URL=proxy.url)
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
        assert running.wait(60) == 0, running.said
        assert worker.poll() is None
        assert {job["answered"] for job in stand.oracle()["jobs"].values()} == {1}
    assert statuses(stand) == ["succeeded"] * LINES


def test_a_run_stops_at_once_though_its_redis_is_away(stand: Stand) -> None:
    running = run(stand, 1, "--workers", "0")
    stand.until(lambda: stand.client.exists(stand.ledger.keys.pending("batch")), 60)
    stand.redis.kill()
    running.terminate()
    assert running.wait(60) == 3, running.said
    assert "Stopped. What is done is kept" in running.said


def test_a_simulated_run_has_a_redis_of_its_own_beside_a_live_fleets(stand: Stand) -> None:
    stand.submit(["live"], constraints={"lane": "batch"})
    before = {*stand.client.keys()}
    running = run(stand, 1, "--scenario", str(stand.folder / "fleet.toml"))
    assert running.wait(60) == 0, running.said
    assert {*stand.client.keys()} == before
    assert stand.outcomes(["live"]) == {"queued": 1}
    assert json.loads((stand.folder / "out.jsonl").read_text())["simulated"]


@pytest.mark.parametrize("level", ["info", "warning"])
def test_a_run_uses_the_redis_that_its_configuration_names_and_begins_however_little_is_logged(
    stand: Stand, level: str
) -> None:
    stand.config.write_text(f'redis_url = "{stand.redis.url}"\n' + stand.config.read_text())
    running = run(stand, 1, "--config", str(stand.config), REDIS_URL="", TURNOUT_LOG_LEVEL=level)
    assert running.wait(60) == 0, running.said
    assert stand.settled() == 1
    assert statuses(stand) == ["succeeded"]


def test_a_run_without_workers_wants_a_redis_that_others_work_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("A?\n")
    command = ["run", "prompts.txt", "-o", "-", "--workers", "0", "--simulate"]
    done = CliRunner().invoke(main, command, env={"REDIS_URL": "redis://127.0.0.1:1"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert "set REDIS_URL or redis_url to their Redis" in done.stderr


def test_what_a_stopped_run_leaves_with_a_fleet_can_be_cancelled_and_is_before_a_run_anew(stand: Stand) -> None:
    def run_until_queued(end: signal.Signals, *options: str) -> Forked:
        running = run(stand, 20, "--workers", "0", *options)
        stand.until(lambda: stand.client.zcard(stand.ledger.keys.pending("batch")) == 20, 60)
        running.send_signal(end)
        running.wait(60)
        return running

    said = [json.loads(line) for line in run_until_queued(signal.SIGTERM, "--json", "--anew").said.splitlines()]
    [told] = [line["message"] for line in said if "turnout batch cancel" in line.get("message", "")]
    assert told.startswith("20 jobs may still be done")
    assert said[-1]["message"].endswith(" --workers 0 --json"), "--anew would pay for all lines once more"
    cancelled = CliRunner().invoke(main, ["batch", "cancel", told.split()[-1]], env=stand.environ)
    assert cancelled.output == "20 jobs cancelled\n"
    assert not stand.client.exists(stand.ledger.keys.pending("batch"))

    run_until_queued(signal.SIGKILL, "--anew")
    again = run(stand, 20, "--anew")
    assert again.wait(60) == 0, again.said
    assert len(stand.oracle()["jobs"]) == 20, "the killed run's are not called besides"


def test_a_run_takes_the_password_of_its_redis_from_a_file(stand: Stand) -> None:
    password = stand.folder / "password"
    password.write_text("secret\n")
    stand.client.config_set("requirepass", "secret")
    running = run(stand, 1, REDIS_PASSWORD_FILE=str(password))
    assert running.wait(60) == 0, running.said
    assert statuses(stand) == ["succeeded"]
