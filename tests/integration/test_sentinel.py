"""A failover by Sentinel, with real sentinels: producers, workers and commands go on with the new primary."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from tests import redis_server
from tests.chaos.stand import LEASE_S, Stand, standing
from tests.integration.test_crashes import FLEET

from turnout import AsyncClient, Client
from turnout.cli import main
from turnout.client import link
from turnout.redis_address import connect
from turnout_workers.local import process

SENTINEL = """port {port}
bind 127.0.0.1
dir {folder}
requirepass guard
sentinel sentinel-pass guard
sentinel monitor jobs 127.0.0.1 {primary} 2
sentinel auth-user jobs fleet
sentinel auth-pass jobs p@ss
sentinel down-after-milliseconds jobs 60000
sentinel failover-timeout jobs 4000
"""


class Watched:
    """A primary (the stand's own), its replica, and three sentinels, all with passwords."""

    def __init__(self, stand: Stand, open_: ExitStack) -> None:
        stand.client.config_set("repl-diskless-sync-delay", 0)
        self.replica = redis_server.start(stand.folder / "replica", "--replicaof", "127.0.0.1", str(stand.redis.port))
        open_.callback(self.replica.stop)
        for server in (stand.redis, self.replica):
            with redis.Redis(port=server.port) as admin:
                admin.execute_command("ACL", "SETUSER", "fleet", "on", ">p@ss", "~*", "&*", "+@all")
                admin.config_set("shutdown-timeout", 0)
                admin.config_set("masteruser", "fleet")
                admin.config_set("masterauth", "p@ss")
                admin.execute_command("ACL", "SETUSER", "default", "off")
        reserved = [open_.enter_context(redis_server.bind_free_port()) for _ in range(3)]
        ports = [one.getsockname()[1] for one in reserved]
        self.sentinels = [self._sentinel(stand, port) for port in ports]
        for sentinel in self.sentinels:
            open_.callback(process.stop, sentinel)
        self.url = f"sentinel://fleet:p%40ss@{','.join(f'127.0.0.1:{port}' for port in ports)}/jobs/0?password=guard"
        self.asked = [redis.Redis(port=port, password="guard") for port in ports]
        for asked in self.asked:
            # Look ten times as often as the usual, which can't be configured, and do so also after a pause: it may be
            # this machine's.
            periods = {"INFO-PERIOD": 1000, "PUBLISH-PERIOD": 200, "TILT-TRIGGER": 60_000}
            asked.execute_command("SENTINEL", "DEBUG", *(word for pair in periods.items() for word in pair))
        stand.client = connect(self.url)
        self.copy = redis.Redis(port=self.replica.port, username="fleet", password="p@ss")
        stand.until(lambda: self.copy.info("replication")["master_link_status"] == "up", 60)
        stand.until(lambda: all(map(self._knows_all, self.asked)), 60)

    def alert(self, asked: Sequence[redis.Redis]) -> None:
        """Have these take a primary for down that says nothing for half a second. Until then none does so because of a
        busy machine."""
        for one in asked:
            one.execute_command("SENTINEL", "SET", "jobs", "down-after-milliseconds", 500)

    def _sentinel(self, stand: Stand, port: int) -> subprocess.Popen[bytes]:
        folder = stand.folder / f"sentinel-{port}"
        folder.mkdir()
        configuration = folder / "sentinel.conf"
        configuration.write_text(SENTINEL.format(port=port, folder=folder, primary=stand.redis.port))
        log = folder / "log"
        started = process.start([str(redis_server.BINARY), str(configuration), "--sentinel"], log)
        process.wait_until(lambda: "+monitor" in log.read_text(), started, log, 60)
        return started

    def _knows_all(self, asked: redis.Redis) -> bool:
        told = asked.sentinel_master("jobs")
        return told["num-slaves"] == 1 and told["num-other-sentinels"] == 2


@contextmanager
def watched(folder: Path, lease_s: float = LEASE_S) -> Iterator[tuple[Stand, Watched]]:
    with standing(folder, FLEET, concurrency=10, lease_s=lease_s) as stand, ExitStack() as open_:
        yield stand, Watched(stand, open_)


async def test_the_fleet_goes_on_when_the_primary_and_a_sentinel_die(tmp_path: Path) -> None:
    with ExitStack() as open_:
        stand, here = open_.enter_context(watched(tmp_path))
        client = open_.enter_context(Client(here.url))
        worker = stand.start_worker(redis_url=here.url)
        (tmp_path / "prompts.txt").write_text("".join(f"Line {n}\n" for n in range(60)))
        running = stand.start("run", str(tmp_path / "prompts.txt"), "-o", "-", "--workers", "0", REDIS_URL=here.url)
        stand.until(lambda: stand.settled() > 5, 60)
        jobs = client.submit_many(f"Question {n}?" for n in range(60))
        assert jobs[0].wait(60).text
        stand.until(lambda: stand.settled() > 15, 60)
        written = stand.client.info("replication")["master_repl_offset"]
        stand.until(lambda: here.copy.info("replication")["slave_repl_offset"] >= written, 60)
        here.sentinels[0].kill()
        here.alert(here.asked[1:])
        stand.redis.kill()
        stand.until(lambda: stand.settled() == len(jobs) + 60, 60)
        assert stand.outcomes([job.id for job in jobs]) == {"succeeded": len(jobs)}
        assert running.wait(60) == 0, running.said
        assert worker.poll() is None, "the worker has survived"
        assert client.submit("Once more?").wait(60).text
        async with AsyncClient(here.url) as later:
            assert (await (await later.submit("And again?"))).text
        told = CliRunner().invoke(main, ["status", "--json"], env=stand.environ | {"REDIS_URL": here.url})
        assert json.loads(told.stdout)
        assert stand.client.connection_pool.get_master_address() == ("127.0.0.1", here.replica.port)


def test_threads_share_the_connections_and_wait_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(link.LIMITS, "socket_timeout", 60)
    count = 3 * link.CONNECTIONS
    with watched(tmp_path) as (stand, here), Client(here.url) as client, ThreadPoolExecutor(count) as threads:
        stand.client.client_pause(30_000, all=False)
        asked = [threads.submit(client.submit, "A?") for _ in range(count)]
        stand.until(lambda: stand.client.info("clients")["blocked_clients"] >= link.CONNECTIONS, 30)
        stand.client.client_unpause()
        assert len({each.result().id for each in asked}) == count


def test_a_primary_that_hangs_and_comes_back_as_a_replica_takes_no_more_writes(tmp_path: Path) -> None:
    with watched(tmp_path) as (stand, here), Client(here.url) as client:
        worker = stand.start_worker(redis_url=here.url)
        assert client.submit("Before?").wait(60).text
        here.alert(here.asked)
        stand.redis.proc.send_signal(signal.SIGSTOP)
        try:
            stand.until(lambda: here.asked[0].sentinel_master("jobs")["port"] == here.replica.port, 60)
        finally:
            stand.redis.proc.send_signal(signal.SIGCONT)
        with redis.Redis(port=stand.redis.port, username="fleet", password="p@ss") as old:
            stand.until(lambda: old.info("replication")["role"] == "slave", 60)
        assert client.submit("After?").wait(60).text
        assert worker.poll() is None


def test_a_planned_failover_in_the_documented_order_calls_no_job_twice(tmp_path: Path) -> None:
    with watched(tmp_path, lease_s=30.0) as (stand, here), Client(here.url) as client:
        worker = stand.start_worker(redis_url=here.url)
        jobs = client.submit_many(f"Question {n}?" for n in range(100))
        stand.until(lambda: stand.settled() > 15, 60)
        with redis.Redis(port=stand.redis.port, username="fleet", password="p@ss") as old:
            old.client_pause(60_000, all=False)
            here.asked[0].sentinel_failover("jobs")
            stand.until(lambda: here.asked[0].sentinel_master("jobs")["port"] == here.replica.port, 50)
            old.replicaof("127.0.0.1", here.replica.port)
            old.client_unpause()
        stand.until(lambda: stand.settled() == len(jobs), 60)
        assert stand.outcomes([job.id for job in jobs]) == {"succeeded": len(jobs)}
        assert set(stand.unrecorded_calls()) == {0}
        assert worker.poll() is None
