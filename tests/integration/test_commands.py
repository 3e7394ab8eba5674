"""The operator's commands against a real worker and a simulated fleet."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import redis
from click.testing import CliRunner, Result
from tests import redis_server
from tests.forked import Forked

from turnout import Client
from turnout.cli import main
from turnout.ledger import Claimed, Keys, Ledger, NewJob, run
from turnout.request import InferenceRequest, InferenceResponse
from turnout.result import JobResult, JobStatus
from turnout_workers import local
from turnout_workers.commands.screen import usd
from turnout_workers.config import discovery, fleet
from turnout_workers.deployment import deployment
from turnout_workers.local import process

FULL = "Error: [Errno 28] No space left on device"


def invoked(here: local.Local, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, arguments, stdin, {**here.environ, "COLUMNS": "200"})


def turnout(here: local.Local, *arguments: str, code: int = 0) -> str:
    told = invoked(here, *arguments)
    assert told.exit_code == code, told.output
    return told.stdout


def test_a_jobs_story_is_explained_with_each_candidate_and_exclusion(here: local.Local) -> None:
    with Client(here.redis_url) as client:
        job = client.submit("The secret question?", model="llama-3.3-70b", constraints={"ignore": ["sim-swift"]})
        answer = job.wait(60)
    told = turnout(here, "explain", job.id)
    assert "queued" in told
    assert "the job ignores sim-swift" in told
    assert f"{answer.provider}/llama-3.3-70b: answered after" in told
    assert f"by balanced: called {answer.provider}/llama-3.3-70b" in told
    assert "secret question" not in told
    story = json.loads(turnout(here, "explain", job.id, "--json"))
    assert story["state"] == "succeeded"
    assert story["story"][-1]["decision"]["called"] == f"{answer.provider}/llama-3.3-70b"
    narrow = CliRunner().invoke(main, ["explain", job.id], env={**here.environ, "COLUMNS": "80"}).stdout
    ids = [row["id"] for row in story["story"][-1]["decision"]["candidates"]]
    assert [id for id in ids if f" {id} " not in narrow] == []
    assert max(map(len, narrow.splitlines())) <= 80
    assert "By latency, decision 1: " in turnout(here, "explain", job.id, "--what-if", "latency")
    [choice] = json.loads(turnout(here, "explain", job.id, "--json", "--what-if", "cost"))["what_if"]
    assert choice["endpoint_id"] == "sim-thrifty/llama-3.3-70b"
    assert "there is no job nope" in error(here, "explain", "nope")


def test_what_programs_are_told_is_in_seconds_and_dollars_and_has_names(here: local.Local) -> None:
    began = time.time()
    with Client(here.redis_url) as client:
        job = client.submit("A?", model="llama-3.3-70b", constraints={"ignore": ["sim-swift"]}, metadata={"a": "b"})
        answer = job.wait(60)
    text = turnout(here, "explain", job.id, "--json", "--what-if", "cost")
    told = json.loads(text)
    assert answer.text not in text
    assert "microusd" not in text
    assert 0 < told["result"]["response"]["cost_usd"] == told["result"]["cost_usd"] < 0.01
    assert 0 < told["what_if"][0]["cost_usd"] < 0.01
    assert all(began - 1 < event["at"] < time.time() + 1 for event in told["story"])
    decision = told["story"][-1]["decision"]
    assert 0 < decision["candidates"][0]["cost_usd"] < 0.01
    [ignored] = [one for one in decision["excluded"] if one["reason"] == "ignore"]
    assert "sim-swift/llama-3.3-70b" in ignored["endpoints"]


def test_a_story_of_two_days_tells_each_of_them_once_and_the_zone(here: local.Local) -> None:
    keys, job, evening = Keys(), "of-two-days", 1_795_823_999_500
    story = [json.dumps({"at": evening + passed, "event": f"e{passed}"}) for passed in (0, 400, 500)]
    with redis.Redis.from_url(here.redis_url) as client:
        facts = {"v": 1, "state": "queued", "lane": "batch", "label": "m", "accepted_ms": evening}
        client.hset(keys.job(job), mapping=facts)
        client.rpush(keys.story(job), *story)
        told = turnout(here, "explain", job)
        client.delete(keys.job(job), keys.story(job))
    lines = ["2026-11-27 UTC", "23:59:59  +0.000 s  e0", "23:59:59  +0.400 s  e400"]
    assert [*map(str.rstrip, told.splitlines()[1:])] == [*lines, "2026-11-28 UTC", "00:00:00  +0.500 s  e500"]


def error(here: local.Local, *arguments: str, code: int = 2) -> str:
    told = invoked(here, *arguments)
    assert told.exit_code == code, told.output
    return told.stderr


def into(place: str, environ: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`turnout` with standard output redirected in a shell."""
    command = ["sh", "-c", f'exec "$@" {place}', "sh", sys.executable, "-m", "turnout", *arguments]
    return subprocess.run(command, env={**os.environ, **environ}, stderr=-1, text=True, timeout=60, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it stands for a disk that is full")
def test_an_output_that_can_not_be_written_is_told_in_a_line(here: local.Local) -> None:
    for command in (["--help"], ["status"], ["batch", "list"]):
        told = into("> /dev/full", here.environ, *command)
        assert (told.returncode, told.stderr) == (2, f"{FULL}\n"), command


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="it stands for a disk that is full")
def test_what_was_submitted_is_named_though_standard_output_can_not_be_written(
    here: local.Local, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "A?"}\n')
    for command in (["submit", "A?"], ["submit", "A?", "--wait"], ["batch", "submit", str(tmp_path / "in.jsonl")]):
        told = into("> /dev/full", here.environ, *command)
        named, error = told.stderr.splitlines()
        assert (told.returncode, error) == (2, FULL)
        id = named.removeprefix("Submitted: ")
        ask = ["batch", "show", id] if command[0] == "batch" else ["explain", id]
        assert id in turnout(here, *ask)


def test_an_output_that_is_closed_is_no_error_of_a_command(here: local.Local) -> None:
    told = into(">&-", here.environ, "status")
    assert (told.returncode, told.stderr) == (0, "")


def test_status_renews_itself_and_tells_the_pace_on_a_terminal(here: local.Local) -> None:
    ours, theirs = pty.openpty()
    command, environ = [sys.executable, "-m", "turnout", "status"], {**os.environ, **here.environ, "TERM": "xterm"}
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell lets its background commands ignore it
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=environ, preexec_fn=heeding) as shown:
        os.close(theirs)
        said = b""
        while b"jobs/s" not in said:
            said += os.read(ours, 65_536)
        shown.send_signal(signal.SIGINT)
        with suppress(OSError):  # its end is closed
            while os.read(ours, 65_536):
                pass  # else it could wait for room to write
        assert shown.wait(60) == 0
    os.close(ours)


def test_status_counts_lanes_jobs_and_endpoints(here: local.Local, monkeypatch: pytest.MonkeyPatch) -> None:
    with Client(here.redis_url) as client:
        client.submit("A?").wait(60)
    told = json.loads(turnout(here, "status", "--json"))
    assert set(told["lanes"]) == {"interactive", "standard", "batch"}
    assert told["counts"]["succeeded"] >= 1
    assert told["money_usd"]["spent"] > 0
    assert all(one["simulated"] for one in told["endpoints"])
    told = turnout(here, "status")  # which goes on only on a terminal
    assert "sim-thrifty/llama-3.3-70b" in told
    assert "simulated: all of them" in told
    assert all(word in told for word in ("1 worker\n", " room "))
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in turnout(here, "status"), "in colour, for a file as well"


def test_an_isolated_provider_gets_no_job_until_it_is_restored(here: local.Local) -> None:
    only = {"only": ["sim-steady"], "deadline_s": 0.5}
    assert turnout(here, "isolate", "sim-steady").startswith("isolated: sim-steady/")
    with Client(here.redis_url) as client:
        with pytest.raises(Exception, match="deadline"):
            client.submit("A?", constraints=only).wait(60)
        turnout(here, "restore", "sim-steady")
        assert client.submit("A?", constraints={"only": ["sim-steady"]}).wait(60).provider == "sim-steady"
    assert "there are sim-thrifty" in error(here, "isolate", "nobody")


def test_of_jobs_to_be_run_again_each_that_is_not_is_told_with_why(here: local.Local) -> None:
    with Client(here.redis_url) as client:
        job, done = client.submit("A?", constraints={"only": ["nobody"]}), client.submit("B?")
        with pytest.raises(Exception, match="refused"):
            job.wait(60)
        done.wait(60)
    told = invoked(here, "replay", job.id, done.id, "x")
    assert "1 of 3 jobs run again" in told.stdout
    assert f"{done.id}: is succeeded, and not run again" in told.stdout
    assert (told.exit_code, told.stderr) == (2, "x: no such job\n")
    assert f"{done.id}: is succeeded" in turnout(here, "replay", done.id, code=1)


@pytest.mark.parametrize(
    "command", ["explain x", "result x", "cancel x", "replay x", "batch show x", "batch cancel x", "isolate x"]
)
def test_what_there_is_not_is_told_on_standard_error_by_every_command_that_is_asked_for_it(
    here: local.Local, command: str
) -> None:
    told = invoked(here, *command.split())
    assert (told.exit_code, "x" in told.stderr) == (2, True)


def test_a_run_of_which_no_job_is_left_may_never_have_been(here: local.Local) -> None:
    assert "or there was no such run" in turnout(here, "batch", "cancel", "run-nope")


def test_a_limit_of_all_models_together_is_told_once(
    here: local.Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.toml").write_text(
        "[providers.x]\nbase_url = 'http://127.0.0.1:9'\nrequests_per_minute = 70\nmodels = {a={}, b={concurrency=3}}"
    )
    monkeypatch.setitem(here.environ, "TURNOUT_CONFIG", str(tmp_path / "x.toml"))
    told = turnout(here, "providers")
    assert told.count("    70 requests a minute, all of its models together\n") == told.count("70") == 2
    assert "    3 at once\n" in told


def test_status_tells_whose_calls_are_in_no_sum(
    here: local.Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    priced = "input_usd_per_mtok = 1, output_usd_per_mtok = 1"
    (tmp_path / "x.toml").write_text(
        f"[providers.x]\nbase_url = 'http://127.0.0.1:9'\nmodels = {{a={{}}, b={{{priced}}}}}"
    )
    monkeypatch.setitem(here.environ, "TURNOUT_CONFIG", str(tmp_path / "x.toml"))
    assert "price unknown, not in any sum: x/a (0 calls)\n" in turnout(here, "status")


def test_providers_are_listed_and_checked(here: local.Local) -> None:
    told = turnout(here, "providers", "--check")
    assert "sim-horizon: answers" in told
    assert "simulated" in told
    found = json.loads(turnout(here, "providers", "--check", "--json"))
    assert set(found["checks"].values()) == {""}
    assert {one["health"] for one in found["endpoints"]} == {"well"}
    turnout(here, "isolate", "sim-horizon")
    assert "isolated: by an operator" in turnout(here, "providers")
    turnout(here, "restore", "sim-horizon")


@pytest.mark.parametrize("command", ["providers", "failed"])
def test_a_list_breaks_no_name_on_a_screen_of_80_columns(here: local.Local, command: str) -> None:
    with Client(here.redis_url) as client, pytest.raises(Exception, match="refused"):
        (job := client.submit("A?", constraints={"only": ["nobody"]})).wait(60)
    told = CliRunner().invoke(main, [command], env={**here.environ, "COLUMNS": "80"}).stdout
    names = [job.id] if command == "failed" else [endpoint.id for endpoint in fleet(here.settings).endpoints]
    assert [name for name in names if name not in told] == []
    assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("command", ["status --once", "failed --count", "batch list", "run in.txt --dry-run"])
def test_a_table_cuts_no_name_and_no_number_however_narrow_the_screen_is(
    here: local.Local, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("A?\n")
    assert turnout(here, "batch", "watch", turnout(here, "batch", "submit", "in.txt").strip())
    with Client(here.redis_url) as client, pytest.raises(Exception, match="refused"):
        client.submit("A?", idempotency_key=60 * "k", constraints={"only": ["nobody"]}).wait(60)
    narrow, wide = (
        CliRunner().invoke(main, command.split(), env={**here.environ, "COLUMNS": columns}).stdout
        for columns in ("40", "400")
    )
    if command == "status --once":  # in which shares change from one moment to the next
        told = json.loads(turnout(here, "status", "--json"))["endpoints"]
        wide = " ".join(word for one in told for word in (one["endpoint"], usd(one["spent_usd"])))
    assert [word for word in wide.split() if word not in narrow.split()] == []


def test_what_stands_in_redis_commands_no_terminal(here: local.Local) -> None:
    """A producer may write what it likes into the records of jobs and batches."""
    keys, order, now = Keys(), "\x1b]0;obey\x07\x9b2J\u202e", int(time.time() * 1000)
    job, batch = f"evil{order}", f"batch-evil{order}"
    said = {"id": job, "status": "failed", "error": {"code": "evil", "message": f"m{order}\nn"}}
    record = {"v": 1, "state": "failed", "lane": "batch", "label": order, "accepted_ms": now, "settled_ms": now}
    held = {"source": order, "state": "feeding", "at": now / 1000, "lines": 1, "jobs": 1, "fed": 0, "next": 0}
    spoiled = f"{batch}-spoiled"
    with redis.Redis.from_url(here.redis_url) as client:
        client.hset(keys.job(job), mapping={**record, "token": 1, "result": json.dumps(said)})
        client.zadd(keys.failed, {job: now + 10**6})
        client.rpush(keys.story(job), json.dumps({"at": now, "event": order, "why": order}))
        client.zadd(keys.batches, {batch: now / 1000, spoiled: now / 1000})
        client.hset(keys.batch(batch), mapping={**held, "shared": 0})
        client.hset(keys.batch(spoiled), mapping=held)
        try:
            shown = [turnout(here, *command) for command in (["failed"], ["failed", "--count"], ["explain", job])]
            shown += [turnout(here, "batch", "list"), invoked(here, "batch", "show", spoiled).output]
            client.hset(keys.job(job), "v", "another")
            shown.append(turnout(here, "replay", "--error", "evil"))
        finally:
            client.delete(keys.job(job), keys.story(job), keys.batch(batch), keys.batch(spoiled), keys.failed)
            client.zrem(keys.batches, batch, spoiled)
    assert all("evil" in one for one in shown[:-1])
    assert [one for text in shown for one in text.split("\n") if not one.isprintable()] == []


def test_the_doctor_says_what_to_do(here: local.Local, tmp_path: Path) -> None:
    told = turnout(here, "doctor", code=1)
    assert "ok   the append-only file is on" in told
    assert "ok   maxmemory-policy is noeviction" in told
    assert "DO   some providers are simulated" in told
    assert "ok   sim-horizon answers" in told
    checks = map(json.loads, turnout(here, "doctor", "--json", code=1).splitlines())
    assert {"ok": True, "text": "sim-horizon answers"} in checks


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A folder and an environment in which nothing is configured."""
    for name in os.environ:
        if name.endswith(("_API_KEY", "_API_KEY_FILE")) or name in ("TURNOUT_CONFIG", "REDIS_URL"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_the_doctor_names_priced_models_whose_longest_answer_is_unknown(
    here: local.Local, bare: pytest.MonkeyPatch, port: int
) -> None:
    bare.setenv("REDIS_URL", here.redis_url)
    price = "{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 2.0%s }"
    models = f"a = {price % ''}\nb = {price % ', max_output_tokens = 9'}\nc = {price % ', context_tokens = 9'}"
    Path("turnout.toml").write_text(
        f"[providers.x]\nbase_url = 'http://127.0.0.1:{port}'\n[providers.x.models]\n{models}"
    )
    assert "DO   the longest answer of x/a is unknown" in CliRunner().invoke(main, ["doctor"]).output


def test_commands_about_jobs_alone_need_no_provider_to_be_configured(
    here: local.Local, bare: pytest.MonkeyPatch
) -> None:
    bare.setenv("REDIS_URL", here.redis_url)
    bare.setattr(discovery, "from_local_servers", dict)
    Path("in.jsonl").write_text('{"prompt": "A?"}\n')
    batch = CliRunner().invoke(main, ["batch", "submit", "in.jsonl"]).stdout.strip()
    assert CliRunner().invoke(main, ["batch", "watch", batch]).exit_code == 0
    for command in (["failed"], ["batch", "list"]):
        assert CliRunner().invoke(main, command).exit_code == 0, command
    for command in (["replay", "x"], ["cancel", "x"]):
        told = CliRunner().invoke(main, command)
        assert (told.exit_code, told.stderr) == (2, "x: no such job\n"), command
    for command in (["status", "--once"], ["isolate", "x"], ["providers"], ["flower"]):
        told = CliRunner().invoke(main, command)
        assert (told.exit_code, "no provider is configured: set an API key" in told.output) == (2, True), command
    told = CliRunner().invoke(main, ["doctor"])
    assert (told.exit_code, told.output.startswith("DO   no provider is configured: set an API key")) == (1, True)


def test_a_batch_is_not_watched_where_there_is_no_redis_to_be_had(
    bare: pytest.MonkeyPatch, redis_url: str, port: int
) -> None:
    for url in (f"redis://127.0.0.1:{port}", redis_url.removesuffix("0") + "99", redis_url.replace("//", "//:wrong@")):
        bare.setenv("REDIS_URL", url)
        told = CliRunner().invoke(main, ["batch", "watch", "batch-1"])
        assert (told.exit_code, told.stdout, told.stderr[:7]) == (2, "", "Error: "), url


def test_a_batch_is_watched_on_while_its_redis_is_away_but_not_once_that_refuses_the_password(
    bare: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = redis_server.start(tmp_path / "redis")
    bare.setenv("REDIS_URL", server.url)
    Path("in.txt").write_text("A?\n")
    batch = CliRunner().invoke(main, ["batch", "submit", "in.txt"]).stdout.strip()
    command = [sys.executable, "-m", "turnout", "batch", "watch", batch]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert watching.stderr is not None
            try:
                well = watching.stdout.readline()
                assert well.startswith(f"{batch}: feeding; 1 line: 1 waiting")
                server.kill()
                assert "can't be reached" in watching.stderr.readline()
                server.restart()
                assert watching.stdout.readline() == well
                with redis.Redis(port=server.port) as client:
                    client.config_set("requirepass", "another")
                    client.client_kill_filter(_type="normal", skipme=True)
                assert watching.wait(60) == 2
            finally:
                watching.kill()
    finally:
        server.stop()


def test_a_worker_for_which_no_provider_is_configured_does_not_start(bare: pytest.MonkeyPatch) -> None:
    Path("turnout.toml").write_text("namespace = 'x'")
    done = subprocess.run([sys.executable, "-m", "turnout", "worker"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:40]) == (2, "Error: no provider is configured: set an")


def test_providers_that_nobody_configured_are_discovered_on_this_machine(bare: pytest.MonkeyPatch) -> None:
    def servers() -> discovery.Tables:
        free = {"input_usd_per_mtok": 0.0, "output_usd_per_mtok": 0.0}
        table = {"dialect": "ollama", "base_url": "http://127.0.0.1:9/v1", "models": {"llama3.3:70b": free}}
        return {"providers": {"ollama": table}}

    bare.setenv("REDIS_URL", "redis://127.0.0.1:9")
    bare.setattr(discovery, "from_local_servers", servers)
    told = CliRunner().invoke(main, ["providers", "--json"])
    assert [one["endpoint"] for one in json.loads(told.output)["endpoints"]] == ["ollama/llama3.3:70b"]
    assert "ollama: unavailable" in CliRunner().invoke(main, ["providers", "--check"]).output
    assert [*deployment().settings.config.providers] == ["ollama"]
    bare.setenv("GROQ_API_KEY", "k")
    assert [*deployment().settings.config.providers] == ["groq"]


def test_what_the_last_worker_had_at_work_when_it_was_killed_is_told_as_such(
    bare: pytest.MonkeyPatch, flushed: redis.Redis, redis_url: str
) -> None:
    bare.setenv("REDIS_URL", redis_url)
    bare.setenv("GROQ_API_KEY", "k")
    ledger, job = Ledger(), NewJob.of("a", InferenceRequest(prompt="A?"))
    run(flushed, [ledger.enqueue(job)])
    assert "0 workers\n" in CliRunner().invoke(main, ["status"]).stdout
    run(flushed, [ledger.claim("a", "w", 30)])
    assert "0 workers: jobs at work and calls in flight stay as the last" in CliRunner().invoke(main, ["status"]).stdout


def test_what_is_no_terminal_gets_every_name_whole(bare: pytest.MonkeyPatch, redis_url: str) -> None:
    model = f"accounts/fireworks/models/{60 * 'q'}#accounts/acme/deployments/abcd"
    Path("turnout.toml").write_text(f'[providers.fireworks]\napi_key = "k"\nmodels = ["{model}"]\n')
    bare.setenv("REDIS_URL", redis_url)
    bare.delenv("COLUMNS", raising=False)
    for command in ("status", "providers"):
        told = CliRunner().invoke(main, [command]).stdout
        assert f"fireworks/{model}" in told
        assert "sent as" not in told, "it is called the same here and there"


def test_a_prompt_is_submitted_and_its_id_printed(here: local.Local) -> None:
    told = turnout(here, "submit", "A?", "--idempotency-key", "k")
    with Client(here.redis_url) as client:
        assert client.job(told.strip()).wait(60).simulated
    assert turnout(here, "submit", "A?", "--idempotency-key", "k") == told
    assert "exists with other content" in error(here, "submit", "B?", "--idempotency-key", "k")


def test_a_job_is_submitted_to_the_redis_and_namespace_of_the_configuration(
    bare: pytest.MonkeyPatch, redis_url: str
) -> None:
    Path("turnout.toml").write_text(f'redis_url = "{redis_url}"\nnamespace = "blue"\n')
    submitted = CliRunner().invoke(main, ["submit", "A?"])
    assert (submitted.exit_code, submitted.stderr) == (0, "")
    explained = CliRunner().invoke(main, ["explain", submitted.stdout.strip()])
    assert (explained.exit_code, "queued" in explained.stdout) == (0, True), explained.output


def test_a_prompt_from_stdin_is_waited_for(here: local.Local) -> None:
    told = invoked(here, "submit", "--wait", "--model", "llama-3.3-70b", stdin="What is a turnout?\n")
    assert (told.exit_code, told.stdout[:14]) == (0, "[simulated by "), told.stderr


def test_a_jobs_answer_is_printed_later_as_it_is_to_whoever_waits(here: local.Local) -> None:
    asked = ("submit", "What is a turnout?", "--idempotency-key", "later")
    waited = turnout(here, *asked, "--wait")
    job = turnout(here, *asked).strip()
    assert turnout(here, "result", job) == waited
    told = json.loads(turnout(here, "result", job, "--json"))
    assert (told["id"], told["status"], told["response"]["text"]) == (job, "succeeded", waited.removesuffix("\n"))


def test_a_job_without_an_answer_says_why_and_one_that_goes_on_that_it_does(here: local.Local) -> None:
    asked = ("submit", "A?", "--model", "nobody's", "--idempotency-key", "none")
    why = error(here, *asked, "--wait", code=1)
    job = turnout(here, *asked).strip()
    assert error(here, "result", job, code=1) == why
    assert json.loads(turnout(here, "result", job, "--json", code=1))["error"]["code"] == "refused"


def test_whoever_is_interrupted_while_waiting_is_told_of_the_job_that_goes_on(
    bare: pytest.MonkeyPatch, flushed: redis.Redis, redis_url: str
) -> None:
    bare.setenv("REDIS_URL", redis_url)
    waiting = Forked(["submit", "A?", "--wait"], {}, Path("log"), partial(os.chdir, Path.cwd()))
    process.wait_until(lambda: bool(flushed.pubsub_channels()), waiting, waiting.log, limit_s=60)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(60) == 3
    [job] = [member.decode() for member in flushed.zrange(Keys().pending("interactive"), 0, -1)]
    assert waiting.said == (
        f"The job goes on: `turnout result {job}` prints its answer, `turnout cancel {job}` ends it\nStopped.\n"
    )
    asked = CliRunner().invoke(main, ["result", job])
    assert (asked.exit_code, asked.output) == (3, f"job {job} hasn't ended: it is queued\n")


def test_an_answer_commands_no_terminal_and_is_as_it_is_for_all_else(
    bare: pytest.MonkeyPatch, flushed: redis.Redis, redis_url: str
) -> None:
    bare.setenv("REDIS_URL", redis_url)
    ledger, text = Ledger(), "a\tb\n\x1b]0;obey\x07\x9b2J\u202ec"
    answer = InferenceResponse(text=text, provider="p", model_requested="m", model_served="m")
    run(flushed, [ledger.enqueue(NewJob.of("a", InferenceRequest(prompt="A?")))])
    [claimed] = run(flushed, [ledger.claim("a", "w", 30)])
    assert isinstance(claimed, Claimed)
    result = JobResult(id="a", status=JobStatus.SUCCEEDED, response=answer)
    run(flushed, [ledger.settle(claimed.token, result, None, 60)])
    assert CliRunner().invoke(main, ["result", "a"]).stdout == f"{text}\n"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-m", "turnout", "result", "a"], stdout=theirs, check=True, timeout=60)
    assert os.read(ours, 65_536).decode().splitlines() == ["a\tb", " ]0;obey  2J c"]
    os.close(ours)
    os.close(theirs)


def test_lines_that_can_not_be_run_are_told_by_the_command_that_is_advised(
    here: local.Local, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": 5}\n')
    told = invoked(here, "batch", "submit", str(tmp_path / "in.jsonl")).stderr
    assert told.startswith("1 of 1 line can't be run; ")
    advised = told.split("`")[1].removeprefix("turnout ")
    assert invoked(here, *advised.split()).exit_code == 1
    assert "line 1: prompt" in capfd.readouterr().out


def test_what_can_not_be_submitted_or_answered_says_why(here: local.Local) -> None:
    assert "there is no prompt" in error(here, "submit")
    assert "no endpoint can serve this job" in error(here, "submit", "A?", "--model", "nobody's", "--wait", code=1)
    assert "model.0: must be a name without spaces" in error(here, "submit", "A?", "--model", "a b")
