"""Every state that a job can get into, and every step out of each, in the real Lua, held to the specification.

Time is part of the state, relative to now, so that the walk is finite and sees each moment before, at and after
the end of a lease, a wait and a deadline. Any token that was ever given out may act in any state: that is what
workers do which were paused, cut off, or thought dead.
"""

from __future__ import annotations

import json

from tests.properties.ledger.bed import (
    CLOCK_KEY,
    DUMP,
    KEPT_S,
    LANE,
    LOAD,
    START,
    Bed,
    Store,
    in_pairs,
    indices,
    seen,
    simple,
    winner_of,
)
from tests.properties.ledger.spec import BY_TOKEN, RULES, Job, Step, apply

from turnout.ledger.operations import RESULTS_KEPT_S
from turnout.result import JobResult

ANYBODY = [Step(name) for name in RULES if name not in BY_TOKEN]
TIMERS = {"{t}:leases", "{t}:delayed", "{t}:deadlines"}


def view(bed: Bed, store: Store) -> Job:
    return seen("a", bed.keys, in_pairs(store.get(bed.keys.job("a"), ("", []))[1]), indices(store))


def normal(store: Store, later_ms: int = 0) -> str:
    """All that Redis holds of the job, but for its story and messages, so many milliseconds on: what is to come is
    nearer. How long past it is makes no difference, nor which number a claim has."""

    def nearer(time: str) -> str:
        return str(max(START - 1, int(time) - later_ms))

    kept: Store = {}
    for key, (kind, content) in store.items():
        pairs = in_pairs(content) if kind != "list" else {}
        pairs.pop("claim", None)
        if key in TIMERS:
            pairs = {name: nearer(time) for name, time in pairs.items()}
        elif pairs.get("deadline_ms", "0") != "0":
            pairs["deadline_ms"] = nearer(pairs["deadline_ms"])
        if pairs:
            kept[key] = [kind, [part for pair in sorted(pairs.items()) for part in pair]]
    return json.dumps(kept, sort_keys=True)


def steps(job: Job) -> list[Step]:
    """Each step of anybody's, and each worker's with every token until now, and two that never were."""
    if job.state == "none":
        return [step for step in ANYBODY if step.name != "enqueue_other"] + [Step(name, 1) for name in BY_TOKEN]
    by_token = [name for name in BY_TOKEN if name != "begin" or job.state != "calling"]  # one call is like many
    return ANYBODY + [Step(name, token) for name in by_token for token in range(job.token + 2)]


def walk(bed: Bed, claims: int) -> tuple[int, int]:
    """All states with up to so many claims. Returns their number and that of steps tried."""
    load, dump = bed.client.script_load(LOAD), bed.client.script_load(DUMP)
    probe = [bed.operation(step) for step in (*ANYBODY, *(Step(name, 1) for name in BY_TOKEN))]
    for call in probe:
        bed.client.script_load(call.script.source)
    start = normal({})
    known, frontier, tried = {start}, [start], 0
    while frontier:
        found: list[str] = []
        work = [(text, job, step) for text in frontier for job in [view(bed, json.loads(text))] for step in steps(job)]
        for first in range(0, len(work), 400):
            chunk = work[first : first + 400]
            with bed.client.pipeline(transaction=False) as pipe:
                for text, _, step in chunk:
                    pipe.evalsha(load, 0, text)
                    pipe.set(CLOCK_KEY, START)
                    pipe.execute_command(*bed.operation(step).command)
                    pipe.evalsha(dump, 0)
                    pipe.pttl(bed.keys.job("a"))
                    pipe.get(bed.keys.result("a"))
                replies = pipe.execute()
            for i, (_, job, step) in enumerate(chunk):
                reply, dumped, ttl_ms, told = replies[6 * i + 2 : 6 * i + 6]
                expected = apply(job, step, START)
                after = json.loads(dumped)
                actual = view(bed, after)
                assert simple(bed.operation(step).decode(reply)) == expected.reply, (job, step, reply)
                assert actual == expected.job, (step, job)
                assert len(after.get(bed.keys.queue(LANE), ("", []))[1]) == expected.pushed, (step, job)
                newly_settled = actual.winner is not None and job.winner is None
                assert bool(told) == newly_settled, (step, job)
                if newly_settled and actual.state == "succeeded":
                    assert actual.winner == winner_of(JobResult.model_validate(json.loads(told)["result"])), (step, job)
                kept_s = KEPT_S if step.name in BY_TOKEN else RESULTS_KEPT_S
                assert not newly_settled or 0 < ttl_ms <= kept_s * 1000, (step, job, ttl_ms)
                tried += 1
                if actual.token <= claims and (text := normal(after)) not in known:
                    known.add(text)
                    found.append(text)
        for text in frontier:
            if (later := normal(json.loads(text), later_ms=1)) not in known:
                known.add(later)
                found.append(later)
        frontier = found
    return len(known), tried


def test_every_step_from_every_state_is_as_specified(bed: Bed) -> None:
    states, tried = walk(bed, claims=2)
    print(f"{states} states, {tried} steps")
    assert states > 300
    assert tried > 10_000
