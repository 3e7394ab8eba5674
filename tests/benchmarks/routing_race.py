"""A seeded race: strategies and simple baselines over a simulated fleet with one fault, in virtual time.

    python -m tests.benchmarks.routing_race [--faults outage,hang] [--racers balanced,random] [--seeds 3]

Eight routers share one store, each with a snapshot up to a quarter of a second old. Five endpoints, six jobs a
second: 35 % interactive (deadline 5 s), 35 % standard (30 s), 30 % batch (600 s), some bound to a region, a
quality or a cost. The fault hits `p0`, the cheapest and nearly the fastest, from second 60 to 120. Printed:

goodput  jobs answered by their deadlines      failed   jobs that ended without an answer
spend    cost of the answered jobs over a lower bound that knows all arrivals, limits and faults in advance
p50, p99 interactive latency, waiting included
wasted   failed calls to p0 during the fault   429      calls refused by a rate limit, whole run
notice   first failed call to ejection             return   fault's end until p0 has 70 % of its traffic again
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import random
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.benchmarks.bound import Slot, least_cost
from tests.benchmarks.measure import add_keep_option, keep

from turnout.request import InferenceRequest, InferenceResponse, Lane, Quality, RoutingConstraints, Usage
from turnout_workers.providers.base import CallOutcome, Timeouts
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing import Endpoint, IntelligentRouter, RoutingStrategy
from turnout_workers.routing.eligibility import refusal
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Circuit, Fleet, Limits, Price
from turnout_workers.routing.health import circuit
from turnout_workers.routing.profile import JobProfile
from turnout_workers.state.memory_store import MemoryFleetStore

EPOCH, JOBS_S, RATE = 1_000_000.0, 180.0, 6.0
FAULT_FROM, FAULT_TO = 60.0, 120.0
WORKERS, SNAPSHOT_S = 8, 0.25
FAULTS = ("none", "outage", "brownout", "429", "errors", "hang", "crunch")
LEFT_BY = {"outage": 0.0, "hang": 0.0, "429": 0.2}
"""Share of its rate limit that p0 can serve during a fault, where known."""
BASELINES = ("random", "rotation", "least-busy", "lowest-latency")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer as soon as there is nothing else to do."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


@dataclass
class Simulated:
    """One provider with one endpoint, its rate limit, and perhaps a fault."""

    endpoint: Endpoint
    ttft_s: float
    pace_s: float
    fault: str
    rng: random.Random
    accepted: deque[float] = field(default_factory=deque)
    calls: list[tuple[float, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.endpoint.provider

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return (self.endpoint,)

    async def call(self, endpoint: Endpoint, request: InferenceRequest, _: Timeouts = Timeouts()) -> CallOutcome:
        began = now()
        fault = self.fault if FAULT_FROM <= began < FAULT_TO else "none"
        try:
            outcome = await self._call(request, fault)
        except ProviderError as error:
            self.calls.append((began, error.failure.kind))
            raise
        except asyncio.CancelledError:
            self.calls.append((began, "timed_out"))
            raise
        self.calls.append((began, "ok"))
        return outcome

    async def _call(self, request: InferenceRequest, fault: str) -> CallOutcome:
        if fault == "outage":
            await asyncio.sleep(0.05)
            raise ProviderError(Failure(FailureKind.UNAVAILABLE, "connection refused"))
        if fault == "hang":
            await asyncio.sleep(3600)
        limit = self.endpoint.limits.requests_per_minute or 10**9
        if fault == "429":
            limit //= 5
        while self.accepted and self.accepted[0] <= now() - 60:
            self.accepted.popleft()
        if len(self.accepted) >= limit:
            await asyncio.sleep(0.05)
            wait_s = self.accepted[-limit] + 60 - now()
            raise ProviderError(Failure(FailureKind.RATE_LIMITED, "too fast", retry_after_s=math.ceil(wait_s)))
        self.accepted.append(now())
        spread = self.rng.lognormvariate(0, 0.2) * (10 if fault == "brownout" else 1)
        tokens = int(request.metadata["tokens"])
        ttft_s, total_s = self.ttft_s * spread, (self.ttft_s + tokens * self.pace_s) * spread
        if fault == "errors" and self.rng.random() < 0.3:
            await asyncio.sleep(ttft_s)
            raise ProviderError(Failure(FailureKind.SERVER_ERROR, "internal error", Billed.MAYBE))
        await asyncio.sleep(total_s)
        usage = Usage(input_tokens=int(request.metadata["in"]), output_tokens=tokens)
        return CallOutcome(
            InferenceResponse(
                usage=usage,
                cost_microusd=cost(self.endpoint, usage),
                provider=self.name,
                model_requested=self.endpoint.model,
                model_served=self.endpoint.model,
                latency_s=total_s,
                time_to_first_token_s=ttft_s,
            )
        )

    async def check_health(self) -> None:
        if self.fault == "outage" and FAULT_FROM <= now() < FAULT_TO:
            raise ProviderError(Failure(FailureKind.UNAVAILABLE, "connection refused"))

    async def aclose(self) -> None: ...


def now() -> float:
    return asyncio.get_running_loop().time()


def cost(endpoint: Endpoint, usage: Usage) -> int:
    assert endpoint.price is not None
    return math.ceil(usage.input_tokens * endpoint.price.input + usage.output_tokens * endpoint.price.output)


def fleet(fault: str, rng: random.Random) -> list[Simulated]:
    # name, USD per million tokens in and out, time to first token, pace, requests a minute, region, quality
    table = [
        ("p0", 0.1, 0.2, 0.30, 0.004, 240, "eu", Quality.GOOD),
        ("p1", 0.3, 0.6, 0.50, 0.010, 180, "eu", Quality.BASIC),
        ("p2", 0.5, 1.5, 0.40, 0.006, 240, "us", Quality.BEST),
        ("p3", 1.0, 3.0, 0.60, 0.008, 300, "eu", Quality.BEST),
        ("p4", 3.0, 9.0, 0.25, 0.003, 600, "us", Quality.BEST),
    ]
    return [
        Simulated(
            Endpoint(
                name,
                "m",
                "m",
                priority=index,
                price=Price(p_in, p_out),
                limits=Limits(requests_per_minute=rpm),
                regions=frozenset({region}),
                quality=quality,
            ),
            ttft,
            pace,
            fault if name == "p0" else "none",
            random.Random(rng.random()),
        )
        for index, (name, p_in, p_out, ttft, pace, rpm, region, quality) in enumerate(table)
    ]


def arrivals(fault: str, rng: random.Random) -> list[tuple[float, InferenceRequest]]:
    found, at = [], 0.0
    while True:
        surge = 3 if fault == "crunch" and FAULT_FROM <= at < FAULT_TO else 1
        at += rng.expovariate(RATE * surge)
        if at >= JOBS_S:
            return found
        lane = rng.choices(list(Lane), (35, 35, 30))[0]
        low, high, deadline_s = {
            Lane.INTERACTIVE: (50, 150, 5.0),
            Lane.STANDARD: (100, 400, 30.0),
            Lane.BATCH: (100, 500, 600.0),
        }[lane]
        tokens, size = rng.randint(low, high), rng.randint(200, 4000)
        wish: dict[str, Any] = {"lane": lane, "deadline_s": deadline_s}
        bound = rng.random()
        if bound < 0.15:
            wish["regions"] = ("eu",)
        elif bound < 0.30:
            wish["min_quality"] = Quality.BEST
        elif bound < 0.60:
            wish["max_cost_usd"] = (size * 1.0 + tokens * 2 * 3.0) / 1e6  # p4 is too dear
        request = InferenceRequest(
            prompt="x" * (size * 4),
            max_output_tokens=tokens * 2,
            constraints=RoutingConstraints(**wish),
            metadata={"tokens": str(tokens), "in": str(size)},
        )
        found.append((at, request))


class Stale:
    """The store as a worker sees it: as old as the last poll."""

    def __init__(self, store: MemoryFleetStore) -> None:
        self._store, self._polled, self._seen = store, -1.0, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def state(self) -> Any:
        if now() - self._polled >= SNAPSHOT_S:
            self._polled, self._seen = now(), await self._store.state()
        assert self._seen is not None
        return EPOCH + now(), self._seen[1]


class Baseline:
    """What people write first: pick one, try another on failure, avoid a failed one for five seconds."""

    def __init__(self, rule: str, providers: list[Simulated], rng: random.Random) -> None:
        self.rule, self.providers, self.rng = rule, providers, rng
        self.busy = dict.fromkeys((p.name for p in providers), 0)
        self.latency = dict.fromkeys((p.name for p in providers), 0.0)
        self.cooling = dict.fromkeys((p.name for p in providers), 0.0)
        self.turn = 0

    def pick(self, among: list[Simulated]) -> Simulated:
        self.turn += 1
        if self.rule == "random":
            return self.rng.choice(among)
        if self.rule == "rotation":
            return among[self.turn % len(among)]
        measure = self.busy if self.rule == "least-busy" else self.latency
        return min(among, key=lambda p: (measure[p.name], self.rng.random()))

    async def complete(self, request: InferenceRequest) -> InferenceResponse:
        profile, began = JobProfile.of(request, deadline=request.constraints.deadline_at(EPOCH + now())), now()
        fit = [p for p in self.providers if refusal(profile, Fleet([p.endpoint])) is None]
        deadline_s = request.constraints.deadline_s or 600
        failed: list[Simulated] = []
        while now() - began < deadline_s:
            among = [p for p in fit if p not in failed and self.cooling[p.name] <= now()]
            if not among:
                failed.clear()
                await asyncio.sleep(0.5)
                continue
            chosen, asked = self.pick(among), now()
            self.busy[chosen.name] += 1
            try:
                async with asyncio.timeout(min(60, deadline_s - (now() - began))):
                    outcome = await chosen.call(chosen.endpoint, request)
            except (ProviderError, TimeoutError):
                failed.append(chosen)
                self.cooling[chosen.name] = now() + 5
                continue
            finally:
                self.busy[chosen.name] -= 1
            old, took = self.latency[chosen.name], now() - asked
            self.latency[chosen.name] = took if old == 0 else 0.8 * old + 0.2 * took
            return outcome.response
        raise TimeoutError


@dataclass
class Result:
    goodput: float
    failed: int
    spend: float
    p50: float
    p99: float
    wasted: int
    limited: int
    notice: float | None
    back: float | None


async def race(name: str, fault: str, seed: int) -> Result:
    rng = random.Random(seed)
    jobs, providers = arrivals(fault, rng), fleet(fault, rng)
    store = MemoryFleetStore(lambda: EPOCH + now())
    routers = [router(name, providers, store, random.Random(rng.random())) for _ in range(WORKERS)]
    finished: list[tuple[float, InferenceRequest, float, InferenceResponse | None]] = []

    async def run(at: float, request: InferenceRequest, complete: Callable[[Any], Awaitable[Any]]) -> None:
        try:
            response = await complete(request)
        except Exception:
            response = None
        finished.append((at, request, now() - at, response))

    ejected: list[float] = []

    async def observe() -> None:
        while not ejected:
            await asyncio.sleep(0.1)
            _, states = await store.state()
            health = states["p0/m"].health if "p0/m" in states else None
            if now() >= FAULT_FROM and health and circuit(health, EPOCH + now()) is Circuit.OPEN:
                ejected.append(now())

    tasks = [asyncio.create_task(observe())]
    for one in routers:
        if isinstance(one, IntelligentRouter):
            await one.__aenter__()
    pending = []
    for at, request in jobs:
        await asyncio.sleep(max(0.0, at - now()))
        complete = rng.choice(routers).complete
        pending.append(asyncio.create_task(run(at, request, complete)))
    await asyncio.gather(*pending)
    for one in routers:
        if isinstance(one, IntelligentRouter):
            await one.__aexit__(None, None, None)
    for task in tasks:
        task.cancel()
    return summary(finished, providers, ejected)


def router(name: str, providers: list[Simulated], store: MemoryFleetStore, rng: random.Random) -> Any:
    if name in BASELINES:
        return Baseline(name, providers, rng)
    strategy, hedge, _ = name.partition("+hedge")
    one = IntelligentRouter(
        RoutingStrategy(strategy),
        store=Stale(store),  # type: ignore[arg-type]
        rng=rng,
        clock=lambda: EPOCH + now(),
        hedge=bool(hedge),
    )
    for provider in providers:
        one.register_provider(provider)
    return one


def summary(finished: list[Any], providers: list[Simulated], ejected: list[float]) -> Result:
    answered = [one for one in finished if one[3] is not None]
    in_time = sum(took <= request.constraints.deadline_s for _, request, took, _ in answered)
    spent = sum(response.cost_microusd for _, _, _, response in answered)
    urgent = sorted(took for _, request, took, _ in answered if request.constraints.lane is Lane.INTERACTIVE)
    cheap = providers[0].calls
    first = min((at for at, how in cheap if at >= FAULT_FROM and how not in ("ok", "rate_limited")), default=None)
    wasted = sum(FAULT_FROM <= at < FAULT_TO and how not in ("ok", "rate_limited") for at, how in cheap)
    before = sum(FAULT_FROM - 30 <= at < FAULT_FROM for at, _ in cheap) / 30
    back = next(
        (
            tenth / 10
            for tenth in range(600)
            if sum(FAULT_TO + tenth / 10 <= at < FAULT_TO + tenth / 10 + 5 for at, how in cheap if how == "ok") / 5
            >= 0.7 * before
        ),
        None,
    )
    return Result(
        100 * in_time / len(finished),
        len(finished) - len(answered),
        spent / least_spend(answered, providers),
        statistics.median(urgent),
        urgent[int(0.99 * len(urgent))],
        wasted,
        sum(how == "rate_limited" for p in providers for _, how in p.calls),
        ejected[0] - first if ejected and first else None,
        back,
    )


def least_spend(answered: list[Any], providers: list[Simulated]) -> float:
    """Lower bound on the cost of the answered jobs, with perfect foresight.

    Each minute has its room, by the rate limits and what the fault leaves of p0's; what comes after the
    last arrival is one long period.
    """
    last = int(JOBS_S / 60)
    room: dict[Slot, float] = {}
    for provider in providers:
        full = provider.endpoint.limits.requests_per_minute or 0
        room |= {(provider.name, minute): float(full) for minute in range(last)}
        room[provider.name, last] = 11.0 * full  # batches have ten minutes
        if provider.fault in LEFT_BY:
            room[provider.name, int(FAULT_FROM / 60)] = float(int(full * LEFT_BY[provider.fault]))
    jobs = []
    for at, request, _, response in answered:
        profile = JobProfile.of(request)
        fit = [p.endpoint for p in providers if refusal(profile, Fleet([p.endpoint])) is None]
        minutes = range(int(at / 60), min(last, int((at + request.constraints.deadline_s) / 60)) + 1)
        jobs.append({(e.provider, minute): cost(e, response.usage) for e in fit for minute in minutes})
    return least_cost(jobs, room)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--racers", default=",".join([*RoutingStrategy, "balanced+hedge", *BASELINES]))
    parser.add_argument("--seeds", type=int, default=3)
    add_keep_option(parser)
    chosen = parser.parse_args()
    logging.disable()
    raw: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    for fault in chosen.faults.split(","):
        columns = ("goodput", "failed", "spend", "p50", "p99", "wasted", "429", "notice", "return")
        print(f"\n{fault:16}" + "".join(f"{column:>9}" for column in columns))
        for name in chosen.racers.split(","):
            began = time.perf_counter()
            results = []
            for seed in range(chosen.seeds):
                with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                    results.append(runner.run(race(name, fault, seed)))
            raw.setdefault(fault, {})[name] = [asdict(result) for result in results]
            cells = []
            for key in Result.__dataclass_fields__:
                values = [v for r in results if (v := getattr(r, key)) is not None]
                cells.append(f"{statistics.mean(values):9.2f}" if values else f"{'-':>9}")
            print(f"{name:16}" + "".join(cells) + f"   ({time.perf_counter() - began:.0f} s)", flush=True)
    if chosen.keep:
        keep("routing_race", {"unit": "%, jobs, × the lower bound, s, calls", "raw": raw})


if __name__ == "__main__":
    main()
