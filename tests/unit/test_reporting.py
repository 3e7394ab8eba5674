"""What is reported of a call, also after Redis was away, and what is learned from answers that weren't streamed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
import redis
from tests.unit.routing.fleets import endpoint, request, snapshot

from turnout.request import Capability, InferenceResponse, Usage
from turnout_workers.attempts import reporting
from turnout_workers.attempts.reporting import STOPPED, Finished, Reporter
from turnout_workers.routing import failover
from turnout_workers.routing.decision import rank
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Fleet, Limits, Price
from turnout_workers.routing.latency import CACHED_STEP, MIN_SIGMA, predict
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ask, Bid, Counters, Granted, NoRoom, Report


class Away(MemoryFleetStore):
    """A store that is away for the first reports."""

    def __init__(self, times: int) -> None:
        super().__init__(lambda: 0.0)
        self.times, self.reported = times, asyncio.Event()

    async def report(self, report: Report) -> Counters:
        if self.times > 0:
            self.times -= 1
            raise redis.ConnectionError("away")
        self.reported.set()
        return await super().report(report)


async def test_a_report_that_redis_did_not_take_is_sent_again_without_holding_up_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "REPORT_RETRIES_S", (0.0, 0.0, 0.0))
    seen: Any = type("Sight", (), {"snapshot": snapshot(endpoint())})
    best = rank(JobProfile.of(request()), seen.snapshot, 0.0, random.Random(0)).best
    assert best is not None
    store = Away(times=3)
    reporter = Reporter(store, seen, 2.0, random.Random(0))
    await reporter.report(Finished("job:1:0", best, 0.0, 1.0, None, STOPPED), failover.judge(STOPPED, random.Random(0)))
    assert not store.reported.is_set()
    await asyncio.wait_for(store.reported.wait(), 60)


@pytest.mark.parametrize(("cost_microusd", "reports"), [(4, 3), (0, 1)])
async def test_what_a_call_has_cost_is_reported_even_after_a_long_outage(
    monkeypatch: pytest.MonkeyPatch, cost_microusd: int, reports: int
) -> None:
    monkeypatch.setattr(reporting, "REPORT_RETRIES_S", ())
    monkeypatch.setattr(reporting, "PAID_REPORT_RETRIES_S", (0.0, 0.0))
    seen: Any = type("Sight", (), {"snapshot": snapshot(endpoint())})
    best = rank(JobProfile.of(request()), seen.snapshot, 0.0, random.Random(0)).best
    assert best is not None
    response = InferenceResponse(provider="groq", model_requested="m", model_served="m", cost_microusd=cost_microusd)
    store = Away(times=3)
    reporter = Reporter(store, seen, 2.0, random.Random(0))
    call = Finished("job:1:0", best, 0.0, 1.0, response)
    await reporter.report(call, failover.judge(None, random.Random(0)))
    await asyncio.gather(*reporter._retries)
    assert store.times == 3 - reports


FILTERED = Failure(FailureKind.CONTENT_FILTERED, "filtered: refusal", Billed.MAYBE)


@pytest.mark.parametrize(
    ("cost_microusd", "failure", "spent", "unsure"),
    [
        (4, None, 4, False),
        (0, None, 0, False),
        (None, None, 0, True),  # its tokens are an estimate
        (4, replace(FILTERED, billed=Billed.YES), 4, False),
        (None, replace(FILTERED, billed=Billed.YES), 0, True),
        (4, replace(FILTERED, billed=Billed.NO), 0, False),
    ],
)
def test_what_a_call_has_cost_is_spent_if_it_is_certain_and_else_unsure(
    cost_microusd: int | None, failure: Failure | None, spent: int, unsure: bool
) -> None:
    at = endpoint(price=Price(1.0, 1.0))
    best = rank(JobProfile.of(request()), snapshot(at), 0.0, random.Random(0)).best
    assert best is not None
    assert best.upper_cost_microusd
    response = InferenceResponse(provider="groq", model_requested="m", model_served="m", cost_microusd=cost_microusd)
    call = Finished("job:1:0", best, 0.0, 1.0, response, failure)
    assert (call.cost_microusd, call.unsure_microusd) == (spent, best.upper_cost_microusd if unsure else 0)


def test_a_refusal_that_may_be_free_is_unsure_by_what_it_costs_if_it_is_not() -> None:
    best = rank(JobProfile.of(request()), snapshot(endpoint(price=Price(1.0, 1.0))), 0.0, random.Random(0)).best
    assert best is not None
    response = InferenceResponse(provider="groq", model_requested="m", model_served="m", cost_microusd=4)
    call = Finished("job:1:0", best, 0.0, 1.0, response, FILTERED)
    assert (call.cost_microusd, call.unsure_microusd) == (0, 4)


@pytest.mark.parametrize(
    ("text", "capabilities", "unsure"),
    [
        ("ok", frozenset(), 115 + 2 * (1 + 8)),
        ("7" * 30, frozenset(), 115 + 2 * (30 + 8)),
        ("7" * 1000, frozenset(), 115 + 2 * 100),
        ("ok", frozenset({Capability.REASONING}), 115 + 2 * 100),
    ],
)
def test_an_answer_without_usage_may_have_cost_what_can_be_seen_of_it_and_never_more_than_was_reserved(
    text: str, capabilities: frozenset[Capability], unsure: int
) -> None:
    """Reasoning can't be seen."""
    at = endpoint(price=Price(1.0, 2.0), capabilities=capabilities)
    best = rank(JobProfile.of(request(max_output_tokens=100)), snapshot(at), 0.0, random.Random(0)).best
    assert best is not None
    response = InferenceResponse(
        text=text, provider="groq", model_requested="m", model_served="m", usage=Usage(source="estimated")
    )
    call = Finished("job:1:0", best, 0.0, 1.0, response)
    assert (call.cost_microusd, call.unsure_microusd) == (0, unsure)


@pytest.mark.parametrize(
    ("ttft_s", "s_per_token", "sizes"),
    [(0.2, 0.0, [8]), (0.3, 0.005, [50]), (3.0, 0.1, [50]), (0.5, 0.02, [20, 300])],
)
async def test_what_answers_take_is_learned_from_whole_ones(
    ttft_s: float, s_per_token: float, sizes: list[int]
) -> None:
    """Their first token isn't timed, and the endpoint's prior is another (0.5 s, 10 ms)."""
    clock, rng = [1e6], random.Random(0)
    store = MemoryFleetStore(lambda: clock[0])
    seen = SnapshotPoller(store, Fleet([endpoint()]), monotonic=lambda: clock[0])
    reporter = Reporter(store, seen, 2.0, rng)
    for number in range(400):
        await seen.poll()
        size = rng.choice(sizes)
        profile = replace(JobProfile.of(request()), expected_output_tokens=size)
        best = rank(profile, seen.snapshot, clock[0], rng).best
        assert best is not None
        await store.admit(Ask(str(number), (Bid.of(best),), 60.0))
        took_s = (ttft_s + size * s_per_token) * rng.lognormvariate(0, 0.2)
        usage = Usage(input_tokens=9, output_tokens=size)
        response = InferenceResponse(
            usage=usage, provider="groq", model_requested="m", model_served="m", latency_s=took_s
        )
        began, clock[0] = clock[0], clock[0] + took_s
        await reporter.report(Finished(str(number), best, began, took_s, response), failover.judge(None, rng))
    await seen.poll()
    view = seen.snapshot.views[0]
    first_s, each_s = predict(view.endpoint, view.metrics, clock[0])
    for size in sizes:
        assert first_s + size * each_s == pytest.approx(ttft_s + size * s_per_token, rel=0.5)
    assert view.metrics.sigma < 2 * MIN_SIGMA


@pytest.mark.parametrize("price", [None, Price(0.0, 0.0), Price(1.0, 2.0)])
@pytest.mark.parametrize(("billed", "counted"), [(Billed.NO, 0), (Billed.MAYBE, 10)])
async def test_what_a_failed_call_may_have_taken_stays_charged_to_limits_whatever_it_costs(
    billed: Billed, counted: int, price: Price | None
) -> None:
    at = endpoint(price=price, limits=Limits(input_tokens_per_minute=13))
    seen = SnapshotPoller(store := MemoryFleetStore(lambda: 0.0), Fleet([at]), monotonic=lambda: 0.0)
    best = rank(replace(JobProfile.of(request()), input_tokens=10), seen.snapshot, 0.0, random.Random(0)).best
    assert best is not None
    await store.admit(Ask("1", (Bid.of(best),), 60.0))
    failure = Failure(FailureKind.TIMED_OUT, "no answer", billed)
    reporter = Reporter(store, seen, 2.0, random.Random(0))
    await reporter.report(Finished("1", best, 0.0, 1.0, None, failure), failover.judge(failure, random.Random(0)))
    second = await store.admit(Ask("2", (replace(Bid.of(best), input_tokens=13 - counted + 1),), 60.0))
    assert isinstance(second, NoRoom) == (counted > 0)


@pytest.mark.parametrize(("counts_cached", "room"), [(True, 0), (False, 10)])
async def test_limits_that_do_not_count_cached_tokens_are_not_charged_for_them(counts_cached: bool, room: int) -> None:
    at = endpoint(limits=Limits(input_tokens_per_minute=101), limits_count_cached=counts_cached)
    seen = SnapshotPoller(store := MemoryFleetStore(lambda: 0.0), Fleet([at]), monotonic=lambda: 0.0)
    best = rank(replace(JobProfile.of(request()), input_tokens=100), seen.snapshot, 0.0, random.Random(0)).best
    assert best is not None
    await store.admit(Ask("1", (Bid.of(best),), 60.0))
    usage = Usage(input_tokens=100, output_tokens=1, cache_read_tokens=90)
    response = InferenceResponse(usage=usage, provider="groq", model_requested="m", model_served="m", latency_s=1.0)
    reporter = Reporter(store, seen, 2.0, random.Random(0))
    await reporter.report(Finished("1", best, 0.0, 1.0, response), failover.judge(None, random.Random(0)))
    asks = [Ask(f"other {n}", (replace(Bid.of(best), input_tokens=9),), 60.0) for n in range(10)]
    assert sum([isinstance(await store.admit(ask), Granted) for ask in asks]) == room
    assert (await store.state())[1][at.id].metrics.cached_share == pytest.approx(0.9 * CACHED_STEP)
