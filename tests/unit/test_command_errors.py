"""What a command is told wrongly is said in a line, with what to do."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from tests import redis_server
from tests.forked import Forked

from turnout.cli import main
from turnout.redis_trouble import CLUSTER
from turnout_workers.state import fitness

NO_TEXT = b"\xff\xfe"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of one prompt, in which each command runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("A?")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("run p.txt -o out --workers 0", "set REDIS_URL or redis_url to their Redis"),
        ("run p.txt", "say with -o where results are to go"),
        ("run p.txt -o loop", "can't write loop: Too many levels of symbolic links"),
        ("run loop -o out", "Too many levels of symbolic links"),
        ("run p.txt -o p.txt", "p.txt is the input, and would be overwritten"),
        ("run p.txt -o out --scenario no-text", "no-text: can't be read: 'utf-8' codec can't decode"),
        ("run not-looked-at -o out --max-cost nan", "'nan' is not an amount in dollars"),
        ("run p.txt -o out --deadline 0s", "'0s' is not a duration such as 90s"),
        ("run p.txt -o out --deadline 9999999d", "constraints.deadline_s: Input should be less than"),
        ("run p.txt --dry-run --model a\N{NO-BREAK SPACE}b", "model: must be a name without spaces"),
        ("batch submit p.txt --only a,b\N{NO-BREAK SPACE}", "constraints.only.0: must be a name without spaces"),
        ("batch retry-failed x --max-cost inf", "'inf' is not an amount in dollars from 0 to 1,000,000,000"),
        ("simulate --port 99999", "99999 is not in the range 0<=x<=65535"),
        ("simulate --port 0 --toml none/t.toml", "can't write none/t.toml: No such file or directory"),
        ("simulate --port 0 --host 192.0.2.1", "; see --host and --port"),
        ("simulate --scenario empty", "empty: providers: Field required"),
        ("worker --lanes standard,fast", "unknown lane fast: choose from interactive, standard, batch"),
        ("failed --limit 0", "0 is not in the range x>=1"),
        ("replay", "name jobs, or give --all, --error, --provider or --batch"),
        ("replay a --error poison", "name jobs, or give --all"),
        ("replay a --all", "name jobs, or give --all"),
        ("isolate nobody", "no provider or endpoint is called nobody; there are openai"),
        ("flower --address 0.0.0.0", "FLOWER_BASIC_AUTH_FILE=no-text can't be read: not UTF-8"),
        ("flower --address 192.0.2.1", "192.0.2.1 can be reached by others"),
    ],
)
def test_a_wrong_command_is_refused_in_a_line(command: str, told: str, here: Path) -> None:
    (here / "no-text").write_bytes(NO_TEXT)
    (here / "empty").touch()
    (here / "loop").symlink_to("loop")
    environ = {"OPENAI_API_KEY": "k", "FLOWER_BASIC_AUTH_FILE": "no-text" if "0.0.0.0" in command else None}
    done = CliRunner().invoke(main, command.split(" "), env=environ)
    assert done.exit_code == 2
    assert told in done.output
    assert isinstance(done.exception, SystemExit), "and no traceback"


@pytest.mark.parametrize("command", ["explain", "cancel", "replay", "batch show", "batch pause", "batch delete"])
def test_nothing_is_called_by_bytes_that_are_no_text(command: str, redis_url: str) -> None:
    environ = {"OPENAI_API_KEY": "k", "REDIS_URL": redis_url}
    done = CliRunner().invoke(main, [*command.split(), os.fsdecode(NO_TEXT)], env=environ)
    assert (done.exit_code, done.output) == (
        2,
        "Error: not found: '\\udcff\\udcfe' is not valid UTF-8, so no id or name contains it\n",
    )


def test_a_command_that_is_interrupted_ends_as_stopped_and_not_as_one_that_found_no_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("turnout_workers.commands.batch.deployment", interrupted)
    done = CliRunner().invoke(main, ["batch", "watch", "batch-1"])
    assert (done.exit_code, done.output) == (3, "Stopped.\n")


def test_a_disk_that_is_full_as_a_run_starts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setattr(Path, "write_text", full)
    done = CliRunner().invoke(main, ["run", "p.txt", "-o", "out", "--simulate"])
    assert done.exit_code == 2
    assert "No space left on device: '.turnout/" in done.output
    assert "the same command goes on" in done.output


def test_a_working_folder_that_can_not_be_written_is_told(here: Path) -> None:
    (here / ".turnout").touch()
    done = CliRunner().invoke(main, ["run", "p.txt", "-o", "out"])
    assert done.exit_code == 2
    assert "can't write .turnout/" in done.output
    assert {path.name for path in here.iterdir()} == {"p.txt", ".turnout"}


@pytest.mark.parametrize("name", [b"here", b"caf\xe9"], ids=["plain", "no UTF-8"])
def test_a_run_whose_redis_is_away_says_so_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "p.txt").write_text("A?")
    environ = {"OPENAI_API_KEY": "k", "REDIS_URL": "redis://127.0.0.1:1"}
    done = CliRunner().invoke(main, ["run", "p.txt", "-o", "out"], env=environ)
    assert done.exit_code == 2
    assert "Redis at redis://127.0.0.1:1/0 can't be reached (" in done.output
    assert not list(tmp_path.glob("**/worker-*.log"))


@pytest.mark.parametrize("command", ["run p.txt -o out", "worker", "status", "submit A?", "flower"])
def test_an_address_that_no_worker_could_use_is_refused_by_all(command: str) -> None:
    environ = {"OPENAI_API_KEY": "k", "REDIS_URL": "redis://127.0.0.1?health_check_interval=5"}
    done = CliRunner().invoke(main, command.split(), env=environ)
    assert "must have only TLS options after its ?" in done.output
    assert isinstance(done.exception, SystemExit), "and no traceback"


def test_a_text_that_the_locale_has_no_characters_for_is_told_all_the_same(here: Path) -> None:
    (here / "in.jsonl").write_text('{"prompt": "A?", "model": "gr\\u00f6\\u00dfe"}')
    done = CliRunner(charset="ascii").invoke(main, ["run", "in.jsonl", "--dry-run", "--simulate"])
    assert (done.exit_code, done.exception.__class__) == (1, SystemExit)
    assert r"gr\xf6\xdfe" in done.stdout


def test_a_flower_whose_port_is_taken_says_so(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = ["flower", "--port", str(taken.getsockname()[1])]
        flower = Forked(command, {"OPENAI_API_KEY": "k"}, here / "log", partial(os.chdir, here))
        assert flower.wait(60) == 2
    assert flower.said == "Error: Address already in use; see --address, --port and --db\n"


def test_a_redis_that_takes_no_writes_is_told_as_such(flushed: redis.Redis, redis_url: str) -> None:
    flushed.config_set("min-replicas-to-write", 1)
    try:
        environ = {"OPENAI_API_KEY": "k", "REDIS_URL": redis_url}
        done = CliRunner().invoke(main, ["run", "p.txt", "-o", "out", "--workers", "0"], env=environ)
    finally:
        flushed.config_set("min-replicas-to-write", 0)
    assert done.exit_code == 2
    assert "NOREPLICAS" in done.output
    assert "What is done is kept" in done.output


def test_a_redis_in_cluster_mode_is_told_as_such(here: Path) -> None:
    server = redis_server.start(here, "--cluster-enabled", "yes")
    environ = {"OPENAI_API_KEY": "", "REDIS_URL": (url := server.url)}
    try:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                time.sleep(0.05)
            assert (False, f"it {CLUSTER}") in list(fitness.checks(client.info()))
        done = CliRunner().invoke(main, ["submit", "A?"], env=environ)
    finally:
        server.stop()
    assert done.output == f"Error: Redis at {url} {CLUSTER}\n"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis that wants a password."""
    server = redis_server.start(tmp_path_factory.mktemp("locked"))
    with redis.Redis.from_url(server.url) as client:
        client.config_set("requirepass", "good")
    yield server.port
    server.stop()


class Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def web() -> Iterator[int]:
    """The port of a web server."""
    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("login", ["", ":secret@", "nobody:secret@"])
def test_a_login_that_redis_refuses_is_told_as_such(locked: int, login: str) -> None:
    told = "refuses the login: user or password is missing or wrong; look at REDIS_URL, or redis_url"
    assert _of_redis(f"redis://{login}127.0.0.1:{locked}/0") == f"Redis at redis://127.0.0.1:{locked}/0 {told}"


def test_a_server_that_is_no_redis_is_told_as_such(web: int) -> None:
    told = _of_redis(f"redis://:secret@127.0.0.1:{web}")
    assert told.startswith(f"the server at redis://127.0.0.1:{web}/0 is not Redis (Protocol error, got ")


def test_a_database_that_there_is_not_is_told_as_such(redis_server: redis_server.Server) -> None:
    place = f"127.0.0.1:{redis_server.port}/99"
    told = f"Redis at redis://{place} has no database of this number; look at REDIS_URL, or redis_url"
    assert _of_redis(f"redis://:secret@{place}") == told


def test_of_sentinels_that_know_no_primary_the_addresses_are_told_and_not_how_they_were_asked() -> None:
    told = _of_redis("sentinel://:secret@127.0.0.1:1,127.0.0.1:2/jobs?password=secret")
    place = "sentinel://127.0.0.1:1,127.0.0.1:2/jobs/0"
    assert told == f"Redis at {place} can't be reached (No master found for 'jobs'); look at REDIS_URL, or redis_url"


def _of_redis(url: str) -> str:
    """What a command says of this Redis."""
    done = CliRunner().invoke(main, ["failed"], env={"OPENAI_API_KEY": "k", "REDIS_URL": url})
    assert done.exit_code == 2
    return done.output.removeprefix("Error: ").rstrip("\n")
