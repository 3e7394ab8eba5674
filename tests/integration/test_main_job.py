"""The main job with real processes: `turnout run`, its Redis, its worker, and a simulated fleet as the oracle."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.fleet import Fleet
from tests.forked import Forked
from tests.receiver import receiving

FLEET = """
seed = 3
output_tokens = 20
[providers.sim-cheap]
ttft_s = 0.1
s_per_token = 0.002
models."llama-3.3-70b" = { input_usd_per_mtok = 0.1, output_usd_per_mtok = 0.3 }
[providers.sim-dear]
ttft_s = 0.1
s_per_token = 0.002
models."llama-3.3-70b" = { input_usd_per_mtok = 0.9, output_usd_per_mtok = 0.9 }
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """It outlives the runs."""
    fleet = Fleet(tmp_path, FLEET)
    yield fleet
    fleet.close()


def served(fleet: Fleet) -> dict[str, int]:
    """How often each job was answered, over all providers."""
    return {job: told["answered"] for job, told in fleet.oracle()["jobs"].items()}


@contextmanager
def running(folder: Path, *arguments: str, **environ: str) -> Iterator[Forked]:
    """`turnout run` in this folder, all of whose processes have the mark of it."""
    log, environ = folder / "run.log", {"TURNOUT_TEST_MARK": str(folder), **environ}
    log.unlink(missing_ok=True)
    child = Forked(["run", *arguments], environ, log, partial(os.chdir, folder))
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def finish(child: Forked, limit_s: float = 90) -> tuple[int, str]:
    return child.wait(limit_s), child.said


def until(happens: Callable[[], bool], limit_s: float = 60) -> None:
    ends_at = time.monotonic() + limit_s
    while not happens():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.02)


def hurry(fleet: Fleet) -> None:
    """Have the rest answered at once: an input is long so that it is not done before a test has looked."""
    for provider in ("sim-cheap", "sim-dear"):
        fleet.fail(provider, kind="slow", factor=0.1)


def until_begun(journal: Path) -> None:
    until(lambda: journal.exists() and journal.stat().st_size > 50_000)  # some 40 results


def results(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def left_behind(folder: Path) -> dict[int, str]:
    """Command lines of processes that a run in this folder has started and that still live, by process id."""
    mark = f"TURNOUT_TEST_MARK={folder}".encode()
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark in (entry / "environ").read_bytes().split(b"\0")
                and b"Z" not in (entry / "stat").read_bytes().rpartition(b")")[2].split()[:1]
            ):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def prompts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"Question {n}?", "id": n}) + "\n" for n in range(count)))
    return path


def test_a_run_whose_key_is_refused_does_the_rest_and_stops_and_goes_on_with_a_better_key(tmp_path: Path) -> None:
    scenario = FLEET.replace('models."llama-3.3-70b"', 'api_key = "right"\nmodels."large"', 1)
    fleet = Fleet(tmp_path, scenario)
    table = fleet.config.read_text().replace("api_key_env = []", 'api_key_env = ["LARGE_API_KEY"]', 1)
    fleet.config.write_text(table.replace('api_key = ["right"]', ""))
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    models = ("large", "llama-3.3-70b") * 10
    source.write_text("".join(json.dumps({"prompt": "?", "model": model}) + "\n" for model in models))
    arguments = (str(source), "-o", str(output), "--config", str(fleet.config))
    with contextlib.closing(fleet):
        with running(tmp_path, *arguments, LARGE_API_KEY="wrong") as child:
            code, text = finish(child)
        assert code == 4, text
        assert "sim-cheap (its key: LARGE_API_KEY): unauthorized" in text
        assert "What is done is kept. Fix that, then: turnout run" in text
        assert sum(served(fleet).values()) == 10, "lines of other models are done first"
        with running(tmp_path, *arguments, LARGE_API_KEY="right") as child:
            code, text = finish(child)
        assert code == 0, text
        assert "10 of them done before" in text
        assert set(served(fleet).values()) == {1}


def test_a_provider_is_sent_a_schema_in_the_order_in_which_the_line_has_it(tmp_path: Path) -> None:
    """A model writes its answer in that order: what comes first is the ground of what comes after."""
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in ("why", "verdict", "by")}}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "judgement", "schema": schema}}
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [tool], "response_format": form}
    source, config = tmp_path / "in.jsonl", tmp_path / "turnout.toml"
    source.write_text(json.dumps({"custom_id": "a", "url": "/v1/chat/completions", "body": body}))
    with receiving() as provider:
        said = {"choices": [{"message": {"content": "{}"}, "finish_reason": "stop"}]}
        provider.answer = json.dumps(said).encode()
        table = f'kind = "openai"\nbase_url = "{provider.url}"\nmodels.m.capabilities = ["json_schema", "tools"]'
        config.write_text(f"[providers.p]\n{table}\n")
        with running(tmp_path, str(source), "-o", "out.jsonl", "--config", str(config)) as child:
            code, text = finish(child)
    assert code == 0, text
    sent = json.loads(provider.heard[-1][1])
    for there in (sent["response_format"]["json_schema"]["schema"], sent["tools"][0]["function"]["parameters"]):
        assert json.dumps(there) == json.dumps(schema)


def test_every_line_is_done_once_though_a_provider_dies_midway(tmp_path: Path, fleet: Fleet) -> None:
    source, output = prompts(tmp_path / "in.jsonl", 300), tmp_path / "out.jsonl"
    fleet.fail("sim-cheap", kind="error", status=503, after_requests=100)
    with running(tmp_path, str(source), "-o", str(output), "--config", str(fleet.config), "-c", "40") as child:
        code, text = finish(child)
    assert code == 0, text
    told = results(output)
    assert [line["id"] for line in told] == list(range(300)), "one result a line, in the input's order"
    assert {line["status"] for line in told} == {"succeeded"}
    assert all(line["simulated"] for line in told), "a made-up answer says so"
    answered = served(fleet)
    assert len(answered) == 300
    assert set(answered.values()) == {1}, "no line was answered twice"
    moved = [line for line in told if len(line["attempts"]) > 1]
    assert moved, "the dead provider's jobs moved"
    assert all(line["provider"] == "sim-dear" for line in moved)
    assert not left_behind(tmp_path)


def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path: Path, fleet: Fleet) -> None:
    source, output = prompts(tmp_path / "in.jsonl", 600), tmp_path / "out.jsonl"
    arguments = (str(source), "-o", str(output), "--config", str(fleet.config), "-c", "8")
    journal = tmp_path / "out.jsonl.journal"
    with running(tmp_path, *arguments) as child:
        until_begun(journal)
        child.send_signal(signal.SIGKILL)
        child.wait()
        until(lambda: not left_behind(tmp_path))
    hurry(fleet)
    assert not output.exists(), "no half output"
    (kept,) = tmp_path.glob(".turnout/*/redis")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700, "its prompts and answers are this user's"
    with running(tmp_path, *arguments) as child:
        code, text = finish(child)
    assert code == 0, text
    assert [line["id"] for line in results(output)] == list(range(600))
    twice = [job for job, count in served(fleet).items() if count > 1]
    assert len(twice) <= 8, "only what was in flight at the kill may have been called again"


def test_a_run_starts_its_worker_and_its_redis_again(tmp_path: Path, fleet: Fleet) -> None:
    source, output = prompts(tmp_path / "in.jsonl", 1000), tmp_path / "out.jsonl"
    arguments = (str(source), "-o", str(output), "--config", str(fleet.config), "-c", "20")
    journal = tmp_path / "out.jsonl.journal"
    with fleet.config.open("a") as config:
        config.write("\n[worker]\nlease_s = 2.0\n")  # how soon the dead worker's jobs are another's

    def kill(name: str) -> None:
        """Redis overwrites its environment with its title; but where it works, it is alone."""
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                here = (entry / "cwd").resolve().is_relative_to(tmp_path)
                if here and name in (entry / "cmdline").read_text().replace("\0", " "):
                    os.kill(int(entry.name), signal.SIGKILL)

    with running(tmp_path, *arguments) as child:
        until_begun(journal)
        kill("turnout worker")
        kill("-server 127.0.0.1")
        hurry(fleet)
        code, text = finish(child)
    assert code == 0, text
    assert "worker 1 ended by itself, killed by signal 9, and was started again" in text
    assert "Redis ended by itself" in text
    assert len(results(output)) == 1000


def test_ctrl_c_stops_in_order_and_the_same_command_goes_on(tmp_path: Path, fleet: Fleet) -> None:
    source, output = prompts(tmp_path / "in.jsonl", 600), tmp_path / "out.jsonl"
    arguments = (str(source), "-o", str(output), "--config", str(fleet.config), "-c", "8")
    journal = tmp_path / "out.jsonl.journal"
    with running(tmp_path, *arguments) as child:
        until_begun(journal)
        child.send_signal(signal.SIGINT)
        code, text = finish(child)
    hurry(fleet)
    assert code == 3, text
    assert "to go on: turnout run" in text
    assert not left_behind(tmp_path)
    with running(tmp_path, *arguments) as child:
        code, text = finish(child)
    assert code == 0, text
    assert len(results(output)) == 600
    assert set(served(fleet).values()) == {1}, "a stop in order calls nothing twice"


def test_ctrl_c_tells_how_long_calls_are_waited_for_and_a_second_one_waits_no_more(
    tmp_path: Path, fleet: Fleet
) -> None:
    for provider in ("sim-cheap", "sim-dear"):
        fleet.fail(provider, kind="hang")
    with fleet.config.open("a") as config:
        config.write("\n[worker]\ndrain_s = 170.0\n")
    source, output = prompts(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    with running(tmp_path, str(source), "-o", str(output), "--config", str(fleet.config), "-w", "2") as child:
        until(lambda: len(fleet.oracle()["jobs"]) == 4)
        child.send_signal(signal.SIGINT)
        until(lambda: "Calls under way have up to 170 s to end; Ctrl-C again ends it at once." in child.said)
        child.send_signal(signal.SIGINT)
        code, text = finish(child)
    assert code == 3, text
    assert "to go on: turnout run" in text
    assert not left_behind(tmp_path)


def test_the_same_command_pays_for_no_line_twice_unless_all_are_to_be_run_anew(tmp_path: Path, fleet: Fleet) -> None:
    source, output = prompts(tmp_path / "in.jsonl", 20), tmp_path / "out.jsonl"
    arguments = (str(source), "-o", str(output), "--config", str(fleet.config))

    def run(*more: str) -> tuple[str, int]:
        with running(tmp_path, *arguments, *more) as child:
            code, text = finish(child)
        assert code == 0, text
        assert [line["id"] for line in results(output)] == list(range(20))
        return text, sum(served(fleet).values())

    assert run()[1] == 20
    output.unlink()
    (log,) = tmp_path.glob(".turnout/*/worker-1.log")
    log.unlink()
    text, calls = run()
    assert (calls, log.exists()) == (20, False), "with nothing to run, nothing is started"
    assert "20 of them done before" in text, text
    source.write_text(source.read_text().replace("Question 7?", "Another question?"))
    text, calls = run()
    assert calls == 21
    assert "19 of them done before" in text, text
    assert run("--anew")[1] == 41


def test_bad_lines_are_reported_and_the_good_ones_done(tmp_path: Path, fleet: Fleet) -> None:
    bad = {
        2: b'{"prompt": "a"',
        3: b'{"prompt": 7}',
        4: b'{"prompt": "a", "modle": "x"}',
        5: b'{"prompt": "a", "temperature": NaN}',
        6: b'{"prompt": "\\ud800"}',
        7: b'{"prompt": "' + b"a" * 1_100_000 + b'"}',
        8: b'{"prompt": "a", "extras": ' + b'{"a":' * 250 + b"1" + b"}" * 251,
        9: b'{"prompt": "a", "constraints": {"only": ["nobody"]}}',
    }
    good = {1: b'{"prompt": "first"}', 10: b'{"prompt": "last"}'}
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b"\n".join(line for _, line in sorted({**bad, **good}.items())) + b"\n")
    with running(tmp_path, str(source), "-o", str(output), "--config", str(fleet.config)) as child:
        code, text = finish(child)
    assert code == 1, text
    assert "8 lines without an answer" in text, text
    assert "The first one: line 2: not JSON" in text, text
    told = {line["line"]: line for line in results(output)}
    assert sorted(told) == list(range(1, 11))
    assert {n for n, line in told.items() if line["status"] == "succeeded"} == set(good)
    for number in range(2, 9):
        assert told[number]["error"]["message"].startswith(f"line {number}: "), told[number]
    assert "sim-cheap/llama-3.3-70b, sim-dear/llama-3.3-70b: only nobody may be used" in told[9]["error"]["message"]

    cut = tmp_path / "in.jsonl.gz"
    cut.write_bytes(gzip.compress(source.read_bytes())[:-8])
    before = output.read_bytes()
    output.unlink()
    with running(tmp_path, str(cut), "-o", str(output), "--config", str(fleet.config)) as child:
        code, text = finish(child)
    assert (code, output.read_bytes()) == (2, before)
    assert "can't read" in text
    assert "The lines before that are done" in text.replace("\n", " ")
