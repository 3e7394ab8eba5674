"""Outages, with several real workers: what a dying endpoint costs the fleet, and what waits until all is well."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.stand import LEASE_S, Stand, standing

from turnout.ledger import NewJob, run
from turnout.request import InferenceRequest, RoutingConstraints
from turnout_workers.routing.health import CONSECUTIVE_FAILURES, EJECTION_S, JITTER
from turnout_workers.state.redis_store import mark_operation, state_operation

WORKERS = 3
MODEL = 'models."llama-3.3-70b" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }'
FAULTS: dict[str, dict[str, Any]] = {
    "refused": {"kind": "down"},
    "error": {"kind": "error", "status": 500},
    "limited": {"kind": "error", "status": 429, "retry_after_s": 600},
    "hanging": {"kind": "hang"},
}


def fleet(*names: str) -> str:
    return "\n".join(f"[providers.{name}]\nttft_s = 0.02\n{MODEL}" for name in names)


def requests(stand: Stand, provider: str) -> int:
    count: int = stand.oracle()["providers"][provider]["requests"]
    return count


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Workers of one slot each, and an ejection that outlasts the tests: no probe is counted among the calls."""
    scenario = fleet("good", "other", *FAULTS)
    with standing(tmp_path_factory.mktemp("dying"), scenario, concurrency=1, lease_s=30.0) as stand:
        text = stand.config.read_text().replace("[router]\n", "[router]\nfailover_cooldown = 600.0\n")
        stand.config.write_text(text)
        workers = [stand.start_worker(wait=False) for _ in range(WORKERS)]
        stand.submit(["first"], constraints=RoutingConstraints(only=("good",)))
        stand.until(lambda: stand.settled() == 1, 60)
        yield stand
        assert all(worker.poll() is None for worker in workers)


def test_a_refusal_that_the_snapshot_did_not_foresee_parks_no_job(dying: Stand) -> None:
    """Another endpoint comes back in the moment in which the one that a worker knows of goes out."""
    ids = [f"swapped {n}" for n in range(10)]
    away, there = "good/llama-3.3-70b", "other/llama-3.3-70b"
    wish = RoutingConstraints(only=("good", "other"))
    for job_id in ids:
        new = NewJob.of(job_id, InferenceRequest(prompt="Question?", constraints=wish))
        marks = [
            mark_operation(dying.ledger.keys, "restored", [away]),
            mark_operation(dying.ledger.keys, "isolated", [there]),
        ]
        run(dying.client, [*marks, dying.ledger.enqueue(new)])
        away, there = there, away
        dying.until(lambda id=job_id: dying.outcomes([id]) == {"succeeded": 1}, 30)
    run(dying.client, [mark_operation(dying.ledger.keys, "restored", [away, there])])
    results = [result for result in dying.results(ids) if result]
    assert [result.deferrals for result in results] == [0] * len(ids)


@pytest.mark.parametrize("name", FAULTS)
def test_a_dying_endpoint_costs_the_fleet_a_handful_of_calls(dying: Stand, name: str) -> None:
    wish = RoutingConstraints(order=(name, "good"), only=(name, "good"))
    before = dying.settled()
    well, ill = ([f"{name} {when} {n}" for n in range(30)] for when in ("well", "ill"))
    dying.submit(well, constraints=wish)
    dying.until(lambda: dying.settled() == before + len(well), 60)
    assert (served := requests(dying, name)) == len(well), "it is the one that is preferred"
    dying.fail(name, **FAULTS[name])
    dying.submit(ill, constraints=wish)
    dying.until(lambda: dying.settled() == before + len(well) + len(ill), 60)
    assert dying.outcomes(ill) == {"succeeded": len(ill)}
    most = 10 if name == "hanging" else CONSECUTIVE_FAILURES + WORKERS
    assert 0 < requests(dying, name) - served <= most


def test_with_all_providers_down_jobs_wait_and_one_probe_at_a_time_looks_for_the_end(tmp_path: Path) -> None:
    """And then all are done within the time that the limits allow, and 2 s."""
    providers, a_minute = ("one", "two"), 600
    limited = fleet(*providers).replace("ttft_s", f"requests_per_minute = {a_minute}\nttft_s")
    with standing(tmp_path, limited, concurrency=5, lease_s=30.0) as stand:
        for provider in providers:
            stand.fail(provider, kind="down")
        began_at = now(stand)
        for _ in range(WORKERS):
            stand.start_worker(wait=False)
        patient, hasty = [f"patient {n}" for n in range(80)], [f"hasty {n}" for n in range(10)]
        stand.submit(patient)
        stand.submit(hasty, constraints=RoutingConstraints(deadline_s=4))
        slots = WORKERS * 5

        def known(name: str) -> list[float]:
            _, endpoints = run(stand.client, [state_operation(stand.ledger.keys)])[0]
            found = [endpoints.get(f"{provider}/llama-3.3-70b") for provider in providers]
            return [getattr(endpoint.health, name) if endpoint else 0.0 for endpoint in found]

        stand.until(lambda: all(known("open_until")), 60)
        stand.until(lambda: stand.outcomes(hasty) == {"expired": len(hasty)}, 60)
        assert set(stand.outcomes(patient)) <= {"queued", "delayed", "leased", "calling"}
        most = max(requests(stand, provider) for provider in providers)
        # Calls on their way when it was ejected, and then at most one for each of the shortest ejections.
        assert most <= slots + (now(stand) - began_at) / (EJECTION_S * (1 - JITTER)) + 1
        for provider in providers:
            stand.heal(provider)
        stand.until(lambda: stand.outcomes(patient) == {"succeeded": len(patient)}, 60)
        jobs = stand.oracle()["jobs"]
        assert {jobs[job_id]["answered"] for job_id in patient} == {1}
        recovered_at = [at for at in known("recovered_at") if at]  # the last job may come before the second probe
        ended_at = max(result.settled_at or 0 for result in stand.results(patient) if result)
        # What those that were back could do by then, each from its recovery on.
        allowed = sum(ended_at - 2 - at for at in recovered_at) * a_minute / 60
        assert allowed <= len(patient), f"{allowed:.0f} could have been done 2 s before the last was"


def now(stand: Stand) -> float:
    """By the clock that ejections are told in."""
    seconds, microseconds = stand.client.time()
    return float(seconds + microseconds / 1e6)


def hurry(stand: Stand) -> None:
    """Have the rest answered at once: there is so much of it that it is not done before a test has looked."""
    stand.fail("one", kind="slow", factor=0.05)


def in_flight(stand: Stand) -> int:
    count: int = stand.oracle()["providers"]["one"]["in_flight"]
    return count


def test_without_redis_calls_under_way_end_and_none_begins(tmp_path: Path) -> None:
    slots = 5
    ids = [f"job-{n}" for n in range(200)]
    with standing(tmp_path, fleet("one").replace("0.02", "0.3"), concurrency=slots) as stand:
        worker = stand.start_worker()
        stand.submit(ids)
        stand.until(lambda: stand.settled() >= slots and in_flight(stand) == slots, 30)
        stand.redis.kill()
        at_death = requests(stand, "one")
        stand.until(lambda: "its result waits on disk" in worker.said, 30)
        stand.until(lambda: in_flight(stand) == 0, 30)
        # Those whose slots are free again: a call that was granted a moment before may have begun a moment after.
        assert requests(stand, "one") <= at_death + slots
        ended = stand.oracle()["providers"]["one"]["answered"]
        stand.until(lambda: "housekeeping waits: " in worker.said, 30)
        assert stand.oracle()["providers"]["one"]["answered"] == ended
        hurry(stand)
        stand.redis.restart()
        stand.until(lambda: stand.settled() == len(ids), 60)
        assert stand.outcomes(ids) == {"succeeded": len(ids)}
        assert worker.poll() is None
        said = worker.said
        assert "raised unexpected" not in said  # nor was Celery told of an end, and so anybody's `link_error`
        assert said.count("no jobs are fetched until Redis is back") == said.count("jobs are fetched again") == 1


def refusals(stand: Stand) -> int:
    """How often Celery has asked a Redis that takes no writes: with each new connection it declares its queues."""
    return int(stand.client.info("commandstats").get("cmdstat_sadd", {}).get("rejected_calls", 0))


def test_a_redis_that_takes_no_writes_ends_no_worker_and_no_job(tmp_path: Path) -> None:
    """As a primary after a failover to another, or one whose disk is full."""
    ids = [f"job-{n}" for n in range(200)]
    slow = fleet("one").replace("0.02", "0.3")
    with standing(tmp_path, slow, concurrency=5, lease_s=LEASE_S) as stand:  # for what is held must be taken back
        worker = stand.start_worker()
        stand.submit(ids)
        stand.client.replicaof("127.0.0.1", 1)
        stand.until(lambda: "no jobs are fetched" in worker.said, 30)
        stand.until(lambda: "takes no writes" in worker.said, 30)
        since, asked = time.monotonic(), refusals(stand)
        stand.until(lambda: refusals(stand) >= asked + 6, 30)
        assert time.monotonic() - since > 2.5, "a second each time, though one new connection may ask twice"
        assert stand.settled() < len(ids)
        hurry(stand)
        stand.client.replicaof("NO", "ONE")
        stand.until(lambda: stand.settled() == len(ids), 60)
        assert stand.outcomes(ids) == {"succeeded": len(ids)}
        assert worker.poll() is None
        said = worker.said
        assert "raised unexpected" not in said
        assert said.count("no jobs are fetched until Redis is back") == said.count("jobs are fetched again") == 1
        assert "Connect" not in said, "Celery's own lines, one or two each second"
        assert "CPendingDeprecationWarning" not in said


def test_a_worker_that_waits_for_redis_at_its_start_is_healthy_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive = tmp_path / "alive"
    monkeypatch.setenv("TURNOUT_ALIVE", str(alive))
    with standing(tmp_path, fleet("one")) as stand:
        stand.redis.kill()
        worker = stand.start_worker(wait=False)
        stand.until(lambda: "Redis can't be reached; trying again" in worker.said, 30)
        stand.until(alive.exists, 30)  # a restart would not help
        worker.terminate()
        assert worker.wait(60) == 0


def test_all_that_wait_in_line_for_a_provider_that_is_taken_out_of_the_configuration_end_with_the_first(
    tmp_path: Path,
) -> None:
    ids = [str(number) for number in range(40)]
    with standing(tmp_path, fleet("one", "other"), concurrency=5) as stand:
        run(stand.client, [mark_operation(stand.ledger.keys, "isolated", ["one/llama-3.3-70b"])])
        worker = stand.start_worker()
        stand.submit(ids, constraints=RoutingConstraints(only=("one",)))
        stand.until(lambda: stand.outcomes(ids) == {"delayed": len(ids)}, 30)
        stand.stop_worker(worker)
        told = stand.config.read_text()
        stand.config.write_text(told.replace("providers.one", "providers.another"))
        stand.start_worker()
        run(stand.client, [stand.ledger.make_groups_due()])
        stand.until(lambda: stand.settled() == len(ids), 60)  # one by one, 5 s apart, it would take more than 3 minutes
        assert {r.error.code for r in stand.results(ids) if r and r.error} == {"refused"}


def test_answers_that_take_longer_than_anybody_has_told_are_waited_for(tmp_path: Path) -> None:
    """As of a model that thinks first: to take its first calls for hanging would pay for each and keep none."""
    with standing(tmp_path, f"[providers.pensive]\nttft_s = 6.0\n{MODEL}", concurrency=20, lease_s=30.0) as stand:
        told = stand.config.read_text()
        stand.config.write_text(re.sub(r"(?m)^expected_.*\n", "", told))
        assert stand.config.read_text() != told
        stand.start_worker()
        ids = [str(number) for number in range(20)]
        stand.submit(ids)
        stand.until(lambda: stand.settled() == len(ids), 60)
        assert [r.status for r in stand.results(ids) if r] == ["succeeded"] * len(ids)
        assert requests(stand, "pensive") == len(ids)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process can set the limits of another")
def test_a_worker_that_may_open_no_more_files_blames_no_provider_and_its_jobs_wait(tmp_path: Path) -> None:
    with standing(tmp_path, fleet("good", "other").replace("0.02", "0.3"), concurrency=20) as stand:
        worker = stand.start_worker()
        stand.submit(["first"])
        stand.until(lambda: stand.settled() == 1)
        _, most = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, most))
        ids = [f"job {n}" for n in range(20)]
        stand.submit(ids)
        stand.until(lambda: "Too many open files" in worker.said and stand.outcomes(ids).get("delayed", 0) > 0)
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (most, most))
        stand.until(lambda: stand.outcomes(ids) == {"succeeded": 20}, 120)
        results = [result for result in stand.results(ids) if result]
        failures = {attempt.failure for result in results for attempt in result.attempts}
        assert failures == {None, "local"}
        assert "ejected" not in worker.said
