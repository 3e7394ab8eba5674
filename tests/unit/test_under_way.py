"""Calls that hang at an endpoint that is out are cut short; no others are."""

from __future__ import annotations

import asyncio

import pytest

from turnout_workers.attempts.under_way import UnderWay
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, FailureKind


async def hanging(calls: UnderWay, endpoint_id: str, overdue_s: float) -> None:
    with calls.call(endpoint_id, overdue_s):
        await asyncio.Event().wait()


async def test_an_overdue_call_is_cut_short_as_a_timeout_that_may_be_billed() -> None:
    calls = UnderWay()
    task = asyncio.create_task(hanging(calls, "a", 0.0))
    await asyncio.sleep(0)
    assert calls.cut_short({"a"}) == 1
    with pytest.raises(ProviderError) as caught:
        await task
    assert (caught.value.failure.kind, caught.value.failure.billed) == (FailureKind.TIMED_OUT, Billed.MAYBE)
    assert calls.cut_short({"a"}) == 0


async def test_calls_in_time_and_calls_elsewhere_go_on() -> None:
    calls = UnderWay()
    young = asyncio.create_task(hanging(calls, "a", 60.0))
    elsewhere = asyncio.create_task(hanging(calls, "b", 0.0))
    await asyncio.sleep(0)
    assert calls.cut_short({"a"}) == 0
    await asyncio.sleep(0)
    assert not young.done()
    assert not elsewhere.done()
    for task in (young, elsewhere):
        task.cancel()
    assert [type(one) for one in await asyncio.gather(young, elsewhere, return_exceptions=True)] == [
        asyncio.CancelledError,
        asyncio.CancelledError,
    ]


async def test_a_timeout_of_the_connector_itself_is_not_taken_for_a_cut() -> None:
    with pytest.raises(TimeoutError), UnderWay().call("a", 60.0):
        raise TimeoutError
