"""Any interleaving of calls, failures and time over the memory store keeps the promises of routing."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.integration.state.specification import SpecifiedStore
from tests.unit.routing.fleets import NOW, endpoint

from turnout.request import Lane, RoutingConstraints
from turnout_workers.routing.decision import Action, rank
from turnout_workers.routing.failover import judge
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Circuit, Fleet, Limits, Snapshot
from turnout_workers.routing.health import MAX_EJECTION_S, Eject, Recover, after_report, after_watch, circuit
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.store import Ask, Bid, Ceiling, Granted, Report

LIMITS = Limits(requests_per_minute=6, concurrency=3)
ACCOUNT, CEILING = "tenant:test", 2000
TTL_S = 30.0
OVERDUE_S = 2.0


def run(step: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(step)


class FleetMachine(RuleBasedStateMachine):
    """Workers that rank, admit, call and report in any order, some with old snapshots, some dying."""

    @initialize(count=st.integers(1, 3))
    def start(self, count: int) -> None:
        self.now = NOW
        self.rng = random.Random(0)
        self.fleet = Fleet(endpoint(f"p{i}", limits=LIMITS) for i in range(count))
        self.store = SpecifiedStore(lambda: self.now)
        self.old = self.snapshot()
        self.leases: dict[str, tuple[Granted, float]] = {}
        self.admitted: list[tuple[str, float]] = []
        self.number = 0

    def snapshot(self) -> Snapshot:
        at, states = run(self.store.state())
        return self.fleet.snapshot(at, states)

    @rule()
    def poll(self) -> None:
        self.old = self.snapshot()

    @rule(interactive=st.booleans())
    def call(self, interactive: bool) -> None:
        constraints = RoutingConstraints(lane=Lane.INTERACTIVE if interactive else Lane.STANDARD)
        job = JobProfile(output_tokens=10, expected_output_tokens=5, constraints=constraints)
        decision = rank(job, self.old, self.now, self.rng)
        assert decision.action is not Action.REFUSE
        if decision.action is not Action.GO:
            return
        before = self.snapshot()
        self.number += 1
        bids = tuple(
            Bid(c.endpoint.id, LIMITS, c.input_tokens, c.output_tokens, c.upper_cost_microusd or 0)
            for c in decision.candidates
        )
        ceilings = (Ceiling(ACCOUNT, CEILING),)
        admission = run(self.store.admit(Ask(str(self.number), bids, TTL_S, ceilings)))
        if isinstance(admission, Granted):
            state = circuit(before.by_id[admission.endpoint_id].health, self.now)
            assert state in (Circuit.CLOSED, Circuit.RAMPING, Circuit.HALF_OPEN)
            assert admission.probe == (state is Circuit.HALF_OPEN)
            self.leases[admission.lease_id] = (admission, self.now)
            self.admitted.append((admission.endpoint_id, self.now))

    @rule(kind=st.none() | st.sampled_from(list(FailureKind)), which=st.integers(0, 99))
    def finish(self, kind: FailureKind | None, which: int) -> None:
        if not self.leases:
            return
        lease_id = sorted(self.leases)[which % len(self.leases)]
        granted, began = self.leases.pop(lease_id)
        failure = None if kind is None else Failure(kind, "", Billed.MAYBE)
        verdict = judge(failure, self.rng)
        counters = run(
            self.store.report(
                Report(
                    lease_id, granted.endpoint_id, failure is None, verdict.counts_for_health,
                    input_tokens=1, output_tokens=5, cost_microusd=11 if kind is None else 0,
                    unsure_microusd=0 if kind is None else 21, latency_s=self.now - began,
                )
            )
        )  # fmt: skip
        # As a worker does: on the health of its last poll, which may be old.
        health = self.old.by_id[granted.endpoint_id].health
        action = after_report(health, counters, failure, self.rng, counts_for_health=verdict.counts_for_health)
        if isinstance(action, Eject):
            assert action.open_s <= MAX_EJECTION_S * 1.15
            run(self.store.eject(granted.endpoint_id, action.open_s, action.reason))
        elif isinstance(action, Recover):
            run(self.store.recover(granted.endpoint_id))
        if verdict.cooldown_s:
            run(self.store.mark("cooldown", [granted.endpoint_id], str(kind), min(verdict.cooldown_s, 60.0)))

    @rule()
    def watch(self) -> None:
        calls = Counter(granted.endpoint_id for granted, began in self.leases.values() if self.now >= began + OVERDUE_S)
        run(self.store.publish("worker", calls))
        for view in self.snapshot().views:
            overdue = calls[view.endpoint.id]
            if ejection := after_watch(view, overdue, self.now, self.rng):
                assert overdue > 0
                run(self.store.eject(view.endpoint.id, ejection.open_s, ejection.reason))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 3.0, 20.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        run(self.store.expire())

    @invariant()
    def no_lease_leaks(self) -> None:
        live = [granted.endpoint_id for granted, began in self.leases.values() if self.now < began + TTL_S]
        for view in self.snapshot().views:
            assert view.load.in_flight == live.count(view.endpoint.id)

    @invariant()
    def no_limit_is_passed(self) -> None:
        for id in self.fleet.ids:
            recent = [at for endpoint_id, at in self.admitted if endpoint_id == id and at > self.now - 60]
            assert len(recent) <= (LIMITS.requests_per_minute or 0)
        account = run(self.store.accounts([ACCOUNT]))[ACCOUNT]
        assert account.spent + account.reserved + account.unsure <= CEILING

    @invariant()
    def at_most_one_probe_is_in_flight(self) -> None:
        for view in self.snapshot().views:
            if circuit(view.health, self.now) is Circuit.HALF_OPEN:
                probes = [
                    granted
                    for granted, began in self.leases.values()
                    if granted.probe
                    and granted.endpoint_id == view.endpoint.id
                    and began >= view.health.open_until
                    and self.now < began + TTL_S
                ]
                assert len(probes) <= 1

    @invariant()
    def every_ejection_and_cooldown_ends(self) -> None:
        for view in self.snapshot().views:
            assert view.health.open_until <= self.now + MAX_EJECTION_S * 1.15
            assert view.health.cooldown_until <= self.now + 66

    def teardown(self) -> None:
        """Whatever happened, with time and good answers every endpoint that isn't disabled works again."""
        if not hasattr(self, "store"):
            return
        self.now += TTL_S + 70
        run(self.store.expire())
        assert all(view.load.in_flight == 0 for view in self.snapshot().views)


TestFleet = FleetMachine.TestCase
TestFleet.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
