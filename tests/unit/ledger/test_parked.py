"""Parked jobs that wait for the same form a group: the first looks for room, the others cost nothing."""

from __future__ import annotations

from tests.properties.ledger.bed import LANE, Bed
from tests.unit.ledger.test_facts import order

NEXT_S = 5.0
EVENT = {"event": "deferred"}


def parked(bed: Bed, count: int, group: str = "group", wait_s: float = 60.0) -> list[str]:
    """Jobs accepted one millisecond after another, and parked the last one first."""
    ids = [f"{group} {n:03}" for n in range(count)]
    for job_id in ids:
        bed.enqueue(job_id)
        bed.advance(1)
    for job_id in reversed(ids):
        park(bed, job_id, group, wait_s)
    bed.client.delete(bed.keys.queue(LANE))
    return ids


def park(bed: Bed, job_id: str, group: str = "group", wait_s: float = 60.0) -> None:
    token = bed.claimed(job_id).token
    assert bed(bed.ledger.park(job_id, token, wait_s, "", EVENT, group))


def woken(bed: Bed) -> list[str]:
    """What housekeeping wakes now, the first to run first."""
    return [job_id for job_id in bed(bed.ledger.due_heads(100)) if bed(bed.ledger.wake(job_id, NEXT_S))][::-1]


def nobody_is_parked(bed: Bed) -> bool:
    return bed.client.exists(bed.keys.parked, bed.keys.delayed) == 0


def test_of_a_line_whose_time_has_come_the_job_that_was_accepted_first_wakes_alone(bed: Bed) -> None:
    ids = parked(bed, 100)
    assert bed(bed.ledger.due_heads(100)) == []
    bed.advance(60_000)
    assert woken(bed) == ids[:1] == order(bed)
    assert woken(bed) == []


def test_one_that_finds_room_brings_the_next_in_order_though_their_time_has_not_come(bed: Bed) -> None:
    ids = parked(bed, 5)
    brought = bed(bed.ledger.head_of_group("group", 2))
    assert brought == ids[:2]
    for job_id in reversed(brought):
        assert bed(bed.ledger.wake(job_id))
    assert order(bed) == ids[:2]
    assert bed(bed.ledger.head_of_group("group", 9)) == ids[2:]


def test_one_that_finds_none_goes_back_to_its_place_and_the_line_waits_as_long_as_it_says(bed: Bed) -> None:
    ids = parked(bed, 3)
    bed.advance(60_000)
    assert woken(bed) == ids[:1]
    park(bed, ids[0], wait_s=1.0)
    bed.advance(999)
    assert woken(bed) == []
    bed.advance(1)
    assert woken(bed) == ids[:1]


def test_a_line_waits_as_long_as_its_first_says_though_the_next_was_to_look_earlier(bed: Bed) -> None:
    """Otherwise each group of two jobs or more would be looked at every few seconds forever."""
    ids = parked(bed, 3)
    bed.advance(60_000)
    assert woken(bed) == ids[:1]
    park(bed, ids[0], wait_s=160.0)
    bed.advance(int(NEXT_S * 1000))
    assert woken(bed) == []
    bed.advance(160_000 - int(NEXT_S * 1000))
    assert woken(bed) == ids[:1]


def test_a_line_that_came_due_while_its_first_was_still_queued_is_quiet_once_both_have_looked(bed: Bed) -> None:
    ids = parked(bed, 3)
    bed.advance(60_000)
    assert woken(bed) == ids[:1]
    bed.advance(int(NEXT_S * 1000))
    assert woken(bed) == ids[1:2] == order(bed)[:1]
    park(bed, ids[1], wait_s=80.0)
    park(bed, ids[0], wait_s=160.0)
    bed.advance(159_999)
    assert woken(bed) == []
    bed.advance(1)
    assert woken(bed) == ids[:1]


def test_a_job_that_parks_behind_others_does_not_bring_their_look_forward(bed: Bed) -> None:
    """It has just looked itself; a group that fresh jobs join would be looked at for each of them."""
    ids = parked(bed, 2, wait_s=60.0)
    bed.enqueue("later")
    park(bed, "later", wait_s=1.0)
    bed.advance(59_000)
    assert woken(bed) == []
    bed.advance(1000)
    assert woken(bed) == ids[:1]


def test_a_change_that_comes_while_the_first_of_a_line_looks_is_not_missed(bed: Bed) -> None:
    ids = parked(bed, 2)
    bed.advance(60_000)
    assert woken(bed) == ids[:1]
    bed(bed.ledger.make_groups_due())
    park(bed, ids[0], wait_s=160.0)
    assert woken(bed) == ids[:1]
    park(bed, ids[0], wait_s=160.0)
    assert woken(bed) == []


def test_a_job_that_joins_a_line_does_not_put_it_off(bed: Bed) -> None:
    ids = parked(bed, 1, wait_s=1.0)
    bed.enqueue("later")
    park(bed, "later", wait_s=600.0)
    bed.advance(1000)
    assert woken(bed) == ids


def test_a_line_whose_first_was_lost_on_its_way_goes_on_with_the_next(bed: Bed) -> None:
    ids = parked(bed, 2)
    bed.advance(60_000)
    assert woken(bed) == ids[:1]
    bed.advance(int(NEXT_S * 1000))
    assert woken(bed) == ids[1:]
    assert nobody_is_parked(bed)


def test_lines_don_t_wait_for_each_other_and_the_one_longest_due_runs_first(bed: Bed) -> None:
    parked(bed, 3, "blocked", wait_s=600.0)
    later, sooner = parked(bed, 2, "later", 2.0), parked(bed, 2, "sooner", 1.0)
    bed.advance(2000)
    assert woken(bed) == [sooner[0], later[0]] == order(bed)


def test_a_line_whose_jobs_are_all_cancelled_is_none(bed: Bed) -> None:
    ids = parked(bed, 3)
    for job_id in ids:
        assert bed(bed.ledger.cancel(job_id, None)).accepted
    assert nobody_is_parked(bed)


def test_a_change_wakes_no_job_that_waits_for_its_time(bed: Bed) -> None:
    bed.enqueue(later := "some day")
    assert bed(bed.ledger.park_until(later, bed.claimed(later).token, 60.0, "", EVENT))
    bed(bed.ledger.make_groups_due())
    assert woken(bed) == []
    bed.advance(60_000)
    assert woken(bed) == [later]


def test_a_change_lets_the_first_of_every_line_look_at_once(bed: Bed) -> None:
    first, second = parked(bed, 3, "a", 600.0), parked(bed, 3, "b", 60.0)
    bed(bed.ledger.make_groups_due())
    assert set(woken(bed)) == {first[0], second[0]}
    bed(bed.ledger.make_groups_due())
    assert set(woken(bed)) == {first[1], second[1]}, "the lines were to go on after a while: now, instead"
