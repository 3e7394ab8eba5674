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
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

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
        self._client = httpx.AsyncClient(
            transport=AiohttpTransport(client=_session, trust_env=False),
            headers={"user-agent": USER_AGENT, "accept-encoding": "gzip"},
            follow_redirects=False,
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

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
        async with self._response(method, url, headers, body, timeouts, scrub) as (response, decoded):
            chunks = [chunk async for chunk in decoded]
            parsed = _parse(b"".join(chunks))
            if not isinstance(parsed, dict):
                raise ProviderError(_malformed("a 200 that is no JSON object", response))
            if parsed.get("error"):
                raise ProviderError(classify(200, response.headers, parsed, time.time(), scrub))
            return Reply(parsed, response.headers, time.monotonic() - started)

    async def events(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
        timeouts: Timeouts,
        scrub: tuple[str, ...] = (),
    ) -> AsyncIterator[tuple[Mapping[str, str], Any]]:
        """Send and read server-sent events: the response's headers, and each event's data as JSON.

        `[DONE]` is left out. Whether the stream was complete is for the wire format to say.
        """
        async with self._response("POST", url, headers, body, timeouts, scrub) as (response, decoded):
            if "text/event-stream" not in response.headers.get("content-type", ""):
                parsed = _parse(b"".join([chunk async for chunk in decoded]))
                if isinstance(parsed, dict) and parsed.get("error"):
                    raise ProviderError(classify(200, response.headers, parsed, time.time(), scrub))
                raise ProviderError(_malformed("no event stream where one was asked for", response))
            async for data in _sse(decoded):
                if data.strip() == b"[DONE]":
                    continue
                parsed = _parse(data)
                if not isinstance(parsed, dict):
                    raise ProviderError(_malformed("an event that is no JSON object", response))
                if parsed.get("error"):
                    raise ProviderError(classify(200, response.headers, parsed, time.time(), scrub))
                yield response.headers, parsed

    @asynccontextmanager
    async def _response(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: Mapping[str, Any] | None,
        timeouts: Timeouts,
        scrub: tuple[str, ...],
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        """An open 200 response and its decoded bytes; every way to fail becomes a ProviderError."""
        content = None if body is None else json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        sent_headers = dict(headers) if content is None else {**headers, "content-type": "application/json"}
        connect = httpx.Timeout(None, connect=timeouts.connect_s)
        request = self._client.build_request(method, url, headers=sent_headers, content=content, timeout=connect)
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(timeouts.total_s):
                async with asyncio.timeout(timeouts.first_byte_s):
                    response = await self._client.send(request, stream=True)
                decoded = _decoded(response, timeouts.idle_s)
                if response.status_code != 200:
                    raw = b"".join([chunk async for chunk in decoded])
                    parsed = _parse(raw)
                    told = raw.decode("utf-8", "replace") if parsed is None else parsed
                    now = time.time()
                    limits = observed_limits(response.headers, now)
                    raise ProviderError(classify(response.status_code, response.headers, told, now, scrub), limits)
                yield response, decoded
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


def _session() -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=60)
    return aiohttp.ClientSession(
        connector=connector, auto_decompress=False, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    )


async def _close(response: httpx.Response) -> None:
    with suppress(Exception):  # what it was to say has been said, or the failure is on its way
        await response.aclose()


async def _decoded(response: httpx.Response, idle_s: float) -> AsyncIterator[bytes]:
    """The body's bytes, unpacked piece by piece, never more than the cap."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "deflate", ""):
        raise ProviderError(_malformed(f"content-encoding {encoding[:40]!r}, which we did not offer", response))
    inflate = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
    total = 0
    chunks = response.aiter_raw()
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            break
        if inflate is not None:
            chunk = inflate.decompress(chunk, MAX_BODY + 1 - total)
        total += len(chunk)
        if total > MAX_BODY:
            raise ProviderError(_malformed(f"more than {MAX_BODY >> 20} MB", response))
        yield chunk
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


def _malformed(what: str, response: httpx.Response) -> Failure:
    request_id = response.headers.get("x-request-id") or response.headers.get("request-id")
    return Failure(FailureKind.MALFORMED, what, Billed.YES, status=response.status_code, request_id=request_id)


def classify_exception(error: BaseException) -> Failure:
    """What went wrong below HTTP. httpx's exceptions, and those of aiohttp that come through unmapped."""
    cause = error.__cause__ or error
    text = scrubbed(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)
    match error:
        case httpx.PoolTimeout():
            return Failure(FailureKind.LOCAL, text)
        case httpx.ConnectError() | httpx.ProxyError() | httpx.UnsupportedProtocol() | aiohttp.ClientConnectorError():
            return Failure(FailureKind.UNAVAILABLE, text)
        case httpx.ConnectTimeout():
            # The transport gives this name to lost connections too; those may have been billed.
            reset = isinstance(cause, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
            if reset and not isinstance(cause, aiohttp.ClientConnectorError):
                return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
            return Failure(FailureKind.UNAVAILABLE, text)
        case httpx.ReadTimeout() | httpx.WriteTimeout():
            return Failure(FailureKind.TIMED_OUT, text, Billed.MAYBE)
        case httpx.TimeoutException():
            # aiohttp's ServerTimeoutError: connecting took too long
            return Failure(FailureKind.UNAVAILABLE, text)
        case aiohttp.ClientResponseError() | httpx.DecodingError() | httpx.TooManyRedirects():
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
        case httpx.TransportError() | aiohttp.ClientError() | OSError() | httpx.StreamError():
            return Failure(FailureKind.INTERRUPTED, text, Billed.MAYBE)
        case httpx.InvalidURL() | ValueError():
            return Failure(FailureKind.UNAVAILABLE, text)
        case _:
            return Failure(FailureKind.MALFORMED, text, Billed.MAYBE)
