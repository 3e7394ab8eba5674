"""What becomes of a job whose calls fail, over a real Redis and providers that answer by a script."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import redis
from tests.integration.test_cancellation import JOB, Act, Bench, HastyLoop, Line, Scenario, answer, failing

from turnout.ledger import run
from turnout.result import JobResult
from turnout_workers.routing.failure import FailureKind

ERROR = failing(FailureKind.SERVER_ERROR)


def done(url: str, client: redis.Redis, spool: Path, scenario: Scenario, dear: Sequence[Act] = ()) -> JobResult:
    """The job's result, made by one worker. `dear`: the script of the second provider."""

    async def do() -> JobResult:
        line = Line(url)
        async with line.client:
            bench = Bench(client, line, spool, scenario)
            bench.providers[1].script = dear
            await bench.begin()
            await bench.finish()
            (result,) = run(client, [bench.ledger.result(JOB)])
            assert result is not None
            return result

    with asyncio.Runner(loop_factory=HastyLoop) as runner:
        return runner.run(do())


def test_a_repeated_call_that_goes_elsewhere_is_a_failover_and_is_repeated_there_too(
    redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    """A call is repeated where the job is served best by then, and that may be another endpoint."""
    result = done(redis_url, flushed, tmp_path, Scenario(cheap=[ERROR]), dear=[ERROR, answer()])
    assert [attempt.endpoint for attempt in result.attempts] == ["cheap/m", "dear/m", "dear/m"]
    assert (result.failovers, result.deferrals) == (1, 0)


def test_a_repeated_call_where_nothing_else_will_do_is_no_failover(
    redis_url: str, flushed: redis.Redis, tmp_path: Path
) -> None:
    result = done(redis_url, flushed, tmp_path, Scenario(wish={"only": ["cheap"]}, cheap=[ERROR, answer()]))
    assert [attempt.endpoint for attempt in result.attempts] == ["cheap/m", "cheap/m"]
    assert (result.failovers, result.deferrals) == (0, 0)
