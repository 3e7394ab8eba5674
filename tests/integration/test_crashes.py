"""A worker that dies at any point loses no job and settles none twice; a stop in order calls nothing twice."""

from __future__ import annotations

import base64
import json
import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest
from tests.chaos import deaths, faults
from tests.chaos.fleet import two_providers
from tests.chaos.stand import standing
from tests.forked import Forked

from turnout.ledger import Keyring, run

FLEET = two_providers(0.2)
IDS = [f"job-{n}" for n in range(60)]


@pytest.mark.parametrize("place", deaths.PLACES)
def test_twenty_deaths_at_any_point_lose_nothing_and_repeat_no_more_than_they_cut_off(
    place: str, tmp_path: Path
) -> None:
    with standing(tmp_path, deaths.FLEET) as stand:
        places = [place] * 20
        ids = deaths.die(stand, places, random.Random(place), wait=False)
        assert not deaths.faults(stand, ids, places)


def test_a_call_that_outlasts_every_lease_is_made_once_though_workers_beside_it_die(tmp_path: Path) -> None:
    assert not faults.long_calls(tmp_path, random.Random(1), lease_s=10.0, call_s=12.0)  # no stall costs a lease


def test_a_stop_with_a_thousand_calls_in_flight_loses_none(tmp_path: Path) -> None:
    assert not faults.stop(tmp_path, random.Random(1), within_s=120)  # how soon is for `make chaos` to say


def test_a_stop_in_order_lets_calls_end_and_leaves_the_rest_to_others(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        first = stand.start_worker()
        stand.submit(IDS)
        stand.until(lambda: stand.settled() > 15)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
        assert run(stand.client, [stand.ledger.workers()]) == [{}]
        stand.start_worker()
        stand.until(lambda: stand.settled() == len(IDS))
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}
        assert set(stand.unrecorded_calls()) == {0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_the_grace_and_loses_none(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_LOG_FORMAT", "json")
    with standing(tmp_path, two_providers(60.0), concurrency=20, drain_s=60.0) as stand:
        worker = stand.start_worker()
        stand.submit(IDS[:20])
        stand.until(lambda: stand.outcomes(IDS[:20]) == {"calling": 20})
        worker.send_signal(number)
        stand.until(lambda: "stopping: 20 jobs" in worker.said)
        worker.send_signal(number)
        worker.wait(30)
        assert all(map(json.loads, worker.said.splitlines()))
        assert worker.said.count("stopping: ") == 1
        assert "did not close in time" not in worker.said
        assert stand.outcomes(IDS[:20]) == {"queued": 20}
        assert stand.client.zcard(stand.ledger.keys.job_leases) == 0


def test_a_worker_that_is_to_ignore_a_closed_terminal_goes_on(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        ignoring = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        worker = Forked(["worker"], stand.environ, tmp_path / "worker.log", ignoring)
        stand.workers.append(worker)
        stand.until(lambda: " ready." in worker.said)
        worker.send_signal(signal.SIGHUP)
        stand.submit(IDS[:1])
        stand.until(lambda: stand.outcomes(IDS[:1]) == {"succeeded": 1})
        assert "stopping" not in worker.said


def test_an_answer_that_comes_while_redis_is_away_is_kept_sealed_and_not_paid_for_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNOUT_PAYLOAD_KEYS", f"2026a:{base64.b64encode(os.urandom(32)).decode()}")
    with standing(tmp_path, two_providers(60.0), concurrency=5) as stand:
        stand.hurry()
        stand.start_worker()
        with stand.silent():
            stand.submit(IDS[:5])
            stand.until(lambda: stand.outcomes(IDS[:5]) == {"calling": 5})
            stand.redis.on_disk()
            stand.redis.kill()
        spool = tmp_path / "spool"
        stand.until(lambda: len(list(spool.glob("*.json"))) == 5)
        kept = "".join(path.read_text() for path in spool.iterdir())
        stand.redis.restart()
        stand.until(lambda: stand.settled() == 5)
        assert stand.outcomes(IDS[:5]) == {"succeeded": 5}
        assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {1}
        stand.until(lambda: not list(spool.glob("*.json")))
        stand.ledger.keyring = Keyring.of(os.environ)
        answers = {result.response.text for result in stand.results(IDS[:5]) if result and result.response}
        assert len(answers) == 5
        assert not [answer for answer in answers if answer in kept]


def test_a_job_that_kills_its_workers_runs_three_times_and_no_more(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=5) as stand:
        stand.submit(["poison"])
        for _ in range(3):
            assert stand.start_worker(crash=("during_call", 1), wait=False).wait(60) == -signal.SIGKILL
            stand.end_leases()
        stand.start_worker()
        stand.until(lambda: stand.settled() == 1)
        (result,) = stand.results(["poison"])
        assert result is not None
        assert result.error is not None
        assert result.error.code == "poison"
        (story,) = run(stand.client, [stand.ledger.story("poison")])
        assert [event["event"] for event in story].count("claimed") == 3


def test_workers_that_stall_and_live_make_no_job_poison(tmp_path: Path) -> None:
    with standing(tmp_path, two_providers(60.0), concurrency=5, lease_s=9.0) as stand:
        for _ in range(2):
            stand.start_worker()
        stand.submit(["job"])
        job = stand.ledger.keys.job("job")

        def shows_life() -> bool:
            """Whether the worker that stalled has done so since."""
            since, worker = stand.client.hget(job, "suspect").split()
            seen = stand.client.zrange(stand.ledger.keys.workers, b"(" + since, "+inf", byscore=True)
            return any(sign.startswith(worker + b" ") for sign in seen)

        for lapse in (1, 2, 3):
            stand.until(lambda: stand.outcomes(["job"]) == {"calling": 1})
            stalled = int(stand.client.hget(job, "owner").split(b":")[1])
            if lapse == 3:
                stand.hurry()  # the job ends with its next call
            os.kill(stalled, signal.SIGSTOP)
            stand.end_leases()
            stand.until(lambda lapse=lapse: stand.client.hget(job, "crashes") == b"%d" % (lapse + 2))
            os.kill(stalled, signal.SIGCONT)
            if lapse < 3:
                stand.until(shows_life)
        stand.until(lambda: stand.settled() == 1)
        assert stand.outcomes(["job"]) == {"succeeded": 1}
