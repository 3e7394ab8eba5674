"""Redis does what it was asked, and its reply never arrives: nothing is lost, and nothing is counted twice."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.stand import standing
from tests.integration.test_crashes import FLEET, IDS
from tests.tcp_proxy import between

from turnout.ledger.script import Script


def test_jobs_whose_messages_were_lost_on_the_way_are_published_again(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand, between(stand.redis.port) as proxy:
        proxy.cut_replies(Script.load("turnout_workers", "fetch").sha.encode(), times=3)
        stand.submit(IDS)
        stand.start_worker(redis_url=proxy.url, wait=False)
        stand.until(lambda: stand.settled() == len(IDS), 60)
        assert proxy.cut == 3
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}


def test_a_settlement_whose_reply_is_cut_in_the_middle_counts_once(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET, concurrency=10) as stand, between(stand.redis.port) as proxy:
        stand.start_worker(redis_url=proxy.url)
        settle = stand.ledger.settle_poison("any", 1, 1, None).script  # all settlements are one script
        proxy.cut_replies(settle.sha.encode(), times=3, kept=2)
        stand.submit(IDS)
        stand.until(lambda: stand.settled() >= len(IDS), 60)
        assert proxy.cut == 3
        assert stand.settled() == len(IDS), "none is counted twice"
        assert stand.outcomes(IDS) == {"succeeded": len(IDS)}
        assert {job["calls"] for job in stand.oracle()["jobs"].values()} == {1}
