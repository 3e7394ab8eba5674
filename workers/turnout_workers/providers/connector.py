"""What all connectors over HTTP share: one call, from the request to the neutral answer, its usage and cost.

A wire format says what to send (`build_request`) and how to read the answer (`parse_answer`, and `stream_collector` for
streams): plain functions of values. The rest is here: headers, extras, deadlines, streaming, bad answers, money.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from multidict import istr
from pydantic_core import PydanticSerializationError, to_json

from turnout.errors import TurnoutError
from turnout.request import Capability, InferenceRequest, InferenceResponse, Usage
from turnout_workers.monitoring import tracing
from turnout_workers.providers.account import ProviderConfig
from turnout_workers.providers.base import CallOutcome, CloudProviderBase, OnToken, Timeouts, current_job
from turnout_workers.providers.dialects import DIALECTS, GENERIC, Dialect
from turnout_workers.providers.errors import ProviderError, broken, malformed, request_id
from turnout_workers.providers.http import Http, HttpExchange, HttpRequest, url_of
from turnout_workers.providers.prices import call_cost_microusd
from turnout_workers.providers.retry_after import observed_limits
from turnout_workers.providers.scrub import prompt_texts
from turnout_workers.providers.wire import Answer, RequestDraft, StreamCollector, failure_of, parsed_or_malformed
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint
from turnout_workers.routing.profile import JobProfile

logger = logging.getLogger(__name__)

JOB_HEADER = istr("x-turnout-job")
STREAM = frozenset({"stream"})
"""Formats that can stream support it, but not for every model and organisation."""
CUT_OFF = (FailureKind.TIMED_OUT, FailureKind.INTERRUPTED)
"""How a stream fails if its end doesn't come."""
HEALTH_TIMEOUTS = Timeouts(connect_s=3, first_byte_s=5, idle_s=5, total_s=8)


@dataclass(frozen=True, slots=True)
class _Reply:
    """A whole successful response."""

    body: Any
    headers: Mapping[str, str]
    latency_s: float
    first_token_s: float | None = None
    """None: not a stream, or without text."""


class Connector(CloudProviderBase):
    """Base of connectors over HTTP. A wire format implements `build_request` and `parse_answer`, and
    `stream_collector` if it can stream."""

    dialect: Dialect = GENERIC
    """Where the key goes, which parameters are supported, and which headers show limits, unless a preset says so."""

    def __init__(self, config: ProviderConfig, http: Http) -> None:
        super().__init__(config.name, config.endpoints)
        if not config.base_url:
            raise TurnoutError(f"provider {config.name}: base_url is missing; set it in this provider's table")
        self.config = config
        self.http = http
        self.dialect = DIALECTS.get(config.dialect or "", self.dialect)
        self._headers: dict[str, str] = {istr(name): value for name, value in config.headers}
        parameters = self.dialect.parameters | STREAM
        self._parameters: defaultdict[tuple[str, str | None, bool], frozenset[str]] = defaultdict(lambda: parameters)
        """By model, reasoning effort and whether there are tools. Models support some efforts, some of them none with
        tools, and temperature only with some efforts."""
        keys = tuple(self._headers.values())
        if config.api_key is not None:
            key = config.api_key.reveal()
            keys += (key,)
            self._headers[istr(self.dialect.auth_header)] = f"{self.dialect.auth_prefix}{key}"
        self._new_request = partial(
            HttpRequest, keys=keys, limit_headers=self.dialect.limit_headers, proxy=config.proxy
        )

    # --- what a wire format implements ---

    def build_request(
        self, endpoint: Endpoint, request: InferenceRequest, draft: RequestDraft, stream: bool
    ) -> tuple[str, Any]:
        """The path after the base URL, and the body to send. Raises ProviderError if the format can't express it."""
        raise NotImplementedError

    def parse_answer(self, request: InferenceRequest, body: Any) -> Answer:
        """The answer in the body of a successful response. May raise anything if its shape is wrong."""
        raise NotImplementedError

    def stream_collector(self) -> StreamCollector | None:
        """A collector for the events of one stream. None: the format can't stream; answers come in one piece."""
        return None

    @property
    def health_path(self) -> str:
        """Path, after the base URL, of a request that costs nothing."""
        return self.dialect.health_path

    # --- what all formats share ---

    async def call(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        timeouts: Timeouts = Timeouts(),
        on_token: OnToken | None = None,
    ) -> CallOutcome:
        """See `CloudProviderBase.call`. A parameter that the provider refuses for this model is dropped from then on,
        and the call is repeated without it, because a refused call costs nothing."""
        variant = endpoint.served_model, request.reasoning_effort, bool(request.tools)
        while True:
            draft = RequestDraft(request, self.name, self._parameters[variant])
            streams = on_token is not None and not request.is_embedding and draft.supports("stream")
            collector = self.stream_collector() if streams else None
            out = self._http_request(endpoint, draft, timeouts, collector is not None)
            try:
                reply = await self._send(out, collector, on_token)
                break
            except ProviderError as error:
                name = error.failure.parameter
                if name not in draft.used or request.on_unsupported == "fail":
                    raise
                logger.warning("%s does not support %s: %s", endpoint.id, name, error.failure.message)
                self._parameters[variant] -= {name}
        answer = parsed_or_malformed(self.parse_answer, request, reply.body)
        failure = failure_of(answer, draft)
        outcome = parsed_or_malformed(self._outcome, answer, endpoint, draft, reply)
        if failure:
            raise ProviderError(failure, outcome.limits, outcome.response if answer.usage else None)
        if on_token is not None and reply.first_token_s is None and answer.text:
            await on_token(answer.text)
        return outcome

    def headers(self, endpoint: Endpoint) -> dict[str, str]:
        """The headers of a call: the key, and those that the configuration adds."""
        headers = self._headers
        if endpoint.simulated and (job_id := current_job.get()):
            headers = headers | {JOB_HEADER: job_id}  # for the simulator's records; real providers get none of our ids
        return headers | tracing.headers() if self.config.traceparent else headers

    async def check_health(self) -> None:
        url = url_of(self.config.base_url, self.health_path)
        await self._send(self._new_request(url, self._headers, None, HEALTH_TIMEOUTS))

    def _http_request(self, endpoint: Endpoint, draft: RequestDraft, timeouts: Timeouts, stream: bool) -> HttpRequest:
        """The request as bytes, so that the values it is made from aren't kept during the call."""
        request = draft.request
        try:
            path, body = self.build_request(endpoint, request, draft, stream)
            body = draft.with_extras(body, draft.extras())
            if self.config.service_tier is not None and not request.is_embedding:
                body["service_tier"] = self.config.service_tier
            content = to_json(body)
        except ProviderError:
            raise
        except PydanticSerializationError:
            why = "the request is nested too deeply, or holds text that is not valid Unicode"
            raise ProviderError(Failure(FailureKind.INVALID_REQUEST, why)) from None
        except Exception as error:  # nothing was sent: the fault is the request's, not the endpoint's
            raise ProviderError(broken("connector", endpoint.id, error, kind=FailureKind.INVALID_REQUEST)) from None
        url, texts = url_of(self.config.base_url, path), tuple(prompt_texts(request))
        has_images = Capability.VISION in request.required_capabilities
        return self._new_request(url, self.headers(endpoint), content, timeouts, texts=texts, has_images=has_images)

    async def _send(
        self, out: HttpRequest, collector: StreamCollector | None = None, on_token: OnToken | None = None
    ) -> _Reply:
        """Send the request and read the whole response. A stream is assembled into the reply that the same call would
        have had without streaming. A complete stream counts as an answer even if its connection stays open or breaks:
        otherwise the call would only be paid for again."""
        session, started = await self.http.session(), time.monotonic()
        first_token_s: float | None = None
        cut_off = ProviderError(Failure(FailureKind.INTERRUPTED, "the stream ended early", Billed.MAYBE))
        exchange = HttpExchange(out)
        try:
            async with exchange:
                await exchange.start(session)
                if collector is None or on_token is None or not exchange.is_stream:
                    return _Reply(await exchange.read_json(), exchange.headers, time.monotonic() - started)
                async for event in exchange.events():
                    if piece := parsed_or_malformed(collector.add, event):
                        if not isinstance(piece, str):
                            raise malformed("a piece of text that is not a string", exchange.headers)
                        if first_token_s is None:
                            first_token_s = time.monotonic() - started
                        await on_token(piece)
        except ProviderError as error:
            if collector is None or error.failure.kind not in CUT_OFF:
                raise
            cut_off = error
        if (body := parsed_or_malformed(collector.body)) is None:
            raise cut_off
        return _Reply(body, exchange.headers, time.monotonic() - started, first_token_s)

    def _outcome(self, answer: Answer, endpoint: Endpoint, draft: RequestDraft, reply: _Reply) -> CallOutcome:
        """The neutral answer with usage, cost and provenance."""
        used = answer.usage
        if used is None or (used.output_tokens == 0 and any(answer.written)):
            usage = used or Usage(input_tokens=JobProfile.of(draft.request).input_at(endpoint.image_rule).expected)
            answered = math.ceil(sum(len(text.encode()) for text in answer.written) / 4)
            used = usage.model_copy(update={"output_tokens": answered, "source": "estimated"})
            draft.warnings.append("the provider reported no usage; it is estimated")
        reported_usd = _cost_usd(reply.headers) if answer.cost_usd is None else answer.cost_usd
        tier = answer.service_tier or reply.headers.get("x-gemini-service-tier")
        cost_microusd = call_cost_microusd(
            endpoint, self.dialect, self.config.base_url, used, reported_usd, tier, answer.surcharge
        )
        response = InferenceResponse(
            text=answer.text,
            tool_calls=answer.tool_calls,
            refusal=answer.refusal,
            reasoning_content=answer.reasoning_content,
            embeddings=answer.embeddings,
            finish=answer.finish,
            finish_raw=answer.finish_raw,
            usage=used,
            cost_microusd=cost_microusd,
            provider=self.name,
            model_requested=endpoint.model,
            model_served=answer.model or endpoint.served_model,
            request_id=request_id(reply.headers),
            latency_s=reply.latency_s,
            time_to_first_token_s=reply.first_token_s,
            warnings=tuple(draft.warnings),
            simulated=endpoint.simulated or "x-turnout-simulated" in reply.headers,
        )
        return CallOutcome(response, observed_limits(reply.headers, time.time(), self.dialect.limit_headers))


def _cost_usd(headers: Mapping[str, str]) -> float | None:
    """The cost that LiteLLM reports. Its 0 may also mean an unknown price."""
    try:
        return float(headers.get("x-litellm-response-cost", "")) or None
    except ValueError:
        return None
