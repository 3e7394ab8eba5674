"""The roles of compose/redis/users.acl, on a real server started by compose's own script."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner
from redis.exceptions import AuthenticationError, NoPermissionError
from tests import redis_server
from tests.chaos.fleet import NOBODY, Fleet, one_provider

from turnout import Client
from turnout.cli import main
from turnout.ledger import Claimed, Intake, Keys, Ledger, NewJob, run
from turnout.request import InferenceRequest
from turnout.result import JobResult, JobStatus
from turnout_workers.local import process

COMPOSE = Path(__file__).parents[2] / "compose"
ROLES = ("admin", "producer", "worker", "monitor")
LEDGER, KEYS = Ledger(), Keys()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("roles")
    for role in ROLES:
        (folder / f"redis_{role}").write_text(f"{role}-secret")
    environ = {
        "ROLES": str(COMPOSE / "redis/users.acl"),
        "SECRETS": str(folder),
        "SERVER": str(redis_server.BINARY),
        "CONFIG": str(COMPOSE / "redis/valkey.conf"),
        "DATA": str(folder),
        "MAXMEMORY": "100mb",
        "TMPDIR": str(folder),
    }
    with redis_server.bind_free_port() as reserved:
        port: int = reserved.getsockname()[1]
        command = ["sh", str(COMPOSE / "redis/start.sh"), "--bind", "127.0.0.1", "--port", str(port)]
        log = folder / "redis.log"
        server = process.start(command, log, environ)
        try:
            process.wait_until(lambda: "Ready to accept connections" in log.read_text(), server, log, 60)
            yield port
        finally:
            process.stop(server)


def login(port: int, role: str) -> redis.Redis:
    return redis.Redis(port=port, username=role, password=f"{role}-secret")


def configured(port: int, role: str, folder: Path) -> dict[str, str]:
    """What a command of that role finds in its environment."""
    (config := folder / "turnout.toml").write_text(NOBODY)
    return {"REDIS_URL": f"redis://{role}:{role}-secret@127.0.0.1:{port}/0", "TURNOUT_CONFIG": str(config)}


def new_job() -> NewJob:
    return NewJob.of(uuid.uuid4().hex, InferenceRequest(prompt="Say yes."))


def test_a_producer_submits_and_a_worker_settles_and_the_producer_reads(port: int) -> None:
    producer, worker, job = login(port, "producer"), login(port, "worker"), new_job()
    inbox = KEYS.inbox("me")
    listening = producer.pubsub()
    listening.subscribe(inbox)
    accepted, state = run(producer, [LEDGER.enqueue(job), LEDGER.watch(job.id, inbox)])
    assert (accepted.outcome, state) == (Intake.QUEUED, "queued")
    assert worker.brpop(["standard"], 1) is not None
    [claimed] = run(worker, [LEDGER.claim(job.id, "w", 60)])
    assert isinstance(claimed, Claimed)
    done = JobResult(id=job.id, status=JobStatus.CANCELLED)
    assert run(worker, [LEDGER.settle(claimed.token, done, None, 60)])[0].accepted
    assert [one for one in (listening.get_message(timeout=60) for _ in range(2)) if one][-1]["data"] == job.id.encode()
    assert run(producer, [LEDGER.result(job.id)])[0].status is JobStatus.CANCELLED
    assert run(producer, [LEDGER.replay(job.id)]) == [True]
    assert run(producer, [LEDGER.cancel(job.id, None)])[0].accepted
    assert run(producer, [LEDGER.purge([job.id])]) == [1]


def test_a_producer_feeds_a_batch_and_caps_its_cost(port: int, tmp_path: Path) -> None:
    source, log = tmp_path / "in.jsonl", tmp_path / "run.log"
    source.write_text('{"prompt": "Say yes."}\n')
    environ = configured(port, "producer", tmp_path)
    command = [sys.executable, "-m", "turnout", "run", str(source), "-o", str(tmp_path / "out"), "--workers", "0"]
    child = process.start([*command, "--max-cost", "1", "--lane", "interactive"], log, environ)
    worker = login(port, "worker")
    try:
        process.wait_until(lambda: worker.hlen(KEYS.ceilings) == 1 and worker.llen("interactive") == 1, child, log, 60)
        (job_id,) = (id.decode() for id in worker.zrange(KEYS.pending("interactive"), 0, -1))
        [claimed] = run(worker, [LEDGER.claim(job_id, "w", 60)])
        done = JobResult(id=job_id, status=JobStatus.CANCELLED)
        run(worker, [LEDGER.settle(claimed.token, done, None, 60, claimed.batch)])
        assert child.wait(60) == 1, log.read_text()
    finally:
        process.stop(child)
    assert worker.hlen(KEYS.ceilings) == 0


def test_a_producer_may_all_that_is_done_to_batches(port: int, tmp_path: Path) -> None:
    environ = {"REDIS_URL": f"redis://producer:producer-secret@127.0.0.1:{port}/0", "GROQ_API_KEY": "k"}

    def batch(*arguments: str, code: int = 0) -> str:
        told = CliRunner().invoke(main, ["batch", *arguments], env=environ)
        assert told.exit_code == code, told.output
        return told.stdout.strip()

    (tmp_path / "in.jsonl").write_text('{"prompt": "Say yes."}\n')
    id = batch("submit", str(tmp_path / "in.jsonl"))
    assert id in batch("list")
    for command in ("show", "pause", "resume", "cancel", "retry-failed"):
        batch(command, id)
    batch("results", id, "-o", str(tmp_path / "out.jsonl"), code=1)  # none has an answer
    batch("delete", id)
    assert id not in batch("list")


def test_a_monitor_reads_depths_health_and_money(port: int) -> None:
    monitor = login(port, "monitor")
    assert monitor.info("memory")["maxmemory"] == 100 << 20
    for read in (monitor.hgetall, monitor.type):
        read(KEYS.endpoints)
        read(KEYS.money)
    assert monitor.llen("standard") >= 0
    assert monitor.zcard(KEYS.job_leases) == 0


def sent(task: str, number: int) -> tuple[str, str]:
    """The id and the message of a task that a plain Celery app sends: such a request is nowhere else."""
    id, request = uuid.uuid4().hex, {"prompt": "Why?", "constraints": {"only": ["nobody"]}}
    headers = {"task": task, "id": id, "root_id": id}
    properties = {"delivery_tag": str(number), "delivery_info": {"exchange": "", "routing_key": "standard"}}
    said = {"body": json.dumps([[request], {}, {}]), "content-type": "application/json", "content-encoding": "utf-8"}
    return id, json.dumps({**said, "headers": headers, "properties": properties | {"body_encoding": None}})


@pytest.mark.parametrize("refused", ["", "setex"])
def test_a_task_that_no_worker_knows_takes_no_other_with_it_nor_if_its_end_cannot_be_told(
    port: int, tmp_path: Path, refused: str
) -> None:
    producer, log = login(port, "producer"), tmp_path / "worker.log"
    messages = [sent("turnout.infre" if n == 5 else "turnout.infer", n) for n in range(20)]
    unknown = messages[5][0]
    producer.lpush("standard", *(message for _, message in messages))
    environ = configured(port, "worker", tmp_path) | {"TURNOUT_SPOOL": str(tmp_path / "spool")}
    admin = login(port, "admin")
    if refused:
        admin.execute_command("ACL", "SETUSER", "worker", f"-{refused}")
    admin.acl_log_reset()
    worker = process.start([sys.executable, "-m", "turnout", "worker"], log, environ)
    try:
        told = {id for id, _ in messages} - ({unknown} if refused else set())
        process.wait_until(lambda: all(producer.get(KEYS.result(id)) for id in told), worker, log, 60)
    finally:
        process.stop(worker)
        if refused:
            admin.execute_command("ACL", "SETUSER", "worker", f"+{refused}")
    assert {one["object"] for one in admin.acl_log()} == ({refused} if refused else set()), "and a worker asks no more"
    assert "NotRegistered" in (producer.get(KEYS.result(unknown)) or b"NotRegistered").decode()


SENDS_A_CHORD = """
import sys
from celery import Celery, chord

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
one = app.signature("turnout.infer", ["Why?"], queue="standard")
chord([one, one.clone().set(countdown=0.5)], app.signature("shop.keep", queue="shop"))()
"""


def test_a_plain_celery_app_sends_chords_with_the_rights_that_the_docs_add(port: int, tmp_path: Path) -> None:
    admin, log, fleet = login(port, "admin"), tmp_path / "worker.log", Fleet(tmp_path, one_provider())
    lanes = ("~interactive*", "~standard*", "~batch*")
    admin.execute_command("ACL", "SETUSER", "producer", *lanes, "~_kombu.binding*", "~celery-taskset-meta-*", "+sadd")
    admin.execute_command("ACL", "SETUSER", "worker", "~shop*", "~celery-taskset-meta-*", "+sismember")
    admin.acl_log_reset()
    url = f"redis://producer:producer-secret@127.0.0.1:{port}/0"
    environ = {"REDIS_URL": url.replace("producer", "worker"), "TURNOUT_CONFIG": str(fleet.config)}
    worker = process.start([sys.executable, "-m", "turnout", "worker"], log, environ)
    try:
        subprocess.run([sys.executable, "-c", SENDS_A_CHORD, url], check=True, timeout=60)
        process.wait_until(lambda: admin.llen("shop") == 1, worker, log, 60)
        assert admin.acl_log() == []
    finally:
        process.stop(worker)
        fleet.close()
        admin.execute_command("ACL", "LOAD")


SENDS_CALLBACKS = """
import sys
from celery import Celery

app = Celery(broker=sys.argv[1], backend=sys.argv[1])
told = app.signature("shop.keep", queue="shop")
wrong = {"request": {"prompt": "Why?", "constraints": {"only": ["nobody"]}}}
for kwargs in ({"request": {"prompt": "Why?"}}, wrong):
    job = app.send_task("turnout.infer", kwargs=kwargs, queue="standard", link=told, link_error=told)
    job.get(timeout=30, propagate=False)
"""


def test_a_callback_to_a_queue_that_the_worker_may_not_write_ends_no_worker(port: int, tmp_path: Path) -> None:
    admin, log, fleet = login(port, "admin"), tmp_path / "worker.log", Fleet(tmp_path, one_provider())
    lanes = ("~interactive*", "~standard*", "~batch*", "~_kombu.binding*")
    admin.execute_command("ACL", "SETUSER", "producer", *lanes, "+sadd")
    admin.delete("shop")
    url = f"redis://producer:producer-secret@127.0.0.1:{port}/0"
    environ = {"REDIS_URL": url.replace("producer", "worker"), "TURNOUT_CONFIG": str(fleet.config)}
    worker = process.start([sys.executable, "-m", "turnout", "worker"], log, environ)
    try:
        subprocess.run([sys.executable, "-c", SENDS_CALLBACKS, url], check=True, timeout=90)
        process.wait_until(lambda: log.read_text().count("its callbacks can't be called") == 2, worker, log, 30)
        with Client(url) as client:
            assert client.submit("Are you there?").wait(timeout=30).text
        assert "Unrecoverable" not in log.read_text()
        assert admin.llen("shop") == 0
    finally:
        process.stop(worker)
        fleet.close()
        admin.execute_command("ACL", "LOAD")


@pytest.mark.parametrize("role", ["producer", "worker", "monitor"])
@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("SHUTDOWN",),
        ("MONITOR",),
        ("SAVE",),
        ("FUNCTION", "FLUSH"),
        ("SCRIPT", "FLUSH"),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("MODULE", "LIST"),
        ("SET", "another-application", "1"),
        ("GET", "another-application"),
        ("SUBSCRIBE", "another-application"),
        ("SLOWLOG", "GET"),
        ("COMMANDLOG", "GET", "1", "large-request"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", "1", "ALL"),
        ("CLIENT", "UNPAUSE"),
        ("CLIENT", "NO-EVICT", "ON"),
        ("CLIENT", "TRACKING", "ON", "BCAST"),
        ("CLIENT", "REPLY", "OFF"),
    ],
)
def test_no_role_can_administer_or_leave_its_keys(port: int, role: str, command: tuple[str, ...]) -> None:
    with pytest.raises(NoPermissionError):
        login(port, role).execute_command(*command)


@pytest.mark.parametrize(
    ("role", "command"),
    [
        ("producer", ("HSET", KEYS.money, "all|spent", "0")),
        ("producer", ("HSET", KEYS.endpoints, "x|state", "closed")),
        ("producer", ("BRPOP", "standard", "1")),
        ("producer", ("INFO",)),
        ("monitor", ("HGET", "celery-task-meta-x", "x")),
        ("monitor", ("LPUSH", "standard", "x")),
        ("monitor", ("DEL", KEYS.money)),
        ("monitor", ("EVAL", "return 1", "0")),
        ("monitor", ("PUBLISH", KEYS.inbox("x"), "x")),
        ("monitor", ("LRANGE", "standard", "0", "-1")),
    ],
)
def test_a_role_is_refused_what_is_another_ones(port: int, role: str, command: tuple[str, ...]) -> None:
    with pytest.raises(NoPermissionError):
        login(port, role).execute_command(*command)


def test_a_command_whose_role_may_not_says_which_one_may(port: int) -> None:
    environ = {"REDIS_URL": f"redis://monitor:monitor-secret@127.0.0.1:{port}/0", "GROQ_API_KEY": "k"}
    told = CliRunner().invoke(main, ["status", "--once"], env=environ)
    assert told.exit_code == 2
    assert "commands of operators need the role `worker`" in told.stderr
    assert "secret" not in told.output


def test_a_monitor_cannot_read_a_prompt(port: int) -> None:
    job = new_job()
    run(login(port, "producer"), [LEDGER.enqueue(job)])
    with pytest.raises(NoPermissionError):
        login(port, "monitor").hget(KEYS.job(job.id), "payload")


def test_a_script_has_no_more_rights_than_who_runs_it(port: int) -> None:
    with pytest.raises((NoPermissionError, redis.ResponseError), match=r"(?i)permission"):
        login(port, "producer").eval("return redis.call('HSET', KEYS[1], 'all|spent', 0)", 1, KEYS.money)


def test_nobody_gets_in_without_a_password(port: int) -> None:
    with pytest.raises(AuthenticationError):
        redis.Redis(port=port, retry=redis_server.ONCE).ping()


def test_the_user_as_whom_a_server_reads_its_own_file_may_do_all_and_cannot_log_in(port: int) -> None:
    """Before Valkey 9.1.2, a server that starts leaves out of its AOF each transaction that `default` may not run."""
    default = login(port, "admin").acl_getuser("default")
    assert "off" in default["flags"]
    assert (default["categories"], default["keys"], default["channels"]) == (["+@all"], ["~*"], ["&*"])


@pytest.mark.parametrize(
    ("rights", "told"),
    [
        ((("default", "-@all"), ("default", "+@all")), "DO   the ACL user `default` lacks the rights"),
        (
            (("worker", "-acl|dryrun"), ("worker", "+acl|dryrun")),
            "?    this login can't see the rights of the ACL user",
        ),
        ((), "ok   the ACL user `default`"),
    ],
)
def test_the_doctor_sees_whether_a_restart_would_read_the_jobs(
    port: int, tmp_path: Path, rights: tuple[tuple[str, str], ...], told: str
) -> None:
    environ = configured(port, "worker", tmp_path)
    for user, taken in rights[:1]:
        login(port, "admin").execute_command("ACL", "SETUSER", user, taken)
    said = CliRunner().invoke(main, ["doctor"], env=environ).output
    for user, given in rights[1:]:
        login(port, "admin").execute_command("ACL", "SETUSER", user, given)
    assert told in said


def test_no_password_is_in_the_servers_command_line_or_its_acl(port: int) -> None:
    told = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    (server,) = (line for line in told.splitlines() if redis_server.BINARY.name in line and f"127.0.0.1:{port}" in line)
    assert "worker-secret" not in server
    assert "worker-secret" not in str(login(port, "admin").execute_command("ACL", "LIST"))
