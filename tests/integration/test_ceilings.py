"""Cost ceilings end to end: a job's and a batch's end what would pass them, a day's lets it wait."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from tests.chaos.fleet import one_provider
from tests.chaos.stand import standing
from tests.integration.test_cancellation import JOB, Bench, HastyLoop, Line, Scenario, Simulated

from turnout.ledger import Keys, Ledger, NewJob, run
from turnout.request import InferenceRequest, RoutingConstraints
from turnout_workers.config import Settings
from turnout_workers.config.tables import Config
from turnout_workers.routing.decision_log import excluded
from turnout_workers.routing.fleet import Endpoint, Fleet, Price
from turnout_workers.state.store import Mark

FLEET = one_provider("sim-one", ttft_s=0.2)
ASKED = InferenceRequest(prompt="How much?", max_output_tokens=100)


def test_a_job_that_can_not_be_paid_for_is_refused_and_one_above_a_days_ceiling_waits(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        stand.config.write_text(stand.config.read_text() + "\n[ceilings.total]\nper_day_usd = 0.0001\n")
        poor = ASKED.model_copy(update={"constraints": RoutingConstraints(max_cost_usd=0.00001)})
        jobs = [NewJob.of("poor", poor), NewJob.of("waits", ASKED)]
        run(stand.client, [stand.ledger.enqueue(job) for job in jobs])
        stand.start_worker()
        stand.until(lambda: stand.outcomes(["poor", "waits"]) == {"failed": 1, "delayed": 1})
        (story,) = run(stand.client, [stand.ledger.story("waits")])
        ((reason, why, *_),) = excluded(story[-1]["decision"])
        assert (reason, why.partition("@")[0]) == ("ceiling", "a call may cost more than the ceiling of total")
        assert stand.oracle()["billed_microusd"] == 0


Called = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def called(redis_url: str, flushed: redis.Redis, tmp_path: Path) -> Called:
    """What became of a batch's job in its first attempt, and whom it called. batch_microusd: the ceiling of its batch.

    mark: of an endpoint's state, that is set before. file: of the configuration.
    """

    async def do(
        endpoints: Sequence[Endpoint], batch_microusd: int | None, mark: tuple[Mark, str] | None = None, **file: Any
    ) -> tuple[str, list[str]]:
        line = Line(redis_url)
        async with line.client:
            bench = Bench(flushed, line, tmp_path, Scenario())
            providers = {endpoint.id: Simulated(()) for endpoint in endpoints}
            bench.poller.use(Fleet(endpoints))
            bench.current.connectors = dict(providers)
            bench.current.settings = Settings(Config(**file), {}, {}, "1", "the test")
            job = NewJob.of(JOB, InferenceRequest(prompt="?", constraints=RoutingConstraints(lane="batch")), batch="b")
            run(flushed, [bench.ledger.enqueue(job)])
            if batch_microusd is not None:
                run(flushed, [bench.ledger.set_ceiling("b", batch_microusd)])
            if mark is not None:
                await bench.store.mark(mark[0], [mark[1]], "by the test", 60)
            await bench.attempt(bench.worker, lambda attempt: attempt)
            return bench.state(), [id for id, provider in providers.items() if provider.calls]

    def at_last(*asked: Any, **more: Any) -> tuple[str, list[str]]:
        with asyncio.Runner(loop_factory=HastyLoop) as runner:
            return runner.run(do(*asked, **more))

    return at_last


def at(provider: str, usd_per_mtok: float, longest: int = 1000, priority: int = 1) -> Endpoint:
    price = Price(usd_per_mtok, usd_per_mtok)
    return Endpoint(provider, "m", "m", price=price, max_output_tokens=longest, priority=priority, simulated=True)


def test_where_a_providers_ceiling_is_reached_a_dearer_one_is_called_at_once(called: Called) -> None:
    ceilings = {"providers": {"cheap": {"per_day_usd": 0.0001}}}
    fleet = (at("cheap", 1.0), at("dear", 10.0))
    told = called(fleet, 1_000_000, ceilings=ceilings)
    assert told == ("succeeded", ["dear/m"])


def test_a_batch_goes_on_while_any_endpoint_fits_under_its_ceiling(called: Called) -> None:
    long, short = at("long", 1.0, longest=64_000), at("short", 2.0)
    assert called([long, short], 100_000) == ("succeeded", ["long/m"])
    assert called([long, short], 3000) == ("succeeded", ["short/m"])
    assert called([long, short], 1000) == ("expired", [])


def test_however_many_endpoints_are_above_a_ceiling_one_that_is_not_is_found(called: Called) -> None:
    fleet = [*(at(f"p{n}", 50.0, priority=n) for n in range(1, 9)), at("cheap", 1.0, priority=9)]
    router = {"default_strategy": "priority"}
    assert called(fleet, 3000, router=router) == ("succeeded", ["cheap/m"])


@pytest.mark.parametrize(
    ("mark", "becomes"), [("isolated", "expired"), ("disabled", "expired"), ("cooldown", "delayed")]
)
def test_a_file_ends_when_its_money_is_spent_though_a_cheaper_provider_may_come_back_some_day(
    mark: Mark, becomes: str, called: Called
) -> None:
    """A cooldown has its end, and is waited for."""
    fleet = [at("long", 1.0, longest=64_000), at("short", 2.0)]
    assert called(fleet, 3000, mark=(mark, "short/m")) == (becomes, [])


def test_no_ceiling_has_room_for_a_call_of_unknown_price(called: Called) -> None:
    fleet = [Endpoint("new", "m", "m", simulated=True)]
    assert called(fleet, 1_000_000) == ("expired", [])
    assert called([*fleet, at("known", 1.0)], 1_000_000) == ("succeeded", ["known/m"])
    ceilings = {"providers": {"new": {"per_month_usd": 1.0}}}
    assert called(fleet, None, ceilings=ceilings) == ("delayed", [])
    assert called(fleet, None) == ("succeeded", ["new/m"])


def test_a_ceiling_that_is_set_later_knows_what_was_spent_before(tmp_path: Path) -> None:
    with standing(tmp_path, FLEET) as stand:
        worker = stand.start_worker()
        stand.submit(["before"])
        stand.until(lambda: stand.outcomes(["before"]) == {"succeeded": 1})
        money = stand.money()
        spent = money["total|spent"]
        of_a_day_and_a_month = (
            r"total@\d+-\d+-\d+",
            r"total@\d+-\d+",
            r"provider:sim-one@\d+-\d+-\d+",
            r"provider:sim-one@\d+-\d+",
        )
        for account in of_a_day_and_a_month:
            assert [one for name, one in money.items() if re.fullmatch(rf"{account}\|spent", name)] == [spent], account
        stand.config.write_text(stand.config.read_text() + f"\n[ceilings.total]\nper_month_usd = {spent / 1e6}\n")
        stand.until(lambda: "now using configuration" in worker.said)
        stand.submit(["after"])
        stand.until(lambda: stand.outcomes(["after"]) == {"delayed": 1})


def test_waiting_for_money_makes_no_job_worth_more(called: Called, flushed: redis.Redis) -> None:
    """By room, it is: who has waited long pays for a dearer endpoint, and comes before others."""
    ceilings = {"total": {"per_day_usd": 1e-6}}
    assert called([at("one", 1.0)], None, ceilings=ceilings) == ("delayed", [])
    (told,) = run(flushed, [Ledger(Keys("t")).claim(JOB, "other", 60)])
    assert told.state == "delayed"
    assert b"waiting_since" not in flushed.hget(Keys("t").job(JOB), "progress")
