"""IntelligentRouter: the whole routing core in one process, for programs without a queue or Redis.

    router = IntelligentRouter()
    router.register_provider(groq, priority=1)
    router.register_provider(gemini, priority=2, cost_per_1k_tokens=0.0004)
    async with router:
        response = await router.complete(request)

It makes the same decisions as a fleet of workers, with a store in memory. Given a shared `store`, several processes
share limits and health. Only workers apply cost ceilings other than a request's own.

`async with` looks after the fleet: it ejects endpoints that hang, and checks from time to time whether a refused key is
accepted again. Without it, call `watch` and `check_health` yourself; a refused key, which is logged, keeps its
endpoints out until then, or until `restore`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from turnout.request import InferenceRequest, InferenceResponse, RoutingStrategy
from turnout_workers.attempts.calling import Caller
from turnout_workers.attempts.in_process import DeadlinePassed as DeadlinePassed
from turnout_workers.attempts.in_process import InProcess
from turnout_workers.attempts.judging import Judge
from turnout_workers.attempts.reporting import Reporter
from turnout_workers.background.fleet_watch import CallWatch, eject_hanging
from turnout_workers.background.health_checks import HealthChecks
from turnout_workers.background.tasks import ERROR_PAUSE_S, cancel_all, run_repeatedly, slept_on_time
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.routing.decision import Decision
from turnout_workers.routing.failure import Failure
from turnout_workers.routing.fleet import Endpoint, Fleet, Price, Snapshot
from turnout_workers.routing.health import EJECTION_S
from turnout_workers.state.memory_store import MemoryFleetStore
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import FleetStore

logger = logging.getLogger(__name__)

WATCH_S = 0.5
"""How often to look for calls that hang."""


@dataclass(frozen=True, slots=True)
class RoutedProvider:
    """The provider chosen for a request. `complete` calls the chosen endpoint only."""

    name: str
    endpoint: Endpoint
    decision: Decision
    _complete: Callable[[InferenceRequest, str], Awaitable[InferenceResponse]]

    def __repr__(self) -> str:
        return f"RoutedProvider({self.endpoint.id})"

    async def complete(self, request: InferenceRequest) -> InferenceResponse:
        """Call this endpoint once there is room. Raises ProviderError if the call fails."""
        return await self._complete(request, self.endpoint.id)


class IntelligentRouter:
    """Routes requests to the optimal provider by availability, latency, cost and health."""

    def __init__(
        self,
        default_strategy: RoutingStrategy = RoutingStrategy.BALANCED,
        health_check_interval: float = 30.0,
        failover_cooldown: float = EJECTION_S,
        store: FleetStore | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        hedge: bool = False,
    ) -> None:
        """health_check_interval: seconds between checks of each provider's free health endpoint.

        failover_cooldown: seconds of the first ejection of a failing endpoint; each further one is twice as long, up
        to 10 s or this.
        store: shared with other processes; None: a store in memory, on `clock` (Unix seconds).
        hedge: whether a slow interactive request may be sent to a second provider as well.
        """
        if health_check_interval <= 0:
            raise ValueError(f"health_check_interval must be above 0 s, not {health_check_interval:g}")
        self._store = store = store or MemoryFleetStore(clock)
        self._seen = seen = SnapshotPoller(store, Fleet(()), monotonic=clock)
        self._providers: list[CloudProviderBase] = []
        self._owner: dict[str, CloudProviderBase] = {}
        self._calls = calls = CallWatch(store, seen, uuid.uuid4().hex)
        rng = rng or random.Random()
        reporter = Reporter(store, seen, failover_cooldown, rng)
        judge, caller = Judge(reporter, rng, hedge), Caller(seen, reporter, calls, self._owner.get)
        strategy = RoutingStrategy(default_strategy)
        self._requests = InProcess(store, seen, rng, sleep, judge, caller, strategy)
        self._checks = HealthChecks(self._providers, store, seen, health_check_interval, rng)
        self._eject_hanging = partial(eject_hanging, store, seen, rng, failover_cooldown)
        self._tasks: list[asyncio.Task[None]] = []

    # --- the fleet ---------------------------------------------------------------------------------------

    def register_provider(
        self,
        connector: CloudProviderBase,
        priority: int | None = None,
        cost_per_1k_tokens: float | None = None,
        weight: float | None = None,
    ) -> None:
        """Offer a provider's endpoints to requests. None keeps the connector's own value.

        A connector is one account: if you have several keys, register the provider once for each.
        cost_per_1k_tokens: US dollars, for input and output alike.
        """
        if any(endpoint.id in self._fleet.ids for endpoint in connector.endpoints):
            raise ValueError(f"provider {connector.name!r} is registered already; unregister it first")
        if {endpoint.provider for endpoint in connector.endpoints} != {connector.name}:
            raise ValueError(f"provider {connector.name!r} must have endpoints, and be the `provider` of each")
        if cost_per_1k_tokens is not None and not 0 <= cost_per_1k_tokens < math.inf:
            raise ValueError(f"cost_per_1k_tokens must be 0 or more dollars, not {cost_per_1k_tokens}")
        per_mtok = None if cost_per_1k_tokens is None else cost_per_1k_tokens * 1000
        price = None if per_mtok is None else Price(per_mtok, per_mtok)
        options = {"priority": priority, "weight": weight, "price": price}
        changes: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        endpoints = [replace(endpoint, **changes) for endpoint in connector.endpoints]
        self._seen.use(Fleet((*self._fleet.endpoints, *endpoints)))
        self._providers.append(connector)
        self._owner.update((endpoint.id, connector) for endpoint in endpoints)

    def unregister_provider(self, name: str) -> None:
        """Send it no further requests; calls in flight go on. Raises KeyError if there is no such provider."""
        left = [endpoint for endpoint in self._fleet.endpoints if endpoint.provider != name]
        if len(left) == len(self._fleet.endpoints):
            raise KeyError(f"no provider is called {name!r}; there are {', '.join(self._fleet.ids)}")
        self._seen.use(Fleet(left))
        self._providers[:] = [connector for connector in self._providers if connector.name != name]
        for gone in self._owner.keys() - set(self._fleet.ids):
            del self._owner[gone]

    async def isolate(self, name: str, reason: str = "by an operator") -> None:
        """Take a provider, or one endpoint, out until `restore`."""
        await self._store.mark("isolated", self._ids(name), reason)

    async def restore(self, name: str) -> None:
        """Undo isolation, disabling, ejection and cooldown of a provider or an endpoint."""
        await self._store.mark("restored", self._ids(name))

    async def snapshot(self) -> Snapshot:
        """The fleet as it is now: health, metrics and load of every endpoint."""
        return await self._seen.poll()

    @property
    def _fleet(self) -> Fleet:
        return self._seen.snapshot.fleet

    def _ids(self, name: str) -> list[str]:
        ids = [endpoint.id for endpoint in self._fleet.endpoints if name in (endpoint.provider, endpoint.id)]
        if not ids:
            raise KeyError(f"no provider or endpoint is called {name!r}; there are {', '.join(self._fleet.ids)}")
        return ids

    # --- requests ----------------------------------------------------------------------------------------

    async def get_provider_for_request(
        self, request: InferenceRequest, strategy: RoutingStrategy | None = None
    ) -> RoutedProvider:
        """The best provider for a request, once one may be called.

        Raises NoEligibleEndpoint if none ever can, DeadlinePassed at the request's deadline.
        """
        decision = await self._requests.decide(await self._requests.accept(request, strategy))
        endpoint = decision.candidates[0].endpoint
        return RoutedProvider(endpoint.provider, endpoint, decision, self._complete_at)

    async def complete(self, request: InferenceRequest, strategy: RoutingStrategy | None = None) -> InferenceResponse:
        """Route, call, and fail over until there is an answer; wait while no endpoint is available.

        An answer that doesn't fit the requested JSON schema is requested again, `max_repairs` times. Raises
        NoEligibleEndpoint, DeadlinePassed, or ProviderError when everything was tried.
        """
        return await self._requests.answer(await self._requests.accept(request, strategy))

    async def _complete_at(self, request: InferenceRequest, endpoint_id: str) -> InferenceResponse:
        return await self._requests.answer(await self._requests.accept(request, pinned=endpoint_id))

    # --- health ------------------------------------------------------------------------------------------

    async def check_health(self) -> dict[str, Failure | None]:
        """Check every provider's free health endpoint now. Returns by name what was wrong, or None.

        A refused key disables its endpoints, and a key that is accepted again enables them. An endpoint disabled for
        another reason gets one more chance every five minutes.
        """
        await self.snapshot()
        return await self._checks.check_all()

    async def watch(self) -> None:
        """Eject endpoints whose calls hang, and end abandoned leases. `async with` does this twice a second."""
        await self._store.expire()
        await self._calls.look()
        await self.snapshot()
        await self._eject_hanging()

    async def _watch_in_time(self) -> None:
        if await slept_on_time(WATCH_S):
            await self.watch()

    async def __aenter__(self) -> Self:
        if self._tasks:
            raise RuntimeError("this router is entered already")
        watching = run_repeatedly(self._watch_in_time, 0.0, "the watch over the fleet")
        checking = run_repeatedly(self._checks.run, ERROR_PAUSE_S, "the health check")
        self._tasks = [asyncio.create_task(work) for work in (watching, checking, self._calls.run())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancel_all(self._tasks)
        self._tasks.clear()
        closed = await asyncio.gather(*(one.aclose() for one in self._providers), return_exceptions=True)
        for connector, failed in zip(self._providers, closed, strict=True):
            if failed is not None:
                logger.error("provider %s could not be closed", connector.name, exc_info=failed)
