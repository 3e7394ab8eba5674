"""Redis does what memory does, whatever the sequence of operations.

Times are drawn small, and around the lengths of windows: a boundary that is hit often is one that gets tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import astuple, replace
from typing import Any

import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.integration.state.stores import MemoryFleet, RedisFleet

from turnout_workers.routing.fleet import Limits, Observed
from turnout_workers.state.store import (
    Ask,
    Bid,
    Ceiling,
    Fence,
    Granted,
    Mark,
    ObservedLimit,
    Report,
    WorkersStore,
)
from turnout_workers.state.windows import KINDS

ENDPOINTS = st.sampled_from(["a/x", "a/z", "b/y#2"])
LEASES = st.sampled_from(["job:1", "job:2", "job:3", "job:4"])
ACCOUNTS = ["tenant:t", "job:1", "batch:b"]
WORKERS = ["v", "w"]
SMALL = st.integers(0, 4)
SECONDS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])
FAR = st.sampled_from([900.0, 90_000.0])
FORTH = [0.0, 0.001, 0.5, 1.0, 1.0, 2.0, 3.0, 8.0, 20.0, 59.5, 60.0, 61.0, 900.0, 86_400.0]
BACK = [-0.001, -1.0, -61.0, -90_000.0]
"""Redis may move to another machine."""
MAYBE = st.none() | st.integers(0, 6) | st.sampled_from([40, 1000])
LIMITS = st.builds(Limits, *([MAYBE] * 7))
CEILINGS = st.lists(st.sampled_from(ACCOUNTS), unique=True, max_size=2).flatmap(
    lambda names: st.tuples(*(st.builds(Ceiling, st.just(name), st.none() | st.integers(0, 9)) for name in names))
)
BIDS = st.lists(
    st.builds(Bid, ENDPOINTS, LIMITS, SMALL, SMALL, SMALL, shared_limits=st.just(Limits()) | LIMITS),
    min_size=1,
    max_size=2,
    unique_by=lambda bid: bid.endpoint_id,
).map(tuple)
HEADERS = st.builds(ObservedLimit, st.sampled_from([*KINDS, "concurrency"]), MAYBE, MAYBE, st.none() | SECONDS | FAR)
LATENCY = st.none() | st.sampled_from([0.0, 0.1, 0.5, 1.0, 8.0])
REPORTS = st.builds(
    Report,
    lease_id=LEASES,
    endpoint_id=ENDPOINTS,
    ok=st.booleans(),
    counts=st.booleans(),
    input_tokens=SMALL,
    output_tokens=SMALL,
    cached_share=st.none() | st.sampled_from([0.0, 0.5, 1.0]),
    cost_microusd=SMALL,
    unsure_microusd=SMALL,
    latency_s=LATENCY,
    ttft_s=LATENCY,
    predicted_s=LATENCY,
    limits=st.lists(HEADERS, max_size=2).map(tuple),
)
UNKNOWN = Observed()


def rounded(value: Any) -> Any:
    """For comparison: a sum in Lua and one in Python may differ in the last bit."""
    if isinstance(value, float):
        return round(value, 6)
    return tuple(map(rounded, value)) if isinstance(value, tuple) else value


class TwoStores(RuleBasedStateMachine):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.loop = asyncio.new_event_loop()
        self.held: dict[str, str] = {}
        self.forgetful = False

    @initialize()
    def open(self) -> None:
        self.fleets: tuple[MemoryFleet, RedisFleet] = (MemoryFleet(), RedisFleet(self.url))
        for fleet in self.fleets:
            fleet.put_job("1", 1, "leased")
        self.both(
            lambda store: store.mark("restored", ["a/x", "a/z", "b/y#2"])
        )  # Redis tells only of those it has seen

    def teardown(self) -> None:
        self.loop.run_until_complete(self.fleets[1].close())
        self.loop.close()

    def both(self, operation: Callable[[WorkersStore], Coroutine[Any, Any, Any]]) -> Any:
        memory, shared = (self.loop.run_until_complete(operation(fleet.store)) for fleet in self.fleets)
        plain = [rounded(astuple(value)) if hasattr(value, "__slots__") else value for value in (memory, shared)]
        assert plain[0] == plain[1]
        return memory

    @rule(seconds=st.sampled_from(FORTH * 2 + BACK))
    def advance(self, seconds: float) -> None:
        for fleet in self.fleets:
            fleet.advance(seconds)
        if seconds < 0:  # what has expired in Redis does not come back with the clock, as it would in memory
            for worker in WORKERS:
                self.both(lambda store, worker=worker: store.publish(worker, {}))

    @rule(
        lease=LEASES,
        bids=BIDS,
        ttl_s=SECONDS,
        ceilings=CEILINGS,
        token=st.none() | st.integers(1, 2),
        headroom=st.sampled_from([1.0, 0.5, 0.01]),
        position=st.none() | st.sampled_from([1.5, 2.0, 3.0]),
        keeps_room=st.booleans(),
    )
    def admit(
        self,
        lease: str,
        bids: tuple[Bid, ...],
        ttl_s: float,
        ceilings: tuple[Ceiling, ...],
        token: int | None,
        headroom: float,
        position: float | None,
        keeps_room: bool,
    ) -> None:
        fence = Fence("1", token) if token else None
        ask = Ask(lease, bids, ttl_s, ceilings, fence, headroom, position, keeps_room)
        self._admit(ask)

    def _admit(self, ask: Ask) -> None:
        admission = self.both(lambda store: store.admit(ask))
        if isinstance(admission, Granted):
            self.held[ask.lease_id] = admission.endpoint_id

    @rule(endpoint=ENDPOINTS, lease=LEASES)
    def admit_freely(self, endpoint: str, lease: str) -> None:
        ask = Ask(lease, (Bid(endpoint, Limits(), 1, 1, 1),), 3.0, (Ceiling(ACCOUNTS[0], None),))
        self._admit(ask)

    @rule(report=REPORTS, astray=st.sampled_from([False, False, False, True]))
    def report(self, report: Report, astray: bool) -> None:
        if not astray:
            report = replace(report, endpoint_id=self.held.get(report.lease_id, report.endpoint_id))
        self.both(lambda store: store.report(report))

    @rule(leases=st.lists(LEASES, unique=True), ttl_s=SECONDS)
    def renew(self, leases: list[str], ttl_s: float) -> None:
        self.both(lambda store: store.renew(leases, ttl_s))

    @rule(limit=st.integers(1, 3))
    def expire(self, limit: int) -> None:
        self.both(lambda store: store.expire(limit))

    @rule(endpoint=ENDPOINTS, open_s=SECONDS)
    def eject(self, endpoint: str, open_s: float) -> None:
        self.both(lambda store: store.eject(endpoint, open_s, "why"))

    @rule(endpoint=ENDPOINTS)
    def recover(self, endpoint: str) -> None:
        self.both(lambda store: store.recover(endpoint))

    @rule(endpoint=ENDPOINTS, for_s=SECONDS, ago_s=st.none() | SECONDS)
    def block(self, endpoint: str, for_s: float, ago_s: float | None) -> None:
        begun_at = None if ago_s is None else self.fleets[0].now - ago_s
        self.both(lambda store: store.mark("cooldown", [endpoint], "429", for_s, begun_at))

    @rule(endpoint=ENDPOINTS, what=st.sampled_from(["disabled", "isolated", "restored", "restored"]))
    def mark(self, endpoint: str, what: Mark) -> None:
        self.both(lambda store: store.mark(what, [endpoint], "because"))

    @rule(endpoint=ENDPOINTS, worker=st.sampled_from(WORKERS), overdue=SMALL)
    def publish(self, endpoint: str, worker: str, overdue: int) -> None:
        self.both(lambda store: store.publish(worker, {endpoint: overdue}))

    @rule(account=st.sampled_from(ACCOUNTS), limit=SMALL)
    def ceiling(self, account: str, limit: int) -> None:
        for fleet in self.fleets:
            fleet.put_ceiling(account, limit)

    @rule(account=st.sampled_from(ACCOUNTS), cost=SMALL)
    def money(self, account: str, cost: int) -> None:
        self.both(lambda store: store.mark_duplicate([account], cost))

    @rule(account=st.sampled_from(ACCOUNTS))
    def forget(self, account: str) -> None:
        self.forgetful = True
        self.both(lambda store: store.forget([account]))

    @invariant()
    def same_state(self) -> None:
        if not hasattr(self, "fleets"):
            return
        seen = []
        for fleet in self.fleets:
            at, states = self.loop.run_until_complete(fleet.store.state())
            known = {e: rounded(s) for e, s in states.items() if s != UNKNOWN}
            overdue = self.loop.run_until_complete(fleet.store.overdue())
            seen.append((at, known, overdue, fleet.job("1"), self.loop.run_until_complete(fleet.accounts(*ACCOUNTS))))
        assert seen[0] == seen[1]
        for account in seen[0][-1].values():
            assert min(account.spent, account.unsure, account.duplicate) >= 0
            assert account.reserved >= 0 or self.forgetful, "of a name that is used again"


def test_redis_does_what_memory_does(redis_url: str) -> None:
    def machine() -> TwoStores:
        with redis.Redis.from_url(redis_url) as client:
            client.flushall()
        return TwoStores(redis_url)

    quick = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=quick)
