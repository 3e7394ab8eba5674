"""What all connectors over HTTP share: one call from the request to the neutral answer, its usage and its cost.

A wire format says what to send (`question`) and how to read what comes back (`read`, and `gathering` for streams):
plain functions of values. All else is here: headers, extras, deadlines, streaming, bad answers, money.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from multidict import istr
from pydantic_core import PydanticSerializationError, to_json

from turnout.request import FinishReason, ImagePart, InferenceRequest, InferenceResponse, ToolCall, Usage
from turnout_workers.monitoring import tracing
from turnout_workers.providers.base import CallOutcome, CloudProviderBase, OnToken, Timeouts, current_job
from turnout_workers.providers.dialects import Dialect, dialect
from turnout_workers.providers.errors import ProviderError, malformed, request_id
from turnout_workers.providers.http import Http, Outgoing, Reply, within
from turnout_workers.providers.prices import cost_microusd, list_price
from turnout_workers.providers.retry_after import observed_limits
from turnout_workers.providers.settings import ProviderConfig
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint
from turnout_workers.routing.profile import estimate_input_tokens

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROTECTED = frozenset(
    {
        "model", "messages", "contents", "input", "system", "systemInstruction", "stream", "stream_options", "requests",
        # what the call may cost was worked out, and perhaps held back, for these
        "max_tokens", "max_completion_tokens", "maxOutputTokens", "n", "candidateCount",
    }
)  # fmt: skip
"""Fields that a job's extras can't set."""
JOB_HEADER = istr("x-turnout-job")
HEALTH_TIMEOUTS = Timeouts(connect_s=3, first_byte_s=5, idle_s=5, total_s=8)
REPEATED = 4000
"""Characters of an image: vendors repeat the beginning of what they object to, and images are long."""
MOST_TOKENS = 1e9
"""Of one call; a provider that reports more is not believed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer in neutral terms, as far as its body says it."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: str | None = None
    embeddings: tuple[tuple[float, ...], ...] = ()
    finish: FinishReason = FinishReason.STOP
    finish_raw: str | None = None
    usage: Usage | None = None
    """None: not reported, or not to be believed."""
    cost_usd: float | None = None
    """What the provider itself says that the call cost."""
    service_tier: str | None = None
    """In which it was served."""
    model: str | None = None
    """Which was served, in the provider's words."""


class Gathering(Protocol):
    """The events of one stream, on their way to the body that the same call would have had without streaming."""

    def add(self, event: dict[str, Any]) -> str:
        """Take the next event. Returns the piece of the answer's text in it, if any."""

    def body(self) -> dict[str, Any] | None:
        """The whole. None: the stream has ended too early."""


@dataclass(slots=True)
class Sent:
    """One request on its way out, and what had to be left out of it."""

    request: InferenceRequest
    provider: str
    parameters: frozenset[str]
    warnings: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)

    def takes(self, name: str) -> bool:
        """Whether the provider takes this parameter; if not, it is left out with a warning, or the call fails."""
        if name in self.parameters:
            self.taken.append(name)
            return True
        text = f"{self.provider} does not take {name}"
        if self.request.on_unsupported == "fail":
            raise ProviderError.unsupported(text)
        self.warnings.append(f"{text}; it was left out")
        return False

    def with_extras(self, body: Mapping[str, Any], extras: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The body with the job's own fields for this provider; those of a table go into it one by one."""
        merged = dict(body)
        for name, value in (self.request.extras.get(self.provider, {}) if extras is None else extras).items():
            if name in PROTECTED:
                self.warnings.append(f"extras can't set {name}; it was left out")
            elif isinstance(value, dict) and isinstance(merged.get(name), dict):
                merged[name] = self.with_extras(merged[name], value)
            else:
                merged[name] = value
        return merged


class Connector(CloudProviderBase):
    """Base of connectors over HTTP. A wire format writes `question` and `read`, and `gathering` if it can stream."""

    def __init__(self, config: ProviderConfig, http: Http) -> None:
        super().__init__(config.name, config.endpoints)
        self.config = config
        self.http = http
        self.dialect: Dialect = dialect(config.dialect, config.kind)
        self._headers: dict[str, str] = {istr(name): value for name, value in config.headers}
        self._refused: defaultdict[str, set[str]] = defaultdict(set)
        self._secrets = tuple(self._headers.values())
        if config.api_key is not None:
            key = config.api_key.reveal()
            self._secrets += (key,)
            self._headers[istr(self.dialect.auth_header)] = f"{self.dialect.auth_prefix}{key}"

    # --- for a wire format to write ---

    def question(self, endpoint: Endpoint, request: InferenceRequest, sent: Sent, stream: bool) -> tuple[str, Any]:
        """What to send: the path after the base URL, and the body. Raises ProviderError on what can't be asked here."""
        raise NotImplementedError

    def read(self, request: InferenceRequest, body: Any) -> Answer:
        """What a successful body says. May raise any error of a body that isn't as it should be."""
        raise NotImplementedError

    def gathering(self) -> Gathering | None:
        """Somebody to gather a stream's events; None: the format can't stream, an answer comes in one piece."""
        return None

    @property
    def parameters(self) -> frozenset[str]:
        """The optional parameters that are taken, as `Dialect.parameters`."""
        return self.dialect.parameters

    @property
    def health_path(self) -> str:
        """After the base URL: a question that costs nothing."""
        return self.dialect.health_path

    # --- what follows from it ---

    async def call(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        timeouts: Timeouts = Timeouts(),
        on_token: OnToken | None = None,
    ) -> CallOutcome:
        """A parameter that the provider turns out to refuse for this model is left out from then on, and the call
        made again without it: nothing was done for the first one."""
        while True:
            refused = self._refused.get(endpoint.served_model)
            sent = Sent(request, self.name, self.parameters - refused if refused else self.parameters)
            gathering = None if on_token is None or request.is_embedding else self.gathering()
            out = self._asking(endpoint, sent, timeouts, gathering is not None)
            first_token_s: float | None = None
            try:
                if gathering is None or on_token is None:
                    reply = await self.http.json(out)
                else:
                    reply, first_token_s = await self._streamed(out, gathering, on_token)
                break
            except ProviderError as error:
                name = error.failure.parameter
                if name not in sent.taken or request.on_unsupported == "fail":
                    raise
                logger.warning("%s does not take %s: %s", endpoint.id, name, error.failure.message)
                self._refused[endpoint.served_model].add(name)
        answer = self._answer(request, reply.body)
        if on_token is not None and gathering is None and answer.text:
            await on_token(answer.text)
        return self._outcome(answer, endpoint, sent, reply, first_token_s)

    def headers(self, endpoint: Endpoint) -> dict[str, str]:
        """Of a call: the key, and what else the configuration says."""
        headers = self._headers
        if endpoint.simulated and (job_id := current_job.get()):
            headers = headers | {JOB_HEADER: job_id}  # for the simulator's books; real providers get none of our ids
        return headers | tracing.headers() if self.config.traceparent else headers

    async def check_health(self) -> None:
        await self.http.json(self._outgoing(self.health_path, self._headers, None, HEALTH_TIMEOUTS))

    def _asking(self, endpoint: Endpoint, sent: Sent, timeouts: Timeouts, stream: bool) -> Outgoing:
        """The question as it goes out: in bytes, for while it is answered nobody needs what they are made of."""
        request = sent.request
        path, body = self.question(endpoint, request, sent, stream)
        body = sent.with_extras(body)
        if self.config.service_tier is not None and not request.is_embedding:
            body["service_tier"] = self.config.service_tier
        try:
            content = to_json(body)
        except PydanticSerializationError:
            failure = Failure(FailureKind.INVALID_REQUEST, "the request holds text that is no Unicode")
            raise ProviderError(failure) from None
        return self._outgoing(path, self.headers(endpoint), content, timeouts, tuple(_said(request)))

    def _outgoing(
        self,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        timeouts: Timeouts,
        texts: tuple[str, ...] = (),
    ) -> Outgoing:
        url, proxy = f"{self.config.base_url}{path}", self.config.proxy
        return Outgoing(url, headers, content, timeouts, self._secrets + texts, self.dialect.limit_headers, proxy)

    async def _streamed(self, out: Outgoing, gathering: Gathering, on_token: OnToken) -> tuple[Reply, float | None]:
        """Gather a stream into the reply that the same call would have given without streaming."""
        started = time.monotonic()
        first_token_s: float | None = None
        headers: Mapping[str, str] = {}
        async with within(out.timeouts.total_s):
            async for headers, event in self.http.events(out):
                if piece := _understood(gathering.add, event):
                    if not isinstance(piece, str):
                        raise malformed("text that is none", headers)
                    if first_token_s is None:
                        first_token_s = time.monotonic() - started
                    await on_token(piece)
        if (body := _understood(gathering.body)) is None:
            raise ProviderError(Failure(FailureKind.INTERRUPTED, "the stream ended early", Billed.MAYBE))
        return Reply(body, headers, time.monotonic() - started), first_token_s

    def _answer(self, request: InferenceRequest, body: Any) -> Answer:
        """The answer, if it is one."""
        answer = _understood(self.read, request, body)
        if not isinstance(answer.text, str):
            raise malformed("text that is none")
        if request.is_embedding:
            if len(answer.embeddings) != len(request.texts):
                raise malformed(f"{len(answer.embeddings)} embeddings for {len(request.texts)} texts")
            return answer
        if answer.finish is FinishReason.ERROR:
            message = f"the answer ended in an error ({answer.finish_raw})"
            raise ProviderError(Failure(FailureKind.SERVER_ERROR, message, Billed.YES, status=200))
        if not (answer.text or answer.tool_calls or answer.refusal or answer.finish is FinishReason.LENGTH):
            if answer.finish is FinishReason.CONTENT_FILTER:
                raise filtered(answer.finish_raw, Billed.YES)
            raise malformed("an empty answer")
        return answer

    def _outcome(
        self, answer: Answer, endpoint: Endpoint, sent: Sent, reply: Reply, first_token_s: float | None
    ) -> CallOutcome:
        """The neutral answer with usage, cost and provenance."""
        used = answer.usage
        if used is None:
            used = _estimated(sent.request, answer.text)
            sent.warnings.append("the provider reported no usage; it is estimated")
        response = _understood(
            lambda: InferenceResponse(
                text=answer.text,
                tool_calls=answer.tool_calls,
                refusal=answer.refusal,
                embeddings=answer.embeddings,
                finish=answer.finish,
                finish_raw=answer.finish_raw,
                usage=used,
                cost_microusd=self._cost(endpoint, answer, used, reply.headers),
                provider=self.name,
                model_requested=endpoint.model,
                model_served=answer.model or endpoint.served_model,
                request_id=request_id(reply.headers),
                latency_s=reply.latency_s,
                time_to_first_token_s=first_token_s,
                warnings=tuple(sent.warnings),
                simulated=endpoint.simulated or "x-turnout-simulated" in reply.headers,
            )
        )
        return CallOutcome(response, observed_limits(reply.headers, time.time(), self.dialect.limit_headers))

    def _cost(self, endpoint: Endpoint, answer: Answer, used: Usage, headers: Mapping[str, str]) -> int | None:
        """The provider's own word first, then our price, that of the tier in which it was served."""
        told = answer.cost_usd
        if isinstance(told, int | float) and 0 <= told < MOST_USD:
            return math.ceil(told * 1e6 - 1e-9)
        price, tier = endpoint.price, answer.service_tier or headers.get("x-gemini-service-tier")
        if price is not None and tier and not price.is_operators and self.dialect.price_id:
            price = list_price(self.dialect.price_id, endpoint.served_model, tier=tier) or price
        return None if price is None else cost_microusd(price, used)


def _said(request: InferenceRequest) -> Iterator[str]:
    """The caller's content, which no error may repeat."""
    yield from request.texts
    for message in request.chat:
        yield message.text
        yield from (call.function.arguments for call in message.tool_calls)
        if isinstance(message.content, tuple):
            yield from (part.image_url.url[:REPEATED] for part in message.content if isinstance(part, ImagePart))


def filtered(why: object, billed: Billed) -> ProviderError:
    """The provider's policy has kept the answer back. `why`: its word; what is none might repeat the prompt."""
    word = why if isinstance(why, str) and why.isidentifier() and len(why) <= 40 else "no reason given"
    return ProviderError(Failure(FailureKind.CONTENT_FILTERED, f"filtered: {word}", billed, status=200))


def reported(read: Callable[[Any], Usage], told: Any) -> Usage | None:
    """Tokens as reported; None if they weren't, or make no sense."""
    try:
        used = read(told)
    except UNREADABLE:
        return None
    within_input = used.cache_read_tokens + used.cache_write_tokens <= used.input_tokens
    within_input &= used.cache_write_hour_tokens <= used.cache_write_tokens
    return used if within_input and used.total_tokens <= MOST_TOKENS else None


UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading a body of the wrong shape may raise."""
MOST_USD = 1e6
"""Of one call; a provider that reports more is not believed."""


def _understood(read: Callable[..., T], *arguments: Any) -> T:
    """What reading gives. A body can have any shape at all."""
    try:
        return read(*arguments)
    except KeyError as error:
        raise malformed(f"an answer without {str(error)[:40]}") from None
    except UNREADABLE:
        raise malformed("an answer that can't be read") from None


def _estimated(request: InferenceRequest, text: str) -> Usage:
    upper, _ = estimate_input_tokens(request)
    return Usage(input_tokens=upper, output_tokens=math.ceil(len(text.encode()) / 2), source="estimated")
