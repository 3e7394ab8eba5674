"""What the simulator can be told to do wrong, and what its books say afterwards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import aiohttp
import pytest
from click.testing import CliRunner

from turnout.cli import main
from turnout_workers.config import Source, load
from turnout_workers.simulator import Fault, Scenario, server, simulated_call
from turnout_workers.simulator.server import Simulator

COMMAND = [sys.executable, "-m", "turnout", "simulate", "--port", "0", "--json"]
CLOSED = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
SEEN = ("calls", "answered", "billed")
PRICE = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}


def fleet(**provider: Any) -> Scenario:
    return Scenario(providers={"p": {"models": {"m": PRICE}, **provider}}, output_tokens=20)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session


async def ask(http: aiohttp.ClientSession, url: str, job: str = "job", **more: Any) -> tuple[int, Any, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **more}
    async with http.post(f"{url}/p/v1/chat/completions", json=body, headers={"x-turnout-job": job}) as response:
        text = await response.text()
        told = json.loads(text) if response.content_type == "application/json" else text
        return response.status, told, response.headers


async def stats(http: aiohttp.ClientSession, url: str) -> Any:
    async with http.get(f"{url}/control/stats?jobs=1") as response:
        return await response.json()


async def test_the_books_tell_how_often_each_job_was_called_and_billed(http: aiohttp.ClientSession) -> None:
    async with Simulator(fleet()) as simulator:
        for job in ("a", "a", "b"):
            _, body, _ = await ask(http, simulator.url, job)
        told = await stats(http, simulator.url)
    cost = body["usage"]["prompt_tokens"] + 2 * body["usage"]["completion_tokens"]
    assert told["jobs"] == {"a": dict.fromkeys(SEEN, 2), "b": dict.fromkeys(SEEN, 1)}
    assert told["billed_microusd"] == 3 * cost
    assert told["jobs_by_calls"] == {"1": 1, "2": 1}
    assert told["providers"]["p"]["statuses"] == {"200": 3}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "seen", "billed"),
    [
        (Fault(kind="down"), CLOSED, 0),
        (Fault(kind="error", status=502), 502, 0),
        (Fault(kind="error", status=429), 429, 0),
        (Fault(kind="bill", status=500), 500, 1),
        (Fault(kind="garbage"), "<html>", 1),
        (Fault(kind="truncate"), (aiohttp.ClientPayloadError,), 1),
    ],
)
async def test_a_fault_looks_as_it_should_and_bills_as_it_should(
    http: aiohttp.ClientSession, fault: Fault, seen: Any, billed: int, stream: bool
) -> None:
    async with Simulator(fleet(faults=(fault,))) as simulator:
        if isinstance(seen, tuple):
            with pytest.raises(seen):
                await ask(http, simulator.url, stream=stream)
        else:
            status, body, _ = await ask(http, simulator.url, stream=stream)
            assert status == seen if isinstance(seen, int) else (status == 200 and seen in body)
        told = simulator.stats(jobs=True)
    assert told["jobs"] == {"job": {"calls": 1, "answered": 0, "billed": billed}}
    assert (told["billed_microusd"] > 0) == bool(billed)


async def test_a_hanging_provider_says_nothing_and_its_place_is_free_when_the_caller_goes(
    http: aiohttp.ClientSession,
) -> None:
    async with Simulator(fleet(concurrency=1)) as simulator:
        simulator.fail("p", Fault(kind="hang", for_requests=1))
        asking = asyncio.create_task(ask(http, simulator.url))
        while not simulator.jobs["job"].calls:
            await asyncio.sleep(0.001)
        await asyncio.wait([asking], timeout=0.2)
        assert not asking.done()
        asking.cancel()
        await asyncio.wait([asking])
        assert (await ask(http, simulator.url))[0] == 200


async def test_a_slow_provider_takes_so_many_times_longer(http: aiohttp.ClientSession) -> None:
    async with Simulator(fleet(ttft_s=0.01, faults=(Fault(kind="slow", factor=20),))) as simulator:
        started = time.monotonic()
        assert (await ask(http, simulator.url))[0] == 200
    assert time.monotonic() - started >= 0.2


async def test_a_fault_begins_and_ends_by_requests(http: aiohttp.ClientSession) -> None:
    fault = Fault(kind="error", status=503, after_requests=3, for_requests=2)
    async with Simulator(fleet(faults=(fault,))) as simulator:
        seen = [(await ask(http, simulator.url))[0] for _ in range(6)]
    assert seen == [200, 200, 200, 503, 503, 200]


async def test_a_fault_begins_and_ends_by_time(http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [0.0], list[int]()
    for module in (simulated_call, server):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    async with Simulator(fleet(faults=(Fault(kind="error", after_s=15, for_s=15),))) as simulator:
        for now[0] in (0.0, 14.9, 15.1, 30.0, 30.2):  # by the first call that it hits
            seen.append((await ask(http, simulator.url))[0])
    assert seen == [200, 200, 500, 500, 200]


async def test_a_share_of_calls_fails_by_the_seed(http: aiohttp.ClientSession) -> None:
    runs = []
    for _ in range(2):
        async with Simulator(fleet(faults=(Fault(kind="error", share=0.5),))) as simulator:
            runs.append([(await ask(http, simulator.url))[0] for _ in range(40)])
    assert runs[0] == runs[1]
    assert 8 <= runs[0].count(500) <= 32


async def test_faults_come_and_go_by_the_control_endpoint(http: aiohttp.ClientSession) -> None:
    async with Simulator(fleet()) as simulator:
        control = f"{simulator.url}/control/p"
        async with http.post(control, json={"kind": "error", "status": 529}) as response:
            assert (await response.json())["faults"] == ["error"]
        assert (await ask(http, simulator.url))[0] == 529
        async with http.delete(control) as response:
            assert response.status == 200
        assert (await ask(http, simulator.url))[0] == 200
        for wrong in ({"kind": "explode"}, {"kind": "down", "for": 3}, [], "down"):
            async with http.post(control, json=wrong) as response:
                assert response.status == 400
        async with http.post(f"{simulator.url}/control/nobody", json={"kind": "down"}) as response:
            assert response.status == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 9999,
        b'{"model": [], "messages": []}',
        b'{"model": "m", "messages": [3]}',
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}',
    ],
)
async def test_a_request_that_makes_no_sense_is_the_callers_fault(http: aiohttp.ClientSession, body: bytes) -> None:
    async with (
        Simulator(fleet()) as simulator,
        http.post(f"{simulator.base_url('p')}/chat/completions", data=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_limits_are_kept_for_each_key_and_model(http: aiohttp.ClientSession) -> None:
    models = {"m": PRICE, "other": PRICE}
    provider = {"models": models, "requests_per_minute": 2, "api_key": ["one", "two"]}
    scenario = Scenario(providers={"p": provider})
    async with Simulator(scenario) as simulator:
        seen = []
        for key, model in (("one", "m"), ("one", "m"), ("one", "m"), ("one", "other"), ("two", "m"), ("three", "m")):
            http.headers["authorization"] = f"Bearer {key}"
            status, _, headers = await ask(http, simulator.url, model=model)
            seen.append((status, headers.get("retry-after")))
    assert seen == [(200, None), (200, None), (429, "30"), (200, None), (200, None), (401, None)]


async def test_calls_beyond_the_concurrency_limit_are_refused(http: aiohttp.ClientSession) -> None:
    async with Simulator(fleet(ttft_s=1.0, concurrency=2)) as simulator:
        answers = await asyncio.gather(*(ask(http, simulator.url) for _ in range(5)))
        assert sorted(status for status, *_ in answers) == [200, 200, 429, 429, 429]


async def test_health_checks_are_not_counted_as_calls(http: aiohttp.ClientSession) -> None:
    async with Simulator(fleet()) as simulator:
        async with http.get(f"{simulator.base_url('p')}/models") as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["m"]
        told = simulator.stats()["providers"]["p"]
    assert (told["requests"], told["billed_microusd"]) == (0, 0)


# --- the command -----------------------------------------------------------------------------------------


def test_the_command_prints_the_addresses_of_a_scenario_and_writes_its_callers_configuration(tmp_path: Path) -> None:
    scenario, written = tmp_path / "scenario.toml", tmp_path / "turnout.toml"
    price = "input_usd_per_mtok = 1.0\noutput_usd_per_mtok = 2.0"
    scenario.write_text(f"[providers.sim-one]\nfaults = [{{ kind = 'down' }}]\n[providers.sim-one.models.m]\n{price}")
    command = [*COMMAND, "--scenario", str(scenario), "--toml", str(written)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        told = json.loads(process.stdout.readline())
        assert told["providers"] == {"sim-one": f"{told['url']}/sim-one/v1"}
        with pytest.raises(ConnectionError):
            urlopen(f"{told['providers']['sim-one']}/chat/completions", b"{}")
        tables = load(Source(str(written)), {}).config.providers
        assert {name: table.base_url for name, table in tables.items()} == told["providers"]
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize("there", ["[providers.groq]\n", "no TOML", "\n[providers.sim-thrifty]\nkind = 'openai'\n"])
def test_the_command_replaces_no_configuration_that_is_there_already(tmp_path: Path, there: str) -> None:
    (written := tmp_path / "turnout.toml").write_text(there)
    done = CliRunner().invoke(main, ["simulate", "--port", "0", "--json", "--toml", str(written)])
    assert (done.exit_code, done.stdout, written.read_text()) == (2, "", there)
    assert "remove it to have it written, or leave --toml out to keep it" in done.stderr


def start(command: list[str]) -> None:
    """Until it says that it runs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        process.terminate()
        assert process.wait(60) == 0


def test_what_was_added_to_the_configuration_of_a_fleet_stays_when_it_is_started_again(
    tmp_path: Path, port: int
) -> None:
    written = tmp_path / "turnout.toml"
    command = [*COMMAND, "--port", str(port), "--toml", str(written)]
    start(command)
    written.write_text(edited := written.read_text() + "\n[ceilings.total]\nper_day_usd = 5.0\n")
    start(command)
    assert written.read_text() == edited


@pytest.mark.parametrize(("dialect", "limit"), [("groq", "1000"), ("vllm", "60")])
async def test_limits_are_told_in_the_words_of_the_providers_dialect(
    http: aiohttp.ClientSession, dialect: str, limit: str
) -> None:
    """Groq's header of that name is of a day's requests, others' of a minute's."""
    table = {"dialect": dialect, "models": {"m": PRICE}, "requests_per_minute": 60, "requests_per_day": 1000}
    async with Simulator(Scenario(providers={"p": table})) as simulator:
        _, _, headers = await ask(http, simulator.url)
    assert headers["x-ratelimit-limit-requests"] == limit
