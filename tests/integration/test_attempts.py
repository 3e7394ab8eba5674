"""What becomes of a job whose calls fail, over a real Redis and providers that answer by a script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import redis
from tests.integration.test_cancellation import JOB, Bench, HastyLoop, Line, Scenario, answer, failing

from turnout.ledger import run
from turnout.request import Lane
from turnout.result import JobResult
from turnout_workers.attempts.held import Skipped
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.routing.failure import Billed, FailureKind

ERROR = failing(FailureKind.SERVER_ERROR)


Work = Callable[[Bench], Awaitable[None]]


async def finish(bench: Bench) -> None:
    await bench.finish()


def done(url: str, client: redis.Redis, spool: Path, scenario: Scenario, work: Work = finish) -> JobResult:
    """The job's result, after `work`."""

    async def do() -> JobResult:
        line = Line(url)
        async with line.client:
            bench = Bench(client, line, spool, scenario)
            await bench.begin()
            await work(bench)
            (result,) = run(client, [bench.ledger.result(JOB)])
            assert result is not None
            return result

    with asyncio.Runner(loop_factory=HastyLoop) as runner:
        return runner.run(do())


def test_a_repeated_call_that_goes_elsewhere_is_a_failover_and_is_repeated_there_too(
    redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    """A call is repeated where the job is served best by then, and that may be another endpoint."""

    async def work(bench: Bench) -> None:
        bench.providers[1].script = [ERROR, answer()]
        await bench.finish()

    result = done(redis_url, flushed, tmp_path, Scenario(cheap=[ERROR]), work)
    assert [attempt.endpoint for attempt in result.attempts] == ["cheap/m", "dear/m", "dear/m"]
    assert (result.failovers, result.deferrals) == (1, 0)


def test_a_repeated_call_where_nothing_else_will_do_is_no_failover(
    redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    result = done(redis_url, flushed, tmp_path, Scenario(wish={"only": ["cheap"]}, cheap=[ERROR, answer()]))
    assert [attempt.endpoint for attempt in result.attempts] == ["cheap/m", "cheap/m"]
    assert (result.failovers, result.deferrals) == (0, 0)


def test_a_job_that_is_run_again_has_its_whole_ceiling(redis_url: str, flushed: redis.Redis, tmp_path: Path) -> None:
    async def work(bench: Bench) -> None:
        await bench.attempt(bench.worker, lambda attempt: attempt)
        unsure = flushed.hget(bench.ledger.keys.money, f"job:{JOB}|unsure")
        run(flushed, [bench.ledger.cancel(JOB, None, 60)])
        await bench.attempt(bench.worker, lambda attempt: attempt)  # the message that tells a worker of it
        assert (unsure, isinstance(bench.ends[-1], Skipped)) == (b"59", True)
        assert not [name for name in flushed.hkeys(bench.ledger.keys.money) if name.startswith(b"job:")]
        run(flushed, [bench.ledger.replay(JOB, Lane.STANDARD)])
        await bench.finish()

    hangs = failing(FailureKind.TIMED_OUT, Billed.MAYBE)
    scenario = Scenario(wish={"only": ["cheap"], "max_cost_usd": 100e-6}, cheap=[hangs, answer()])
    result = done(redis_url, flushed, tmp_path, scenario, work)
    assert (result.status, result.cost_microusd, result.unsure_microusd) == ("succeeded", 10, 0)


class Reloading(dict[str, CloudProviderBase]):
    """Connectors of which one is taken over anew just when it is asked for."""

    asked = False

    def get(self, key: str, default: Any = None) -> Any:
        there, self.asked = self.asked, True
        return super().get(key, default) if there else None


def test_a_job_outlives_a_reload_between_its_admission_and_its_call(
    redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    async def work(bench: Bench) -> None:
        bench.in_force.connectors = Reloading(bench.in_force.connectors)
        await bench.finish()

    result = done(redis_url, flushed, tmp_path, Scenario(wish={"only": ["cheap"]}), work)
    assert [attempt.failure for attempt in result.attempts] == ["local", None]
