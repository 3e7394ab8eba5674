"""What the ledger does besides moving states: messages, Celery's records, who is told, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import redis
from redis.client import PubSub
from tests.properties.ledger.bed import KEPT_S, LANE, PLAIN, START, Bed, ended, new_job

from turnout.ledger import Claimed, Intake, Ledger, NotClaimed
from turnout.ledger.keys import Keys
from turnout.request import CONTRACT_VERSION, InferenceRequest, Lane
from turnout.result import JobStatus

LOST_S = 5.0


def header(message: bytes, name: str) -> object:
    return json.loads(message)["headers"][name]


def order(bed: Bed, lane: Lane = LANE) -> list[object]:
    return [header(message, "id") for message in bed.messages(lane)]


def fetch(bed: Bed) -> object:
    """What a worker does that then dies: the message is gone."""
    return header(bed.client.rpop(bed.keys.queue(LANE)), "id")


def housekeep(bed: Bed) -> list[str]:
    """A look for lost messages, some time after the last one; the ids published again."""
    before = bed.front
    bed.front, missing = bed(bed.ledger.without_message(LANE, before, 100))
    return [job_id for job_id in missing if bed(bed.ledger.republish(job_id, before, LOST_S))]


def missing(bed: Bed, lane: Lane = LANE, before: int = 0) -> list[str]:
    """The jobs that seem to have no message at this moment; of those before this place, if one is given."""
    _, found = bed(bed.ledger.without_message(lane, before or bed.now, 10))
    return list(found)


def sweep(bed: Bed) -> str:
    fate: str = bed(bed.ledger.sweep("a", points_if_dead=3, poison_from=9))
    return fate


def lapse(bed: Bed, owner: str = "w") -> str:
    """A worker claims the job and doesn't renew it."""
    bed(bed.ledger.claim("a", owner, 30.0))
    bed.advance(30_000)
    return sweep(bed)


def show_life(bed: Bed, owner: str = "w") -> None:
    bed.advance(1)
    bed(bed.ledger.alive(owner, "v1", 10, 15.0, KEPT_S))


@pytest.mark.parametrize("lane", list(Lane))
def test_a_job_is_published_on_its_lane_with_id_and_label_and_never_its_payload(bed: Bed, lane: Lane) -> None:
    bed.enqueue(payload='{"prompt":"my secret"}', lane=lane, model='say "hi"', metadata={"k": "my secret"})
    (message,) = bed.messages(lane)
    assert b"secret" not in message
    assert header(message, "argsrepr") == f'{lane} · say "hi"'
    assert json.loads(json.loads(message)["body"])[0] == ["a"]


def test_a_job_whose_message_is_at_hand_is_not_published(bed: Bed) -> None:
    bed.enqueue(publish=False)
    assert bed.messages() == []
    assert bed.claimed().token == 1


def test_a_closed_intake_refuses_new_jobs_knows_old_ones_and_lets_work_go_on(bed: Bed) -> None:
    bed.enqueue()
    bed.client.set(bed.keys.intake, "memory")
    assert bed.enqueue("b").outcome is Intake.FULL
    assert bed.state("b") == "none"
    assert bed.enqueue().outcome is Intake.DUPLICATE
    assert bed.settle(bed.claimed().token).accepted


@pytest.mark.parametrize(
    ("at", "within_s", "expected"),
    [
        (None, None, None),
        (None, 5.0, START / 1000 + 5),
        (START / 1000 + 3, None, START / 1000 + 3),
        (START / 1000 + 3, 5.0, START / 1000 + 3),
        (START / 1000 + 7, 5.0, START / 1000 + 5),
    ],
)
def test_the_earlier_deadline_counts(
    bed: Bed, at: float | None, within_s: float | None, expected: float | None
) -> None:
    bed.enqueue(deadline=at, deadline_s=within_s)
    assert bed.claimed().deadline == expected


@pytest.mark.parametrize("late_ms", [0, 1])
def test_a_job_past_its_deadline_is_not_accepted(bed: Bed, late_ms: int) -> None:
    assert bed.enqueue(deadline=(START - late_ms) / 1000).outcome is Intake.EXPIRED
    assert bed.state() == "none"
    assert bed.messages() == []


@pytest.mark.parametrize("deadline", [{"deadline": 0.0}, {"deadline": -1e9}, {"deadline": 0.0004}])
def test_a_deadline_before_the_clock_began_is_one_that_has_passed(bed: Bed, deadline: dict[str, float]) -> None:
    assert bed.enqueue(**deadline).outcome is Intake.EXPIRED


def test_a_deadline_in_less_than_a_millisecond_is_one(bed: Bed) -> None:
    bed.enqueue(deadline_s=0.0001)
    assert bed.claimed().deadline == (START + 1) / 1000


def test_a_claim_tells_all_that_its_worker_needs(bed: Bed) -> None:
    said = {"tenant": "t", "batch": "b", "stream": True, "trace": "00-x"}
    bed.enqueue(payload='{"prompt":"ä"}', **said)
    bed.advance(1500)
    claim = bed.claimed()
    assert {name: getattr(claim, name) for name in said} == said
    assert (claim.request, claim.lane, claim.accepted_at) == (InferenceRequest(prompt="ä"), LANE, START / 1000)
    assert (claim.queued_for_s, claim.progress) == (1.5, "")


def test_waiting_is_counted_from_the_last_time_it_was_queued(bed: Bed) -> None:
    bed.enqueue()
    token = bed.claimed().token
    bed.advance(1000)
    bed.hand_back(token)
    bed.advance(10)
    assert bed.claimed().queued_for_s == 0.01


def test_a_job_of_another_version_is_left_as_it_is(bed: Bed) -> None:
    bed.enqueue()
    token = bed.claimed().token
    bed.hand_back(token)
    bed.client.hset(bed.keys.job("a"), "v", str(CONTRACT_VERSION) + "9")
    before = bed.client.hgetall(bed.keys.job("a"))
    assert bed(bed.ledger.claim("a", "w", 30)) == NotClaimed("unknown_version")
    assert not bed(bed.ledger.republish("a", bed.now + 1, LOST_S))
    assert bed.settle(token).outcome.value == "refused"
    assert bed.client.hgetall(bed.keys.job("a")) == before


def test_fields_that_a_later_release_adds_to_a_record_survive_and_are_ignored(bed: Bed) -> None:
    bed.enqueue()
    bed.client.hset(bed.keys.job("a"), "of_a_later_release", "kept")
    assert bed.settle(bed.claimed().token).accepted
    assert bed.client.hget(bed.keys.job("a"), "of_a_later_release") == b"kept"
    assert bed(bed.ledger.result("a")).succeeded


def test_what_comes_back_goes_before_what_waits(bed: Bed) -> None:
    for job_id in "abc":
        bed.enqueue(job_id)
        bed.advance(1)
    assert order(bed) == ["a", "b", "c"]
    assert fetch(bed) == "a"
    token = bed.claimed("a").token
    bed.fail_over(token)
    assert order(bed) == ["a", "b", "c"]
    assert header(bed.messages()[0], "retries") == 1
    assert bed.claimed("a").progress == "p"


def test_a_job_that_is_handed_back_counts_neither_as_crash_nor_as_retry(bed: Bed) -> None:
    bed.enqueue()
    bed.fail_over(bed.claimed().token)
    bed.hand_back(bed.claimed().token)
    assert (bed.claimed().progress, bed.crashes()) == ("p", 0)
    assert header(bed.messages()[0], "retries") == 1


def told_to(bed: Bed, heard: PubSub) -> list[tuple[str, bytes]]:
    """What all channels were told until now, each with what it heard: nothing that is missing is waited for."""
    told = []
    bed.client.publish(next(iter(heard.channels)), "that is all")
    for message in heard.listen():
        if message["data"] == b"that is all":
            break
        if message["type"] == "message":
            told.append((message["channel"].decode(), message["data"]))
    return told


def test_all_who_watch_are_told_of_the_end(bed: Bed) -> None:
    """Also one whose name is the beginning of another's."""
    inboxes = [bed.keys.inbox(name) for name in ("ab", "a", "b")]
    bed.enqueue()
    with bed.client.pubsub() as heard:
        heard.subscribe(*inboxes)
        assert [bed(bed.ledger.watch("a", inbox)) for inbox in [*inboxes, "inbox:b"]] == ["queued"] * 4
        bed.settle(bed.claimed().token)
        assert sorted(told_to(bed, heard)) == sorted((inbox, b"a") for inbox in inboxes)
    assert bed(bed.ledger.watch("a", "late")) == "succeeded"
    assert bed(bed.ledger.watch("none", "late")) == ""


def test_nobody_can_have_a_worker_speak_on_channels_or_lists_that_are_no_clients_or_lanes(bed: Bed) -> None:
    """Celery's remote control obeys what comes on one, and a job's id is whatever its sender likes."""
    own, other = bed.keys.inbox("a"), "/0.celery.pidbox"
    bed.enqueue(stream=True)
    bed.claimed()
    with bed.client.pubsub() as heard:
        heard.subscribe(other, own)
        for channel in (other, f"x{own}", own):
            bed(bed.ledger.watch("a", channel, pieces=True))
        bed.client.hset(bed.keys.job("a"), "lane", "celery")
        bed(bed.ledger.stream("a", {"call": "1"}, KEPT_S))
        bed(bed.ledger.cancel("a", None))
        assert told_to(bed, heard) == [(own, b"+a"), (own, b"a")]
    assert not bed.client.exists("celery")


def test_who_reads_is_told_of_each_piece_and_who_only_waits_is_not(bed: Bed) -> None:
    waits, reads = bed.keys.inbox("waits"), bed.keys.inbox("reads")
    bed.enqueue(stream=True)
    bed(bed.ledger.watch("a", waits))
    assert bed(bed.ledger.watch("a", reads, pieces=True)) == "queued"
    token = bed.claimed().token
    with bed.client.pubsub() as heard:
        heard.subscribe(waits, reads)
        for fields in ({"call": "1"}, {"call": "1", "text": "Ä"}):
            bed(bed.ledger.stream("a", fields, KEPT_S))
        bed.settle(token)
        told = told_to(bed, heard)
    assert told[:2] == [(reads, b"+a")] * 2
    assert sorted(told[2:]) == [(reads, b"a"), (waits, b"a")]
    first, second, last = bed(bed.ledger.pieces("a", "0"))
    assert [(one.call, one.text, one.ends) for one in (first, second, last)] == [
        ("1", None, False),
        ("1", "Ä", False),
        ("", None, True),
    ]
    assert bed(bed.ledger.pieces("a", first.entry)) == [second, last]


def test_a_batch_learns_of_each_of_its_jobs_once(bed: Bed) -> None:
    bed.enqueue(batch="b1")
    token = bed.claimed().token
    with pytest.raises(redis.ResponseError, match="batch"):
        bed.settle(token, batch="b2")
    assert bed.state() == "leased"
    bed.settle(token, batch="b1")
    bed.settle(token, batch="b1")
    assert bed.client.lrange(bed.keys.done("b1"), 0, -1) == [b"a"]
    assert bed.client.pttl(bed.keys.done("b1")) > 0, "nobody may ever fetch it"


def test_a_detached_batch_counts_each_of_its_jobs_once_and_keeps_them_as_long_as_itself(bed: Bed) -> None:
    bed.client.hset(bed.keys.batch("b1"), "next", "0")
    bed.client.expire(bed.keys.batch("b1"), int(3 * KEPT_S))
    for job_id, status in (("a", JobStatus.SUCCEEDED), ("b", JobStatus.FAILED)):
        bed.enqueue(job_id, batch="b1")
        token = bed.claimed(job_id).token
        for _ in range(2):
            bed.settle(token, status, job_id, batch="b1")
    assert bed.client.hmget(bed.keys.batch("b1"), "succeeded", "failed") == [b"1", b"1"]
    assert bed.client.exists(bed.keys.done("b1")) == 0
    assert bed.client.ttl(bed.keys.job("a")) > 2 * KEPT_S


@pytest.mark.parametrize(
    ("state", "outcome"), [("feeding", "queued"), ("paused", "queued"), ("cancelled", "cancelled"), ("", "cancelled")]
)
def test_a_job_of_a_detached_batch_is_accepted_while_that_is_there_and_not_cancelled(
    bed: Bed, state: str, outcome: str
) -> None:
    if state:
        bed.client.hset(bed.keys.batch("b"), "state", state)
    assert bed(bed.ledger.enqueue(new_job("a", batch="b"), detached=True)).outcome == outcome
    assert bed.state() == ("queued" if outcome == "queued" else "none")
    assert bed(bed.ledger.enqueue(new_job("b", batch="b"))).outcome is Intake.QUEUED, "of a file, which has no record"


def test_the_account_of_a_job_is_closed_when_it_has_ended_and_no_sooner(bed: Bed) -> None:
    bed.client.hset(bed.keys.money, mapping={"job:a|spent": 1, "job:ab|spent": 1})
    bed.enqueue()
    bed(bed.ledger.close_account("a"))
    token = bed.claimed().token
    bed(bed.ledger.close_account("a"))
    assert bed.client.hlen(bed.keys.money) == 2
    bed.settle(token)
    bed(bed.ledger.close_account("a"))
    assert bed.client.hkeys(bed.keys.money) == [b"job:ab|spent"]


def test_the_first_end_stands(bed: Bed) -> None:
    bed.enqueue()
    old = bed.claimed(ttl_s=1).token
    bed.advance(1000)
    assert sweep(bed) == "queued"
    new = bed.claimed().token
    assert bed.settle(old, JobStatus.FAILED).outcome.value == "fenced"
    salvaged = bed.settle(old)
    assert (salvaged.accepted, salvaged.outcome.value) == (True, "salvaged")
    assert bed(bed.ledger.renew([("a", new)], 30)) == [False]
    late = bed.settle(new)
    assert (late.accepted, late.duplicate) == (False, True)
    assert bed(bed.ledger.result("a")).started_at == old


def test_a_job_is_poison_when_three_workers_have_died_with_it_though_others_live(bed: Bed) -> None:
    bed.enqueue()
    for owner in ("w1", "w2"):
        show_life(bed, owner)
        assert lapse(bed, owner) == "queued"
        bed(bed.ledger.alive(owner, "v1", 10, 15.0, KEPT_S))  # at that very moment, so that it may have been before
    for other in ("w", "w22"):
        show_life(bed, other)
    assert lapse(bed, "w3") == "poison"
    assert bed(bed.ledger.claim("a", "w4", 30.0)) == NotClaimed("leased")
    assert bed(bed.ledger.give_up("a", "it died", None, 3 * KEPT_S)).accepted
    assert 2 * KEPT_S * 1000 < bed.client.pttl(bed.keys.job("a")) <= 3 * KEPT_S * 1000, "as a failed job"
    assert bed.client.pttl(bed.keys.result("a")) <= KEPT_S * 1000


def test_a_lapse_whose_worker_shows_life_after_it_is_a_third_of_a_crash(bed: Bed) -> None:
    bed.enqueue()
    for _ in range(5):
        assert lapse(bed) == "queued"
        show_life(bed)
        bed(bed.ledger.alive("w", "v2", 10, 15.0, KEPT_S))
    assert bed(bed.ledger.claim("a", "w", 30.0)).token == 6
    bed.advance(30_000)
    assert bed(bed.ledger.renew([("a", 6)], 30)) == [True]
    assert sweep(bed) == "none"
    bed.advance(30_000)
    assert sweep(bed) == "queued"
    show_life(bed)
    assert lapse(bed) == "poison", "for no job goes on like this for ever"


def test_a_claim_that_is_sent_again_for_want_of_a_reply_is_the_same_claim(bed: Bed) -> None:
    bed.enqueue(payload='{"prompt":"ä"}')
    claim = bed.ledger.claim("a", "w", 30)
    first = bed(claim)
    bed.advance(5_000)
    again = bed(claim)
    assert isinstance(again, Claimed)
    assert (again.token, again.request, again.queued_for_s) == (first.token, first.request, 5.0)
    assert [event["event"] for event in bed(bed.ledger.story("a"))] == ["queued", "claimed"]
    assert bed.client.zscore(bed.keys.job_leases, "a") == START + 30_000, "by the first"
    assert bed(bed.ledger.claim("a", "w", 30)) == NotClaimed("leased"), "by another message of the job"
    of_another = bed.ledger.claim("a", "other", 30)
    of_the_same_number = (*of_another.command[:-1], claim.command[-1])
    assert bed(replace(of_another, command=of_the_same_number)) == NotClaimed("leased")
    bed(bed.ledger.park("a", first.token, 60, "", {"event": "deferred"}))
    assert bed(claim) == NotClaimed("delayed"), "it has come and gone"


def test_a_replayed_job_starts_without_crashes(bed: Bed) -> None:
    bed.enqueue()
    for owner in ("w1", "w2"):
        lapse(bed, owner)
    assert bed.settle(bed.claimed().token, JobStatus.FAILED).accepted
    bed(bed.ledger.replay("a"))
    assert lapse(bed) == "queued"
    assert bed.crashes() == 3


def test_renewing_nothing_asks_for_nothing(bed: Bed) -> None:
    assert bed(bed.ledger.renew([], 30)) == []


def test_failed_jobs_are_listed_and_replayed_with_their_story_kept(bed: Bed) -> None:
    bed.enqueue(payload='{"prompt":"ä"}', deadline_s=5)
    bed.settle(bed.claimed().token, JobStatus.FAILED)
    assert bed(bed.ledger.failed(10)) == ["a"]
    bed.advance(60_000)
    assert bed(bed.ledger.replay("a"))
    assert not bed(bed.ledger.replay("a"))
    assert bed(bed.ledger.failed(10)) == []
    assert bed(bed.ledger.result("a")) is None
    assert bed.client.ttl(bed.keys.job("a")) == bed.client.ttl(bed.keys.story("a")) == -1
    assert not bed.client.exists(bed.keys.result("a"))
    claim = bed.claimed()
    assert (claim.token, claim.deadline, claim.request) == (2, None, InferenceRequest(prompt="ä"))
    story = bed(bed.ledger.story("a"))
    assert [event["event"] for event in story] == ["queued", "claimed", "failed", "replayed", "claimed"]
    assert claim.accepted_at == story[3]["at"] / 1000 == story[0]["at"] / 1000 + 60, "as a new job would be"


def test_what_was_accepted_is_live_or_counted_by_its_end(bed: Bed) -> None:
    for job_id in ("a", "b", "c", "a"):
        bed.enqueue(job_id)
    bed.settle(bed.claimed("a").token, JobStatus.FAILED)
    bed(bed.ledger.cancel("b", None))
    assert bed.client.hgetall(bed.keys.counts) == {b"accepted": b"3", b"failed": b"1", b"cancelled": b"1"}
    bed(bed.ledger.replay("a"))
    assert bed.client.hget(bed.keys.counts, "failed") == b"0"


def test_a_success_is_never_replayed(bed: Bed) -> None:
    bed.enqueue()
    bed.settle(bed.claimed().token)
    assert not bed(bed.ledger.replay("a"))


def test_a_lost_message_is_published_again(bed: Bed) -> None:
    for job_id in "abc":
        bed.enqueue(job_id)
        bed.advance(1)
    assert fetch(bed) == "a"
    assert housekeep(bed) == []  # it may have been fetched just now
    bed.advance(round(LOST_S * 1000))
    assert housekeep(bed) == ["a"]
    assert order(bed) == ["b", "c", "a"]


def test_a_record_with_a_lane_that_is_none_keeps_no_other_lost_message_from_being_found(bed: Bed) -> None:
    for job_id in "ab":
        bed.enqueue(job_id)
        bed.advance(1)
        assert fetch(bed) == job_id
    bed.client.hset(bed.keys.job("a"), "lane", "celery")
    housekeep(bed)
    bed.advance(round(LOST_S * 1000))
    assert "b" in housekeep(bed)
    assert not bed.client.exists("celery")


def test_what_has_been_fetched_since_the_last_look_is_not_taken_for_lost(bed: Bed) -> None:
    for job_id in "ab":
        bed.enqueue(job_id)
        bed.advance(1)
    for job_id in "ab":
        assert housekeep(bed) == []
        bed.advance(round(LOST_S * 1000))
        assert fetch(bed) == job_id
        assert missing(bed)[-1:] == [job_id]
        assert job_id not in missing(bed, before=bed.front)
    assert housekeep(bed) == ["a"]
    bed.advance(1)
    assert housekeep(bed) == ["b"]


def test_of_two_that_look_one_publishes_a_lost_message_again(bed: Bed) -> None:
    bed.enqueue()
    fetch(bed)
    before = bed.now + 1
    bed.advance(2)
    assert not bed(bed.ledger.republish("a", before - 1, LOST_S))
    assert bed(bed.ledger.republish("a", before, LOST_S))
    assert not bed(bed.ledger.republish("a", before, LOST_S))
    assert len(bed.messages()) == 1


def test_a_job_that_was_claimed_after_all_is_looked_for_as_soon_as_any_other(bed: Bed) -> None:
    bed.enqueue()
    for _ in range(20):
        bed.client.delete(bed.keys.queue(LANE))
        housekeep(bed)
        bed.advance(round(LOST_S * 1000))
    bed.hand_back(bed.claimed().token)
    fetch(bed)
    bed.advance(1)
    assert housekeep(bed) == []
    bed.advance(1)
    assert housekeep(bed) == ["a"]
    assert bed.client.zscore(bed.keys.pending(LANE), "a") == bed.now


def test_a_job_that_was_missed_once_and_claimed_is_not_taken_for_lost_the_next_time(bed: Bed) -> None:
    bed.enqueue()
    fetch(bed)
    bed.advance(1)
    assert housekeep(bed) == []
    bed.hand_back(bed.claimed().token)
    bed.advance(round(LOST_S * 1000))
    fetch(bed)
    assert housekeep(bed) == []


def test_what_nobody_claims_is_published_again_ever_more_rarely(bed: Bed) -> None:
    bed.enqueue()
    times = []
    for second in range(0, 200, round(LOST_S)):
        bed.client.delete(bed.keys.queue(LANE))
        if housekeep(bed):
            times.append(second)
        bed.advance(round(LOST_S * 1000))
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert 3 <= len(times) <= 6
    assert waits == sorted(waits)
    assert waits[-1] >= 2 * waits[0]


def test_a_backlog_never_doubles(bed: Bed) -> None:
    for number in range(50):
        bed.enqueue(f"j{number}")
    for _ in range(20):
        bed.advance(60_000)
        assert housekeep(bed) == []
    assert len(bed.messages()) == 50


def test_a_plain_message_at_the_front_makes_nothing_look_lost(bed: Bed) -> None:
    bed.enqueue("first")
    fetch(bed)
    token = bed.claimed("first").token
    bed.client.lpush(bed.keys.queue(LANE), PLAIN)
    for job_id in "abc":
        bed.enqueue(job_id)
        bed.advance(1)
    bed.fail_over(token, "first")
    for _ in range(3):
        assert housekeep(bed) == []
        bed.advance(round(LOST_S * 1000))
    assert order(bed) == ["first", "plain", "a", "b", "c"]


def test_what_comes_back_before_a_plain_message_is_not_placed_in_the_future(bed: Bed) -> None:
    """Where the only queued job has been published so often that it is not looked for until then."""
    bed.enqueue("rare")
    for _ in range(4):
        bed.client.delete(bed.keys.queue(LANE))
        bed.advance(round(LOST_S * 1000))
        housekeep(bed)
    bed.enqueue()
    token = bed.claimed().token
    bed.client.delete(bed.keys.queue(LANE))
    bed.client.lpush(bed.keys.queue(LANE), PLAIN)
    bed.fail_over(token)
    bed.enqueue("b")
    bed.advance(1)
    assert bed.client.zscore(bed.keys.pending(LANE), "rare") > bed.now
    assert missing(bed) == []


def test_a_message_that_celery_has_put_back_still_tells_that_one_before_it_is_lost(bed: Bed) -> None:
    for job_id in "ab":
        bed.enqueue(job_id)
        bed.advance(1)
    assert fetch(bed) == "a"
    put_back = json.dumps(json.loads(bed.client.rpop(bed.keys.queue(LANE))))
    assert '"place": ' in put_back
    bed.client.rpush(bed.keys.queue(LANE), put_back)
    assert missing(bed) == ["a"]


def test_a_job_missed_before_its_turn_was_brought_is_not_taken_for_lost_at_once_the_next_time(bed: Bed) -> None:
    bed.enqueue()
    fetch(bed)
    bed.advance(1)
    assert housekeep(bed) == []
    bed(bed.ledger.publish_turn("a"))
    bed.advance(round(LOST_S * 1000))
    fetch(bed)
    assert housekeep(bed) == []


def test_a_story_is_bounded(bed: Bed) -> None:
    bed.enqueue()
    for _ in range(120):
        bed.hand_back(bed.claimed().token)
    assert len(bed(bed.ledger.story("a"))) == 200


def test_a_purge_takes_the_settled_and_leaves_the_live(bed: Bed) -> None:
    for job_id in "ab":
        bed.enqueue(job_id)
    bed.settle(bed.claimed("a").token, JobStatus.FAILED)
    assert bed(bed.ledger.purge(["a", "b", "none"])) == 1
    assert (bed.state("a"), bed.state("b")) == ("none", "queued")
    left = [bed.keys.job("a"), bed.keys.story("a"), bed.keys.result("a")]
    assert bed.client.exists(*left) == 0
    assert bed(bed.ledger.failed(10)) == []


def test_a_failed_job_is_kept_longer_and_leaves_the_list_when_it_goes(bed: Bed) -> None:
    for job_id in "ab":
        bed.enqueue(job_id)
    call = bed.ledger.settle(bed.claimed("a").token, ended("a", JobStatus.FAILED, 1), None, 1.0, None, KEPT_S)
    bed(call)
    for key in (bed.keys.job("a"), bed.keys.story("a")):
        assert 1000 < bed.client.pttl(key) <= KEPT_S * 1000
    assert bed.client.pttl(bed.keys.result("a")) <= 1000
    bed.advance(round(KEPT_S * 1000) + 1)
    bed.settle(bed.claimed("b").token, JobStatus.FAILED, "b")
    assert bed(bed.ledger.failed(10)) == ["b"]


def test_a_cancelled_job_is_kept_as_long_as_workers_keep_results(bed: Bed) -> None:
    bed.enqueue()
    bed(bed.ledger.alive("w", "v", 1, 15.0, 30.0))
    assert bed(bed.ledger.cancel("a", None)).accepted
    for key in (bed.keys.job("a"), bed.keys.story("a"), bed.keys.result("a")):
        assert 25_000 < bed.client.pttl(key) <= 30_000


def test_the_list_of_failed_jobs_goes_with_the_last_of_them(bed: Bed) -> None:
    for job_id, kept_s in (("a", 2 * KEPT_S), ("b", KEPT_S)):
        bed.enqueue(job_id)
        bed.settle(bed.claimed(job_id).token, JobStatus.FAILED, job_id, batch=None, failed_ttl_s=kept_s)
    assert KEPT_S * 1000 < bed.client.pttl(bed.keys.failed) <= 2 * KEPT_S * 1000


def test_what_was_tried_is_in_the_result_of_a_job_that_others_ended(bed: Bed) -> None:
    attempt = {"endpoint": "g/m", "provider": "g", "model": "m", "started_at": 1.0, "cost_microusd": 7}
    progress = json.dumps({"attempts": [attempt, attempt], "failovers": 1, "deferrals": 2})
    bed.enqueue()
    bed(bed.ledger.park("a", bed.claimed().token, 60, progress, {"event": "deferred"}))
    bed.advance(1500)
    bed(bed.ledger.cancel("a", None))
    result = bed(bed.ledger.result("a"))
    assert (len(result.attempts), result.cost_microusd, result.failovers, result.deferrals) == (2, 14, 1, 2)
    assert (result.accepted_at, result.settled_at) == (START / 1000, START / 1000 + 1.5)


def test_a_replayed_job_keeps_how_it_ended_before_and_what_celery_sent_along(bed: Bed) -> None:
    bed.enqueue(embed='{"chord":"c"}')
    bed.settle(bed.claimed().token, JobStatus.FAILED)
    bed.client.delete(bed.keys.queue(LANE))
    bed(bed.ledger.replay("a"))
    assert bed(bed.ledger.story("a"))[-1]["previous"]["error"]["code"] == "unavailable"
    assert json.loads(json.loads(bed.messages()[0])["body"])[2] == {"chord": "c"}


def test_what_a_success_no_longer_needs_goes(bed: Bed) -> None:
    bed.enqueue(embed="{}")
    bed.fail_over(bed.claimed().token)
    bed.settle(bed.claimed().token)
    assert not {b"payload", b"embed", b"owner", b"progress"} & set(bed.client.hkeys(bed.keys.job("a")))


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_the_end_that_a_worker_brings_from_its_disk_is_told_to_celery_once_with_callbacks(
    bed: Bed, status: JobStatus
) -> None:
    callbacks = {"callbacks": [{"task": "told"}]}
    bed.enqueue(embed=json.dumps(callbacks), publish=False)
    token = bed.claimed().token
    assert bed(bed.ledger.take_end("a")) is None
    bed.settle(token, status, from_spool=True)
    (message,) = bed.messages()
    assert json.loads(json.loads(message)["body"])[2] == callbacks
    first, second = (bed(bed.ledger.take_end("a")) for _ in range(2))
    assert (first.untold, second.untold) == (True, False)
    assert first.result.status is status
    assert first.stored()["id"] == "a"


def test_nobody_but_its_worker_tells_of_the_end_of_a_replayed_job(bed: Bed) -> None:
    bed.enqueue()
    bed.settle(bed.claimed().token, JobStatus.FAILED, from_spool=True)
    bed(bed.ledger.replay("a"))
    bed.settle(bed.claimed().token)
    assert not bed(bed.ledger.take_end("a")).untold


def test_a_result_that_is_not_to_be_kept_is_settled_all_the_same(bed: Bed) -> None:
    bed.enqueue()
    assert bed(bed.ledger.settle(bed.claimed().token, ended("a", JobStatus.SUCCEEDED, 1), None, 0)).accepted


def test_celery_can_tell_two_messages_of_one_job_apart(bed: Bed) -> None:
    bed.enqueue()
    bed.hand_back(bed.claimed().token)
    assert len({json.loads(message)["properties"]["delivery_tag"] for message in bed.messages()}) == 2


def test_a_lost_message_is_found_behind_a_backlog_of_another_lane_and_of_celery(bed: Bed) -> None:
    for number in range(50):
        bed.enqueue(f"j{number}", lane=Lane.BATCH)
    bed.enqueue()
    fetch(bed)
    bed.advance(1)
    bed.client.rpush(bed.keys.queue(LANE), '{"headers":{"id":"plain"}}')
    assert missing(bed) == []  # a message that isn't ours tells nothing
    bed.client.rpop(bed.keys.queue(LANE))
    assert missing(bed) == ["a"]
    assert missing(bed, Lane.BATCH) == []


def test_of_jobs_that_are_renewed_together_each_goes_by_its_own_token(bed: Bed) -> None:
    tokens = {}
    for job_id in ("ended", "a", "ab", "behind"):
        bed.enqueue(job_id)
        tokens[job_id] = bed.claimed(job_id, ttl_s=1).token
    bed.settle(tokens["ended"], job_id="ended")
    tokens["behind"] -= 1
    assert bed(bed.ledger.renew([*tokens.items()], 2)) == [False, True, True, False]
    bed.advance(1000)
    assert bed(bed.ledger.lapsed(10)) == ["behind"]


def test_leases_and_deadlines_are_listed_from_the_moment_they_are_over_the_oldest_first(bed: Bed) -> None:
    for job_id, seconds in (("later", 3), ("b", 2), ("a", 1)):
        bed.enqueue(job_id, deadline_s=seconds)
        bed.claimed(job_id, ttl_s=seconds)
    for listing in (bed.ledger.lapsed, bed.ledger.overdue):
        bed.advance(START + 1999 - bed.now)
        assert bed(listing(10)) == ["a"]
        bed.advance(1)
        assert bed(listing(10)) == ["a", "b"]
        assert bed(listing(1)) == ["a"]


def test_redis_itself_keeps_the_time(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        bed = Bed(redis_url)
        bed.ledger = Ledger(Keys("t"))
        bed.enqueue()
        seconds, micros = client.time()
        assert abs(bed.claimed().accepted_at - (seconds + micros / 1e6)) < 5
        bed.close()


def test_a_webhook_is_due_again_after_ever_longer_waits_and_counts_anew_for_a_new_end(bed: Bed) -> None:
    def tries() -> int | None:
        due = bed(bed.ledger.due_webhooks(10))
        return bed(bed.ledger.take_webhook(due[0], (1, 5))).tries if due else None

    bed.enqueue(webhook="app")
    for _ in range(2):
        bed.settle(bed.claimed().token, JobStatus.FAILED)
        for number, wait_ms in enumerate((1000, 5000, 5000), 1):
            assert tries() == number
            bed.advance(wait_ms - 1)
            assert tries() is None
            bed.advance(1)
        bed(bed.ledger.replay("a"))


def test_a_delivery_is_one_workers_and_that_of_an_earlier_end_leaves_the_next_one_due(bed: Bed) -> None:
    bed.enqueue(webhook="app")
    bed.settle(bed.claimed().token, JobStatus.FAILED)
    [due] = bed(bed.ledger.due_webhooks(10))
    first = bed(bed.ledger.take_webhook(due, (1,)))
    assert bed(bed.ledger.take_webhook(due, (1,))) is None
    bed(bed.ledger.replay("a"))
    bed.advance(500)
    bed.settle(bed.claimed().token, JobStatus.FAILED)
    bed(bed.ledger.end_webhook(first.due_again, {"event": "webhook_told"}))
    [due] = bed(bed.ledger.due_webhooks(10))
    second = bed(bed.ledger.take_webhook(due, (1,)))
    assert (second.tries, second.result.settled_at) == (1, first.result.settled_at + 0.5)
    bed(bed.ledger.end_webhook(second.due_again, {"event": "webhook_told"}))
    assert not bed.client.exists(bed.keys.webhooks)


def test_of_each_webhook_so_many_are_due_whatever_its_name(bed: Bed) -> None:
    names = ("app", "app!", "app-2", "é")
    for name in names:
        for number in range(3):
            bed.enqueue(f"{name} {number}", webhook=name)
            bed(bed.ledger.cancel(f"{name} {number}", None))
    due = bed(bed.ledger.due_webhooks(2))
    assert [(one.webhook, one.job_id) for one in due] == [(name, f"{name} {n}") for name in names for n in (0, 1)]
