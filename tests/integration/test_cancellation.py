"""A job's coroutine is cancelled at its every suspension, and cut off from a real Redis at every round trip: nothing is
lost, leaked or told wrongly.

Each scenario runs once for each suspension, and is struck there: as it begins to wait, or when what it waits for is
there already but was not read yet. What is left then another worker does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import selectors
import types
import warnings
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from typing import Any, get_args

import pytest
import redis
import redis.asyncio
from tests.properties.ledger.bed import CLOCK_KEY, HAND_CLOCK

from turnout.ledger import Coalescer, Keys, Ledger, NewJob, run
from turnout.ledger.sending import Command
from turnout.request import InferenceRequest, InferenceResponse, Lane, RoutingConstraints, Usage
from turnout_workers.attempts.attempt import Attempts
from turnout_workers.attempts.ceilings import ConfiguredCeilings
from turnout_workers.attempts.job import End, MovedOn
from turnout_workers.attempts.parking import Parking
from turnout_workers.attempts.parts import Parts
from turnout_workers.background.fleet_watch import CallWatch
from turnout_workers.background.heartbeat import Heartbeat
from turnout_workers.background.housekeeping import Housekeeping
from turnout_workers.background.spool import Spool, SpoolDrain
from turnout_workers.config import Settings
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.config.tables import Config, RouterTable
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.providers.base import CallOutcome, CloudProviderBase
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Capability, Endpoint, Fleet, Limits, Price
from turnout_workers.runtime import FLIGHTS
from turnout_workers.state.fast_pipeline import send_commands
from turnout_workers.state.redis_store import RedisFleetStore
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import Ask, Bid, Granted, Report

START = 1_000_000_000
LEASE_S = 36_000.0
"""Never over by itself here, for the clock of the ledger stands still unless it is moved."""
HASTE = 500
"""So much faster the loop's clock goes, by which an attempt waits in place, and before it repeats a call."""
JOB = "job"
Strike = Callable[["Bench"], None]
CHEAP, DEAR = (
    Endpoint(
        name,
        "m",
        "m",
        price=Price(cost, cost),
        capabilities=frozenset({Capability.JSON_SCHEMA}),
        limits=Limits(concurrency=1),
        simulated=True,
    )
    for name, cost in (("cheap", 1.0), ("dear", 2.0))
)


METRICS = Metrics()


class Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout and timeout / HASTE)


class HastyLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(Selector())

    def time(self) -> float:
        return super().time() * HASTE


def answer(text: str = "yes") -> InferenceResponse:
    return InferenceResponse(
        text=text, usage=Usage(input_tokens=5, output_tokens=5), provider="", model_requested="m", model_served="m"
    )


def failing(kind: FailureKind, billed: Billed = Billed.NO, **fields: Any) -> Failure:
    return Failure(kind, "as scripted", billed, **fields)


HANGS = "hangs"
Act = InferenceResponse | Failure | str


@dataclass
class Simulated(CloudProviderBase):
    """A provider that makes its answers up: one after the other of `script`, then always the last. Keeps the bill."""

    script: Sequence[Act]
    billed: int = 0
    calls: int = 0

    async def check_health(self) -> None: ...

    async def call(self, endpoint: Endpoint, request: Any, timeouts: Any = None, on_token: Any = None) -> CallOutcome:
        script = self.script or [answer()]
        act = script[min(self.calls, len(script) - 1)]
        self.calls += 1
        cost = round(10 * endpoint.price.input) if endpoint.price else None
        if not isinstance(act, Failure) or act.billed is not Billed.NO:
            self.billed += cost or 0  # at once, so that one that is cut off is billed, too
        await asyncio.sleep(0.01)
        if act == HANGS:
            await asyncio.Future()
        if isinstance(act, Failure):
            raise ProviderError(act)
        assert isinstance(act, InferenceResponse)
        if on_token:
            for piece in ("y", "es"):
                await on_token(piece)
                await asyncio.sleep(0.01)
        return CallOutcome(act.model_copy(update={"cost_microusd": cost, "provider": endpoint.provider}))


@dataclass(frozen=True)
class Scenario:
    wish: dict[str, Any] = field(default_factory=dict)
    cheap: Sequence[Act] = ()
    stream: bool = False
    full: bool = False
    """Others have taken all room at first."""
    asked: dict[str, Any] = field(default_factory=dict)
    not_before_s: float = 0.0
    late_s: float = 0.0
    """So much time goes by before the job is begun."""
    ends: str = "succeeded"


SCENARIOS = {
    "success": Scenario(wish={"max_cost_usd": 1.0}),
    "failover": Scenario(cheap=[failing(FailureKind.TIMED_OUT, Billed.MAYBE)]),
    "retry in place": Scenario(
        wish={"only": ["cheap"]}, cheap=[failing(FailureKind.SERVER_ERROR, Billed.MAYBE), answer()]
    ),
    "repair": Scenario(
        wish={"only": ["cheap"]},
        cheap=[answer("no JSON"), answer('{"a": 1}')],
        asked={"response_format": {"type": "json_schema", "name": "n", "json_schema": {"type": "object"}}},
    ),
    "deferral": Scenario(
        wish={"only": ["cheap"]}, cheap=[failing(FailureKind.RATE_LIMITED, retry_after_s=30.0), answer()]
    ),
    "parking": Scenario(full=True),
    "put off": Scenario(not_before_s=60.0),
    "second call": Scenario(wish={"lane": Lane.INTERACTIVE}, cheap=[HANGS]),
    "stream": Scenario(stream=True),
    "refused": Scenario(wish={"only": ["nobody"]}, ends="failed"),
    "given up": Scenario(wish={"only": ["cheap"]}, cheap=[failing(FailureKind.INVALID_REQUEST)], ends="failed"),
    "deadline": Scenario(wish={"deadline_s": 60.0}, late_s=61.0, ends="expired"),
}


class Line:
    """The way to Redis. At one of the round trips that an attempt makes, number `at`, something goes wrong."""

    def __init__(self, url: str) -> None:
        # Slow for a timeout by its own clock.
        self.client = redis.asyncio.Redis.from_url(url, socket_timeout=LEASE_S, socket_connect_timeout=LEASE_S)
        self.send = Coalescer(self.client, self._exchange, FLIGHTS)
        self.fails()

    def fails(self, how: str = "", at: int = 0) -> None:
        self._how, self._at = how, at
        self.trips = 0
        self.watched = False
        self.stuck: asyncio.Event | None = None
        """Redis takes commands, and answers none until it is set."""

    @property
    def tripped(self) -> bool:
        return self.trips >= self._at > 0

    async def _exchange(self, client: redis.asyncio.Redis, commands: Sequence[Command]) -> list[Any]:
        self.trips += self.watched
        if self.stuck is not None and not self.stuck.is_set():
            await self.stuck.wait()
            raise redis.TimeoutError("no answer")
        if not self.watched or self.trips != self._at:
            return await send_commands(client, commands)
        if self._how == "request lost":
            raise redis.ConnectionError(self._how)
        await send_commands(client, commands)
        if self._how == "reply lost":
            raise redis.ConnectionError(self._how)
        return await send_commands(client, commands)  # the client has asked again, for the first reply was lost


class Struck:
    """Awaits work, and counts its suspensions; from number `at` on each has a strike, as the wait begins or ends."""

    def __init__(self, bench: Bench, strikes: Sequence[Strike], at: int, late: bool) -> None:
        self._bench, self._strikes, self._at, self._late = bench, list(strikes), at, late
        self.suspensions = 0
        self.done = False

    @types.coroutine
    def __call__(self, work: Awaitable[Any]) -> Generator[Any, Any, Any]:
        steps: Any = work.__await__()
        step, value = steps.send, None
        while True:
            try:
                awaited = step(value)
            except StopIteration as end:
                return end.value
            self._suspended(awaited)
            try:
                step, value = steps.send, (yield awaited)
            except BaseException as error:
                step, value = steps.throw, error

    def _suspended(self, awaited: Any) -> None:
        self.suspensions += 1
        if self.suspensions >= self._at and self._strikes:
            strike = self._strikes.pop(0)
            self.done = True
            if self._late and awaited is not None:
                awaited.add_done_callback(lambda _: strike(self._bench))  # comes before the task's own
            else:
                strike(self._bench)


class Worker:
    def __init__(self, bench: Bench, name: str) -> None:
        clock = asyncio.get_running_loop().time
        self.heartbeat = Heartbeat(bench.ledger, bench.send, bench.store, LEASE_S, clock)
        self.parts = Parts(
            owner=name,
            ledger=bench.ledger,
            send=bench.send,
            store=bench.store,
            fleet=bench.poller,
            heartbeat=self.heartbeat,
            watch=CallWatch(bench.store, bench.poller, name),
            parking=Parking(bench.ledger, bench.send),
            ceilings=bench.ceilings,
            spool=bench.spool,
            current=bench.current,
            metrics=METRICS,
            rng=random.Random(1),
        )
        self.attempts = Attempts(self.parts)

    def left(self) -> list[str]:
        """What should not be there when no job is."""
        watch, parking = self.parts.watch, self.parts.parking
        told = {
            "held": len(self.heartbeat),
            "calls": sum(map(len, watch._calls.values())),
            "in place": len(parking.in_place),
            "to be woken": len(parking._to_wake),
        }
        return [f"{what}: {number}" for what, number in told.items() if number]


class Bench:
    """An empty Redis, two providers and two workers; the first one is struck."""

    def __init__(self, client: redis.Redis, line: Line, spool: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        self.line = line
        self.client = client
        self.client.flushall()
        self.client.set(CLOCK_KEY, START * 1000)
        self.send = line.send
        self.ledger = Ledger(Keys("t"), HAND_CLOCK)
        self.store = RedisFleetStore(self.send, self.ledger.keys, HAND_CLOCK)
        self.fleet = Fleet((CHEAP, DEAR))
        self.poller = SnapshotPoller(self.store, self.fleet, monotonic=lambda: 0.0)
        self.providers = [Simulated(scenario.cheap), Simulated(())]
        file = Config(router=RouterTable(default_strategy="cost", hedge=True))
        by_endpoint = dict(zip((CHEAP.id, DEAR.id), self.providers, strict=True))
        self.current = CurrentConfig(Settings(file, {}, {}, "1", "the test"), by_endpoint)
        self.ceilings = ConfiguredCeilings(self.current, self.poller.now)
        self.spool = Spool(spool, "redis://the-test", "t")
        self.keeping = Housekeeping(self.ledger, self.send, self.store, "keeper", self.current, (), lambda *_: None)
        self.worker, self.other = Worker(self, "struck"), Worker(self, "other")
        self.ends: list[End | None] = []

    def advance(self, seconds: float) -> None:
        self.client.incrby(CLOCK_KEY, round(seconds * 1000))

    def state(self) -> str:
        (facts,) = run(self.client, [self.ledger.facts(JOB)])
        return facts.state if facts else "none"

    def story(self) -> list[str]:
        (told,) = run(self.client, [self.ledger.story(JOB)])
        return [event["event"] for event in told]

    async def begin(self) -> None:
        scenario = self.scenario
        wish = RoutingConstraints(**scenario.wish)
        request = InferenceRequest(prompt="?", max_output_tokens=50, constraints=wish, **scenario.asked)
        run(self.client, [self.ledger.enqueue(NewJob.of(JOB, request, stream=scenario.stream))])
        self.taken = []
        if scenario.full:
            for endpoint in (CHEAP, DEAR):
                ask = Ask(f"others:{endpoint.id}", (Bid(endpoint.id, endpoint.limits, 1, 1, 0),), LEASE_S)
                self.taken.append(await self.store.admit(ask))
        self.advance(scenario.late_s)

    async def make_room(self) -> None:
        for granted in self.taken:
            assert isinstance(granted, Granted)
            await self.store.report(Report(granted.lease_id, granted.endpoint_id, ok=True))
        self.taken.clear()

    async def attempt(self, worker: Worker, through: Callable[[Awaitable[Any]], Awaitable[Any]]) -> None:
        """One attempt, in a task of its own as in the pool. None: it was cancelled, or had no Redis."""
        await self.poller.poll()
        not_before = START + self.scenario.not_before_s

        async def attempt() -> End:
            end: End = await through(worker.attempts.run(JOB, not_before))
            self.ends.append(end)
            return end

        self.task = asyncio.create_task(attempt())
        ends = len(self.ends)
        self.line.watched = worker is self.worker
        await asyncio.wait((self.task,), timeout=LEASE_S)
        self.line.watched = False
        assert self.task.done(), "it hangs"
        if len(self.ends) == ends:
            assert self.task.cancelled() or isinstance(self.task.exception(), redis.RedisError), self.task.exception()
            self.ends.append(None)

    async def rest(self) -> None:
        """Until nothing goes on in the background."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            _, late = await asyncio.wait(tasks, timeout=LEASE_S)
            assert not late, late

    async def wake(self) -> None:
        """Bring a parked job back to its lane."""
        self.advance(61.0)
        await self.keeping.round()

    async def until_struck(self, struck: Struck) -> None:
        """The first worker does the job, until it is struck or done."""
        while not (struck.done or self.line.tripped) and self.state() in ("queued", "delayed"):
            if self.state() == "delayed":
                await self.make_room()
                await self.wake()
            await self.attempt(self.worker, struck)
        await self.rest()

    async def finish(self) -> None:
        """The other one does what is left of it."""
        await self.make_room()
        for _ in range(10):
            match self.state():
                case "queued":
                    await self.attempt(self.other, lambda work: work)
                case "delayed":
                    if self.line.tripped:  # a place that was granted unheard is held as long as a lease lasts
                        self.advance(LEASE_S + 1)
                    await self.wake()
                case "leased" | "calling":
                    self.advance(LEASE_S + 1)
                    await self.keeping.round()
                case _:
                    break
        await self.rest()
        await self.deliver()
        self.advance(LEASE_S + 1)
        await self.store.expire()

    async def deliver(self) -> None:
        """What waits on disk."""
        drain = SpoolDrain(self.spool, self.ledger, self.send, self.store, self.current)
        for path in self.spool:
            await drain._settle(path)

    def in_flight(self) -> list[str]:
        keys = self.ledger.keys
        told = {endpoint.id: self.client.zcard(keys.call_starts(endpoint.id)) for endpoint in (CHEAP, DEAR)}
        return [f"{number} calls to {name}" for name, number in told.items() if number]

    def settled(self) -> dict[str, int]:
        counts = self.client.hgetall(self.ledger.keys.counts)
        return {name.decode(): int(number) for name, number in counts.items() if name != b"accepted"}

    def money_faults(self, exact: bool) -> list[str]:
        """exact: no worker has lost what it knew of the job."""
        told = {name.decode(): int(value) for name, value in self.client.hgetall(self.ledger.keys.money).items()}
        spent, unsure, reserved = (told.get(f"total|{what}", 0) for what in ("spent", "unsure", "reserved"))
        billed = sum(provider.billed for provider in self.providers)
        faults = [f"reserved {reserved}"] if reserved else []
        if not spent <= billed <= spent + unsure:
            faults.append(f"billed {billed}, confirmed {spent}, unsure {unsure}")
        (result,) = run(self.client, [self.ledger.result(JOB)])
        if exact and result and result.unsure_microusd != unsure:
            faults.append(f"the job says that {result.unsure_microusd} are unsure, the books {unsure}")
        if exact and unsure and not any(provider.calls for provider in self.providers):
            faults.append(f"{unsure} are unsure, and nobody was called")
        known = (result.cost_microusd if result else 0) + told.get("total|duplicate", 0)
        if known > spent or (exact and known < spent):
            faults.append(f"the job says {known}, the books {spent}")
        return faults


def lose(bench: Bench) -> None:
    """The worker can't be sure of its lease any more."""
    for hold in list(bench.worker.heartbeat._held):
        hold.lose()


def taken(bench: Bench) -> None:
    """Its lease is over indeed, and the job waits for others."""
    held = list(bench.worker.heartbeat._held)
    if held:
        bench.advance(LEASE_S + 1)
        run(bench.client, [bench.ledger.sweep(JOB, 3, 9)])
    for hold in held:
        hold.lose()


def stop(bench: Bench) -> None:
    """The worker stops, and hands back what it has."""
    bench.task.cancel()


def revoke(bench: Bench) -> None:
    """Somebody cancels the job, by Celery's `revoke(terminate=True)`."""
    run(bench.client, [bench.ledger.cancel(JOB, None)])
    bench.task.cancel()


STRIKES = {
    "stop": (stop,),
    "stop, stop, lease over": (stop, stop, lose),
    "revoke": (revoke,),
    "lease over": (lose,),
    "taken back": (taken,),
}


async def story(bench: Bench, strikes: Sequence[Strike], at: int, late: bool) -> tuple[int, list[str]]:
    """Run it once. Gives the suspensions of the first worker, and what was wrong."""
    struck = Struck(bench, strikes, at, late)
    await bench.begin()
    await bench.until_struck(struck)
    faults, state, end, right = [], bench.state(), bench.ends[-1], True
    faults += bench.worker.left()
    if not bench.taken and not bench.line.tripped:
        faults += bench.in_flight()
    if not {revoke, taken} & set(strikes) and not bench.line.tripped:
        match end.how if end else None:
            case None:
                right = state == "queued" or lose in strikes
            case "skipped":
                right = lose in strikes and state in ("leased", "calling")
            case "deferred":
                right = state == "delayed"
            case "failed_over" | "handed_back":
                right = state == "queued"
            case status:
                right = state == status
        if not right:
            faults.append(f"told {end!r}, where it is {state}")
    elif end and end.how in get_args(MovedOn) and end.how not in bench.story():
        faults.append(f"told {end!r}, which it was not")
    first_end = bench.state()
    await bench.finish()
    faults += [f"then {fault}" for fault in (*bench.worker.left(), *bench.other.left(), *bench.in_flight())]
    expected = {bench.scenario.ends, *(["cancelled"] if revoke in strikes else ())}
    if sum(bench.settled().values()) != 1 or not bench.settled().keys() <= expected:
        faults.append(f"settled {bench.settled()}, after {first_end}")
    faults += bench.money_faults(exact=set(strikes) == {stop})
    if list(bench.spool):
        faults.append("a settlement is left on disk")
    return struck.suspensions, faults


async def cut_off(client: redis.Redis, line: Line, spool: Path, scenario: Scenario) -> list[str]:
    """By each of the strikes, wherever the job waits."""
    found = []
    for strike, late in product(STRIKES, (False, True)):
        if late and len(STRIKES[strike]) > 1:
            continue  # the first of them has been late alone
        for at in count(1):
            bench = Bench(client, line, spool, scenario)
            suspensions, faults = await story(bench, STRIKES[strike], at, late)
            moment = "when it is over" if late else "as it begins"
            found += [f"{strike} at {at}, {moment}: {fault}" for fault in faults]
            if suspensions < at:
                break
    return found


async def out_of_touch(client: redis.Redis, line: Line, spool: Path, scenario: Scenario) -> list[str]:
    """At each of its round trips."""
    found = []
    for how in ("request lost", "reply lost", "asked twice"):
        for at in count(1):
            line.fails(how, at)
            bench = Bench(client, line, spool, scenario)
            _, faults = await story(bench, (), 0, late=False)
            found += [f"{how} at round trip {at}: {fault}" for fault in faults]
            if not line.tripped:
                break
    return found


@pytest.mark.parametrize("disturbed", [cut_off, out_of_touch])
@pytest.mark.parametrize("name", SCENARIOS)
def test_wherever_a_job_is_disturbed_it_ends_once_and_leaves_nothing(
    name: str, disturbed: Any, redis_url: str, flushed: redis.Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    found: list[str] = []

    async def explore() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: found.append(str(told)))
        line = Line(redis_url)
        async with line.client:
            found.extend(await disturbed(flushed, line, tmp_path, SCENARIOS[name]))

    gc.collect()  # what other tests have left
    with warnings.catch_warnings(record=True) as warned, asyncio.Runner(loop_factory=HastyLoop) as runner:
        warnings.simplefilter("always")
        runner.run(explore())
        gc.collect()
    found += [str(warning.message) for warning in warned]
    assert not found, "\n" + "\n".join(found)
