"""A worker that dies at any point loses no job and settles none twice; a stop in order calls nothing twice."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.chaos.stand import standing

from turnout.ledger import run

FLEET = """
output_tokens = 8
[providers.sim-one]
ttft_s = 0.2
models."llama-3.3-70b" = { price = { input = 0.1, output = 0.3 } }
[providers.sim-two]
ttft_s = 0.2
models."llama-3.3-70b" = { price = { input = 0.2, output = 0.4 } }
"""
IDS = [f"job-{n}" for n in range(60)]


@pytest.mark.parametrize(
    ("place", "calls_of_one"),
    [("claimed", 1), ("before_call", 1), ("during_call", 2), ("after_call", 2), ("after_settle", 1)],
)
def test_a_death_at_any_point_loses_nothing(place: str, calls_of_one: int, tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        doomed = stand.start_worker(crash=f"{place}:25")
        stand.submit(IDS)
        assert doomed.wait(60) == -signal.SIGKILL
        stand.start_worker()
        stand.until(lambda: stand.settled() == len(IDS), 60)
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}
        jobs = stand.oracle()["jobs"]
        assert set(jobs) == set(IDS)
        # Ten calls were in flight at the death; each of those, and no other, may have been made again.
        assert sum(job["calls"] > calls_of_one for job in jobs.values()) <= 10
        assert max(job["calls"] for job in jobs.values()) <= 2


def test_a_redis_that_is_killed_comes_back_and_no_worker_ends(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        worker = stand.start_worker()
        stand.submit(IDS)
        stand.until(lambda: stand.settled() > 15, 30)
        stand.redis.kill()
        stand.redis.restart()
        stand.until(lambda: stand.settled() == len(IDS), 60)
        assert worker.poll() is None, "the worker has survived"
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}


def test_a_graceful_stop_drains_and_hands_back_the_rest(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand:
        first = stand.start_worker()
        stand.submit(IDS)
        stand.until(lambda: stand.settled() > 15, 30)
        first.send_signal(signal.SIGTERM)
        assert first.wait(20) == 0
        stand.start_worker()
        stand.until(lambda: stand.settled() == len(IDS), 60)
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}
        assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {1}


def test_a_cancelled_job_in_flight_is_aborted(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET.replace("ttft_s = 0.2", "ttft_s = 30.0"), concurrency=2) as stand:
        stand.start_worker()
        stand.submit(["slow"])
        stand.until(lambda: run(stand.client, [stand.ledger.facts("slow")])[0].state == "calling", 20)
        settlement = run(stand.client, [stand.ledger.cancel("slow", None, 60)])[0]
        assert settlement.accepted
        stand.until(lambda: stand.client.zcard(stand.ledger.keys.expiry) == 0, 10)
        assert stand.outcomes(["slow"]) == {"cancelled": 1}


def test_an_answer_that_comes_while_redis_is_away_is_kept_and_not_paid_for_twice(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET.replace("ttft_s = 0.2", "ttft_s = 1.5"), concurrency=5) as stand:
        stand.start_worker()
        stand.submit(IDS[:5])
        stand.until(lambda: set(stand.outcomes(IDS[:5])) == {"calling"}, 20)
        stand.redis.kill()
        spool = tmp_path / "spool"
        stand.until(lambda: len(list(spool.glob("*.json"))) == 5, 20)
        stand.redis.restart()
        stand.until(lambda: stand.settled() == 5, 30)
        assert stand.outcomes(IDS[:5]) == {"succeeded": 5}
        assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {1}
        stand.until(lambda: not list(spool.glob("*.json")), 10)


def test_a_job_that_kills_its_workers_runs_three_times_and_no_more(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=5) as stand:
        stand.submit(["poison"])
        for _ in range(3):
            assert stand.start_worker(crash="during_call:1", wait=False).wait(30) == -signal.SIGKILL
        stand.start_worker()
        stand.until(lambda: stand.settled() == 1, 30)
        (result,) = stand.results(["poison"])
        assert result is not None
        assert result.error is not None
        assert result.error.code == "poison"
        assert stand.oracle()["jobs"]["poison"]["calls"] == 3
