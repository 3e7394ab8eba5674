"""What all built-in connectors share: the request's headers, what the endpoint takes, usage and cost of the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from turnout.request import InferenceRequest, InferenceResponse, Usage
from turnout_workers.monitoring import tracing
from turnout_workers.providers.base import CallOutcome, CloudProviderBase, Timeouts, current_job
from turnout_workers.providers.dialects import Dialect, dialect
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.http import Http, within
from turnout_workers.providers.prices import cost_microusd
from turnout_workers.providers.retry_after import observed_limits
from turnout_workers.providers.settings import ProviderConfig
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint
from turnout_workers.routing.profile import estimate_input_tokens

T = TypeVar("T")

PROTECTED = frozenset({"model", "messages", "contents", "input", "system", "stream", "stream_options", "requests"})
"""Fields that a job's extras can't set."""
HEALTH_TIMEOUTS = Timeouts(connect_s=3, first_byte_s=5, idle_s=5, total_s=8)


@dataclass(slots=True)
class Sent:
    """One request on its way out: its headers, and what had to be left out of it."""

    request: InferenceRequest
    provider: str
    parameters: frozenset[str]
    headers: dict[str, str]
    scrub: tuple[str, ...]
    warnings: list[str] = field(default_factory=list)

    def takes(self, name: str) -> bool:
        """Whether the provider takes this parameter; if not, it is left out with a warning, or the call fails."""
        if name in self.parameters:
            return True
        text = f"{self.provider} does not take {name}"
        if self.request.on_unsupported == "fail":
            raise ProviderError.unsupported(text)
        self.warnings.append(f"{text}; it was left out")
        return False

    def with_extras(self, body: dict[str, Any]) -> dict[str, Any]:
        """Add the job's own fields for this provider."""
        for name, value in self.request.extras.get(self.provider, {}).items():
            if name in PROTECTED:
                self.warnings.append(f"extras can't set {name}; it was left out")
            else:
                body[name] = value
        return body


class Connector(CloudProviderBase):
    """Base of the connectors that come with Turnout."""

    def __init__(self, config: ProviderConfig, http: Http) -> None:
        super().__init__(config.name, config.endpoints)
        self.config = config
        self.http = http
        self.dialect: Dialect = dialect(config.dialect, config.kind)
        self._headers = dict(config.headers)
        if config.api_key is not None:
            key = config.api_key.reveal()
            self._headers[self.dialect.auth_header] = f"{self.dialect.auth_prefix}{key}"

    @property
    def _key(self) -> tuple[str, ...]:
        return (self.config.api_key.reveal(),) if self.config.api_key else ()

    def begin(self, endpoint: Endpoint, request: InferenceRequest, parameters: frozenset[str] | None = None) -> Sent:
        """Start on a request. `parameters`: what is taken, if it is not what the dialect says."""
        headers = dict(self._headers)
        if endpoint.simulated and (job_id := current_job.get()):
            headers["x-turnout-job"] = job_id  # for the simulator's books; real providers get none of our ids
        if self.config.traceparent:
            headers |= tracing.headers()
        texts = tuple(text for text in (*request.texts, *(m.text for m in request.chat)) if text)
        return Sent(request, self.name, parameters or self.dialect.parameters, headers, (*self._key, *texts))

    def end(
        self,
        answer: dict[str, Any],
        endpoint: Endpoint,
        sent: Sent,
        headers: Mapping[str, str],
        latency_s: float,
        first_token_s: float | None,
    ) -> CallOutcome:
        """Complete the neutral answer with usage, cost and provenance."""
        used: Usage | None = answer.pop("usage", None)
        reported_usd = answer.pop("reported_cost_usd", None)
        if used is None:
            used = _estimated(sent.request, answer.get("text", ""))
            sent.warnings.append("the provider reported no usage; it is estimated")
        response = InferenceResponse(
            **answer,
            usage=used,
            cost_microusd=_cost(endpoint, used, reported_usd),
            provider=self.name,
            model_requested=endpoint.model,
            request_id=headers.get("x-request-id") or headers.get("request-id"),
            latency_s=latency_s,
            time_to_first_token_s=first_token_s,
            warnings=tuple(sent.warnings),
            simulated=endpoint.simulated or "x-turnout-simulated" in headers,
        )
        daily = self.config.dialect == "groq"
        return CallOutcome(response, observed_limits(headers, time.time(), requests_are_daily=daily))

    async def gathered(self, stream: Awaitable[T], timeouts: Timeouts) -> T:
        """Await the reading of a stream, whose events may have any shape at all."""
        try:
            async with within(timeouts.total_s):
                return await stream
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise malformed("a stream that can't be read") from None

    async def check_health(self) -> None:
        await self.http.json("GET", self._health_url(), self._headers, None, HEALTH_TIMEOUTS, self._key)

    def _health_url(self) -> str:
        return f"{self.config.base_url}{self.dialect.health_path}"


def _cost(endpoint: Endpoint, used: Usage, reported_usd: Any) -> int | None:
    """The provider's own word first, then our price."""
    if isinstance(reported_usd, int | float) and math.isfinite(reported_usd) and reported_usd >= 0:
        return math.ceil(reported_usd * 1e6 - 1e-9)
    return None if endpoint.price is None else cost_microusd(endpoint.price, used)


def _estimated(request: InferenceRequest, text: str) -> Usage:
    upper, _ = estimate_input_tokens(request)
    return Usage(input_tokens=upper, output_tokens=math.ceil(len(text.encode()) / 2), source="estimated")


def malformed(what: str) -> ProviderError:
    """A 200 that is no answer, assumed to have been billed."""
    return ProviderError(Failure(FailureKind.MALFORMED, what, Billed.YES, status=200))
