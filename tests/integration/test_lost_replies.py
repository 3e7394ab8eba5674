"""A bad network before Redis: replies that never arrive, or late, or not for a while. Nothing is lost or done twice."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.chaos import faults
from tests.chaos.fleet import two_providers
from tests.chaos.stand import standing
from tests.integration.test_crashes import FLEET, IDS
from tests.tcp_proxy import between

from turnout.ledger import Ledger, Script, run
from turnout.ledger.script import CLOCK
from turnout_workers.state.redis_store import SHARED

LEDGER = Ledger()
CLAIM = LEDGER.claim("any", "w", 1).script
ADMIT = Script.load("turnout_workers.state", "admit", CLOCK + SHARED)
SETTLE = LEDGER.cancel("any", None).script  # all settlements are one script


def test_jobs_whose_messages_were_lost_on_the_way_are_published_again(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand, between(stand.redis.port) as proxy:
        proxy.cut_replies(Script.load("turnout_workers", "fetch").sha.encode(), times=3)
        stand.submit(IDS)
        stand.start_worker(redis_url=proxy.url, wait=False)
        stand.until(lambda: stand.settled() == len(IDS))
        assert proxy.cut == 3
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}


def test_a_settlement_whose_reply_is_cut_in_the_middle_counts_once(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand, between(stand.redis.port) as proxy:
        stand.start_worker(redis_url=proxy.url)
        proxy.cut_replies(SETTLE.sha.encode(), times=3, kept=2)
        stand.submit(IDS)
        stand.until(lambda: stand.settled() >= len(IDS))
        assert proxy.cut == 3
        assert stand.settled() == len(IDS), "none is counted twice"
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}
        assert set(stand.unrecorded_calls()) == {0}


@pytest.mark.parametrize("script", [CLAIM, ADMIT, SETTLE], ids=["claim", "admit", "settle"])
def test_what_is_asked_again_for_want_of_a_reply_holds_up_no_job(script: Script, tmp_path: Path) -> None:
    """Else a job would be held by nobody, and its money be reserved for no call, until a lease ends."""
    with standing(tmp_path, FLEET, concurrency=10, lease_s=30.0) as stand, between(stand.redis.port) as proxy:
        stand.start_worker(redis_url=proxy.url)
        proxy.cut_replies(script.sha.encode(), times=3)
        stand.submit(IDS)
        stand.until(lambda: stand.settled() == len(IDS))
        assert proxy.cut == 3
        told = run(stand.client, [stand.ledger.story(job_id) for job_id in IDS])
        assert not [event for story in told for event in story if event["event"] == "taken_back"]
        assert {len(result.attempts) for result in stand.results(IDS) if result} == {1}
        assert stand.money().get("total|unsure", 0) == stand.money()["total|reserved"] == 0
        assert "on disk" not in stand.workers[0].said


def test_of_a_hundred_lost_messages_each_is_published_again_within_30_s(tmp_path: Path) -> None:
    assert not faults.lost_replies(tmp_path, random.Random(1))


def test_replies_that_are_late_make_nothing_happen_twice(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand, between(stand.redis.port) as proxy:
        stand.start_worker(redis_url=proxy.url)
        proxy.delay_s = 0.2
        stand.submit(IDS[:20])
        stand.until(lambda: stand.settled() >= 20)
        assert stand.outcomes(IDS[:20]) == {"succeeded": 20}
        assert set(stand.unrecorded_calls()) == {0}


def test_a_parted_worker_aborts_its_calls_before_others_can_have_them(tmp_path: Path) -> None:
    ids = IDS[:5]
    with standing(tmp_path, two_providers(60.0), concurrency=5, lease_s=9.0) as stand:
        with between(stand.redis.port) as proxy:
            stand.start_worker(redis_url=proxy.url)
            stand.submit(ids)
            stand.until(lambda: [job["calls"] for job in stand.oracle()["jobs"].values()] == [1] * 5)
            proxy.part()
            stand.hurry()
            stand.start_worker()
            stand.until(lambda: stand.settled() == 5)
            log = stand.workers[0].said
            warnings = [line for line in log.splitlines() if " WARNING turnout" in line]
            assert not [line for line in warnings if any(f"[{job_id}]" in line for job_id in ids)], "one for all"
            aborted_at = _aborted_at(log)
            for story in run(stand.client, [stand.ledger.story(job_id) for job_id in ids]):
                taken_back = next(event["at"] / 1000 for event in story if event["event"] == "taken_back")
                assert aborted_at < taken_back
            assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {2}
            proxy.rejoin()
            stand.stop_worker(stand.workers[1])
            stand.submit(["later"])
            stand.until(lambda: stand.settled() == 6)
        assert stand.outcomes([*ids, "later"]) == {"succeeded": 6}


def test_an_answer_that_a_parted_worker_brings_too_late_is_counted_as_a_duplicate(tmp_path: Path) -> None:
    ids = IDS[:3]
    with standing(
        tmp_path, two_providers(60.0), concurrency=5, lease_s=15.0
    ) as stand:  # of which 5 s are left at least
        stand.hurry()
        with between(stand.redis.port) as proxy:
            stand.start_worker(redis_url=proxy.url)
            with stand.silent():
                stand.submit(ids)
                stand.until(lambda: stand.outcomes(ids) == {"calling": len(ids)})
                proxy.part()
            spool = tmp_path / "spool"
            stand.until(lambda: len(list(spool.glob("*.json"))) == len(ids))
            stand.end_leases()
            stand.start_worker(spool="elsewhere")
            stand.until(lambda: stand.settled() == len(ids))
            proxy.rejoin()
            stand.until(lambda: not list(spool.glob("*.json")))
        results = [result for result in stand.results(ids) if result]
        paid = sum(result.cost_microusd for result in results)
        stand.until(lambda: stand.money().get("total|duplicate", 0) == paid)
        assert stand.oracle()["billed_microusd"] == 2 * paid
        assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {2}


def _aborted_at(log: str) -> float:
    """By the parted worker's own log: when it gave up the last of its jobs (Unix time)."""
    found = re.findall(r"^(\S+ \S+ UTC) .* jobs can't be renewed in time", log, re.MULTILINE)
    return datetime.strptime(found[-1], "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC).timestamp()
