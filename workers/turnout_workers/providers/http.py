"""One HTTP call to a provider: deadlines of our own, a cap on what comes back, and every failure classified.

aiohttp itself, for httpx above it took half of a call's processor time and did nothing here that is not done below.
A read timeout is per chunk, so that a provider which drips a byte a second is never noticed: hence the first-byte,
idle and total deadlines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import hdrs
from yarl import URL

from turnout_workers.providers import body
from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.classify import classify_exception, classify_response
from turnout_workers.providers.errors import ProviderError, malformed
from turnout_workers.providers.retry_after import observed_limits
from turnout_workers.routing.failure import Billed, Failure, FailureKind

MAX_ERROR = 64 * 1024
ERROR_S = 2.0
"""Most bytes that are read, and most seconds that are waited, for what an error response says."""
ABOUT_US: dict[str, str] = {hdrs.USER_AGENT: "turnout", hdrs.ACCEPT_ENCODING: "gzip"}
ABOUT_JSON = {**ABOUT_US, hdrs.CONTENT_TYPE: "application/json"}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, and what is to be known of it where its response is read."""

    url: URL
    headers: Mapping[str, str] = field(repr=False)
    """Named by `istr`, which aiohttp would make of each name anew for each call."""
    content: bytes | None = field(repr=False)
    """JSON; None: a GET."""
    timeouts: Timeouts
    scrub: tuple[str, ...] = field(default=(), repr=False)
    """Keys and prompts, which no message may repeat."""
    limit_headers: Mapping[str, str] = field(default_factory=dict)
    """See `Dialect.limit_headers`."""
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole successful response."""

    body: Any
    headers: Mapping[str, str]
    latency_s: float


class Http:
    """The HTTP client that all connectors of a process share."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def json(self, out: Outgoing) -> Reply:
        """Send, read whole, parse. Raises ProviderError for all that is not a 200 with a JSON object or list."""
        started = time.monotonic()
        async with _Exchange(out) as exchange:
            await exchange.begin(await self._send(out))
            told = body.parsed(await exchange.rest())
            exchange.raise_if_error(told)
            if not isinstance(told, dict | list):
                raise malformed("a 200 that is no JSON", exchange.headers)
            return Reply(told, exchange.headers, time.monotonic() - started)

    async def events(self, out: Outgoing) -> AsyncIterator[tuple[Mapping[str, str], dict[str, Any]]]:
        """Send and read server-sent events: the response's headers, and each event's data.

        Whether the stream was complete is for the wire format to say. No deadline runs here while the reader deals
        with an event, where its end would not be ours to classify: the reader has `within`.
        """
        async with _Exchange(out) as exchange:
            await exchange.begin(await self._send(out))
            headers = exchange.headers
            if "text/event-stream" not in headers.get("content-type", ""):
                exchange.raise_if_error(body.parsed(await exchange.rest()))
                raise malformed("no event stream where one was asked for", headers)
            begun = False
            async for data in body.server_sent(exchange):
                event = body.parsed(data)
                exchange.raise_if_error(event, begun)
                if not isinstance(event, dict):
                    raise malformed("an event that is no JSON object", headers)
                begun = True
                yield headers, event

    def _send(self, out: Outgoing) -> Awaitable[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = _session()
        return self._session.request(
            "GET" if out.content is None else "POST",
            out.url,
            data=out.content,
            headers={**(ABOUT_US if out.content is None else ABOUT_JSON), **out.headers},
            allow_redirects=False,
            timeout=_connecting(out.timeouts.connect_s),
            **(_through(out.proxy) if out.proxy else {}),
        )


class _Exchange:
    """A request and its response, whose body it gives piece by piece. Every way to fail in its block becomes a
    ProviderError. A class and no generator: thousands wait at a time.

    One deadline: for the first byte, then for each piece that is waited for, and never past the end of all.
    """

    __slots__ = ("_deadline", "_ends_at", "_now", "_out", "_response", "_unpacked", "headers")

    def __init__(self, out: Outgoing) -> None:
        self._out = out
        self._now = asyncio.get_running_loop().time
        self._ends_at = self._now() + out.timeouts.total_s
        self._deadline = asyncio.timeout_at(min(self._ends_at, self._now() + out.timeouts.first_byte_s))
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> Self:
        await self._deadline.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._deadline.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        if self._response is not None:
            self._response.close()  # unless it was read to its end, when its connection has gone back already
        if isinstance(error, Exception) and not isinstance(error, ProviderError):
            raise ProviderError(self._failure(error)) from error

    def _failure(self, error: Exception) -> Failure:
        # aiohttp's first: those that tell of a timeout know which.
        if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
            where = "first byte" if self._response is None else "rest of the answer"
            return Failure(FailureKind.TIMED_OUT, f"no {where} in time", Billed.MAYBE)
        return classify_exception(error)

    async def begin(self, response: aiohttp.ClientResponse) -> None:
        """Take a 200 as the response; any other is raised."""
        self._response = response
        self._deadline.reschedule(None)
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        if response.status != 200:
            raise self._classified(response.status, await _said(response, self.headers, self._out.timeouts))
        self._unpacked = body.Unpacked(self.headers)

    async def rest(self) -> bytes:
        """All that is yet to come."""
        return b"".join([piece async for piece in self])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        assert self._response is not None, "it has begun"
        content = self._response.content
        raw = content.read_nowait()
        if not raw and not content.at_eof():
            self._deadline.reschedule(min(self._ends_at, self._now() + self._out.timeouts.idle_s))
            raw = await content.readany()
            self._deadline.reschedule(None)
        if not raw:
            self._unpacked.end()
            raise StopAsyncIteration
        return self._unpacked(raw)

    def raise_if_error(self, told: Any, begun: bool = False) -> None:
        """An error in what began as an answer. begun: something was answered before, and so perhaps billed."""
        if not isinstance(told, dict) or not (told.get("error") or told.get("object") == "error"):
            return
        error = self._classified(200, told)
        if begun and error.failure.billed is Billed.NO:
            error.failure = replace(error.failure, billed=Billed.MAYBE)
        raise error

    def _classified(self, status: int, told: Any) -> ProviderError:
        now, limit_headers = time.time(), self._out.limit_headers
        failure = classify_response(status, self.headers, told, now, self._out.scrub, limit_headers)
        return ProviderError(failure, observed_limits(self.headers, now, limit_headers))


@asynccontextmanager
async def within(total_s: float) -> AsyncIterator[None]:
    """The total deadline of a stream and of its reader. A TimeoutError of someone else's passes unchanged."""
    deadline = asyncio.timeout(total_s)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        message = f"no whole answer in {total_s:g} s"
        raise ProviderError(Failure(FailureKind.TIMED_OUT, message, Billed.MAYBE)) from None


def _session() -> aiohttp.ClientSession:
    """No redirects, cookies or proxies of the environment can come in.

    Servers are held to the system's authorities, or to those of SSL_CERT_FILE, which aiohttp has read at its import.
    """
    # As many connections as calls: how many there are at once is for the worker's slots and the limits to say.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    return aiohttp.ClientSession(
        connector=connector, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    )


@cache
def address(base_url: str, path: str) -> URL:
    """Parsed once: a provider has a few."""
    return URL(f"{base_url}{path}")


@cache
def _through(proxy: str) -> dict[str, Any]:
    """By a proxy; its password apart from its address, which errors tell of.

    What aiohttp finds here as Authorization becomes Proxy-Authorization in the request that the proxy reads: CONNECT
    for https, else the call itself.
    """
    url = URL(proxy)
    if url.user is None:
        return {"proxy": url}
    allowed = aiohttp.encode_basic_auth(url.user, url.password or "")
    return {"proxy": url.with_user(None), "proxy_headers": {"Authorization": allowed}}


@cache
def _connecting(connect_s: float) -> aiohttp.ClientTimeout:
    """Of aiohttp's own deadlines those alone that hold before anything is sent."""
    return aiohttp.ClientTimeout(total=None, connect=connect_s)


async def _said(response: aiohttp.ClientResponse, headers: Mapping[str, str], timeouts: Timeouts) -> Any:
    """What an error response says, as far as it can be had soon: its status alone tells enough."""
    raw = b""
    with suppress(Exception):
        async with asyncio.timeout(min(timeouts.idle_s, ERROR_S)):
            unpacked = body.Unpacked(headers)
            async for chunk in response.content.iter_any():
                raw += unpacked(chunk)
                if len(raw) > MAX_ERROR:
                    break
    told = body.parsed(raw)
    return raw[:MAX_ERROR].decode("utf-8", "replace") if told is None else told
