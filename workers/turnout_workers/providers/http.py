"""One HTTP call to a provider: deadlines of our own, a cap on what comes back, and every failure classified.

httpx with aiohttp underneath: httpx's own connection pool is quadratic under load. Its read timeout is per chunk,
so that a provider which drips a byte a second is never noticed: hence the first-byte, idle and total deadlines here.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic_core import to_json

from turnout_workers.providers import body
from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.classify import classify
from turnout_workers.providers.dialects import STANDARD_LIMITS
from turnout_workers.providers.errors import ProviderError, malformed
from turnout_workers.providers.exceptions import classify_exception
from turnout_workers.providers.retry_after import observed_limits
from turnout_workers.routing.failure import Billed, Failure, FailureKind

MAX_ERROR = 64 * 1024
ERROR_S = 2.0
"""Most bytes that are read, and most seconds that are waited, for what an error response says."""
USER_AGENT = "turnout"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One request, and what is to be known of it where its response is read."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] | None = field(repr=False)
    """None: a GET."""
    timeouts: Timeouts
    scrub: tuple[str, ...] = field(default=(), repr=False)
    """Keys and prompts, which no message may repeat."""
    limit_headers: Mapping[str, str] = field(default_factory=lambda: STANDARD_LIMITS)
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
        _tls()  # takes some ten milliseconds once, during which no call should wait on the loop
        self._transports: dict[str | None, AiohttpTransport] = {}

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()

    async def json(self, out: Outgoing) -> Reply:
        """Send, read whole, parse. Raises ProviderError for all that is not a 200 with a JSON object or list."""
        started = time.monotonic()
        async with self._response(out) as (headers, chunks):
            told = body.parsed(b"".join([chunk async for chunk in chunks]))
            _raise_if_error(told, headers, out)
            if not isinstance(told, dict | list):
                raise malformed("a 200 that is no JSON", headers)
            return Reply(told, headers, time.monotonic() - started)

    async def events(self, out: Outgoing) -> AsyncIterator[tuple[Mapping[str, str], dict[str, Any]]]:
        """Send and read server-sent events: the response's headers, and each event's data.

        Whether the stream was complete is for the wire format to say. No deadline runs here while the reader deals
        with an event, where its end would not be ours to classify: the reader has `within`.
        """
        async with self._response(out) as (headers, chunks):
            if "text/event-stream" not in headers.get("content-type", ""):
                _raise_if_error(body.parsed(b"".join([chunk async for chunk in chunks])), headers, out)
                raise malformed("no event stream where one was asked for", headers)
            begun = False
            async for data in body.server_sent(chunks):
                event = body.parsed(data)
                _raise_if_error(event, headers, out, begun)
                if not isinstance(event, dict):
                    raise malformed("an event that is no JSON object", headers)
                begun = True
                yield headers, event

    @asynccontextmanager
    async def _response(self, out: Outgoing) -> AsyncIterator[tuple[Mapping[str, str], AsyncIterator[bytes]]]:
        """The headers of an open 200 response and its decoded bytes; every way to fail becomes a ProviderError."""
        response: httpx.Response | None = None
        now = asyncio.get_running_loop().time
        timeouts = out.timeouts
        ends_at = now() + timeouts.total_s
        try:
            request = _request(out)
            # One deadline, moved on: for the first byte, then for each piece, and never past the end of all.
            async with asyncio.timeout(min(timeouts.first_byte_s, timeouts.total_s)) as deadline:
                response = await self._transport(out.proxy).handle_async_request(request)

                async def pieces(raw: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
                    deadline.reschedule(min(ends_at, now() + timeouts.idle_s))
                    async for chunk in raw:
                        deadline.reschedule(None)
                        yield chunk
                        deadline.reschedule(min(ends_at, now() + timeouts.idle_s))
                    deadline.reschedule(None)

                headers = _headers(response)
                if response.status_code != 200:
                    deadline.reschedule(None)
                    raise _classified(response.status_code, headers, await _said(response, headers, timeouts), out)
                yield headers, body.decoded(pieces(response.aiter_raw()), headers)
        except ProviderError:
            raise
        except TimeoutError:
            where = "first byte" if response is None else "rest of the answer"
            raise ProviderError(Failure(FailureKind.TIMED_OUT, f"no {where} in time", Billed.MAYBE)) from None
        except Exception as error:
            raise ProviderError(classify_exception(error)) from error
        finally:
            if response is not None:
                with suppress(Exception):  # what it was to say has been said, or the failure is on its way
                    await response.aclose()

    def _transport(self, proxy: str | None) -> AiohttpTransport:
        """Without a client around it: no redirects, cookies or proxies of the environment can come in, and no layer
        is paid for that does nothing here."""
        if proxy not in self._transports:
            way = None if proxy is None else httpx.Proxy(proxy)
            self._transports[proxy] = AiohttpTransport(_tls(), client=_session, trust_env=False, proxy=way)
        return self._transports[proxy]


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


@cache
def _tls() -> ssl.SSLContext:
    """The system's authorities, or those of SSL_CERT_FILE; read once."""
    return ssl.create_default_context()


def _session() -> aiohttp.ClientSession:
    # As many connections as calls: how many there are at once is for the worker's slots and the limits to say.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ssl=_tls())
    return aiohttp.ClientSession(
        connector=connector, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    )


def _request(out: Outgoing) -> httpx.Request:
    """A request with just the headers that are given here; httpx would look for each that it might add."""
    content = b"" if out.body is None else to_json(out.body)
    about = {"user-agent": USER_AGENT, "accept-encoding": "gzip"}
    if content:
        about |= {"content-type": "application/json", "content-length": str(len(content))}
    connect_s = out.timeouts.connect_s
    request = httpx.Request(
        "GET" if out.body is None else "POST",
        _url(out.url),
        headers={**about, **out.headers},
        stream=httpx.ByteStream(content),
        extensions={"timeout": {"connect": connect_s, "pool": connect_s}},  # the latter holds for DNS, too
    )
    request.read()  # so that the transport finds bytes, and sends them in one piece
    return request


@cache
def _url(url: str) -> httpx.URL:
    """Parsed once: a provider has a few."""
    return httpx.URL(url)


def _headers(response: httpx.Response) -> dict[str, str]:
    """By lower-case name. httpx searches the list of them anew for each one that is asked for."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


async def _said(response: httpx.Response, headers: Mapping[str, str], timeouts: Timeouts) -> Any:
    """What an error response says, as far as it can be had soon: its status alone tells enough."""
    raw = b""
    with suppress(Exception):
        async with asyncio.timeout(min(timeouts.idle_s, ERROR_S)):
            async for chunk in body.decoded(response.aiter_raw(), headers):
                raw += chunk
                if len(raw) > MAX_ERROR:
                    break
    told = body.parsed(raw)
    return raw[:MAX_ERROR].decode("utf-8", "replace") if told is None else told


def _raise_if_error(told: Any, headers: Mapping[str, str], out: Outgoing, begun: bool = False) -> None:
    """An error in what began as an answer. begun: something was answered before, and so perhaps billed."""
    if not isinstance(told, dict) or not (told.get("error") or told.get("object") == "error"):
        return
    error = _classified(200, headers, told, out)
    if begun and error.failure.billed is Billed.NO:
        error.failure = replace(error.failure, billed=Billed.MAYBE)
    raise error


def _classified(status: int, headers: Mapping[str, str], told: Any, out: Outgoing) -> ProviderError:
    now = time.time()
    failure = classify(status, headers, told, now, out.scrub, out.limit_headers)
    return ProviderError(failure, observed_limits(headers, now, out.limit_headers))
