"""Several jobs at once, with time running, against the same specification: what one job does leaves the others be."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from tests.properties.ledger.bed import KEPT_S, Bed, Mutant, seen, simple
from tests.properties.ledger.spec import BY_TOKEN, RULES, TTL, Job, Step, alive, apply

IDS = ("a", "b", "ab")
LIMIT = 100


class Jobs(RuleBasedStateMachine):
    bed: Bed

    def __init__(self) -> None:
        super().__init__()
        self.bed.restart()
        self.jobs = dict.fromkeys(IDS, Job())
        self.suspected: dict[str, int] = {}
        self.settled: dict[str, Job] = {}
        self.messages = 0

    @rule(job_id=st.sampled_from(IDS), name=st.sampled_from([name for name in RULES if name not in BY_TOKEN]))
    def anybody(self, job_id: str, name: str) -> None:
        if name != "enqueue_other" or self.jobs[job_id].state != "none":
            self._do(job_id, Step(name))

    @rule(job_id=st.sampled_from(IDS), name=st.sampled_from(BY_TOKEN), behind=st.sampled_from((0, 0, 0, 1, 2, -1)))
    def worker(self, job_id: str, name: str, behind: int) -> None:
        self._do(job_id, Step(name, max(0, self.jobs[job_id].token - behind)))

    @rule(ms=st.integers(1, 3))
    def time_passes(self, ms: int) -> None:
        self.bed.advance(ms)

    @rule()
    def the_worker_shows_life(self) -> None:
        self.bed(self.bed.ledger.alive("w", "v", 1, KEPT_S, KEPT_S))
        shown = {job_id for job_id, job in self.jobs.items() if job.suspect and self.suspected[job_id] < self.bed.now}
        self.jobs |= {job_id: alive(self.jobs[job_id]) for job_id in shown}

    @rule()
    def all_are_renewed_in_one_call(self) -> None:
        held = [(job_id, self.jobs[job_id].token) for job_id in IDS]
        after = [apply(self.jobs[job_id], Step("renew", token), self.bed.now) for job_id, token in held]
        assert self.bed(self.bed.ledger.renew(held, TTL / 1000)) == [one.reply for one in after]
        self.jobs = {job_id: one.job for job_id, one in zip(IDS, after, strict=True)}

    def _do(self, job_id: str, step: Step) -> None:
        expected = apply(self.jobs[job_id], step, self.bed.now)
        assert simple(self.bed(self.bed.call(step, job_id))) == expected.reply
        if (step.name, expected.reply) == ("sweep", "queued"):
            self.suspected[job_id] = self.bed.now
        self.jobs[job_id] = expected.job
        self.messages += expected.pushed

    @invariant()
    def redis_has_what_is_specified(self) -> None:
        records, indices, messages = self.bed.everything(IDS)
        assert {job_id: seen(job_id, self.bed.keys, records[job_id], indices) for job_id in IDS} == self.jobs
        assert messages == self.messages

    @invariant()
    def listings_name_those_whose_time_has_come(self) -> None:
        ledger, now = self.bed.ledger, self.bed.now

        def named(field: str) -> set[str]:
            times: dict[str, Any] = {job_id: getattr(job, field) for job_id, job in self.jobs.items()}
            return {job_id for job_id, time in times.items() if time is not None and time <= now}

        assert set(self.bed(ledger.due(LIMIT))) == named("due")
        assert set(self.bed(ledger.lapsed(LIMIT))) == named("lease")
        assert set(self.bed(ledger.overdue(LIMIT))) == named("deadline")

    @invariant()
    def accepted_is_live_plus_settled(self) -> None:
        counts = {name.decode(): int(count) for name, count in self.bed.client.hgetall(self.bed.keys.counts).items()}
        states = [job.state for job in self.jobs.values() if job.state != "none"]
        assert counts.pop("accepted", 0) == len(states)
        assert counts == {state: states.count(state) for state in states if _is_end(state)}

    @invariant()
    def a_settled_job_never_changes(self) -> None:
        for job_id, job in self.jobs.items():
            if job.winner is not None:
                assert self.settled.setdefault(job_id, job) == job


def _is_end(state: str) -> bool:
    return state in ("succeeded", "failed", "expired", "cancelled")


def search(url: str, examples: int = 60, mutant: Mutant | None = None) -> None:
    """Look for a run of steps that ends otherwise than specified."""
    Jobs.bed = Bed(url, mutant)
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    budget = settings(
        max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=quiet, derandomize=True
    )
    try:
        run_state_machine_as_test(Jobs, settings=budget)
    finally:
        Jobs.bed.close()


def test_any_run_of_steps_on_several_jobs_is_as_specified(redis_url: str) -> None:
    search(redis_url)
