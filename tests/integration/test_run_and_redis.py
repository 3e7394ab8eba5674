"""`turnout run` with a Redis and workers that are there already, when that Redis goes and comes back, or moves."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import redis
from tests import redis_server
from tests.chaos.stand import standing
from tests.tcp_proxy import between

from turnout import Client
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
    with standing(tmp_path, FLEET, concurrency=20) as stand, ExitStack() as open_:
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
        old.client_pause(10_000, all=False)
        written = old.info("replication")["master_repl_offset"]
        stand.until(lambda: new.info("replication")["slave_repl_offset"] >= written, 10)
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
            assert child.wait(20) == 3, log.read_text()
        finally:
            process.stop(child)
    assert "Stopped. What is done is kept" in log.read_text()


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
