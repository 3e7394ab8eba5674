"""IntelligentRouter in process: routing, calls, failover, health checks and operators' wishes."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.unit.routing.fleets import NOW, endpoint, request

from turnout.messages import ResponseFormat
from turnout.request import Capability, InferenceRequest, InferenceResponse, RoutingStrategy, Usage
from turnout_workers.background import health_checks
from turnout_workers.background.tasks import PAUSED_S
from turnout_workers.monitoring import logs
from turnout_workers.providers.base import CallOutcome, Timeouts
from turnout_workers.providers.errors import ProviderError
from turnout_workers.router import DeadlinePassed
from turnout_workers.routing import Endpoint, IntelligentRouter, NoEligibleEndpoint
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope
from turnout_workers.routing.fleet import Circuit, Health, Limits, Observed, Price
from turnout_workers.routing.health import Counters, circuit
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.store import ObservedLimit, Report

K = FailureKind


def down(kind: FailureKind, **details: Any) -> ProviderError:
    return ProviderError(Failure(kind, "as scripted", **details))


@dataclass
class Provider:
    """Answers, or does what its script says for the next calls."""

    name: str
    script: list[BaseException | float] = field(default_factory=list)
    endpoints: tuple[Endpoint, ...] = ()
    calls: int = 0
    healthy: bool = True
    check_fails: FailureKind | None = None
    closed: bool = False
    texts: list[str] = field(default_factory=list)
    limits: tuple[ObservedLimit, ...] = ()
    asked: list[InferenceRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.endpoints = self.endpoints or (endpoint(self.name),)

    async def call(self, at: Endpoint, request: InferenceRequest, timeouts: Timeouts) -> CallOutcome:
        self.calls += 1
        self.asked.append(request)
        step = self.script.pop(0) if self.script else 0.0
        if isinstance(step, BaseException):
            raise step
        await asyncio.sleep(step)
        usage, text = Usage(input_tokens=10, output_tokens=20), self.texts.pop(0) if self.texts else f"from {self.name}"
        return CallOutcome(
            InferenceResponse(
                text=text, usage=usage, cost_microusd=50, provider=self.name,
                model_requested=at.model, model_served=at.served_model, latency_s=step or 0.01,
            ),
            self.limits,
        )  # fmt: skip

    async def check_health(self) -> None:
        if self.check_fails or not self.healthy:
            raise down(self.check_fails or K.UNAUTHORIZED)

    async def aclose(self) -> None:
        self.closed = True


class Time:
    """A clock that moves on only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = NOW

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def routers(clock: Time) -> Any:
    def build(*providers: Provider, **options: Any) -> IntelligentRouter:
        router = IntelligentRouter(clock=lambda: clock.now, sleep=clock.sleep, **options)
        for priority, provider in enumerate(providers, 1):
            router.register_provider(provider, priority=priority)
        return router

    return build


async def test_the_face_works_as_it_was_designed(routers: Any) -> None:
    gemini, groq = Provider("gemini"), Provider("groq")
    router = IntelligentRouter(default_strategy=RoutingStrategy.PRIORITY, health_check_interval=30, failover_cooldown=2)
    router.register_provider(gemini, priority=1)
    router.register_provider(groq, priority=2, cost_per_1k_tokens=0.0001)
    provider = await router.get_provider_for_request(request(), strategy=RoutingStrategy.COST_OPTIMIZED)
    assert provider.name == "groq"
    assert repr(provider) == f"RoutedProvider({provider.endpoint.id})"
    assert provider.endpoint.price == Price(0.1, 0.1)
    assert (await provider.complete(request())).text == "from groq"
    router.unregister_provider("groq")
    assert (await router.complete(request())).text == "from gemini"
    for unknown in ("groq", "gemini/llama"):  # an endpoint is no provider
        with pytest.raises(KeyError):
            router.unregister_provider(unknown)


@pytest.mark.parametrize(
    "kind",
    [K.UNAVAILABLE, K.TIMED_OUT, K.OVERLOADED, K.MALFORMED, K.RATE_LIMITED, K.UNAUTHORIZED, K.CONTEXT_LENGTH],
)
async def test_a_failed_call_is_made_elsewhere_at_once(routers: Any, clock: Time, kind: FailureKind) -> None:
    first, second = Provider("first", [down(kind)]), Provider("second")
    router = routers(first, second, default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request())).text == "from second"
    assert (first.calls, second.calls) == (1, 1)
    assert clock.now == NOW


async def test_a_job_without_fallback_waits_for_a_rate_limit_where_it_was_begun(routers: Any, clock: Time) -> None:
    first, second = Provider("first", [down(K.RATE_LIMITED, retry_after_s=30.0)]), Provider("second")
    router = routers(first, second, default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request(allow_fallback=False))).text == "from first"
    assert (first.calls, second.calls) == (2, 0)
    assert clock.now >= NOW + 30


async def test_a_clock_that_goes_back_during_a_call_fails_nothing(routers: Any, clock: Time) -> None:
    class SetBack(Provider):
        async def call(self, *args: Any) -> CallOutcome:
            clock.now -= 60
            return await super().call(*args)

    first = SetBack("first")
    assert (await routers(first).complete(request())).text == "from first"
    assert first.calls == 1


@pytest.mark.parametrize(("repairs", "ends"), [(0, "told"), (1, "answered")])
async def test_an_answer_off_its_schema_is_asked_for_again_as_often_as_wanted(
    routers: Any, repairs: int, ends: str
) -> None:
    able = {"capabilities": frozenset({Capability.JSON_SCHEMA})}
    first = Provider("first", endpoints=(endpoint("first", **able),), texts=["no JSON", "{}"])
    second = Provider("second", endpoints=(endpoint("second", **able),), texts=["{}"])
    router = routers(first, second, default_strategy=RoutingStrategy.FAILOVER)
    form = ResponseFormat(type="json_schema", json_schema={"type": "object"}, max_repairs=repairs)
    asked = router.complete(InferenceRequest(prompt="Say {}.", response_format=form))
    if ends == "told":
        with pytest.raises(ProviderError, match="fails its schema"):
            await asked
    else:
        assert (await asked).text == "{}"
    assert first.calls + second.calls == 1 + repairs


async def test_an_answer_of_no_use_is_booked_at_what_it_cost_and_not_at_the_most_that_it_could(routers: Any) -> None:
    empty = InferenceResponse(
        text="", usage=Usage(input_tokens=10, output_tokens=3), cost_microusd=7, provider="first",
        model_requested="llama", model_served="llama", latency_s=0.01,
    )  # fmt: skip
    refused = ProviderError(Failure(K.CONTENT_FILTERED, "as scripted", Billed.YES), response=empty)
    router = routers(Provider("first", [refused]), Provider("second"), default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request(max_cost_usd=0.001))).text == "from second"
    assert (await router.snapshot()).by_id["first/llama"].metrics.spent_microusd == 7


async def test_a_server_error_is_repeated_once_and_then_made_elsewhere(routers: Any) -> None:
    error = down(K.SERVER_ERROR, billed=Billed.MAYBE)
    first, second = Provider("first", [error, error]), Provider("second")
    router = routers(first, second, default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request())).text == "from second"
    assert first.calls == 2


@pytest.mark.parametrize("kind", [K.UNAVAILABLE, K.SERVER_ERROR, K.TIMED_OUT, K.MALFORMED])
async def test_with_all_providers_down_a_request_waits_until_one_is_back(
    routers: Any, clock: Time, kind: FailureKind
) -> None:
    only = Provider("only", [down(kind) for _ in range(20)])
    response = await routers(only).complete(request())
    assert response.text == "from only"
    assert only.calls == 21
    assert clock.now - NOW > 60  # ejected, probed, ejected for longer: not hammered


@pytest.mark.parametrize("impatient", [{"constraints": {"deadline_s": 0.5}}, {"timeout_s": 0.5}], ids=str)
async def test_calls_cut_by_their_job_before_an_answer_was_due_eject_nobody(
    routers: Any, clock: Time, impatient: dict[str, Any]
) -> None:
    only = Provider("only", [down(K.TIMED_OUT)] * 99)
    router = routers(only)
    for _ in range(6):
        with pytest.raises((DeadlinePassed, ProviderError)):
            await router.complete(
                InferenceRequest.model_validate({"prompt": "Why?", "max_output_tokens": 100, **impatient})
            )
    [view] = (await router.snapshot()).views
    assert (only.calls >= 6, circuit(view.health, clock.now)) == (True, Circuit.CLOSED)


async def test_the_deadline_ends_the_waiting(routers: Any, clock: Time) -> None:
    only = Provider("only", [down(K.UNAVAILABLE) for _ in range(99)])
    with pytest.raises(DeadlinePassed, match="only/llama: unavailable: as scripted"):
        await routers(only).complete(request(deadline_s=9))
    assert clock.now - NOW == pytest.approx(9, abs=0.05)


async def test_the_callers_own_fault_is_told_once_a_second_provider_confirms_it_and_harms_nobody(routers: Any) -> None:
    strict = [Provider(name, [down(K.INVALID_REQUEST)]) for name in ("a", "b")]
    router = routers(*strict, last := Provider("c"), default_strategy=RoutingStrategy.FAILOVER)
    with pytest.raises(ProviderError, match="invalid_request"):
        await router.complete(request())
    assert [provider.calls for provider in (*strict, last)] == [1, 1, 0]
    assert all(not view.health.consecutive_failures for view in (await router.snapshot()).views)
    with pytest.raises(ProviderError, match="invalid_request"):
        await routers(Provider("only", [down(K.INVALID_REQUEST)])).complete(request())


async def test_two_models_of_one_provider_that_call_a_request_wrong_leave_it_to_another_provider(routers: Any) -> None:
    models = tuple(Endpoint("a", model, model, price=Price(0.1, 0.2)) for model in ("one", "two"))
    strict = Provider("a", [down(K.INVALID_REQUEST)] * 2, models)
    router = routers(strict, Provider("b"), default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(InferenceRequest(prompt="Why?"))).text == "from b"
    assert strict.calls == 2


async def test_a_request_that_breaks_every_provider_ends(routers: Any) -> None:
    providers = [Provider(name, [down(K.TIMED_OUT) for _ in range(99)]) for name in ("a", "b")]
    with pytest.raises(ProviderError, match="timed_out") as error:
        await routers(*providers).complete(request())
    assert sum(provider.calls for provider in providers) == 8
    assert "a/llama: timed_out" in error.value.__notes__[0]


async def test_what_no_provider_can_do_is_refused_with_reasons(routers: Any) -> None:
    with pytest.raises(NoEligibleEndpoint, match="only/llama: doesn't serve gpt"):
        await routers(Provider("only")).complete(request(model="gpt"))


async def test_without_fallback_only_the_first_choice_is_called(routers: Any) -> None:
    first, second = Provider("first", [down(K.TIMED_OUT)]), Provider("second")
    router = routers(first, second, default_strategy=RoutingStrategy.FAILOVER)
    with pytest.raises(ProviderError):
        await router.complete(request(allow_fallback=False))
    assert second.calls == 0


async def test_a_failing_endpoint_is_ejected_for_the_failover_cooldown(routers: Any, clock: Time) -> None:
    first = Provider("first", [down(K.UNAVAILABLE) for _ in range(2)])
    router = routers(first, Provider("second"), default_strategy=RoutingStrategy.FAILOVER, failover_cooldown=40)
    for _ in range(6):
        await router.complete(request())
    health = (await router.snapshot()).by_id["first/llama"].health
    assert first.calls == 2
    assert 34 <= health.open_until - clock.now <= 46
    clock.now = health.open_until
    assert (await router.complete(request())).text == "from first"
    assert circuit((await router.snapshot()).by_id["first/llama"].health, clock.now) is Circuit.RAMPING


async def test_a_hanging_call_is_cut_in_time_for_another_provider() -> None:
    slow = Provider("slow", [60.0], (endpoint("slow", priority=1, expected_ttft_s=0.1, expected_s_per_token=0.0),))
    other = Provider("other", [], (endpoint("other", priority=2, expected_ttft_s=10.0, expected_s_per_token=0.0),))
    router = IntelligentRouter(RoutingStrategy.FAILOVER)
    router.register_provider(slow)
    router.register_provider(other)
    response = await asyncio.wait_for(router.complete(request(deadline_s=20.0)), timeout=20.0)
    assert response.text == "from other"
    assert slow.calls == 1


async def test_hanging_calls_eject_their_endpoint_before_any_times_out(routers: Any, clock: Time) -> None:
    stuck = Provider("stuck", [3600.0] * 3, (endpoint("stuck", expected_ttft_s=0.5),))
    router = routers(stuck)
    calls = [asyncio.create_task(router.complete(request())) for _ in range(3)]
    while stuck.calls < 3:
        await asyncio.sleep(0)
    await router.watch()
    assert circuit((await router.snapshot()).views[0].health, clock.now) is Circuit.CLOSED
    clock.now += 10
    await router.watch()
    assert circuit((await router.snapshot()).views[0].health, clock.now) is Circuit.OPEN
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert (await router.snapshot()).views[0].load.in_flight == 0


async def test_a_refused_key_takes_out_the_account_until_a_health_check_accepts_it(routers: Any) -> None:
    both = (endpoint("groq", model="a"), endpoint("groq", model="b"))
    groq = Provider("groq", [down(K.UNAUTHORIZED, scope=Scope.ACCOUNT)], both)
    router = routers(groq, Provider("spare"), default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request())).text == "from spare"
    assert [view.health.disabled is not None for view in (await router.snapshot()).views] == [True, True, False]
    groq.healthy = False
    assert (await router.check_health())["groq"].kind is K.UNAUTHORIZED
    assert (await router.complete(request())).text == "from spare"
    groq.healthy = True
    assert await router.check_health() == {"groq": None, "spare": None}
    assert (await router.complete(request())).text == "from groq"


async def test_a_health_check_that_never_ends_holds_up_no_other(routers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Provider):
        async def check_health(self) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(health_checks, "TIMEOUT_S", 0.01)
    told = await asyncio.wait_for(routers(Deaf("deaf"), Provider("spare")).check_health(), 20)
    assert told["spare"] is None
    assert told["deaf"].kind is K.TIMED_OUT


async def test_a_health_check_with_a_bug_spoils_no_other(routers: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Buggy(Provider):
        async def check_health(self) -> None:
            raise ValueError(f"{self.name}, and a key")

    told = await routers(Buggy("buggy"), Provider("spare")).check_health()
    assert told["spare"] is None
    assert told["buggy"].message == "its health check raised ValueError"
    assert "in check_health" in caplog.text
    assert "buggy, and" not in caplog.text


@pytest.mark.parametrize("kind", [K.MODEL_NOT_FOUND, K.FORBIDDEN, K.MALFORMED, K.UNAVAILABLE])
async def test_a_provider_without_a_health_endpoint_is_called_all_the_same(kind: FailureKind, routers: Any) -> None:
    router = routers(Provider("plain", check_fails=kind))
    assert (await router.check_health())["plain"].kind is kind
    assert (await router.complete(request())).text == "from plain"


@pytest.mark.parametrize(("kind", "restored"), [(K.MODEL_NOT_FOUND, True), (K.UNAVAILABLE, False)])
async def test_where_health_cannot_be_asked_for_a_real_call_is_the_question(
    kind: FailureKind, restored: bool, routers: Any, clock: Time
) -> None:
    plain = Provider("plain", [down(K.UNAUTHORIZED, scope=Scope.ACCOUNT)], check_fails=kind)
    router = routers(plain, Provider("spare"), default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request())).text == "from spare"
    for _ in range(2):  # once when it is seen, and once when it was long enough
        await router.check_health()
        clock.now += 301
    await router.check_health()
    assert ((await router.snapshot()).views[0].health.disabled is None) is restored


async def test_a_good_health_check_does_not_undo_an_operators_isolation(routers: Any) -> None:
    groq = Provider("groq", [down(K.UNAUTHORIZED, scope=Scope.ACCOUNT)])
    router = routers(groq, Provider("spare"), default_strategy=RoutingStrategy.FAILOVER)
    assert (await router.complete(request())).text == "from spare"
    await router.isolate("groq")
    assert await router.check_health() == {"groq": None, "spare": None}
    assert (await router.snapshot()).views[0].health.isolated
    await router.restore("groq")
    assert (await router.snapshot()).views[0].health == Health()


async def test_an_account_without_credit_gets_one_chance_in_five_minutes(routers: Any, clock: Time) -> None:
    broke = Provider("broke", [down(K.BILLING, scope=Scope.ACCOUNT)] * 100)
    store = MemoryFleetStore(lambda: clock.now)
    both = [routers(broke, Provider("spare"), default_strategy=RoutingStrategy.FAILOVER, store=store) for _ in "ab"]
    for _ in range(40):  # twenty minutes of two processes
        for router in both:
            await router.check_health()
            assert (await router.complete(request())).text == "from spare"
        clock.now += 30
    assert broke.calls == 1 + 3


async def test_what_comes_back_before_its_time_is_seen_by_those_who_wait(routers: Any, clock: Time) -> None:
    only = Provider("only", [down(K.QUOTA_EXHAUSTED)])
    router = routers(only)
    asked = asyncio.create_task(router.complete(request()))
    while (await router.snapshot()).views[0].health.cooldown_until == 0:
        await asyncio.sleep(0)
    await router.restore("only")
    assert (await asked).text == "from only"
    assert clock.now - NOW < 60


async def test_a_rate_limit_that_asks_for_no_wait_is_not_hammered(routers: Any, clock: Time) -> None:
    only = Provider("only", [down(K.RATE_LIMITED, retry_after_s=0.0) for _ in range(10)])
    assert (await routers(only).complete(request())).text == "from only"
    assert clock.now - NOW >= 50


async def test_an_operator_can_isolate_and_restore(routers: Any) -> None:
    first, second = Provider("first"), Provider("second")
    router = routers(first, second, default_strategy=RoutingStrategy.FAILOVER)
    await router.isolate("first")
    assert (await router.complete(request())).text == "from second"
    await router.restore("first/llama")
    assert (await router.complete(request())).text == "from first"
    with pytest.raises(KeyError, match="no provider or endpoint is called 'third'"):
        await router.isolate("third")


@pytest.mark.parametrize("strategy", RoutingStrategy)
@pytest.mark.parametrize(
    ("limits", "needed"),
    [
        (Limits(tokens_per_minute=1000), "tokens_per_minute is 1000, about 1108 needed at once"),
        (Limits(input_tokens_per_minute=1000), "input_tokens_per_minute is 1000, about 1008 needed at once"),
    ],
)
async def test_a_request_larger_than_a_providers_limit_goes_elsewhere_at_once_or_is_refused(
    limits: Limits, needed: str, strategy: RoutingStrategy, routers: Any, clock: Time
) -> None:
    small = endpoint("small", limits=limits, price=Price(0.1, 0.1))
    router = routers(Provider("small", endpoints=(small,)), Provider("large"), default_strategy=strategy)
    assert (await router.complete(request("x" * 4000))).text == "from large"
    assert clock.now == NOW
    router.unregister_provider("large")
    with pytest.raises(NoEligibleEndpoint, match=f": {needed}"):
        await router.complete(request("x" * 4000))


async def test_a_limit_that_a_provider_tells_of_holds_no_usual_request_up_for_ever(routers: Any, clock: Time) -> None:
    """Free accounts have fewer tokens a minute than some models can give in one answer."""
    told = (ObservedLimit("tokens_per_minute", 6000, 5900, 1.0),)
    free = Provider("free", endpoints=(endpoint("free", max_output_tokens=131_072),), limits=told)
    router = routers(free)
    for _ in range(10):
        assert (await router.complete(request(max_output_tokens=None))).text == "from free"
    assert clock.now == NOW


async def test_limits_hold_over_concurrent_requests(routers: Any, clock: Time) -> None:
    limited = Provider("limited", endpoints=(endpoint("limited", limits=Limits(requests_per_minute=5)),))
    router = routers(limited)
    await asyncio.gather(*(router.complete(request()) for _ in range(5)))
    assert clock.now == NOW
    await router.complete(request())
    assert clock.now - NOW >= 60


async def test_money_of_a_cancelled_call_counts_as_unsure(clock: Time) -> None:
    store = MemoryFleetStore(lambda: clock.now)
    router = IntelligentRouter(store=store)
    stuck = Provider("stuck", [3600.0])
    router.register_provider(stuck)
    call = asyncio.create_task(router.complete(request()))
    while not stuck.calls:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    snapshot = await router.snapshot()
    assert snapshot.views[0].load.in_flight == 0
    assert snapshot.views[0].health.consecutive_failures == 0


async def test_the_context_checks_health_at_once_and_closes_the_providers() -> None:
    provider = Provider("sick", healthy=False)
    async with IntelligentRouter() as router:
        router.register_provider(provider)
        while (await router.snapshot()).views[0].health.disabled is None:
            await asyncio.sleep(0.01)
    assert provider.closed


async def test_a_provider_that_is_registered_again_with_a_better_key_is_used_before_the_next_round_of_checks() -> None:
    async with IntelligentRouter(health_check_interval=600) as router:
        router.register_provider(Provider("groq", healthy=False))
        while (await router.snapshot()).views[0].health.disabled is None:
            await asyncio.sleep(0.01)
        router.unregister_provider("groq")
        router.register_provider(Provider("groq"))
        while (await router.snapshot()).views[0].health.disabled is not None:
            await asyncio.sleep(0.01)
        assert (await router.complete(request())).text == "from groq"


async def test_a_bug_of_a_connector_is_raised_as_it_is(routers: Any) -> None:
    broken = Provider("broken", [ValueError("a bug")])
    with pytest.raises(ValueError, match="a bug"):
        await routers(broken, Provider("other"), default_strategy=RoutingStrategy.FAILOVER).complete(request())


async def test_nothing_is_kept_of_a_provider_that_is_registered_no_more(routers: Any) -> None:
    gone = weakref.ref(passing := Provider("passing"))
    router = routers(passing)
    assert (await router.complete(request())).text == "from passing"
    router.unregister_provider("passing")
    del passing
    gc.collect()
    assert gone() is None


async def test_a_strategy_that_there_is_none_of_is_told_by_its_name(routers: Any) -> None:
    with pytest.raises(ValueError, match="'cheapest' is not a valid RoutingStrategy"):
        IntelligentRouter("cheapest")
    with pytest.raises(ValueError, match="'cheapest' is not a valid RoutingStrategy"):
        await routers(Provider("only")).complete(request(), "cheapest")


def test_health_is_not_asked_for_without_a_pause() -> None:
    with pytest.raises(ValueError, match="health_check_interval must be above 0 s, not 0"):
        IntelligentRouter(health_check_interval=0)


def test_a_provider_is_registered_once() -> None:
    router = IntelligentRouter()
    router.register_provider(Provider("groq"))
    with pytest.raises(ValueError, match="'groq' is registered already"):
        router.register_provider(Provider("groq"))


async def test_a_slow_interactive_request_is_hedged_and_the_loser_accounted() -> None:
    quick = {"expected_ttft_s": 0.01, "expected_s_per_token": 0.0}
    slow = Provider("slow", [60.0], (endpoint("slow", priority=1, **quick),))
    fast = Provider("fast", [], (endpoint("fast", priority=2, **quick),))
    router = IntelligentRouter(RoutingStrategy.FAILOVER, hedge=True)
    router.register_provider(slow)
    router.register_provider(fast)
    response = await asyncio.wait_for(router.complete(request(lane="interactive")), timeout=60)
    assert response.text == "from fast"
    views = (await router.snapshot()).by_id
    assert (slow.calls, fast.calls) == (1, 1)
    assert [view.load.in_flight for view in views.values()] == [0, 0]
    assert views["slow/llama"].health.consecutive_failures == 0


async def test_lines_logged_after_a_hedged_request_are_of_the_call_that_was_answered() -> None:
    second = Provider("second", [60.0], (endpoint("second", priority=2),))

    class First(Provider):
        async def call(self, at: Endpoint, request: InferenceRequest, timeouts: Timeouts) -> CallOutcome:
            while not second.calls:
                await asyncio.sleep(0.01)
            return await super().call(at, request, timeouts)

    first = First("first", [], (endpoint("first", priority=1, expected_ttft_s=0.01, expected_s_per_token=0.0),))
    router = IntelligentRouter(RoutingStrategy.FAILOVER, hedge=True)
    router.register_provider(first)
    router.register_provider(second)
    assert (await router.complete(request(lane="interactive"))).text == "from first"
    assert logs.current_attempt.get() == (1, "first")


async def test_hedging_is_off_unless_asked_for() -> None:
    router = IntelligentRouter(RoutingStrategy.FAILOVER)
    slow = Provider("slow", [1.0], (endpoint("slow", expected_ttft_s=0.01, expected_s_per_token=0.0),))
    router.register_provider(slow)
    router.register_provider(Provider("fast", [], (endpoint("fast", priority=200),)))
    assert (await router.complete(request(lane="interactive"))).text == "from slow"


async def test_a_timeout_around_a_request_strikes_within_it() -> None:
    """Even while it waits for its report to be taken, which is not cut off."""
    reporting, release, scopes = asyncio.Event(), asyncio.Event(), list[asyncio.Timeout]()

    class Slow(MemoryFleetStore):
        async def report(self, report: Report) -> Counters:
            reporting.set()
            await release.wait()
            return await super().report(report)

    router = IntelligentRouter(store=Slow(lambda: NOW))
    router.register_provider(Provider("only"))

    async def bounded() -> str:
        try:
            async with asyncio.timeout(3600) as scope:
                scopes.append(scope)
                await router.complete(request())
        except TimeoutError:
            await asyncio.sleep(0)
            return "timed out, and goes on"
        return "answered"

    caller = asyncio.create_task(bounded())
    await reporting.wait()
    scopes[0].reschedule(0.0)
    while not scopes[0].expired() and "expiring" not in repr(scopes[0]):
        await asyncio.sleep(0)
    release.set()
    assert await asyncio.wait_for(caller, 20) == "timed out, and goes on"


async def test_of_many_requests_that_wait_for_the_same_one_looks_at_a_time_and_they_come_in_order() -> None:
    looks, served = [0], list[int]()

    class Counting(MemoryFleetStore):
        async def state(self) -> tuple[float, Mapping[str, Observed]]:
            looks[0] += 1
            return await super().state()

    router = IntelligentRouter(store=Counting(time.time))
    router.register_provider(Provider("only", [0.01] * 99, (endpoint("only", limits=Limits(concurrency=1)),)))

    async def one(number: int) -> None:
        await router.complete(request())
        served.append(number)

    await asyncio.gather(*map(one, range(50)))
    assert served == list(range(50))
    assert looks[0] < 50 * 10
    assert not router._requests._locks


async def test_a_request_in_a_hurry_stands_behind_none_that_is_not(clock: Time, routers: Any) -> None:
    cheap = Provider(
        "cheap", endpoints=(endpoint("cheap", price=Price(0.1, 0.1), limits=Limits(requests_per_minute=1)),)
    )
    dear = Provider("dear", endpoints=(endpoint("dear", price=Price(99.0, 99.0)),))
    router = routers(cheap, dear, default_strategy=RoutingStrategy.BALANCED)
    assert (await router.complete(request(lane="batch"))).text == "from cheap"
    patient = asyncio.create_task(router.complete(request(lane="batch")))
    await asyncio.sleep(0)
    assert (await router.complete(request(lane="batch", deadline_s=5))).text == "from dear"
    assert (await patient).provider in ("cheap", "dear")


def test_a_failed_call_comes_whole_out_of_another_process() -> None:
    response = InferenceResponse(provider="p", model_requested="m", model_served="m")
    error = ProviderError(Failure(K.MALFORMED, "as scripted"), (ObservedLimit("requests_per_minute", 3),), response)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.failure, again.limits) == ("malformed: as scripted", error.failure, error.limits)
    assert (again.response, copy.copy(error).failure) == (response, error.failure)


async def test_a_request_without_fallback_that_runs_into_its_deadline_says_so() -> None:
    router = IntelligentRouter()
    router.register_provider(Provider("only", [60.0]))
    with pytest.raises(DeadlinePassed, match="no answer by the deadline; only/llama: timed_out"):
        await router.complete(request(allow_fallback=False, deadline_s=0.5))


async def test_no_limit_is_sent_that_the_request_does_not_set() -> None:
    """A model that thinks would give half an answer, and a small one's context has no room for our default."""
    only, router = Provider("only"), IntelligentRouter()
    router.register_provider(only)
    await router.complete(request(max_output_tokens=None, max_cost_usd=1.0))
    assert [one.max_output_tokens for one in only.asked] == [None]


async def test_who_has_spent_all_it_may_is_told_on_what(routers: Any) -> None:
    first = Provider("first", [down(K.INTERRUPTED, billed=Billed.MAYBE)])
    router = routers(first, Provider("second"), default_strategy=RoutingStrategy.FAILOVER)
    with pytest.raises(NoEligibleEndpoint, match="of its ceiling left") as told:
        await router.complete(request(max_cost_usd=0.00035))
    assert "first/llama: interrupted: as scripted" in told.value.__notes__[0]


async def test_a_connector_that_gives_no_answer_is_not_called_again(routers: Any) -> None:
    class Empty(Provider):
        async def call(self, *_: Any) -> CallOutcome:
            self.calls += 1
            return CallOutcome(None)  # type: ignore[arg-type]

    empty = Empty("empty")
    with pytest.raises(TypeError, match="empty/llama returned no InferenceResponse"):
        await routers(empty).complete(request())
    assert empty.calls == 1


async def test_after_a_pause_nobody_is_ejected_for_answers_that_were_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    router, clock, looks = IntelligentRouter(), asyncio.get_running_loop().time, asyncio.Queue[float]()

    async def look() -> None:
        looks.put_nowait(clock())

    monkeypatch.setattr(router, "watch", look)
    monkeypatch.setattr("turnout_workers.router.WATCH_S", 0.1)
    async with router:
        for _ in range(2):
            await asyncio.wait_for(looks.get(), 20)
        time.sleep(0.1 + PAUSED_S + 0.1)
        while not looks.empty():  # one that came before
            looks.get_nowait()
        woke_at = clock()
        assert await asyncio.wait_for(looks.get(), 20) - woke_at > 0.09, "the one that was due is left out"


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_price_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="0 or more dollars"):
        IntelligentRouter().register_provider(Provider("p"), cost_per_1k_tokens=wrong)


@pytest.mark.parametrize("endpoints", [(endpoint("acme"),), (endpoint("my-acme"), endpoint("acme"))])
def test_a_providers_endpoints_bear_its_name(endpoints: tuple[Endpoint, ...]) -> None:
    with pytest.raises(ValueError, match="be the `provider` of each"):
        IntelligentRouter().register_provider(Provider("my-acme", endpoints=endpoints))


async def test_a_router_is_entered_once_at_a_time_and_closes_all_providers_it_can(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Stuck(Provider):
        async def aclose(self) -> None:
            raise OSError("it stays open")

    router, last = IntelligentRouter(), Provider("last")
    router.register_provider(Stuck("stuck"))
    router.register_provider(last)
    for _ in range(2):
        async with router:
            with pytest.raises(RuntimeError, match="entered already"):
                await router.__aenter__()
    assert last.closed
    assert "provider stuck could not be closed" in caplog.text
