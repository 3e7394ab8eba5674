"""What becomes of a job whose calls fail, over a real Redis and providers that answer by a script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.integration.test_cancellation import (
    CHEAP,
    DEAR,
    JOB,
    LEASE_S,
    Bench,
    HastyLoop,
    Line,
    Scenario,
    Simulated,
    answer,
    failing,
    lose,
)

from turnout.ledger import run
from turnout.request import Lane
from turnout.result import JobResult
from turnout_workers.attempts.search import MIXED_S, RECHECK_S
from turnout_workers.providers.base import CallOutcome, CloudProviderBase
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, FailureKind
from turnout_workers.routing.fleet import Endpoint

ERROR = failing(FailureKind.SERVER_ERROR)


Work = Callable[[Bench], Awaitable[None]]


async def finish(bench: Bench) -> None:
    await bench.finish()


Done = Callable[..., JobResult]


@pytest.fixture
def done(redis_url: str, flushed: redis.Redis, tmp_path: Path) -> Done:
    """The job's result, after `work`."""

    async def do(scenario: Scenario, work: Work) -> JobResult:
        line = Line(redis_url)
        async with line.client:
            bench = Bench(flushed, line, tmp_path, scenario)
            await bench.begin()
            async with asyncio.timeout(LEASE_S):
                await work(bench)
            (result,) = run(flushed, [bench.ledger.result(JOB)])
            assert result is not None
            return result

    def at_last(scenario: Scenario, work: Work = finish) -> JobResult:
        with asyncio.Runner(loop_factory=HastyLoop) as runner:
            return runner.run(do(scenario, work))

    return at_last


def test_a_repeated_call_that_goes_elsewhere_is_a_failover_and_is_repeated_there_too(done: Done) -> None:
    """A call is repeated where the job is served best by then, and that may be another endpoint."""

    async def work(bench: Bench) -> None:
        bench.providers[1].script = [ERROR, answer()]
        await bench.finish()

    result = done(Scenario(cheap=[ERROR]), work)
    assert [attempt.endpoint for attempt in result.attempts] == ["cheap/m", "dear/m", "dear/m"]
    assert (result.failovers, result.deferrals) == (1, 0)


def test_a_repeated_call_where_nothing_else_will_do_is_no_failover(done: Done) -> None:
    result = done(Scenario(wish={"only": ["cheap"]}, cheap=[ERROR, answer()]))
    assert [attempt.endpoint for attempt in result.attempts] == ["cheap/m", "cheap/m"]
    assert (result.failovers, result.deferrals) == (0, 0)


def test_a_job_whose_deadline_passes_before_its_call_is_to_be_repeated_ends_then(
    redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    asked_s = 2.0

    async def work() -> float:
        line, clock = Line(redis_url), asyncio.get_running_loop().time
        async with line.client:
            busy = failing(FailureKind.SERVER_ERROR, retry_after_s=asked_s)
            bench = Bench(flushed, line, tmp_path, Scenario(wish={"only": ["cheap"], "deadline_s": 0.2}, cheap=[busy]))
            bench.poller.monotonic = clock
            await bench.begin()
            began = clock()
            await bench.attempt(bench.worker, lambda attempt: attempt)
            assert (bench.state(), bench.providers[0].calls) == ("expired", 1)
            return clock() - began

    assert asyncio.run(work()) < asked_s


def test_a_job_that_is_run_again_has_its_whole_ceiling(done: Done, flushed: redis.Redis) -> None:
    async def work(bench: Bench) -> None:
        await bench.attempt(bench.worker, lambda attempt: attempt)
        unsure = flushed.hget(bench.ledger.keys.money, f"job:{JOB}|unsure")
        run(flushed, [bench.ledger.cancel(JOB, None)])
        await bench.attempt(bench.worker, lambda attempt: attempt)  # the message that tells a worker of it
        assert (unsure, bench.ends[-1] and bench.ends[-1].how) == (b"159", "skipped")
        assert not [name for name in flushed.hkeys(bench.ledger.keys.money) if name.startswith(b"job:")]
        run(flushed, [bench.ledger.replay(JOB)])
        await bench.finish()

    hangs = failing(FailureKind.TIMED_OUT, Billed.MAYBE)
    scenario = Scenario(wish={"only": ["cheap"], "max_cost_usd": 200e-6}, cheap=[hangs, answer()])
    result = done(scenario, work)
    assert (result.status, result.cost_microusd, result.unsure_microusd) == ("succeeded", 10, 0)


class Reloading(dict[str, CloudProviderBase]):
    """Connectors, one of which is reloaded just when it is asked for."""

    asked = False

    def get(self, key: str, default: Any = None) -> Any:
        there, self.asked = self.asked, True
        return super().get(key, default) if there else None


def test_a_job_outlives_a_reload_between_its_admission_and_its_call(done: Done) -> None:
    async def work(bench: Bench) -> None:
        bench.current.connectors = Reloading(bench.current.connectors)
        await bench.finish()

    result = done(Scenario(wish={"only": ["cheap"]}), work)
    assert [attempt.failure for attempt in result.attempts] == ["local", None]


def test_an_answer_that_is_paid_for_is_kept_though_its_last_pieces_cannot_be_streamed(done: Done) -> None:
    """Redis hangs just then, for longer than the lease lasts."""

    async def work(bench: Bench) -> None:
        hangs = asyncio.Event()

        class Answering(Simulated):
            async def call(self, *args: Any, **kwargs: Any) -> CallOutcome:
                outcome = await super().call(*args, **kwargs)
                bench.line.stuck = hangs
                await args[3]("!")
                return outcome

        provider = Answering(())
        bench.current.connectors = {**bench.current.connectors, CHEAP.id: provider}
        attempt = asyncio.create_task(bench.attempt(bench.worker, lambda attempt: attempt))
        while bench.line.stuck is None:
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        lose(bench)
        while not list(bench.spool):
            await asyncio.sleep(1)
        hangs.set()
        await attempt
        await bench.deliver()
        await bench.finish()
        assert provider.calls == 1

    scenario = Scenario(wish={"only": ["cheap"]}, stream=True)
    result = done(scenario, work)
    assert (result.status, result.cost_microusd, result.unsure_microusd) == ("succeeded", 10, 0)


def test_a_job_that_has_spent_its_ceiling_says_so(done: Done) -> None:
    hangs = failing(FailureKind.TIMED_OUT, Billed.MAYBE)
    result = done(Scenario(wish={"max_cost_usd": 200e-6}, cheap=[hangs]))
    assert result.error is not None
    assert (result.status, result.error.code, len(result.attempts)) == ("failed", "cost_ceiling", 1)
    assert "$0.000041 of its ceiling left" in result.error.message


@pytest.mark.parametrize("late_s", [0.0, MIXED_S])
def test_nothing_is_refused_for_good_for_a_while_if_other_workers_follow_another_configuration(
    late_s: float, done: Done, flushed: redis.Redis
) -> None:
    async def work(bench: Bench) -> None:
        run(flushed, [bench.ledger.alive("another", "2", 1, 10_000, 60)])
        for _ in range(3):
            await bench.attempt(bench.worker, lambda attempt: attempt)
            if late_s:
                break
            assert bench.state() == "delayed"
            (story,) = run(flushed, [bench.ledger.story(JOB)])
            assert story[-1]["decision"]["action"] == "refuse"
            await bench.wake()
        else:
            run(flushed, [bench.ledger.alive("another", "1", 1, 10_000, 60)])
            await bench.finish()

    result = done(Scenario(wish={"only": ["nobody"]}, late_s=late_s), work)
    assert result.error is not None
    assert (result.status, result.error.code, result.deferrals) == ("failed", "refused", 0 if late_s else 3)


@pytest.mark.parametrize(
    ("field", "late_s", "put_off"),
    [('"top_k":3', 0.0, True), ('"top_k":3', MIXED_S, False), ('"top_k":3,"timeout_s":"long"', 0.0, False)],
)
def test_a_job_with_fields_of_a_later_release_is_left_to_its_workers_for_a_while(
    field: str, late_s: float, put_off: bool, done: Done, flushed: redis.Redis
) -> None:
    async def work(bench: Bench) -> None:
        sent = flushed.hget(bench.ledger.keys.job(JOB), "payload")
        flushed.hset(bench.ledger.keys.job(JOB), "payload", sent.replace(b"{", f"{{{field},".encode(), 1))
        await bench.attempt(bench.worker, lambda attempt: attempt)
        if put_off:
            assert bench.state() == "delayed"
            await bench.wake()
            await bench.attempt(bench.worker, lambda attempt: attempt)
            (story,) = run(flushed, [bench.ledger.story(JOB)])
            waits_s = [event["for_s"] for event in story if event["event"] == "deferred"]
            assert waits_s == [RECHECK_S, 61.0], "each as long as it has waited by then"
            flushed.hset(bench.ledger.keys.job(JOB), "payload", sent)  # as a worker that knows the field reads it
        await bench.finish()

    result = done(Scenario(late_s=late_s), work)
    assert (result.status, result.deferrals) == ("succeeded" if put_off else "failed", 0)
    if result.error is not None:
        assert (result.error.code, result.error.retryable) == ("unreadable", False)
        assert "top_k: unknown field" in result.error.message


@pytest.mark.parametrize("lane", [Lane.STANDARD, Lane.INTERACTIVE])
def test_if_two_were_asked_together_and_neither_can_do_it_the_reason_is_reported(lane: Lane, done: Done) -> None:
    class Declining(Simulated):
        async def call(self, endpoint: Endpoint, *_: Any) -> CallOutcome:
            self.calls += 1
            await asyncio.sleep(2.0 if endpoint is CHEAP else 0.5)
            raise ProviderError(failing(FailureKind.CONTEXT_LENGTH))

    async def work(bench: Bench) -> None:
        bench.current.connectors = {CHEAP.id: Declining(()), DEAR.id: Declining(())}
        await bench.finish()

    result = done(Scenario(wish={"lane": lane}), work)
    assert result.error is not None
    assert (result.status, result.error.code) == ("failed", "context_length")
    assert {attempt.endpoint for attempt in result.attempts} == {"cheap/m", "dear/m"}
