"""One HTTP call to a provider: deadlines of our own, a cap on what comes back, and every failure classified.

httpx with aiohttp underneath: httpx's own connection pool is quadratic under load. Its read timeout is per chunk,
so that a provider which drips a byte a second is never noticed: hence the first-byte, idle and total deadlines
here. Bodies are decoded here too, for a 64 KB gzip chunk can unpack to 67 MB in one piece.
"""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic_core import PydanticSerializationError, to_json

from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.classify import classify, scrubbed
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.retry_after import observed_limits
from turnout_workers.routing.failure import Billed, Failure, FailureKind

MAX_BODY = 32 * 1024 * 1024
"""Most decoded bytes of one answer."""
CONNECTIONS = 5000
USER_AGENT = "turnout"


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole successful response."""

    body: Any
    headers: Mapping[str, str]
    latency_s: float


class Http:
    """The HTTP client that all connectors of a process share."""

    def __init__(self) -> None:
        # The transport without a client around it: no redirects, cookies or proxies can come in, and no layer
        # is paid for that does nothing here.
        self._transport = AiohttpTransport(client=_session, trust_env=False)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def json(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        timeouts: Timeouts,
        scrub: tuple[str, ...] = (),
    ) -> Reply:
        """Send, read whole, parse. Raises ProviderError for all that is not a 200 with a JSON object."""
        started = time.monotonic()
        async with self._response(method, url, headers, body, timeouts, scrub) as (told, decoded):
            parsed = _parse(b"".join([chunk async for chunk in decoded]))
            if not isinstance(parsed, dict):
                raise ProviderError(_malformed("a 200 that is no JSON object", told))
            if parsed.get("error"):
                raise ProviderError(classify(200, told, parsed, time.time(), scrub))
            return Reply(parsed, told, time.monotonic() - started)

    async def events(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        timeouts: Timeouts,
        scrub: tuple[str, ...] = (),
    ) -> AsyncIterator[tuple[Mapping[str, str], Any]]:
        """Send and read server-sent events: the response's headers, and each event's data as JSON.

        `[DONE]` is left out. Whether the stream was complete is for the wire format to say. No deadline runs here
        while the reader deals with an event, where its end would not be ours to classify: the reader has `within`.
        """
        async with self._response("POST", url, headers, body, timeouts, scrub) as (told, decoded):
            if "text/event-stream" not in told.get("content-type", ""):
                parsed = _parse(b"".join([chunk async for chunk in decoded]))
                if isinstance(parsed, dict) and parsed.get("error"):
                    raise ProviderError(classify(200, told, parsed, time.time(), scrub))
                raise ProviderError(_malformed("no event stream where one was asked for", told))
            begun = False
            async for data in _sse(decoded):
                if data.strip() == b"[DONE]":
                    continue
                parsed = _parse(data)
                if not isinstance(parsed, dict):
                    raise ProviderError(_malformed("an event that is no JSON object", told))
                if parsed.get("error"):
                    failure = classify(200, told, parsed, time.time(), scrub)
                    if begun and failure.billed is Billed.NO:
                        failure = replace(failure, billed=Billed.MAYBE)  # what was said until then
                    raise ProviderError(failure)
                begun = True
                yield told, parsed

    @asynccontextmanager
    async def _response(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        timeouts: Timeouts,
        scrub: tuple[str, ...],
    ) -> AsyncIterator[tuple[Mapping[str, str], AsyncIterator[bytes]]]:
        """The headers of an open 200 response and its decoded bytes; every way to fail becomes a ProviderError."""
        response: httpx.Response | None = None
        now = asyncio.get_running_loop().time
        ends_at = now() + timeouts.total_s
        try:
            request = _request(method, url, headers, body, timeouts.connect_s)
            # One deadline, moved on: for the first byte, then for each piece, and never past the end of all.
            async with asyncio.timeout(min(timeouts.first_byte_s, timeouts.total_s)) as deadline:
                response = await self._transport.handle_async_request(request)
                told = _headers(response)

                def waiting(on: bool) -> None:
                    deadline.reschedule(min(ends_at, now() + timeouts.idle_s) if on else None)

                decoded = _decoded(response, told, waiting)
                if response.status_code != 200:
                    raw = b"".join([chunk async for chunk in decoded])
                    parsed = _parse(raw)
                    text = raw.decode("utf-8", "replace") if parsed is None else parsed
                    failure = classify(response.status_code, told, text, time.time(), scrub)
                    raise ProviderError(failure, observed_limits(told, time.time()))
                yield told, decoded
        except ProviderError:
            raise
        except TimeoutError:
            where = "first byte" if response is None else "rest of the answer"
            raise ProviderError(Failure(FailureKind.TIMED_OUT, f"no {where} in time", Billed.MAYBE)) from None
        except Exception as error:
            raise ProviderError(classify_exception(error)) from error
        finally:
            if response is not None:
                await _close(response)


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
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=60)
    return aiohttp.ClientSession(
        connector=connector, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    )


async def _close(response: httpx.Response) -> None:
    with suppress(Exception):  # what it was to say has been said, or the failure is on its way
        await response.aclose()


def _request(
    method: str, url: str, headers: Mapping[str, str], body: Mapping[str, Any] | None, connect_s: float
) -> httpx.Request:
    """A request with just the headers that are given here; httpx would look for each that it might add."""
    content = b"" if body is None else to_json(body)
    about = {"user-agent": USER_AGENT, "accept-encoding": "gzip"}
    if content:
        about |= {"content-type": "application/json", "content-length": str(len(content))}
    request = httpx.Request(
        method,
        _url(url),
        headers={**about, **headers},
        stream=httpx.ByteStream(content),
        extensions={"timeout": {"connect": connect_s}},
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


async def _decoded(
    response: httpx.Response, headers: Mapping[str, str], waiting: Callable[[bool], None]
) -> AsyncIterator[bytes]:
    """The body's bytes, unpacked piece by piece, never more than the cap. `waiting`: told when we wait for them."""
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise ProviderError(_malformed(f"content-encoding {encoding[:40]!r}, which we did not offer", headers))
    inflate = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    total = 0
    waiting(True)
    async for chunk in response.aiter_raw():
        if inflate is not None:
            chunk = inflate.decompress(chunk, MAX_BODY + 1 - total)
        total += len(chunk)
        if total > MAX_BODY:
            raise ProviderError(_malformed(f"more than {MAX_BODY >> 20} MB", headers))
        waiting(False)
        yield chunk
        waiting(True)
    waiting(False)
    if inflate is not None and not inflate.eof:
        raise ProviderError(Failure(FailureKind.INTERRUPTED, "the compressed answer ends early", Billed.MAYBE))


async def _sse(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event."""
    rest, data = b"", []
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:
        yield b"\n".join(data)


def _parse(raw: bytes) -> Any:
    """JSON, or None: also for what is too deep, or no UTF-8, or a number of thousands of digits."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _malformed(what: str, headers: Mapping[str, str]) -> Failure:
    request_id = headers.get("x-request-id") or headers.get("request-id")
    return Failure(FailureKind.MALFORMED, what, Billed.YES, status=200, request_id=request_id)


def classify_exception(error: BaseException) -> Failure:
    """What went wrong below HTTP. httpx's exceptions, and those of aiohttp that come through unmapped."""
    cause = error.__cause__ or error
    text = scrubbed(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)
    match error:
        case httpx.PoolTimeout():
            return Failure(FailureKind.LOCAL, text)
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return Failure(FailureKind.UNAVAILABLE, text)
        case (
            aiohttp.ClientConnectorError()
            | aiohttp.ServerFingerprintMismatch()
            | aiohttp.ConnectionTimeoutError()
            | aiohttp.ClientHttpProxyError()
            | aiohttp.InvalidURL()
            | aiohttp.NonHttpUrlClientError()
        ):
            return Failure(FailureKind.UNAVAILABLE, text)
        case httpx.ConnectTimeout():
            # The transport gives this name to lost connections too; those may have been billed.
            reset = isinstance(cause, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            if reset and not isinstance(cause, aiohttp.ClientConnectorError):
                return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
            return Failure(FailureKind.UNAVAILABLE, text)
        case httpx.ReadTimeout() | httpx.WriteTimeout() | aiohttp.ServerTimeoutError():
            return Failure(FailureKind.TIMED_OUT, text, Billed.MAYBE)
        case httpx.TimeoutException():
            # aiohttp's ServerTimeoutError: connecting took too long
            return Failure(FailureKind.UNAVAILABLE, text)
        case aiohttp.ClientResponseError() | httpx.DecodingError() | httpx.TooManyRedirects():
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
        case httpx.TransportError() | aiohttp.ClientError() | OSError() | httpx.StreamError():
            return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
        case PydanticSerializationError():
            return Failure(FailureKind.INVALID_REQUEST, "the request holds text that is no Unicode")
        case ValueError():
            return Failure(FailureKind.UNAVAILABLE, text)
        case _:
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
