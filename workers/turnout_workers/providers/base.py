"""What a provider is to the rest of Turnout, and what a new connector has to implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from turnout.request import InferenceRequest as InferenceRequest
from turnout.request import InferenceResponse as InferenceResponse
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.fleet import Endpoint
from turnout_workers.state.store import ObservedLimit

current_job: ContextVar[str | None] = ContextVar("current_job", default=None)
"""The job for which a call is made. Sent only to simulated providers, whose records audit ours."""

OnToken = Callable[[str], Awaitable[None]]
"""Called with each piece of text as it arrives, when a job streams."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of one call, in seconds."""

    connect_s: float = 5.0
    first_byte_s: float = 60.0
    idle_s: float = 30.0
    """Between two chunks."""
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """A successful call: the answer, and what the provider's headers say about its limits."""

    response: InferenceResponse
    limits: tuple[ObservedLimit, ...] = ()


class CloudProviderBase(ABC):
    """One configured account of one provider: the endpoints it offers, and how to call them.

    A connector implements `call` and `check_health`. Apart from cancellation, both raise only `ProviderError`, whose
    `Failure` says what it means to the router.
    """

    def __init__(self, name: str, endpoints: Sequence[Endpoint]) -> None:
        self.name = name
        self.endpoints = tuple(endpoints)

    @abstractmethod
    async def call(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        timeouts: Timeouts = Timeouts(),
        on_token: OnToken | None = None,
    ) -> CallOutcome:
        """Make one call. Streams when `on_token` is given."""

    @abstractmethod
    async def check_health(self) -> None:
        """Ask the provider's free health endpoint. Raises ProviderError unless it answers well."""

    async def complete(self, request: InferenceRequest) -> InferenceResponse:
        """Call the first endpoint that serves the request's model, without routing."""
        wanted = request.models
        for endpoint in self.endpoints:
            if not wanted or any(endpoint.serves(model) for model in wanted):
                return (await self.call(endpoint, request)).response
        raise ProviderError.unsupported(f"{self.name} serves none of {', '.join(wanted)}")

    async def aclose(self) -> None:  # noqa: B027  (most connectors share one HTTP client)
        """Release what the connector holds."""
