"""What a worker takes from the lanes: urgent ones first, and of each its share, however little is taken at a time."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis
from celery import Celery
from tests.chaos.fleet import one_provider
from tests.chaos.stand import standing

from turnout.ledger import NewJob, Script, run
from turnout.request import InferenceRequest, Lane, RoutingConstraints
from turnout_workers.attempts.job import Progress
from turnout_workers.routing.sharing import LONG_WAIT_S
from turnout_workers.transport import FETCH_SHARE

FLEET = one_provider("sim-one", ttft_s=0.01)
LANES = [lane.value for lane in Lane]
STEPS = ("\x06\x163", "\x06\x166", "\x06\x169")
"""By these kombu names the lists of a queue's messages that have a priority."""


def fetch(client: redis.Redis, room: int, drawn: float, most: Sequence[int] = (100_000,) * 3) -> list[str]:
    script = Script.load("turnout_workers", "fetch")
    shares = [str(FETCH_SHARE[lane]) for lane in LANES]
    keys = [*LANES, *(f"{lane}{step}" for lane in LANES for step in STEPS)]
    fetched = client.eval(script.source, len(keys), *keys, room, drawn, *shares, *most)
    return [LANES[index - 1] for index, _ in fetched]


def fill(client: redis.Redis, **counts: int) -> None:
    client.flushall()
    for lane, count in counts.items():
        client.lpush(lane, *range(count))


@pytest.mark.parametrize("room", [1, 2, 7, 100])
def test_each_lane_gets_its_share_of_what_is_fetched(flushed: redis.Redis, room: int) -> None:
    fetches = 100
    fill(flushed, interactive=20_000, standard=20_000, batch=20_000)
    taken = Counter(lane for n in range(fetches) for lane in fetch(flushed, room, (n + 0.5) / fetches))
    assert taken == {lane: pytest.approx(share * room * fetches) for lane, share in FETCH_SHARE.items()}


@pytest.mark.parametrize("drawn", [0.0, 0.5, 0.999])
def test_what_a_lane_leaves_goes_to_the_most_urgent(flushed: redis.Redis, drawn: float) -> None:
    fill(flushed, interactive=2, standard=50, batch=50)
    assert Counter(fetch(flushed, 20, drawn)) == {"interactive": 2, "standard": 16, "batch": 2}
    fill(flushed, batch=50)
    assert fetch(flushed, 20, drawn) == ["batch"] * 20


def test_of_a_lane_no_more_is_fetched_than_there_is_room_for_it(flushed: redis.Redis) -> None:
    fill(flushed, interactive=3, standard=50, batch=50)
    assert Counter(fetch(flushed, 20, 0.5, (100, 9, 2))) == {"interactive": 3, "standard": 9, "batch": 2}
    fill(flushed, batch=50)
    assert fetch(flushed, 20, 0.5, (100, 100, -1)) == []


def test_what_has_a_priority_joins_its_lane_at_the_back(flushed: redis.Redis) -> None:
    fill(flushed, standard=3, **{f"standard{step}": 2 for step in STEPS})
    assert fetch(flushed, 2, 0.5) == ["standard"] * 2
    assert flushed.lrange("standard", 0, -1) == [b"1", b"0", b"1", b"0", b"1", b"0", b"2"]
    assert fetch(flushed, 20, 0.5, (100, 4, 100)) == ["standard"] * 4
    assert fetch(flushed, 20, 0.5) == ["standard"] * 3


def test_of_thousands_that_have_a_priority_as_many_join_as_are_fetched(flushed: redis.Redis) -> None:
    fill(flushed, **{f"batch{step}": 20_000 for step in STEPS})
    assert len(fetch(flushed, 9_999, 0.5)) == 9_999
    assert [flushed.llen(f"batch{step}") for step in ("", *STEPS)] == [2 * 9_999, *[10_001] * 3]


def test_a_job_with_a_priority_is_done_while_its_lane_has_a_backlog(tmp_path: Path) -> None:
    ids = map(str, itertools.count())
    with standing(tmp_path, FLEET, concurrency=2) as stand, Celery(set_as_current=False) as app:
        app.conf.broker_url = stand.redis.url

        def more() -> None:
            if stand.client.llen("standard") < 50:
                stand.submit([*itertools.islice(ids, 100)])

        more()
        stand.start_worker()
        sent = app.send_task("turnout.infer", ["A?"], queue="standard", priority=5)
        stand.until(lambda: stand.outcomes([sent.id]) == {"succeeded": 1}, meanwhile=more)
        assert stand.client.llen("standard") > 0


def test_long_calls_of_a_batch_leave_slots_to_more_urgent_jobs(tmp_path: Path) -> None:
    fleet = """
    [providers.sim-slow]
    ttft_s = 60
    models."gpt-4o" = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 3.0 }
    """
    long, batch = [f"long {n}" for n in range(30)], RoutingConstraints(lane=Lane.BATCH)
    with standing(tmp_path, FLEET + fleet, concurrency=10) as stand:
        stand.start_worker()
        stand.submit(["first"], constraints=RoutingConstraints(lane=Lane.INTERACTIVE), model="llama-3.3-70b")
        stand.until(lambda: stand.settled() == 1)
        stand.submit(long, constraints=batch, model="gpt-4o")
        stand.until(lambda: stand.outcomes(long) == {"calling": 6, "queued": 24})
        stand.submit(["urgent"], constraints=RoutingConstraints(lane=Lane.INTERACTIVE), model="llama-3.3-70b")
        stand.until(lambda: stand.outcomes(["urgent"]) == {"succeeded": 1}, 50)  # before a long one ends


def test_slots_that_a_lane_may_have_are_filled_at_once(tmp_path: Path) -> None:
    """And not each time that BRPOP, which waits for the other lanes, ends after a second."""
    with standing(tmp_path, FLEET, concurrency=2) as stand:
        stand.start_worker()
        stand.submit(["urgent"], constraints=RoutingConstraints(lane=Lane.INTERACTIVE))
        stand.until(lambda: stand.settled() == 1)
        stand.submit([f"{n}" for n in range(60)], constraints=RoutingConstraints(lane=Lane.BATCH))
        stand.until(lambda: stand.settled() == 61, 30)


def test_a_lane_that_never_empties_does_not_starve_another_of_a_worker_with_two_slots(tmp_path: Path) -> None:
    ids = {lane: [f"{lane} {n}" for n in range(100)] for lane in (Lane.INTERACTIVE, Lane.BATCH)}
    with standing(tmp_path, FLEET, concurrency=2) as stand:
        for lane in ids:
            stand.submit(ids[lane], constraints=RoutingConstraints(lane=lane))
        stand.start_worker()
        stand.until(lambda: stand.settled() == 200)
        stories = {lane: run(stand.client, [stand.ledger.story(job_id) for job_id in ids[lane]]) for lane in ids}
        ended = sorted((story[-1]["at"], lane) for lane in ids for story in stories[lane])
        first = Counter(lane for _, lane in ended[:100])
        assert 0 < first[Lane.BATCH] < 50 < first[Lane.INTERACTIVE] < 100


def test_with_memory_full_jobs_stay_in_their_lanes(tmp_path: Path) -> None:
    """A fetched message of a job that can't be claimed would be lost, and published again much later."""
    ids = [f"{n}" for n in range(40)]
    with standing(tmp_path, FLEET, concurrency=1) as stand:
        stand.fail("sim-one", kind="slow", factor=100.0)  # so that they don't end before Redis is full
        worker = stand.start_worker()
        stand.submit(ids)
        stand.until(lambda: stand.settled() >= 1)
        stand.client.config_set("maxmemory", 1)
        stand.heal("sim-one")
        stand.until(lambda: stand.client.info("errorstats").get("errorstat_OOM", {"count": 0})["count"] >= 20)
        waiting = sum(stand.client.llen(lane) for lane in LANES)
        assert waiting >= 40 - stand.settled() - 2, worker.said[-6000:]
        stand.client.config_set("maxmemory", 0)
        stand.until(lambda: stand.settled() == 40)
        assert stand.outcomes(ids) == {"succeeded": 40}


def test_a_job_leaves_room_for_a_larger_one_that_has_waited_long_in_its_lane(tmp_path: Path) -> None:
    slow = one_provider(ttft_s=60, tokens_per_minute=1000)
    with standing(tmp_path, slow, concurrency=10) as stand:
        stand.start_worker()
        for name, tokens, lane, waited_s, becomes in (
            ("first", 500, Lane.STANDARD, 0, "calling"),
            ("large", 900, Lane.STANDARD, 2 * LONG_WAIT_S[Lane.STANDARD], "delayed"),
            ("small", 100, Lane.STANDARD, 0, "delayed"),
            ("small and urgent", 100, Lane.INTERACTIVE, 0, "calling"),
        ):
            wish = RoutingConstraints(lane=lane)
            request = InferenceRequest(prompt=name, max_output_tokens=tokens, constraints=wish)
            run(stand.client, [stand.ledger.enqueue(NewJob.of(name, request, publish=False))])
            if waited_s:
                progress = Progress(deferrals=1, waiting_since=time.time() - waited_s)
                stand.client.hset(stand.ledger.keys.job(name), "progress", progress.to_json())
            run(stand.client, [stand.ledger.publish_turn(name)])
            stand.until(lambda name=name, becomes=becomes: stand.outcomes([name]) == {becomes: 1})
