"""What follows from calls that failed, over all jobs of a process."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from tests.unit.routing.fleets import decide, endpoint, job, request

from turnout_workers.attempts.judging import REPEATED_MORE, Judging
from turnout_workers.attempts.progress import Job, Progress
from turnout_workers.attempts.reporting import Finished
from turnout_workers.routing.failover import Next
from turnout_workers.routing.failure import Failure, FailureKind
from turnout_workers.state.store import Granted


async def test_when_all_calls_fail_one_in_ten_is_repeated_and_the_others_move_on() -> None:
    async def report(*_: Any) -> None: ...

    reporter: Any = SimpleNamespace(report=report)
    judging, decision = Judging(reporter, random.Random(0)), decide(job(), endpoint("groq"), endpoint("acme"))
    actions = []
    for number in range(100):
        one = Job(f"j{number}", request(), None, Progress())
        lease_id, chosen = f"{one.id}:1:0", decision.candidates[0]
        permit = judging.permit(one, decision, decision.candidates, Granted(lease_id, chosen.endpoint.id, 0.0))
        failed = Finished(lease_id, chosen, 0.0, 0.1, failure=Failure(FailureKind.SERVER_ERROR, "broken"))
        actions.append(judging(one, permit, failed).verdict.action)
    assert set(actions) == {Next.RETRY, Next.FAIL_OVER}
    assert actions.count(Next.RETRY) == REPEATED_MORE + 9
    assert actions[-20:].count(Next.RETRY) == 2
