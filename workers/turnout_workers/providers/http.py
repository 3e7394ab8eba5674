"""One HTTP call to a provider: our own deadlines, a cap on what comes back, and every failure classified.

It uses aiohttp directly, because httpx on top of it took half of a call's CPU time and added nothing needed here. A
client's read timeout is per chunk and never notices a provider that drips a byte a second. Hence the first-byte, idle
and total deadlines.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import hdrs
from aiohttp.connector import Connection
from yarl import URL

from turnout.keepalive import KEEPALIVE
from turnout_workers.providers import body
from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.classify import classify_exception, classify_response
from turnout_workers.providers.errors import MAX_ERROR, ProviderError, malformed
from turnout_workers.providers.retry_after import exceeded_limits, observed_limits, retry_after_s
from turnout_workers.routing.failure import Billed, Failure, FailureKind

MAX_BODY = 32 * 1024 * 1024
"""Bytes of one answer."""
ERROR_BODY_S = 2.0
"""How long an error response is read."""
STREAM_END_S = 0.5
"""How long the end of a stream may take after its last event."""
_HEADERS = {hdrs.USER_AGENT: "turnout", hdrs.ACCEPT_ENCODING: "identity"}
"""No compression: answers are small, and 64 KB of gzip can hold 67 MB, unpacked while all other calls wait."""
_JSON_HEADERS: dict[str, str] = {hdrs.CONTENT_TYPE: "application/json"}


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request, and what is needed to read its response."""

    url: URL
    headers: Mapping[str, str] = field(repr=False)
    """Names are `istr`; aiohttp would convert plain strings in every call."""
    content: bytes | None = field(repr=False)
    """JSON. None: a GET."""
    timeouts: Timeouts
    keys: tuple[str, ...] = field(default=(), repr=False)
    texts: tuple[str, ...] = field(default=(), repr=False)
    """Texts of the prompt. No error message may repeat them or the keys."""
    has_images: bool = False
    limit_headers: Mapping[str, str] = field(default_factory=dict)
    """See `Dialect.limit_headers`."""
    proxy: str | None = field(default=None, repr=False)


class Http:
    """The HTTP client that all connectors of a process share, in one event loop after another."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def session(self) -> aiohttp.ClientSession:
        """The session of the running event loop. Raises RuntimeError once closed, which is not a provider's failure."""
        if self._closed:
            raise RuntimeError("this Http is closed: make another one")
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            old, self._session, self._loop = self._session, _session(), loop
            if old is not None:
                await old.close()
        return self._session


class HttpExchange:
    """A request and its response, which is read whole or as server-sent events. Anything that fails in the exchange is
    raised as ProviderError; exceptions of the block itself pass through. A class, not a generator, because thousands
    are open at a time.

    There is one deadline: for the first byte, then for each piece, and never later than that of the whole call, which
    includes what its reader does meanwhile.
    """

    __slots__ = (
        "_deadline",
        "_due_at",
        "_ends_at",
        "_gzipped",
        "_idle_s",
        "_now",
        "_out",
        "_response",
        "_size",
        "headers",
    )

    def __init__(self, out: HttpRequest) -> None:
        self._out = out
        self._now = asyncio.get_running_loop().time
        self._due_at = self._ends_at = self._now() + out.timeouts.total_s
        self._idle_s = out.timeouts.idle_s
        self._deadline = asyncio.timeout_at(min(self._ends_at, self._now() + out.timeouts.first_byte_s))
        self._response: aiohttp.ClientResponse | None = None
        self._size = 0
        self.headers: Mapping[str, str] = {}
        """Of the response. Names are in lower case."""

    async def __aenter__(self) -> Self:
        await self._deadline.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.close()  # no effect if it was read to its end
        try:
            await self._deadline.__aexit__(kind, error, trace)
        except TimeoutError:
            raise ProviderError(Failure(FailureKind.TIMED_OUT, self._timeout_message(), Billed.MAYBE)) from None

    def _timeout_message(self) -> str:
        if self._response is None:
            return "no first byte in time"
        total = self._now() >= self._due_at
        return f"no whole answer in {self._out.timeouts.total_s:g} s" if total else "no rest of the answer in time"

    async def start(self, session: aiohttp.ClientSession) -> None:
        """Send the request. Any status but 200 is raised."""
        try:
            response = self._response = await _send(session, self._out)
        except Exception as error:
            raise self._failed(error) from None  # aiohttp's error may quote the key or the prompt
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        encoding = self.headers.get("content-encoding", "").lower()
        self._gzipped = encoding in ("gzip", "x-gzip")
        if response.status != 200:
            self._deadline.reschedule(None)  # reading the error body has its own
            raise self._classified(response.status, await _error_body(response, self._out.timeouts, self._gzipped))
        self._deadline.reschedule(self._ends_at)
        if encoding not in ("", "identity") and (not self._gzipped or self.is_stream):
            raise malformed(f"unexpected content-encoding {encoding}", self.headers)

    @property
    def is_stream(self) -> bool:
        """Whether the response is server-sent events. Some servers answer in one piece when asked for a stream."""
        return "text/event-stream" in self.headers.get("content-type", "").lower()

    async def read_json(self) -> dict[str, Any] | list[Any]:
        """The body, read to its end. Raises ProviderError for anything but a JSON object or list."""
        raw = b"".join([piece async for piece in self])
        value = body.parse_json(body.gunzipped(raw, MAX_BODY) if self._gzipped else raw)
        self._raise_if_error(value)
        if not isinstance(value, dict | list):
            raise malformed("the body of a 200 is not a JSON object or list", self.headers)
        return value

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The data of each event. The wire format decides whether the stream was complete."""
        begun = False
        async for data in body.sse_data(self):
            if data.startswith(body.DONE):
                self._end_soon()
                continue
            event = body.parse_json(data)
            self._raise_if_error(event, begun)
            if not isinstance(event, dict):
                raise malformed("an event that is not a JSON object", self.headers)
            begun = True
            if body.at(event, "delta", "stop_reason"):  # Anthropic's last word, after which pings may come for ever
                self._end_soon()
            yield event

    def _end_soon(self) -> None:
        """The stream is complete: its body should end now, which frees the connection."""
        self._ends_at = min(self._ends_at, self._now() + STREAM_END_S)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        assert self._response is not None, "it has begun"
        content = self._response.content
        try:
            piece = content.read_nowait()
            if not piece and not content.at_eof():
                self._deadline.reschedule(min(self._ends_at, self._now() + self._idle_s))
                piece = await content.readany()
                self._deadline.reschedule(self._ends_at)
        except Exception as error:
            raise self._failed(error) from None
        if not piece:
            raise StopAsyncIteration
        self._size += len(piece)
        if self._size > MAX_BODY:
            raise malformed(f"more than {MAX_BODY >> 20} MB", self.headers)
        return piece

    def _raise_if_error(self, value: Any, begun: bool = False) -> None:
        """Raise an error that came in the body of a 200. begun: part of an answer came before it, and may be billed."""
        if (wrong := _error_in(value)) is None:
            return
        error = self._classified(200, wrong)
        if (begun or body.at(wrong, "message", "content")) and error.failure.billed is Billed.NO:
            error.failure = replace(error.failure, billed=Billed.MAYBE)
        raise error

    def _classified(self, status: int, value: Any) -> ProviderError:
        now, secrets = time.time(), self._out.keys + self._out.texts
        limits = observed_limits(self.headers, now, self._out.limit_headers)
        failure = classify_response(
            status, self.headers, value, retry_after_s(self.headers, value, now, limits), secrets, self._out.has_images
        )
        return ProviderError(failure, limits + exceeded_limits(value))

    def _failed(self, error: Exception) -> ProviderError:
        timeouts = self._out.timeouts
        if isinstance(error, aiohttp.ConnectionTimeoutError) and _connect_s(timeouts) < timeouts.connect_s:
            # the job's own deadline shortened it
            return ProviderError(Failure(FailureKind.TIMED_OUT, "no connection in time"))
        return ProviderError(classify_exception(error, self._out.keys, self._out.texts))


def _error_in(value: Any) -> dict[str, Any] | None:
    """The object with an error in the body of a 200: the body itself, or its choice, where OpenRouter reports an error
    of the provider behind it, perhaps with a partial answer."""
    for one in (value, *body.list_at(value, "choices")[:1]):
        if isinstance(one, dict) and (one.get("error") or one.get("object") == "error"):
            return one
    return None


class _Connections(aiohttp.TCPConnector):
    """Drops a kept-alive connection on which anything has arrived since its last use: either an answer that nothing
    waits for, which would be taken for the next call's, or the server's notice that it has closed."""

    async def _get(self, key: Any, traces: Any) -> Connection | None:
        while (kept := await super()._get(key, traces)) and kept.protocol and kept.protocol.should_close:
            kept.close()
        return kept


def _session() -> aiohttp.ClientSession:
    """A session without cookies, and without proxies from the environment.

    Certificates are checked against the system's authorities, or SSL_CERT_FILE, which aiohttp reads when imported.
    """
    # No limit here: the worker's slots and the providers' limits bound the calls in flight.
    connector = _Connections(limit=0, keepalive_timeout=60, socket_factory=_socket)
    return aiohttp.ClientSession(
        connector=connector,
        headers=_HEADERS,
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )


async def _send(session: aiohttp.ClientSession, out: HttpRequest) -> aiohttp.ClientResponse:
    return await session.request(
        "GET" if out.content is None else "POST",
        out.url,
        data=out.content,
        headers=out.headers if out.content is None else {**_JSON_HEADERS, **out.headers},
        allow_redirects=False,
        timeout=_connect_timeout(_connect_s(out.timeouts)),
        **(_proxy_options(out.proxy) if out.proxy else {}),
    )


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket with keep-alive probes, because a model may think for minutes without sending anything."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


@cache
def url_of(base_url: str, path: str) -> URL:
    """Cached, because a provider has few."""
    return URL(f"{base_url}{path}")


@cache
def _proxy_options(proxy: str) -> dict[str, Any]:
    """aiohttp's options for a proxy, with the password apart from the address, which error messages quote.

    aiohttp sends this Authorization as Proxy-Authorization in the request that the proxy reads: CONNECT for https,
    otherwise the call itself.
    """
    url = URL(proxy)
    if url.user is None:
        return {"proxy": url}
    allowed = aiohttp.encode_basic_auth(url.user, url.password or "")
    return {"proxy": url.with_user(None), "proxy_headers": {"Authorization": allowed}}


def _connect_s(timeouts: Timeouts) -> float:
    """Time for connecting, less than for the first byte, so that a call that never connected counts as unsent."""
    return min(timeouts.connect_s, 0.9 * timeouts.first_byte_s, 0.9 * timeouts.total_s)


@lru_cache
def _connect_timeout(connect_s: float) -> aiohttp.ClientTimeout:
    """The only deadline left to aiohttp: for connecting, before anything is sent."""
    return aiohttp.ClientTimeout(total=None, connect=connect_s)


async def _error_body(response: aiohttp.ClientResponse, timeouts: Timeouts, gzipped: bool) -> Any:
    """The body of an error response, as far as it arrives soon. Its status alone would do."""
    raw = b""
    with suppress(Exception):
        async with asyncio.timeout(min(timeouts.idle_s, ERROR_BODY_S)):
            while len(raw) < MAX_ERROR and (piece := await response.content.read(MAX_ERROR - len(raw))):
                raw += piece
    if gzipped:
        raw = body.gunzipped(raw, MAX_ERROR)
    value = body.parse_json(raw)
    if isinstance(value, list) and len(value) == 1:
        return value[0]  # Gemini does this sometimes
    return raw.decode("utf-8", "replace") if value is None else value
