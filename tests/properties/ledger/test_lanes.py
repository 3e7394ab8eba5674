"""Two jobs, two workers and the messages of their lane: none is lost, and no message is doubled without need.

A walk through the real Lua like the one of a single job, but with messages: they are fetched, lost, overtaken and
published again. At each step one job does what the specification says, the other stays as it is, and

- the lane is in order: no queued job's message stands before another's of an earlier place;
- a queued job whose message is there is not taken for lost, however long the lane is;
- a queued job that has no message is found, at the latest when the lane is empty.

So it is also where a plain Celery message, which has no place, stands in the lane.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pytest
from tests.properties.ledger.bed import (
    CLOCK_KEY,
    DUMP,
    LANE,
    LOAD,
    PLAIN,
    START,
    Bed,
    Store,
    in_pairs,
    indices,
    seen,
    simple,
)
from tests.properties.ledger.spec import Job, Step, apply

from turnout.ledger import Ledger

JOBS = ("a", "b")
ANYBODY = ("enqueue", "claim", "cancel", "sweep", "give_up", "wake")
WORKER = ("begin", "fail_over", "park", "succeed", "fail")
KEEPER = ("republish", "replay", "purge")
AT_FRONT = ("fail_over", "sweep", "wake")
MISSING_MS = 1
CLAIMS, MESSAGES, REPUBLICATIONS = 2, 3, 1


@dataclass(frozen=True, slots=True)
class World:
    """What can be seen. Messages are place (None: a plain one) and job, the next one first."""

    jobs: dict[str, Job]
    lane: tuple[tuple[int | None, str], ...]
    places: dict[str, int]


@dataclass(frozen=True, slots=True)
class Move:
    name: str
    job_id: str = ""
    token: int = 0


def moves(world: World) -> Iterator[Move]:
    yield Move("tick")
    if world.lane:
        yield Move("fetch")
    for job_id, job in world.jobs.items():
        if job.state == "none":
            yield Move("enqueue", job_id)
            continue
        yield from (Move(name, job_id) for name in (*ANYBODY, *KEEPER) if name != "claim" or job.token < CLAIMS)
        yield from (Move(name, job_id, token) for name in WORKER for token in range(1, job.token + 1))


def command(ledger: Ledger, bed: Bed, move: Move) -> tuple[Any, ...]:
    match move.name:
        case "tick":
            return ("INCR", CLOCK_KEY)
        case "fetch":
            return ("RPOP", bed.keys.queue(LANE))
        case "republish":
            return ledger.republish(move.job_id, START, MISSING_MS / 1000).command
        case "replay":
            return ledger.replay(move.job_id).command
        case "purge":
            return ledger.purge([move.job_id]).command
    return tuple(bed.operation(Step(move.name, move.token), move.job_id).command)


def view(bed: Bed, store: Store) -> World:
    keys = bed.keys
    places = indices(store)
    records = {job_id: in_pairs(store.get(keys.job(job_id), ("", []))[1]) for job_id in JOBS}
    jobs = {job_id: seen(job_id, keys, records[job_id], places) for job_id in JOBS}
    lane = tuple(_message(text) for text in reversed(store.get(keys.queue(LANE), ("", []))[1]))
    return World(jobs, lane, {name: int(place) for name, place in places.get(keys.pending(LANE), {}).items()})


def lost(world: World, now: int) -> list[str]:
    """The jobs that must be found to have no message."""
    front = world.lane[0][0] if world.lane else now
    if front is None:
        return []
    return sorted(job_id for job_id, place in world.places.items() if place < front)


def check(move: Move, before: World, reply: Any, after: World, found: list[str]) -> None:
    now = START + (move.name == "tick")
    expected, pushed = dict(before.jobs), 0
    job = before.jobs.get(move.job_id, Job())
    if move.name in ANYBODY + WORKER:
        result = apply(job, Step(move.name, move.token), START)
        assert reply == result.reply
        expected[move.job_id], pushed = result.job, result.pushed
    elif move.name == "replay" and job.state in ("failed", "cancelled", "expired"):
        expected[move.job_id], pushed = Job("queued", token=job.token), 1
    elif move.name == "purge" and job.winner is not None:
        expected[move.job_id] = Job()
    elif move.name == "republish" and reply:
        assert job.state == "queued"
        pushed = 1
    assert after.jobs == expected

    messages = before.lane[1:] if move.name == "fetch" else before.lane
    if pushed and move.name in AT_FRONT:
        assert (after.lane[1:], after.lane[0][1]) == (messages, move.job_id)
    elif pushed:
        assert (after.lane[:-1], after.lane[-1]) == (messages, (now, move.job_id))
    else:
        assert after.lane == messages
    places = [place for place, job_id in after.lane if (job_id, place) in after.places.items()]
    assert places == sorted(places)

    assert sorted(found) == lost(after, now)
    waiting = {job_id for _, job_id in after.lane}
    assert not {(after.places[job_id], job_id) for job_id in found} & set(after.lane)
    for job_id, place in after.places.items():
        assert job_id in waiting or after.lane or job_id in lost(after, place + 1)


def normal(bed: Bed, store: Store, now: int) -> Store:
    """The same state at START, without what no step depends on: so the walk comes to an end."""

    def moved(time: float | str, least: int = 0) -> int:
        return max(int(float(time)) - now, least) + START

    keys = bed.keys
    kept: Store = {CLOCK_KEY: ["string", [START]]}
    for key, (kind, content) in store.items():
        if key.startswith(keys.job("")):
            record = in_pairs(content)
            record.pop("claim", None)
            for name in ("accepted_ms", "queued_ms", "settled_ms", "requeues"):
                record |= {name: "0"} if name in record else {}
            record |= {"spot": _anytime(record["spot"])} if "spot" in record else {}
            kept[key] = [kind, [part for pair in sorted(record.items()) for part in pair]]
        elif key == keys.parked:
            kept[key] = [kind, [part for spot in in_pairs(content) for part in (_anytime(spot), 0)]]
        elif kind == "zset":
            least = -2 if key == keys.pending(LANE) else 0
            times = {name: moved(score, least) for name, score in sorted(in_pairs(content).items())}
            if key == keys.failed:
                times = dict.fromkeys(times, START + 60_000)
            kept[key] = [kind, [part for pair in times.items() for part in pair]]
        elif key == keys.queue(LANE):
            places = [(place and moved(place, -2), name) for place, name in map(_message, content)]
            kept[key] = [kind, [f'"place":{place},"id":"{name}"' if place else PLAIN for place, name in places]]
    return dict(sorted(kept.items()))


def walk(bed: Bed, most: int, lane: Sequence[str] = ()) -> tuple[int, int]:
    """Breadth first until `most` states are known, or all. Returns their number, and that of steps tried.

    lane: the messages with which it begins.
    """
    ledger = bed.ledger
    load, dump = bed.client.script_load(LOAD), bed.client.script_load(DUMP)
    look = ledger.without_message(LANE, START + 1, 9)
    calls = [bed.operation(Step(name, 1)) for name in (*ANYBODY, *WORKER)]
    for call in (*calls, look, ledger.republish("a", 0, 0), ledger.replay("a"), ledger.purge(["a"])):
        bed.client.script_load(call.script.source)
    send = cache(partial(command, ledger, bed))
    start = json.dumps(normal(bed, {bed.keys.queue(LANE): ["list", [*lane]]} if lane else {}, START))
    known, frontier, tried = {start}, [start], 0
    while frontier and len(known) < most:
        work = [
            (text, world, move) for text in frontier for world in [view(bed, json.loads(text))] for move in moves(world)
        ]
        frontier = []
        for first in range(0, len(work), 300):
            chunk = work[first : first + 300]
            with bed.client.pipeline(transaction=False) as pipe:
                for text, _, move in chunk:
                    pipe.evalsha(load, 0, text)
                    pipe.execute_command(*send(move))
                    pipe.evalsha(dump, 0)
                    pipe.execute_command(*look.command)
                replies = pipe.execute()
            for i, (_, before, move) in enumerate(chunk):
                raw, dumped, found = replies[4 * i + 1 : 4 * i + 4]
                store = json.loads(dumped)
                after = view(bed, store)
                reply = simple(bed.operation(Step(move.name, 1)).decode(raw)) if move.name in ANYBODY + WORKER else raw
                check(move, before, reply, after, look.decode(found)[1])
                records = [in_pairs(content) for key, (_, content) in store.items() if key.startswith(bed.keys.job(""))]
                again = max((int(record.get("republished", 0)) for record in records), default=0)
                text = json.dumps(normal(bed, store, START + (move.name == "tick")))
                if text not in known and len(after.lane) <= MESSAGES and again <= REPUBLICATIONS:
                    known.add(text)
                    frontier.append(text)
        tried += len(work)
    return len(known), tried


def _anytime(spot: str) -> str:
    """A place in a line, whenever its job was accepted."""
    return re.sub(r" \d+ ", " 0 ", spot)


def _message(text: str) -> tuple[int | None, str]:
    found = re.search(r'(?:"place":(\d+).*?)?"id":"([^"]+)"', text)
    assert found, text
    return int(found[1]) if found[1] else None, found[2]


@pytest.mark.parametrize("lane", [[], [PLAIN]], ids=["empty", "with a plain message"])
def test_two_jobs_two_workers_and_their_messages(bed: Bed, lane: list[str]) -> None:
    states, tried = walk(bed, 700, lane)
    print(f"{states} states, {tried} steps")
    assert states >= 700
