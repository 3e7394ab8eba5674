"""Tests for every connector to inherit: errors are classified, money is counted, keys and prompts stay hidden.

    class TestAcme(ConnectorConformance):
        answer = {"text": "Hello"}
        def connector(self, base_url, key, http): ...

Each test runs the connector against a loopback server with fixed answers. pytest collects them; no plugin is needed.
`docs/connectors.md` has a complete example.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from operator import methodcaller
from typing import Any, ClassVar

from turnout.request import InferenceRequest
from turnout_workers.providers.base import CallOutcome, CloudProviderBase, OnToken, Timeouts
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.http import Http
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope

KEY = "conformance-key-0123456789"
PROMPT = "the prompt, which no error message repeats"
Reply = Callable[[asyncio.StreamWriter], Awaitable[None]]
Act = Callable[[CloudProviderBase], Awaitable[Any]]
HEALTH: Act = methodcaller("check_health")
TIMEOUTS = Timeouts(connect_s=10, first_byte_s=10, idle_s=10, total_s=20)
IMPATIENT = Timeouts(connect_s=10, first_byte_s=0.3, idle_s=0.3, total_s=1)


class ConnectorConformance:
    """Inherit, define `answer` and `connector`, and let pytest collect the subclass."""

    answer: ClassVar[Mapping[str, Any]]
    """The JSON body of a successful response, with a non-empty text."""
    events: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """The same as server-sent events, if your connector reads those."""

    def connector(self, base_url: str, key: str, http: Http) -> CloudProviderBase:
        """Your connector for a server at `base_url`, with at least one endpoint that has a price."""
        raise NotImplementedError

    def test_an_answer_is_text_with_its_provenance_usage_and_cost(self) -> None:
        response = self._run(_response(200, self.answer)).response
        assert response.text
        assert response.provider == self.connector("http://127.0.0.1:9", KEY, Http()).name
        assert response.model_requested
        assert response.usage.source in ("reported", "estimated")
        if response.usage.source == "estimated":
            assert response.cost_microusd is None, "nobody knows what it cost"
        else:
            assert isinstance(response.cost_microusd, int), "whole micro-dollars, of the endpoint's price"
            assert response.cost_microusd >= 0

    def test_a_stream_is_told_as_it_comes_and_gives_the_same_answer(self) -> None:
        response = _stream(self.events) if self.events else _response(200, self.answer)
        pieces, outcome = self._run(response, _listen)
        assert "".join(pieces) == outcome.response.text
        assert outcome.response.text == self._run(_response(200, self.answer)).response.text

    def test_a_stream_that_ends_early_may_have_been_billed(self) -> None:
        if self.events:
            failure = self._failure(_stream(self.events[:-1]), _listen)
            assert (failure.kind, failure.billed) == (FailureKind.INTERRUPTED, Billed.MAYBE)

    def test_an_accepted_key_is_healthy(self) -> None:
        self._run(_response(200, self.answer), HEALTH)

    def test_a_refused_key_is_the_accounts_fault(self) -> None:
        failure = self._failure(_response(401, {"error": {"message": f"Wrong key {KEY}"}}))
        assert (failure.kind, failure.scope) == (FailureKind.UNAUTHORIZED, Scope.ACCOUNT)

    def test_a_health_check_raises_what_a_call_would(self) -> None:
        failure = self._failure(_response(401, {}), HEALTH)
        assert failure.kind is FailureKind.UNAUTHORIZED

    def test_a_rate_limit_carries_how_long_to_wait(self) -> None:
        failure = self._failure(_response(429, {}, "retry-after: 7"))
        assert (failure.kind, failure.retry_after_s) == (FailureKind.RATE_LIMITED, 7)

    def test_an_overloaded_provider_says_so_and_bills_nothing(self) -> None:
        failure = self._failure(_response(503, {}))
        assert (failure.kind, failure.billed) == (FailureKind.OVERLOADED, Billed.NO)

    def test_a_server_error_may_have_been_billed(self) -> None:
        failure = self._failure(_response(500, {}))
        assert (failure.kind, failure.billed) == (FailureKind.SERVER_ERROR, Billed.MAYBE)

    def test_a_200_that_is_no_answer_is_an_error_that_may_have_been_billed(self) -> None:
        for body in (b"", b"<html></html>", b"null", b"[]", b"{}", b'{"a":'):
            failure = self._failure(_response(200, body))
            assert failure.kind is FailureKind.MALFORMED, body
            assert failure.billed is not Billed.NO, body

    def test_a_truncated_answer_may_have_been_billed(self) -> None:
        failure = self._failure(_response(200, self.answer)[:-3])
        assert (failure.kind, failure.billed) == (FailureKind.INTERRUPTED, Billed.MAYBE)

    def test_silence_ends_at_the_deadline_and_may_have_been_billed(self) -> None:
        failure = self._failure(None, partial(_call, timeouts=IMPATIENT))
        assert (failure.kind, failure.billed) == (FailureKind.TIMED_OUT, Billed.MAYBE)

    def test_a_redirect_is_not_followed(self) -> None:
        assert self._failure(_response(307, {}, "location: http://127.0.0.1:9/")).kind is FailureKind.MALFORMED

    def test_neither_key_nor_prompt_is_in_an_error(self) -> None:
        for status in (400, 401, 403, 404, 429, 500):
            shown = repr(self._failure(_response(status, {"error": {"message": f"{KEY} {PROMPT}"}})))
            assert KEY not in shown
            assert PROMPT not in shown

    def _failure(self, response: bytes | None, act: Act | None = None) -> Failure:
        try:
            self._run(response, act)
        except ProviderError as error:
            return error.failure
        raise AssertionError("the connector took this for an answer")

    def _run(self, response: bytes | None, act: Act | None = None) -> Any:
        """The result of a call, or another act, at a server that sends this response. None: it sends nothing."""

        async def run() -> Any:
            async with (
                aclosing(Http()) as http,
                serving(silent if response is None else always(response)) as base_url,
                aclosing(self.connector(base_url, KEY, http)) as connector,
            ):
                return await (act or _call)(connector)

        return asyncio.run(run())


async def _call(
    connector: CloudProviderBase, on_token: OnToken | None = None, timeouts: Timeouts = TIMEOUTS
) -> CallOutcome:
    return await connector.call(connector.endpoints[0], InferenceRequest(prompt=PROMPT), timeouts, on_token)


async def _listen(connector: CloudProviderBase) -> tuple[list[str], CallOutcome]:
    pieces: list[str] = []

    async def hear(piece: str) -> None:
        pieces.append(piece)

    return pieces, await _call(connector, hear)


def _stream(events: Sequence[Mapping[str, Any]]) -> bytes:
    body = b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)
    return _response(200, body, media="text/event-stream")


def _response(
    status: int, body: Mapping[str, Any] | bytes, header: str = "x-conformance: 1", media: str = "application/json"
) -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\n{header}\r\ncontent-type: {media}\r\ncontent-length: {len(raw)}\r\n\r\n"
    return head.encode() + raw


def always(*pieces: bytes) -> Reply:
    """Sends these pieces."""

    async def reply(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return reply


async def silent(writer: asyncio.StreamWriter) -> None:
    """Sends nothing, for longer than any deadline."""
    await asyncio.sleep(60)


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[str]:
    """The address of a server that reads one request, sends what `reply` writes, and ends the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            _, found, rest = head.partition(b"content-length:")
            if found:
                await reader.readexactly(int(rest.split(b"\r\n")[0]))
            await reply(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
