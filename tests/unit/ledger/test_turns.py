"""Tenants take turns: a flood of one stands in a lane only as a handful of messages."""

from __future__ import annotations

from tests.properties.ledger.bed import KEPT_S, LANE, Bed
from tests.unit.ledger.test_facts import fetch, housekeep, order

from turnout.ledger import Claimed
from turnout.ledger.operations import TENANTS, TURNS
from turnout.request import Lane


def flood(bed: Bed, count: int, tenant: str | None = "loud", lane: Lane = LANE) -> list[str]:
    """Jobs accepted one millisecond after another."""
    ids = [f"{tenant} {n:03}" for n in range(count)]
    for job_id in ids:
        bed.enqueue(job_id, tenant=tenant, lane=lane)
        bed.advance(1)
    return ids


def serve(bed: Bed, lane: Lane = LANE) -> list[str]:
    """What a worker does with all that it is given; the order in which jobs come."""
    served = []
    while order(bed, lane):
        job_id = str(fetch(bed))
        claim = bed(bed.ledger.claim(job_id, "w", 30))
        if isinstance(claim, Claimed):
            served.append(job_id)
            if claim.next_in_turn is not None:
                bed(bed.ledger.publish_turn(claim.next_in_turn))
    return served


def nobody_waits_for_a_turn(bed: Bed) -> bool:
    return bed.client.exists(bed.keys.turns, bed.keys.awaiting_turn) == 0


def test_a_tenants_flood_leaves_another_tenants_job_a_handful_of_places_away(bed: Bed) -> None:
    loud = flood(bed, 100)
    flood(bed, 1, "quiet")
    served = serve(bed)
    assert served.index("quiet 000") == TURNS
    assert [job for job in served if job in loud] == loud
    assert nobody_waits_for_a_turn(bed)


def test_more_of_a_tenants_jobs_stand_in_the_lanes_of_more_workers(bed: Bed) -> None:
    ids = flood(bed, 100)
    assert order(bed) == ids[:TURNS]
    for worker in ("one", "two"):
        bed(bed.ledger.alive(worker, "v", 100, 15.0, KEPT_S))
    for job_id in bed(bed.ledger.hand_out_turns(1000)):
        bed(bed.ledger.publish_turn(job_id))
    assert order(bed) == ids[:25]
    assert bed(bed.ledger.workers()) == {"one": "v", "two": "v"}
    bed.client.delete(bed.keys.turns_each)
    assert serve(bed) == ids, "with fewer, the next ones wait until so few are left"


def test_a_worker_counts_once_whatever_it_follows_and_no_more_when_it_has_ended(bed: Bed) -> None:
    for worker, version in (("one", "v1"), ("one1", "v1"), ("one", "v2")):
        bed(bed.ledger.alive(worker, version, 80, 15.0, KEPT_S))
    assert bed(bed.ledger.workers()) == {"one1": "v1", "one": "v2"}
    assert bed.client.get(bed.keys.turns_each) == b"20"
    bed(bed.ledger.alive("one", "v2", 0, 15.0, KEPT_S))
    assert bed(bed.ledger.workers()) == {"one1": "v1"}
    assert bed.client.get(bed.keys.turns_each) == b"10"


def test_a_sign_of_life_reads_of_no_other_worker_while_all_stay_as_they_are(bed: Bed) -> None:
    def alive(worker: str, slots: int = 80) -> tuple[int, int]:
        """How many live, and how often the list of them was read."""
        bed.client.config_resetstat()
        count = bed(bed.ledger.alive(worker, "v", slots, 15.0, KEPT_S))
        return count, int(bed.client.info("commandstats").get("cmdstat_zrange", {"calls": 0})["calls"])

    assert [alive(worker) for worker in ("one", "two", "three")] == [(1, 1), (2, 1), (3, 1)]
    assert [alive(worker) for worker in ("one", "two", "three")] == [(3, 0)] * 3
    assert bed.client.get(bed.keys.turns_each) == b"30"
    bed.advance(14_000)
    assert alive("one") == (3, 0)
    bed.advance(2000)
    assert alive("one") == (1, 1), "the others have fallen silent"
    assert bed.client.get(bed.keys.turns_each) == b"10"
    assert alive("one", 0) == (0, 1)


def test_two_floods_are_served_side_by_side(bed: Bed) -> None:
    flood(bed, 100, "first")
    flood(bed, 100, "second")
    served = serve(bed)
    assert 40 <= sum(job.startswith("second") for job in served[:100]) <= 60
    assert len(served) == 200


def test_jobs_without_a_tenant_and_few_of_one_are_all_published_at_once(bed: Bed) -> None:
    flood(bed, 100, None)
    flood(bed, TURNS)
    assert len(order(bed)) == 100 + TURNS
    assert bed.client.zcard(bed.keys.awaiting_turn) == 0


def test_turns_are_counted_by_lane(bed: Bed) -> None:
    flood(bed, 100, lane=Lane.BATCH)
    bed.enqueue("urgent", tenant="loud", lane=Lane.INTERACTIVE)
    assert order(bed, Lane.INTERACTIVE) == ["urgent"]


def test_turns_of_cancelled_jobs_are_given_to_the_next(bed: Bed) -> None:
    ids = flood(bed, TURNS + 3)
    for job_id in (*ids[:TURNS], ids[-1]):
        assert bed(bed.ledger.cancel(job_id, None)).accepted
    brought = bed(bed.ledger.hand_out_turns(100))
    assert brought == ids[TURNS:-1]
    for job_id in brought:
        bed(bed.ledger.publish_turn(job_id))
    assert serve(bed) == brought
    assert nobody_waits_for_a_turn(bed)


def test_replayed_jobs_take_turns_like_new_ones(bed: Bed) -> None:
    loud = flood(bed, 100)
    for job_id in loud:
        assert bed(bed.ledger.cancel(job_id, None)).accepted
    bed.client.delete(bed.keys.queue(LANE))
    for job_id in loud:
        assert bed(bed.ledger.replay(job_id))
    flood(bed, 1, "quiet")
    served = serve(bed)
    assert served.index("quiet 000") == TURNS
    assert [job for job in served if job in loud] == loud
    assert nobody_waits_for_a_turn(bed)


def test_a_job_whose_turn_nobody_published_is_found_like_any_lost_one(bed: Bed) -> None:
    ids = flood(bed, TURNS + 1)
    for _ in range(TURNS):
        bed(bed.ledger.claim(str(fetch(bed)), "w", 30))  # and dies before it brings the next
    bed.advance(1)
    assert housekeep(bed) == []
    bed.advance(5000)
    assert housekeep(bed) == [ids[-1]]
    assert serve(bed) == [ids[-1]]


def test_of_very_many_tenants_each_is_looked_at_in_some_round(bed: Bed) -> None:
    for n in range(2 * TENANTS):
        flood(bed, TURNS + 1, f"t{n}")
    bed(bed.ledger.alive("w", "v", 1000, 15.0, KEPT_S))
    given: set[str] = set()
    for _ in range(100):
        ids = bed(bed.ledger.hand_out_turns(1000))
        assert len(ids) <= TENANTS
        given.update(ids)
        bed.advance(257)
    assert len(given) == 2 * TENANTS
    assert not bed.client.exists(bed.keys.awaiting_turn)
