"""What every fleet store must do, held by both of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import redis
from tests.integration.state.stores import START, AnyFleet, MemoryFleet, RedisFleet

from turnout_workers.routing.fleet import Endpoint, Limits
from turnout_workers.routing.health import CONSECUTIVE_FAILURES, RAMP_S
from turnout_workers.routing.latency import CACHED_STEP, observed_quantile
from turnout_workers.state.store import (
    ASK_AGAIN_S,
    KEEP_FOR_S,
    Account,
    Admission,
    Ask,
    Bid,
    Ceiling,
    Fence,
    Fenced,
    Granted,
    NoRoom,
    ObservedLimit,
    Report,
)
from turnout_workers.state.windows import PACED_S, SQUEEZE_REGROWTH

A, B = "groq/llama", "openai/gpt#two"
PACED = "pace of requests_per_minute"
IDS = count()


@pytest.fixture(params=["memory", "redis"])
async def fleet(request: pytest.FixtureRequest) -> AsyncIterator[AnyFleet]:
    made: AnyFleet = MemoryFleet() if request.param == "memory" else RedisFleet(request.getfixturevalue("redis_url"))
    yield made
    await made.close()


def bid(endpoint: str = A, *, ceilings: tuple[Ceiling, ...] = (), **fields: Any) -> Bid:
    sizes = {name: fields.pop(name, 0) for name in ("input_tokens", "output_tokens", "cost_microusd")}
    return Bid(endpoint, Limits(**fields), **sizes, ceilings=ceilings)


async def admit(fleet: AnyFleet, *bids: Bid, lease: str | None = None, ttl_s: float = 30, **ask: Any) -> Admission:
    return await fleet.store.admit(Ask(lease or f"job:{next(IDS)}", bids, ttl_s, **ask))


async def granted(fleet: AnyFleet, *bids: Bid, **ask: Any) -> Granted:
    admission = await admit(fleet, *bids, **ask)
    assert isinstance(admission, Granted), admission
    return admission


async def refused(fleet: AnyFleet, *bids: Bid, **ask: Any) -> NoRoom:
    admission = await admit(fleet, *bids, **ask)
    assert isinstance(admission, NoRoom), admission
    return admission


async def burst(fleet: AnyFleet, *bids: Bid, most: int = 100, **ask: Any) -> int:
    """How many calls are admitted in a row."""
    for done in range(most):
        if not isinstance(await admit(fleet, *bids, **ask), Granted):
            return done
    return most


async def end(fleet: AnyFleet, grant: Granted, ok: bool = True, **fields: Any) -> Any:
    return await fleet.store.report(Report(grant.lease_id, grant.endpoint_id, ok, **fields))


async def health(fleet: AnyFleet, endpoint: str = A) -> Any:
    return (await fleet.store.state())[1][endpoint].health


# --- rate limits -------------------------------------------------------------------------------------------


async def test_a_minute_limit_holds_for_60_s_and_one_bucket(fleet: AnyFleet) -> None:
    fleet.advance(0.9)
    assert await burst(fleet, bid(requests_per_minute=3)) == 3
    answer = await refused(fleet, bid(requests_per_minute=3))
    assert answer.reasons == {A: "requests_per_minute"}
    assert answer.retry_at == START + 61
    fleet.advance(60.0)
    assert await burst(fleet, bid(requests_per_minute=3)) == 0
    fleet.advance(0.1)
    assert await burst(fleet, bid(requests_per_minute=3)) == 3


async def test_room_comes_back_as_it_was_taken(fleet: AnyFleet) -> None:
    for _ in range(3):
        await granted(fleet, bid(tokens_per_minute=30, input_tokens=6, output_tokens=4))
        fleet.advance(10)
    one = await refused(fleet, bid(tokens_per_minute=30, input_tokens=10))
    two = await refused(fleet, bid(tokens_per_minute=30, input_tokens=11))
    assert (one.retry_at, two.retry_at) == (START + 61, START + 71)


@pytest.mark.parametrize(
    ("limit", "room"),
    [
        ({"tokens_per_minute": 50}, 3),
        ({"input_tokens_per_minute": 50}, 5),
        ({"output_tokens_per_minute": 50}, 10),
        ({"requests_per_day": 4}, 4),
        ({"tokens_per_day": 100}, 6),
        ({"concurrency": 7}, 7),
        ({"tokens_per_minute": 50, "requests_per_minute": 2}, 2),
    ],
)
async def test_each_limit_counts_what_it_names(fleet: AnyFleet, limit: dict[str, int], room: int) -> None:
    assert await burst(fleet, bid(input_tokens=10, output_tokens=5, **limit)) == room


async def test_a_day_limit_holds_for_24_h(fleet: AnyFleet) -> None:
    assert await burst(fleet, bid(requests_per_day=2)) == 2
    answer = await refused(fleet, bid(requests_per_day=2))
    assert answer.retry_at is not None
    assert 86_400 <= answer.retry_at - START <= 86_400 + 900
    fleet.advance(86_400 - 1)
    assert await burst(fleet, bid(requests_per_day=2)) == 0
    fleet.advance(901)
    assert await burst(fleet, bid(requests_per_day=2)) == 2


async def test_the_estimate_is_corrected_in_the_second_of_its_admission(fleet: AnyFleet) -> None:
    limit = {"tokens_per_minute": 100}
    grant = await granted(fleet, bid(input_tokens=50, output_tokens=50, **limit))
    fleet.advance(30)
    await refused(fleet, bid(input_tokens=1, **limit))
    await end(fleet, grant, input_tokens=50, output_tokens=10)
    await granted(fleet, bid(input_tokens=40, **limit))
    assert (await refused(fleet, bid(input_tokens=60, **limit))).retry_at == START + 61
    fleet.advance(31)
    assert await burst(fleet, bid(input_tokens=60, **limit)) == 1


async def test_a_correction_after_the_window_changes_nothing(fleet: AnyFleet) -> None:
    limit = {"tokens_per_minute": 100}
    grant = await granted(fleet, bid(input_tokens=100, **limit))
    fleet.advance(61)
    await granted(fleet, bid(input_tokens=100, **limit))
    await end(fleet, grant, input_tokens=10)
    await refused(fleet, bid(input_tokens=1, **limit))


async def test_headroom_reserves_and_never_shuts_a_large_job_out(fleet: AnyFleet) -> None:
    assert await burst(fleet, bid(requests_per_minute=10), headroom=0.65) == 6
    assert await burst(fleet, bid(requests_per_minute=10), headroom=1.0) == 4
    large = bid(B, tokens_per_minute=100, input_tokens=90)
    assert await burst(fleet, large, headroom=0.65) == 1
    fleet.advance(61)
    assert await burst(fleet, large, headroom=0.65) == 1


async def test_a_job_larger_than_a_limit_waits_until_it_is_alone_and_not_for_ever(fleet: AnyFleet) -> None:
    larger = bid(tokens_per_minute=100, input_tokens=101)
    grant = await granted(fleet, larger)
    assert (await refused(fleet, larger)).retry_at == START + 61
    await end(fleet, grant, input_tokens=60, limits=(ObservedLimit("tokens_per_minute", 50, 0, 1.0),))
    fleet.advance(1)
    assert (await refused(fleet, bid(input_tokens=51))).retry_at == START + 61, "by the header's word"
    assert (await fleet.store.state())[1][A].load.ready_at == START + 61, "as routing sees"
    fleet.advance(60)
    await granted(fleet, bid(input_tokens=51))


async def test_a_large_job_finds_room_though_small_ones_come_all_the_time(fleet: AnyFleet) -> None:
    limit, positions = {"tokens_per_minute": 100}, count()

    async def a_minute() -> int:
        """Small jobs that would take four fifths of the limit: how many find room."""
        found = 0
        for _ in range(20):
            fleet.advance(3)
            small = await admit(fleet, bid(input_tokens=4, **limit), position=next(positions))
            found += isinstance(small, Granted)
        return found

    assert await a_minute() == 20
    large, position = bid(input_tokens=40, **limit), next(positions)
    await refused(fleet, large, position=position, keeps_room=True)
    assert 12 <= await a_minute() <= 16, "few wait for it, and not for long"
    await granted(fleet, large, position=position)


async def test_room_is_kept_for_the_first_alone_and_only_from_those_after_it(fleet: AnyFleet) -> None:
    large, small = (bid(tokens_per_minute=100, input_tokens=tokens) for tokens in (50, 10))
    await granted(fleet, bid(tokens_per_minute=100, input_tokens=60))
    await refused(fleet, large, position=7, keeps_room=True)
    await refused(fleet, large, position=5, keeps_room=True)
    await refused(fleet, large, position=6, keeps_room=True)
    await refused(fleet, small, position=5.5)
    await granted(fleet, small, position=4)
    await granted(fleet, small)
    assert (await fleet.store.state())[1][A].load.ready_at == 0, "as routing sees, who doesn't know whose turn it is"
    fleet.advance(61)
    await granted(fleet, large, position=5)
    assert await burst(fleet, small, position=8) == 5, "it waits no longer"


async def test_no_room_is_kept_for_one_that_does_not_wait_long_or_has_found_some_elsewhere(fleet: AnyFleet) -> None:
    large, small = (bid(tokens_per_minute=100, input_tokens=tokens) for tokens in (50, 10))
    await granted(fleet, bid(tokens_per_minute=100, input_tokens=60))
    await refused(fleet, large, position=1)
    await granted(fleet, large, bid(B), position=1, keeps_room=True)
    await granted(fleet, small, position=2)
    await refused(fleet, large, position=1, keeps_room=True)
    await refused(fleet, small, position=2)
    await granted(fleet, large, bid(B), position=1, keeps_room=True)
    await granted(fleet, small, position=2)


async def test_room_is_kept_in_all_limits_of_a_minute_that_the_account_has(fleet: AnyFleet) -> None:
    one, two = (replace(sharing(f"groq/{name}", Limits(), input_tokens_per_minute=9), input_tokens=6) for name in "ab")
    await granted(fleet, one)
    await refused(fleet, one, position=1, keeps_room=True)
    await refused(fleet, replace(two, input_tokens=3), position=2)


async def test_what_leaves_room_for_a_job_larger_than_the_limit_looks_again_when_the_window_is_empty(
    fleet: AnyFleet,
) -> None:
    larger, small = (bid(tokens_per_minute=100, input_tokens=tokens) for tokens in (101, 1))
    await granted(fleet, small)
    fleet.advance(10)
    await refused(fleet, larger, position=1, keeps_room=True)
    assert (await refused(fleet, small, position=2)).retry_at == START + 10 + 61
    fleet.advance(51)
    assert (await refused(fleet, small, position=2)).retry_at == START + 61 + 61
    await granted(fleet, larger, position=1)


async def test_no_room_is_kept_for_one_that_asks_no_more_nor_for_what_comes_much_later(fleet: AnyFleet) -> None:
    large, small = (bid(tokens_per_minute=100, input_tokens=tokens) for tokens in (50, 10))
    await granted(fleet, bid(tokens_per_minute=100, input_tokens=60))
    await fleet.store.mark("cooldown", [A], "quota", KEEP_FOR_S + 1)
    await refused(fleet, large, position=1, keeps_room=True)
    await fleet.store.mark("restored", [A])
    await granted(fleet, small, position=2)
    await refused(fleet, large, position=1, keeps_room=True)
    await refused(fleet, small, position=2)
    fleet.advance(KEEP_FOR_S)
    assert await burst(fleet, small, position=2) == 10


async def test_headroom_reserves_slots_where_there_is_more_than_one(fleet: AnyFleet) -> None:
    assert await burst(fleet, bid(A, concurrency=4), headroom=0.9) == 3
    assert await burst(fleet, bid(A, concurrency=4), headroom=1.0) == 1
    assert await burst(fleet, bid(B, concurrency=1), headroom=0.9) == 1


def sharing(endpoint: str, own: Limits, **fields: Any) -> Bid:
    return replace(bid(endpoint, **fields), limits=own, shared_limits=Limits(**fields))


async def test_a_batch_keeps_the_ceiling_that_was_set_for_it_and_no_other_account_does(fleet: AnyFleet) -> None:
    for account in ("batch:b", "tenant:t"):
        fleet.put_ceiling(account, 10)
    kept = (Ceiling("batch:b", None),)
    assert await burst(fleet, bid(cost_microusd=4), ceilings=(Ceiling("tenant:t", None),), most=5) == 5
    assert await burst(fleet, bid(cost_microusd=4), ceilings=kept) == 2
    assert (await refused(fleet, bid(cost_microusd=4), ceilings=kept)).reasons == {A: "ceiling batch:b"}
    await fleet.store.forget(["batch:b"])
    assert await burst(fleet, bid(cost_microusd=4), ceilings=kept, most=5) == 5


async def test_models_of_an_account_share_its_limits_and_keep_their_own(fleet: AnyFleet) -> None:
    one, two = (sharing(f"groq/{name}", Limits(requests_per_minute=6), requests_per_minute=10) for name in "ab")
    assert await burst(fleet, one) == 6
    assert await burst(fleet, two) == 4
    assert set((await refused(fleet, one, two)).reasons.values()) == {"requests_per_minute"}
    assert await burst(fleet, sharing("groq/a#2", Limits(), requests_per_minute=10)) == 10
    fleet.advance(61)
    assert await burst(fleet, two) == 6
    assert await burst(fleet, one) == 4


async def test_a_deployment_named_with_a_hash_is_of_its_providers_account(fleet: AnyFleet) -> None:
    name = "accounts/fireworks/models/llama#accounts/mine/deployments/d"
    first, second = (sharing(f"fireworks/{name}{key}", Limits(), requests_per_minute=2) for key in ("", "#2"))
    assert await burst(fleet, sharing("fireworks/llama", Limits(), requests_per_minute=2)) == 2
    await refused(fleet, first)
    assert await burst(fleet, second) == 2
    assert Endpoint("fireworks", name, name).account_id == "fireworks"


async def test_slots_of_an_account_are_free_again_after_a_report_or_when_the_lease_expires(fleet: AnyFleet) -> None:
    one, two = (sharing(f"groq/{name}", Limits(), concurrency=2) for name in "ab")
    grant = await granted(fleet, one)
    await granted(fleet, one, ttl_s=100)
    assert (await refused(fleet, two)).reasons == {"groq/b": "concurrency"}
    await end(fleet, grant)
    await granted(fleet, two)
    fleet.advance(31)
    await fleet.store.expire()
    assert await burst(fleet, one, two) == 1


async def test_tokens_really_used_are_corrected_for_the_account_too(fleet: AnyFleet) -> None:
    one, two = (replace(sharing(f"groq/{name}", Limits(), tokens_per_minute=100), input_tokens=90) for name in "ab")
    grant = await granted(fleet, one)
    await refused(fleet, two)
    await end(fleet, grant, input_tokens=10)
    await granted(fleet, two)


async def test_the_first_bid_with_room_is_taken(fleet: AnyFleet) -> None:
    bids = bid(A, requests_per_minute=1), bid(B, requests_per_minute=1)
    assert [(await granted(fleet, *bids)).endpoint_id for _ in range(2)] == [A, B]
    answer = await refused(fleet, *bids)
    assert set(answer.reasons) == {A, B}


async def test_a_repeated_admission_gets_the_same_answer_and_charges_once(fleet: AnyFleet) -> None:
    first = await granted(fleet, bid(requests_per_minute=2), lease="repeated")
    fleet.advance(1)
    assert await granted(fleet, bid(B), lease="repeated") == first
    assert await burst(fleet, bid(requests_per_minute=2)) == 1


# --- what headers say --------------------------------------------------------------------------------------


async def test_a_limit_from_headers_lowers_the_configured_one_and_never_raises_it(fleet: AnyFleet) -> None:
    grant = await granted(fleet, bid(requests_per_minute=10))
    await end(fleet, grant, limits=(ObservedLimit("requests_per_minute", limit=3),))
    assert await burst(fleet, bid(requests_per_minute=10)) == 2
    await end(fleet, await granted(fleet, bid(B)), limits=(ObservedLimit("requests_per_minute", limit=30),))
    assert await burst(fleet, bid(B, requests_per_minute=5)) == 4


async def test_a_limit_that_a_provider_told_holds_for_an_hour(fleet: AnyFleet) -> None:
    """Gemini tells it with refusals alone, so it can't say that it was raised."""
    await end(fleet, await granted(fleet, bid()), limits=(ObservedLimit("requests_per_minute", limit=3),))
    fleet.advance(3599)
    assert await burst(fleet, bid()) == 3
    fleet.advance(1)
    assert await burst(fleet, bid(), most=20) == 20


async def test_remaining_binds_until_its_reset_whatever_the_order_of_reports(fleet: AnyFleet) -> None:
    early, late = [await granted(fleet, bid(requests_per_minute=100)) for _ in range(2)]
    fleet.advance(1)
    await end(fleet, late, limits=(ObservedLimit("requests_per_minute", remaining=3, reset_s=9),))
    await end(fleet, early, limits=(ObservedLimit("requests_per_minute", remaining=50, reset_s=9),))
    assert await burst(fleet, bid(requests_per_minute=100)) == 3
    assert (await refused(fleet, bid(requests_per_minute=100))).retry_at == START + 9, "of its call's begin"
    fleet.advance(8)
    assert await burst(fleet, bid(requests_per_minute=100), most=20) == 20


async def test_what_remains_grows_as_the_limit_refills(fleet: AnyFleet) -> None:
    grant = await granted(fleet, bid())
    fleet.advance(3)
    header = ObservedLimit("requests_per_day", limit=14_400, remaining=0, reset_s=86_400)
    await end(fleet, grant, limits=(header,))
    for moment in (6, 12, 18):  # one each six seconds
        answer = await refused(fleet, bid())
        assert (answer.reasons, answer.retry_at) == ({A: "requests_per_day"}, START + moment)
        fleet.advance(START + moment - answer.at)
        assert await burst(fleet, bid()) == 1


async def test_tokens_that_have_refilled_are_there_for_small_calls_before_a_large_one_has_room(fleet: AnyFleet) -> None:
    header = ObservedLimit("tokens_per_minute", limit=6000, remaining=0, reset_s=60)
    await end(fleet, await granted(fleet, bid()), limits=(header,))
    fleet.advance(2)
    assert (await refused(fleet, bid(input_tokens=300))).retry_at == START + 3
    load = (await fleet.store.state())[1][A].load
    assert (load.ready_at, load.fits) == (START + 3, 200)
    await granted(fleet, bid(input_tokens=200))


async def test_what_remained_when_a_long_call_began_says_nothing_once_that_has_refilled(fleet: AnyFleet) -> None:
    grant = await granted(fleet, bid())
    fleet.advance(61)
    header = ObservedLimit("requests_per_minute", limit=50, remaining=0, reset_s=60)
    await end(fleet, grant, limits=(header,))
    assert await burst(fleet, bid()) == 50


@pytest.mark.parametrize(("kind", "most_s"), [("requests_per_minute", 600), ("requests_per_day", 86_400)])
async def test_remaining_is_not_believed_for_longer_than_such_a_limit_takes_to_refill(
    kind: str, most_s: int, fleet: AnyFleet
) -> None:
    await end(fleet, await granted(fleet, bid()), limits=(ObservedLimit(kind, remaining=0, reset_s=30 * 86_400),))
    assert (await refused(fleet, bid())).retry_at == START + most_s
    fleet.advance(most_s)
    await granted(fleet, bid())


async def test_what_is_restored_is_free_of_what_its_provider_has_said(fleet: AnyFleet) -> None:
    told = (
        ObservedLimit("requests_per_day", remaining=0, reset_s=80_000),
        ObservedLimit("requests_per_minute", limit=1),
    )
    await end(fleet, await granted(fleet, bid()), limits=told)
    await refused(fleet, bid())
    _, observed = await fleet.store.state()
    assert (observed[A].load.ready_at, observed[A].load.fits) == (START + 80_000, 0)
    await fleet.store.mark("restored", [A])
    _, observed = await fleet.store.state()
    assert observed[A].load.ready_at == 0, "or nobody would ask"
    assert await burst(fleet, bid(), most=5) == 5


@pytest.mark.parametrize("took", [10, 1000, 3000])
async def test_what_remains_is_as_much_whatever_the_call_took_that_told_of_it(took: int, fleet: AnyFleet) -> None:
    grant = await granted(fleet, bid(output_tokens=1000))
    told = ObservedLimit("output_tokens_per_minute", remaining=50, reset_s=9)
    await end(fleet, grant, output_tokens=took, limits=(told,))
    await refused(fleet, bid(output_tokens=51))
    await granted(fleet, bid(output_tokens=50))


async def test_a_limit_of_which_a_call_takes_nothing_does_not_stand_in_its_way(fleet: AnyFleet) -> None:
    await granted(fleet, bid(output_tokens_per_minute=10, output_tokens=11))
    await refused(fleet, bid(output_tokens_per_minute=10, output_tokens=1))
    await granted(fleet, bid(output_tokens_per_minute=10, input_tokens=1))


async def by_the_second(fleet: AnyFleet, one: Bid, seconds: int) -> list[int]:
    """How many calls are admitted in each of the next seconds."""
    found = []
    for _ in range(seconds):
        fleet.advance(1)
        found.append(await burst(fleet, one))
    return found


@pytest.mark.parametrize("told", [False, True])
async def test_after_a_cooldown_a_limit_is_taken_by_the_second_whoever_has_told_it(told: bool, fleet: AnyFleet) -> None:
    one = bid() if told else bid(requests_per_minute=600)
    limits = (ObservedLimit("requests_per_minute", 600),) if told else ()
    await end(fleet, await granted(fleet, one), ok=False, counts=False, limits=limits)
    for _ in range(3):  # squeezed once, however many calls ran into it
        await fleet.store.mark("cooldown", [A], "429", 2)
    assert (await refused(fleet, one)).retry_at == START + 2
    fleet.advance(2)
    assert await burst(fleet, one) == 7
    answer = await refused(fleet, one)
    assert (answer.reasons, answer.retry_at) == ({A: PACED}, START + 3)
    assert await by_the_second(fleet, one, 5) == [7] * 5, "it holds for a while"
    fleet.advance(0.3 / SQUEEZE_REGROWTH)
    assert await by_the_second(fleet, one, 20) == [10] * 20, "then it has grown back"
    fleet.advance(PACED_S)
    assert await burst(fleet, one, most=700) == 600, "and at last the provider is believed again"


async def test_a_pace_begins_anew_after_a_cooldown_whatever_was_called_before(fleet: AnyFleet) -> None:
    one = bid(requests_per_minute=600)
    assert await burst(fleet, one) == 100
    await fleet.store.mark("cooldown", [A], "429", 1)
    fleet.advance(2)
    assert await burst(fleet, one) == 7


async def test_a_pace_is_kept_to_the_fraction_and_leaves_the_minutes_limit_in_force(fleet: AnyFleet) -> None:
    one = bid(requests_per_minute=90)
    await fleet.store.mark("cooldown", [A], "429", 0.001)
    fleet.advance(29)
    assert await by_the_second(fleet, one, 6) == [2, 1, 2, 1, 2, 1]
    slow = bid(B, requests_per_minute=12)
    await fleet.store.mark("cooldown", [B], "429", 0.001)
    fleet.advance(30)
    assert await burst(fleet, slow) == 1
    assert (await refused(fleet, slow)).retry_at == START + 29 + 6 + 30 + 5
    fleet.advance(5)
    assert sum(await by_the_second(fleet, one, 60)) == 90
    fleet.advance(30)
    assert sum(await by_the_second(fleet, slow, 60)) == 12


async def test_a_paced_call_that_takes_many_seconds_of_a_limit_goes_in_its_turn(fleet: AnyFleet) -> None:
    limit = {"tokens_per_minute": 600}
    await fleet.store.mark("cooldown", [A], "429", 0.001)
    fleet.advance(29)
    grant = await granted(fleet, bid(input_tokens=150, **limit))
    assert (await refused(fleet, bid(input_tokens=1, **limit))).retry_at == START + 29 + 6, "nine idle seconds count"
    await end(fleet, grant, input_tokens=30)
    await granted(fleet, bid(input_tokens=100, **limit))


async def test_a_pace_of_tokens_loses_nothing_by_estimates_that_are_too_high(fleet: AnyFleet) -> None:
    limit, took = {"tokens_per_minute": 6000}, 0
    await fleet.store.mark("cooldown", [A], "429", 0.001)
    fleet.advance(29)
    for _ in range(60):
        grants = []
        while isinstance(admission := await admit(fleet, bid(input_tokens=80, **limit)), Granted):
            grants.append(admission)
        fleet.advance(1)
        for grant in grants:
            await end(fleet, grant, input_tokens=20)
        took += 20 * len(grants)
    assert took >= 0.9 * 6000


async def test_a_pace_keeps_the_reserve_of_more_urgent_jobs(fleet: AnyFleet) -> None:
    await fleet.store.mark("cooldown", [A], "429", 0.001)
    fleet.advance(29)
    assert await burst(fleet, bid(requests_per_minute=600), headroom=0.65) == 7
    assert await burst(fleet, bid(requests_per_minute=600)) == 3


async def test_models_of_an_account_keep_its_pace_together(fleet: AnyFleet) -> None:
    one, two = (sharing(f"groq/{name}", Limits(), requests_per_minute=600) for name in "ab")
    await fleet.store.mark("cooldown", [one.endpoint_id, two.endpoint_id], "429", 0.001)
    fleet.advance(29)
    assert await burst(fleet, one) == 10
    assert await burst(fleet, two) == 0


async def test_a_refusal_of_a_call_begun_before_the_last_cooldown_squeezes_no_further(fleet: AnyFleet) -> None:
    one = bid(requests_per_minute=600)
    await fleet.store.mark("cooldown", [A], "429", 0.05, START)
    fleet.advance(1)
    await fleet.store.mark("cooldown", [A], "429", 0.05, START)
    fleet.advance(1)
    assert await burst(fleet, one) == 7
    fleet.advance(1)
    await fleet.store.mark("cooldown", [A], "429", 0.05, START + 3)
    assert await by_the_second(fleet, one, 4) == [5, 5, 5, 5], "0.49 of ten"


async def test_where_no_limit_is_known_no_more_calls_are_in_flight_than_when_others_were_refused(
    fleet: AnyFleet,
) -> None:
    calls = [await granted(fleet, bid()) for _ in range(10)]
    for refusal in calls[4:]:
        await end(fleet, refusal, ok=False, counts=False)
        await fleet.store.mark("cooldown", [A], "429", 0.043, START)
    fleet.advance(0.043)
    assert (await refused(fleet, bid())).reasons == {A: "concurrency"}
    await end(fleet, calls[0])
    assert await burst(fleet, bid()) == 1
    fleet.advance(5)
    assert await burst(fleet, bid()) == 9, "of four, one more and a fifth each second"
    fleet.advance(PACED_S)
    assert await burst(fleet, bid(), most=50) == 50


async def test_a_model_that_was_refused_takes_no_calls_in_flight_from_others_of_its_account(fleet: AnyFleet) -> None:
    one, two = (sharing(f"groq/{name}", Limits(), concurrency=100) for name in "ab")
    assert await burst(fleet, one, most=50) == 50
    await fleet.store.mark("cooldown", [two.endpoint_id], "429", 0.043)
    fleet.advance(0.043)
    assert await burst(fleet, two) == 1
    fleet.advance(1)
    assert await burst(fleet, two) == 1


async def test_a_probe_that_was_told_to_wait_leaves_the_ramp_as_it_is(fleet: AnyFleet) -> None:
    await fleet.store.eject(A, 1, "503")
    fleet.advance(1)
    await end(fleet, await granted(fleet, bid()), ok=False)
    await fleet.store.mark("cooldown", [A], "503", 1)
    await fleet.store.eject(A, 1, "503")
    fleet.advance(1)
    await end(fleet, await granted(fleet, bid()))
    await fleet.store.recover(A)
    fleet.advance(4)
    assert await burst(fleet, bid()) >= 16


async def test_a_quota_that_ends_is_tried_by_one_call_at_a_time(fleet: AnyFleet) -> None:
    await end(fleet, await granted(fleet, bid()), ok=False, counts=False)
    await fleet.store.mark("cooldown", [A], "the day's quota", 3600)
    fleet.advance(3600)
    assert await burst(fleet, bid()) == 1


async def test_a_shorter_cooldown_never_ends_a_longer_one(fleet: AnyFleet) -> None:
    await fleet.store.mark("cooldown", [A, B], "quota", 20)
    await fleet.store.mark("cooldown", [A], "429", 1)
    answer = await refused(fleet, bid(A), bid(B))
    assert answer.retry_at == START + 20
    assert answer.reasons == {A: "cooldown", B: "cooldown"}


# --- money -------------------------------------------------------------------------------------------------


async def test_money_is_reserved_then_spent(fleet: AnyFleet) -> None:
    accounts = Ceiling("tenant:x", 100), Ceiling("batch:y", None)
    grant = await granted(fleet, bid(cost_microusd=60, ceilings=(Ceiling("provider:groq", None),)), ceilings=accounts)
    names = ["tenant:x", "batch:y", "provider:groq"]
    assert await fleet.accounts(*names) == dict.fromkeys(names, Account(reserved=60))
    answer = await refused(fleet, bid(cost_microusd=41), ceilings=accounts)
    assert (answer.reasons, answer.over_ceiling) == ({A: "ceiling tenant:x"}, {})
    assert answer.retry_at == START + ASK_AGAIN_S
    await end(fleet, grant, cost_microusd=35, unsure_microusd=5)
    assert await fleet.accounts(*names) == dict.fromkeys(names, Account(spent=35, unsure=5))
    await granted(fleet, bid(cost_microusd=60), ceilings=accounts)


async def test_a_ceiling_that_only_an_operator_can_raise_names_no_time(fleet: AnyFleet) -> None:
    answer = await refused(fleet, bid(cost_microusd=101), ceilings=(Ceiling("job:1", 100),))
    assert (answer.over_ceiling, answer.retry_at) == ({A: "job:1"}, None)
    answer = await refused(fleet, bid(cost_microusd=None), ceilings=(Ceiling("job:1", 100),))
    assert answer.over_ceiling == {A: "job:1"}, "of an unknown price nobody knows whether that is enough"
    dear, free = bid(A, cost_microusd=101), bid(B)
    assert (await granted(fleet, dear, free, ceilings=(Ceiling("job:1", 100),))).endpoint_id == B


async def test_a_lease_that_expires_leaves_its_money_unsure_and_a_late_report_moves_it(fleet: AnyFleet) -> None:
    grant = await granted(fleet, bid(cost_microusd=10, concurrency=1), ceilings=(Ceiling("t", 100),), ttl_s=3)
    fleet.advance(2.999)
    assert await fleet.store.expire() == 0
    fleet.advance(0.001)
    assert [await fleet.store.expire(), await fleet.store.expire()] == [1, 0]
    assert await fleet.accounts("t") == {"t": Account(unsure=10)}
    assert isinstance(await admit(fleet, bid(), lease=grant.lease_id), Fenced)
    await granted(fleet, bid(concurrency=1))
    for _ in range(2):  # a report that is sent twice counts once
        await end(fleet, grant, cost_microusd=7)
        assert await fleet.accounts("t") == {"t": Account(spent=7)}


async def test_a_renewed_lease_lives_on_and_an_expired_one_stays_dead(fleet: AnyFleet) -> None:
    accounts = [Ceiling("kept", None), Ceiling("lost", None)]
    kept, lost = [await granted(fleet, bid(cost_microusd=1), ceilings=(name,), ttl_s=3) for name in accounts]
    fleet.advance(2)
    await fleet.store.renew([kept.lease_id, "job:unknown"], 3)
    fleet.advance(1)
    await fleet.store.renew([lost.lease_id], 3)
    assert await fleet.store.expire() == 1
    money = await fleet.accounts("kept", "lost")
    assert money == {"kept": Account(reserved=1), "lost": Account(unsure=1)}


# --- the fence ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "state", "allowed"),
    [(3, "leased", True), (3, "calling", True), (2, "leased", False), (4, "leased", False), (3, "queued", False)],
)
async def test_only_the_holder_of_the_job_makes_a_call(fleet: AnyFleet, token: int, state: str, allowed: bool) -> None:
    fleet.put_job("1", 3, state)
    answer = await admit(fleet, bid(requests_per_minute=1), fence=Fence("1", token))
    assert isinstance(answer, Granted if allowed else Fenced)
    assert fleet.job("1") == ("calling" if allowed else state)
    assert fleet.routed("1") == ([answer.endpoint_id] if isinstance(answer, Granted) else [])


async def test_a_refused_job_is_not_calling(fleet: AnyFleet) -> None:
    fleet.put_job("1", 3, "leased")
    await refused(fleet, bid(concurrency=0), fence=Fence("1", 3))
    assert fleet.job("1") == "leased"


async def test_no_call_of_a_paused_batch_begins_and_its_ceiling_is_no_reason(fleet: AnyFleet) -> None:
    fleet.put_job("1", 3, "leased")
    fleet.put_ceiling("batch:b", 0)
    fleet.pause("b", True)
    dear, fence = bid(cost_microusd=1), Fence("1", 3, "b")
    answer = await refused(fleet, dear, ceilings=(Ceiling("batch:b", None),), fence=fence)
    assert (answer.retry_at, answer.over_ceiling, answer.reasons) == (None, {}, {A: "the batch is paused"})
    await granted(fleet, dear, fence=Fence("1", 3, "another"))
    fleet.pause("b", False)
    await granted(fleet, dear, fence=fence)


async def test_a_duplicate_is_booked_and_forgotten_accounts_are_empty(fleet: AnyFleet) -> None:
    await granted(fleet, bid(), ceilings=(Ceiling("t", None), Ceiling("u", None)))
    await fleet.store.mark_duplicate(["t", "u"], 9)
    await fleet.store.forget(["u"])
    assert await fleet.accounts("t", "u") == {"t": Account(duplicate=9), "u": Account()}


@pytest.mark.parametrize("lapses", [False, True])
async def test_no_call_brings_an_account_back_that_was_forgotten(lapses: bool, fleet: AnyFleet) -> None:
    accounts = (Ceiling("job:1", 10), Ceiling("total", None))
    grant = await granted(fleet, bid(cost_microusd=10), ceilings=accounts, ttl_s=3)
    await fleet.store.forget(["job:1"])
    if lapses:
        fleet.advance(3)
        await fleet.store.expire()
    await end(fleet, grant, cost_microusd=4, unsure_microusd=6)
    await fleet.store.mark_duplicate(["job:1", "total"], 4)
    told = await fleet.accounts("job:1", "total")
    assert told == {"job:1": Account(), "total": Account(spent=4, unsure=6, duplicate=4)}
    await granted(fleet, bid(cost_microusd=10), ceilings=accounts)


# --- health ------------------------------------------------------------------------------------------------


async def test_an_ejection_ends_by_exactly_one_probe_and_a_ramp(fleet: AnyFleet) -> None:
    limits = {"concurrency": 100}
    assert await fleet.store.eject(A, 5, "4 failures in a row")
    assert not await fleet.store.eject(A, 1, "again")
    assert ((await health(fleet)).ejections, (await health(fleet)).open_until) == (1, START + 5)
    answer = await refused(fleet, bid(**limits))
    assert (answer.retry_at, answer.reasons) == (START + 5, {A: "open"})
    fleet.advance(5)
    probe = await granted(fleet, bid(**limits))
    assert probe.probe
    assert await burst(fleet, bid(**limits)) == 0
    assert (await health(fleet)).probing
    counters = await end(fleet, probe)
    assert counters.probe
    assert (await refused(fleet, bid(**limits))).reasons == {A: "probing"}, "its verdict has yet to come"
    await fleet.store.recover(A)
    assert (await health(fleet)).recovered_at == START + 5
    assert await burst(fleet, bid(**limits)) == CONSECUTIVE_FAILURES
    fleet.advance(RAMP_S / 2)
    assert await burst(fleet, bid(**limits)) == 16 - CONSECUTIVE_FAILURES
    fleet.advance(RAMP_S / 2)
    assert await burst(fleet, bid(**limits)) == 100 - 16


async def recovered(fleet: AnyFleet, **limits: Any) -> None:
    await fleet.store.eject(A, 1, "")
    fleet.advance(1)
    await end(fleet, await granted(fleet, bid(**limits)))
    await fleet.store.recover(A)


@pytest.mark.parametrize("limits", [{}, {"concurrency": 20}, {"requests_per_minute": 600}])
async def test_while_nothing_is_answered_calls_double_each_second_of_a_ramp(
    fleet: AnyFleet, limits: dict[str, int]
) -> None:
    await recovered(fleet, **limits)
    assert await burst(fleet, bid(**limits)) == CONSECUTIVE_FAILURES
    fleet.advance(3)
    assert await burst(fleet, bid(**limits)) == 8 - CONSECUTIVE_FAILURES


@pytest.mark.parametrize("limits", [{}, {"concurrency": 20}, {"requests_per_minute": 600}])
async def test_each_call_that_is_answered_makes_room_for_two_in_a_ramp(fleet: AnyFleet, limits: dict[str, int]) -> None:
    await recovered(fleet, **limits)
    calls = [await granted(fleet, bid(**limits)) for _ in range(CONSECUTIVE_FAILURES)]
    for ok in (True, True, False):
        await refused(fleet, bid(**limits))
        await end(fleet, calls.pop(0), ok)
        calls += [await granted(fleet, bid(**limits)) for _ in range(2 if ok else 1)]
    await refused(fleet, bid(**limits))
    assert (await health(fleet)).proven == 2


@pytest.mark.parametrize(("limit", "rates"), [(600, [12, 12, 12, 12]), (75, [2, 1, 2, 1]), (30, [1, 0, 1, 0])])
async def test_however_fast_it_answers_a_ramp_stays_below_the_limit_and_a_fifth(
    fleet: AnyFleet, limit: int, rates: list[int]
) -> None:
    await recovered(fleet, requests_per_minute=limit)
    for rate in rates:
        fleet.advance(1)
        for _ in range(rate):
            await end(fleet, await granted(fleet, bid(requests_per_minute=limit)))
        assert (await refused(fleet, bid(requests_per_minute=limit))).reasons == {A: PACED}


async def test_a_ramp_keeps_the_reserve_of_more_urgent_jobs(fleet: AnyFleet) -> None:
    await recovered(fleet, requests_per_minute=600)
    fleet.advance(3)
    assert await burst(fleet, bid(requests_per_minute=600), headroom=0.65) == 5
    assert await burst(fleet, bid(requests_per_minute=600)) == 3


async def test_a_failed_probe_counts_another_ejection_and_a_dead_one_frees_its_place(fleet: AnyFleet) -> None:
    await fleet.store.eject(A, 1, "")
    fleet.advance(1)
    await end(fleet, await granted(fleet, bid()), ok=False)
    await fleet.store.eject(A, 1, "")
    assert (await health(fleet)).ejections == 2
    fleet.advance(1)
    dead = await granted(fleet, bid(), ttl_s=4)
    await fleet.store.renew([dead.lease_id], 5)
    fleet.advance(4)
    assert await burst(fleet, bid()) == 0
    fleet.advance(1)
    assert (await granted(fleet, bid())).probe
    assert not (await end(fleet, dead)).probe


async def test_a_probe_of_which_no_verdict_comes_keeps_others_out_for_a_moment(fleet: AnyFleet) -> None:
    await fleet.store.eject(A, 1, "refused")
    fleet.advance(1)
    await end(fleet, await granted(fleet, bid()))
    assert (await refused(fleet, bid())).reasons == {A: "probing"}
    fleet.advance(2)
    assert (await granted(fleet, bid())).probe


async def test_an_endpoint_that_comes_back_has_no_more_calls_in_flight_than_its_limit(fleet: AnyFleet) -> None:
    await fleet.store.eject(A, 1, "refused")
    fleet.advance(1)
    await end(fleet, await granted(fleet, bid(concurrency=2)))
    await fleet.store.recover(A)
    assert await burst(fleet, bid(concurrency=2)) == 2


async def test_a_probes_answer_ends_no_ejection_that_came_meanwhile(fleet: AnyFleet) -> None:
    await fleet.store.eject(A, 1, "refused")
    fleet.advance(1)
    probe = await granted(fleet, bid())
    await fleet.store.eject(A, 5, "hangs")
    await end(fleet, probe)
    await fleet.store.recover(A)
    assert (await refused(fleet, bid())).reasons == {A: "open"}


async def test_a_call_is_in_flight_from_its_admission_to_its_end(fleet: AnyFleet) -> None:
    grant = await granted(fleet, bid())
    load = (await fleet.store.state())[1][A].load
    assert (load.in_flight, load.oldest_started_at) == (1, START)
    await end(fleet, grant)
    assert (await fleet.store.state())[1][A].load.in_flight == 0
    await granted(fleet, bid(), ttl_s=3)
    fleet.advance(3)
    await fleet.store.expire()
    assert (await fleet.store.state())[1][A].load.in_flight == 0, "or until its lease is over"


async def test_a_call_that_failed_says_nothing_of_latency_or_caches(fleet: AnyFleet) -> None:
    used = {"input_tokens": 10, "cached_share": 1.0, "output_tokens": 3}
    await end(fleet, await granted(fleet, bid()), ok=False, latency_s=9.0, **used)
    metrics = (await fleet.store.state())[1][A].metrics
    assert (metrics.latency_samples, metrics.cached_share, metrics.failures) == (0, 0.0, 1)


async def test_ejections_are_forgotten_after_a_healthy_minute(fleet: AnyFleet) -> None:
    await fleet.store.eject(A, 1, "")
    fleet.advance(1)
    await fleet.store.recover(A)
    fleet.advance(59)
    await fleet.store.eject(A, 1, "")
    assert (await health(fleet)).ejections == 2
    fleet.advance(1)
    await fleet.store.recover(A)
    fleet.advance(60)
    await fleet.store.eject(A, 1, "")
    assert (await health(fleet)).ejections == 1


async def test_only_calls_begun_since_the_last_ejection_count(fleet: AnyFleet) -> None:
    old = [await granted(fleet, bid()) for _ in range(5)]
    await fleet.store.eject(A, 2, "")
    fleet.advance(2)
    await end(fleet, await granted(fleet, bid()))
    await fleet.store.recover(A)
    for grant in old:
        assert (await end(fleet, grant, ok=False)).consecutive_failures == 0
    assert (await end(fleet, await granted(fleet, bid()), ok=False)).consecutive_failures == 1


async def test_outcomes_are_counted_unless_they_say_nothing(fleet: AnyFleet) -> None:
    grants = [await granted(fleet, bid()) for _ in range(4)]
    for grant, row in zip(grants[:2], (1, 2), strict=True):
        assert (await end(fleet, grant, ok=False)).consecutive_failures == row
    unheard = await end(fleet, grants[2], ok=False, counts=False)
    assert (unheard.consecutive_failures, unheard.error_weight) == (2, 2)
    fine = await end(fleet, grants[3])
    assert (fine.consecutive_failures, fine.error_weight, round(fine.error_rate, 3)) == (0, 3, 0.667)
    fleet.advance(20)
    metrics = (await fleet.store.state())[1][A].metrics
    assert (round(metrics.error_weight, 2), metrics.calls, metrics.failures) == (1.10, 4, 3)


@pytest.mark.parametrize(
    ("ends", "row"),
    [
        ("2- 3- 4- 5-", 4),
        ("2- 3- 1+ 4- 0+ 5-", 4),  # what was begun before says nothing on what came since
        ("3- 4- 2- 5-", 4),
        ("4- 2- 5- 3-", 3),  # 2, apart from the row when it ended, is forgotten
        ("2- 4-", 1),  # 3 may still be answered
        ("2- 3+ 4-", 1),
        ("4+ 2- 3-", 0),
        ("2- 3- 4+", 0),
        ("5- 4+ 3-", 1),
    ],
)
async def test_a_row_of_failures_is_told_as_the_calls_began_too(fleet: AnyFleet, ends: str, row: int) -> None:
    grants = [await granted(fleet, bid()) for _ in range(6)]
    for number, how in ends.split():  # as begun, and whether it is answered
        told = await end(fleet, grants[int(number)], ok=how == "+")
    assert told.failures_as_begun == row


async def test_a_restored_endpoint_has_no_row_of_failures(fleet: AnyFleet) -> None:
    for row in (1, 2):
        assert (await end(fleet, await granted(fleet, bid()), ok=False)).failures_as_begun == row
    await fleet.store.mark("restored", [A])
    assert (await end(fleet, await granted(fleet, bid()), ok=False)).failures_as_begun == 1


async def test_disabled_and_isolated_endpoints_wait_for_an_operator(fleet: AnyFleet) -> None:
    await fleet.store.mark("disabled", [A], "the key is not accepted")
    await fleet.store.mark("isolated", [B], "maintenance")
    answer = await refused(fleet, bid(A), bid(B))
    assert answer.retry_at is None
    assert answer.reasons == {A: "disabled", B: "isolated"}
    assert (await health(fleet)).disabled == "the key is not accepted"
    await fleet.store.mark("restored", [A, B])
    assert not (await granted(fleet, bid(A))).probe
    assert not (await granted(fleet, bid(B))).probe


async def test_each_state_keeps_its_own_reason(fleet: AnyFleet) -> None:
    """Of several the one that lasts longest is told."""
    store = fleet.store
    await store.mark("cooldown", [A], "quota", 20)
    await store.mark("cooldown", [A], "429", 5)
    await store.eject(A, 2, "4 failures")
    assert (await health(fleet)).why == "quota"
    await store.eject(A, 30, "2 calls hang")
    assert (await health(fleet)).why == "2 calls hang"
    await store.mark("disabled", [A], "the key is not accepted")
    assert (await health(fleet)).why == "the key is not accepted"
    await store.mark("isolated", [A], "maintenance")
    await store.mark("disabled", [A], "no credit")
    await store.eject(A, 60, "3 failures")
    known = await health(fleet)
    assert (known.why, known.isolated, known.disabled) == ("maintenance", "maintenance", "no credit")
    assert (known.ejection_reason, known.cooldown_reason) == ("3 failures", "quota")
    await store.mark("restored", [A])
    assert (await health(fleet)).why == ""


async def test_what_failed_a_day_ago_counts_no_more(fleet: AnyFleet) -> None:
    await end(fleet, await granted(fleet, bid()), ok=False)
    fleet.advance(86_400)
    late = await end(fleet, Granted("job:unknown", A, START), ok=False)
    assert (late.error_rate, late.error_weight) == (0, 0)


@pytest.mark.parametrize(("step_s", "room"), [(3.0, 5), (3600.0, 5), (90_000.0, 10)])
async def test_a_clock_that_steps_back_stops_nobody(step_s: float, room: int, fleet: AnyFleet) -> None:
    """Redis has moved to another machine, say."""
    limits = {"requests_per_minute": 10, "tokens_per_minute": 100, "requests_per_day": 15}
    for ok in (False, False, True):
        await end(fleet, await granted(fleet, bid(**limits)), ok=ok, latency_s=1.0)
    assert await burst(fleet, bid(**limits)) == 7
    fleet.advance(-step_s)
    load, metrics = (await fleet.store.state())[1][A].load, (await fleet.store.state())[1][A].metrics
    assert (load.free, round(metrics.error_rate, 3), metrics.error_weight) == (0, 0.667, 3)
    told = await end(fleet, await granted(fleet, bid(B)), ok=False)
    assert told.error_weight == 1
    assert (await end(fleet, await granted(fleet, bid(B)), ok=False)).error_weight == 2
    fleet.advance(64)
    assert await burst(fleet, bid(**limits)) == room


# --- what all workers see ----------------------------------------------------------------------------------


async def test_state_shows_load_latency_and_spend(fleet: AnyFleet) -> None:
    grants = [await granted(fleet, bid(concurrency=4, cost_microusd=9)) for _ in range(3)]
    fleet.advance(2)
    await end(
        fleet,
        grants[0],
        output_tokens=10,
        input_tokens=7,
        cached_share=0.7,
        cost_microusd=5,
        latency_s=2.1,
        ttft_s=0.1,
        predicted_s=2.1,
    )
    at, states = await fleet.store.state()
    load, metrics = states[A].load, states[A].metrics
    assert at == START + 2
    assert (load.in_flight, load.oldest_started_at, load.free) == (2, START, 0.5)
    assert (metrics.ttft_s, metrics.s_per_token, metrics.latency_samples) == (0.1, 0.2, 1)
    assert metrics.spent_microusd == 5
    assert metrics.cached_share == pytest.approx(0.7 * CACHED_STEP)
    assert metrics.sigma < 0.5


@pytest.mark.parametrize("model", ["a|b", "llama|reason-7b", "llama"])
async def test_state_shows_an_endpoint_whatever_its_model_is_called(model: str, fleet: AnyFleet) -> None:
    await granted(fleet, bid("groq/llama"))
    await end(fleet, await granted(fleet, bid(f"groq/{model}")), latency_s=1)
    await fleet.store.eject(f"groq/{model}", 2, "hangs")
    states = (await fleet.store.state())[1]
    assert (states.keys(), states[f"groq/{model}"].metrics.latency_samples) == ({"groq/llama", f"groq/{model}"}, 1)
    assert states[f"groq/{model}"].health.ejection_reason == "hangs"


@pytest.mark.parametrize("model", ["llama", "llama|7b"])
async def test_how_long_answers_took_is_counted_for_people(model: str, redis_url: str) -> None:
    fleet = RedisFleet(redis_url)
    for latency_s in (2.1, 2.2, None):
        grant = await granted(fleet, bid(f"groq/{model}"))
        await end(fleet, grant, ok=latency_s is not None, latency_s=latency_s)
    seen = await fleet.latencies()
    assert {endpoint: observed_quantile(counts, 0.5) for endpoint, counts in seen.items()} == {f"groq/{model}": 2.56}
    await fleet.close()


async def test_slow_samples_weigh_more_and_two_fast_ones_bring_relief(fleet: AnyFleet) -> None:
    async def seen(latency_s: float) -> float:
        await end(fleet, await granted(fleet, bid()), latency_s=latency_s)
        return round((await fleet.store.state())[1][A].metrics.ttft_s or 0, 3)

    assert [await seen(s) for s in (1, 2, 1, 0.1, 0.1)] == [1, 1.15, 1.138, 1.055, 0.577]


async def test_what_hangs_adds_up_over_workers_and_lapses(fleet: AnyFleet) -> None:
    async def overdue() -> int:
        return (await fleet.store.overdue())[A]

    await granted(fleet, bid())
    await fleet.store.publish("one", {A: 4, B: 1})
    fleet.advance(2)
    await fleet.store.publish("two", {A: 1})
    assert await overdue() == 5
    fleet.advance(1)
    assert await overdue() == 1
    await fleet.store.publish("two", {})
    assert await overdue() == 0


async def test_what_one_does_for_all_falls_to_nobody_else_for_a_while(fleet: AnyFleet) -> None:
    assert await fleet.store.claim_work("health:groq", 30.0)
    assert not await fleet.store.claim_work("health:groq", 30.0)
    assert await fleet.store.claim_work("health:openai", 30.0)


async def test_a_read_of_the_state_is_no_longer_however_many_workers_tell_of_calls_that_hang(redis_url: str) -> None:
    fleet = RedisFleet(redis_url)
    await granted(fleet, bid())

    async def bytes_read() -> int:
        with redis.Redis.from_url(redis_url) as client:
            before = client.info("stats")["total_net_output_bytes"]
            await fleet.store.state()
            return int(client.info("stats")["total_net_output_bytes"]) - int(before)

    await fleet.store.state()
    alone = await bytes_read()
    for number in range(100):
        await fleet.store.publish(f"worker-{number}", {A: 1})
    assert abs(await bytes_read() - alone) < 100
    await fleet.close()


async def test_ready_at_tells_when_a_full_endpoint_has_room(fleet: AnyFleet) -> None:
    assert await burst(fleet, bid(requests_per_minute=2), headroom=0.5) == 1
    assert (await fleet.store.state())[1][A].load.ready_at == 0, "full for that lane only"
    assert await burst(fleet, bid(requests_per_minute=2)) == 1
    load = (await fleet.store.state())[1][A].load
    assert (load.ready_at, load.full) == (START + 61, "requests_per_minute")
    fleet.advance(60)
    assert (await fleet.store.state())[1][A].load.free == 0, "whatever time has passed"
    fleet.advance(1)
    load = (await fleet.store.state())[1][A].load
    assert (load.ready_at, load.full, load.free) == (0, "", 1)


async def test_of_several_full_limits_the_one_that_stays_so_longest_is_named(fleet: AnyFleet) -> None:
    one = sharing(A, Limits(requests_per_minute=1), requests_per_day=1)
    await granted(fleet, one)
    await refused(fleet, one)
    assert (await fleet.store.state())[1][A].load.full == "requests_per_day"


@pytest.mark.parametrize(
    ("limits", "told", "fits"),
    [
        ({"tokens_per_minute": 100}, (), 40),
        ({"output_tokens_per_minute": 50}, (), 20),
        ({"tokens_per_minute": 100, "requests_per_minute": 1}, (), 0),
        ({"tokens_per_minute": 90, "tokens_per_day": 80}, (), 20),
        ({"tokens_per_minute": 100}, (ObservedLimit("tokens_per_minute", 100, 15, 9),), 15),
        ({}, (ObservedLimit("tokens_per_minute", 70, None, None),), 10),
        ({}, (ObservedLimit("requests_per_minute", None, 0, 9), ObservedLimit("tokens_per_minute", None, 15, 9)), 0),
    ],
)
async def test_what_a_large_job_has_to_wait_for_holds_up_no_small_one(
    limits: dict[str, int], told: tuple[ObservedLimit, ...], fits: int, fleet: AnyFleet
) -> None:
    grant = await granted(fleet, bid(**limits, input_tokens=30, output_tokens=30))
    await end(fleet, grant, input_tokens=30, output_tokens=30, limits=told)
    await refused(fleet, bid(**limits, input_tokens=30, output_tokens=30))
    load = (await fleet.store.state())[1][A].load
    assert load.ready_at > START
    assert load.fits == fits
    if fits:
        await granted(fleet, bid(**limits, output_tokens=fits))
        assert (await fleet.store.state())[1][A].load.ready_at == 0
