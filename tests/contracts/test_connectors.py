"""The three connectors over real HTTP: against the simulated fleet, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from turnout.request import Capability, FinishReason, InferenceRequest
from turnout_workers.providers import Http, ProviderConfig, Secret, build
from turnout_workers.providers.base import Timeouts
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, FailureKind
from turnout_workers.routing.fleet import Endpoint, Price
from turnout_workers.simulator.scenario import Scenario, SimulatedModel, SimulatedProvider
from turnout_workers.simulator.server import Simulator

K = FailureKind
KINDS = ("openai", "anthropic", "gemini")
PRICE = Price(1.0, 3.0)
CHAT = frozenset({Capability.STREAMING, Capability.TOOLS, Capability.JSON_SCHEMA, Capability.VISION})
MODELS = {
    "m": SimulatedModel(PRICE, capabilities=CHAT),
    "e": SimulatedModel(PRICE, capabilities=frozenset({Capability.EMBEDDINGS})),
}
SCENARIO = Scenario({kind: SimulatedProvider(MODELS, kind=kind) for kind in KINDS})  # type: ignore[arg-type]
HOSTILE = int(os.environ.get("TURNOUT_HOSTILE", "900"))
"""Hostile responses in all."""
SEED = os.environ.get("TURNOUT_SEED", "1")
QUICK = Timeouts(connect_s=2, first_byte_s=0.4, idle_s=0.4, total_s=1.5)


def endpoint(kind: str, model: str = "m") -> Endpoint:
    return Endpoint(kind, model, model, price=Price(1.0, 3.0))


def config(kind: str, base_url: str) -> ProviderConfig:
    return ProviderConfig(
        kind, kind, base_url, (endpoint(kind), endpoint(kind, "e")), kind, Secret("test-key-12345678")
    )


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    http = Http()
    yield http
    await http.aclose()


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(SCENARIO) as simulator:
        yield simulator


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_its_usage_and_its_cost(kind: str, http: Http, simulator: Simulator) -> None:
    connector = build(config(kind, simulator.base_url(kind)), http)
    answer = await connector.complete(InferenceRequest(prompt="Hello", model="m", max_output_tokens=30))
    assert answer.text.startswith("[simulated by")
    assert answer.simulated
    assert (answer.provider, answer.model_requested) == (kind, "m")
    assert answer.usage.source == "reported"
    assert answer.cost_microusd == simulator.stats()["billed_microusd"], "our sum is the provider's bill"
    await connector.check_health()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_gives_the_same_as_the_whole(kind: str, http: Http, simulator: Simulator) -> None:
    connector = build(config(kind, simulator.base_url(kind)), http)
    request = InferenceRequest(prompt="Hello again", max_output_tokens=30, seed=None)
    whole = await connector.call(endpoint(kind), request)
    pieces: list[str] = []

    async def keep(piece: str) -> None:
        pieces.append(piece)

    streamed = await connector.call(endpoint(kind), request, on_token=keep)
    assert "".join(pieces) == streamed.response.text == whole.response.text
    assert streamed.response.usage == whole.response.usage
    assert streamed.response.time_to_first_token_s is not None


@pytest.mark.parametrize("kind", KINDS)
async def test_tools_and_schemas(kind: str, http: Http, simulator: Simulator) -> None:
    connector = build(config(kind, simulator.base_url(kind)), http)
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"function": {"name": "weather", "description": "of a city", "parameters": schema}}
    asked = InferenceRequest.model_validate({"prompt": "Weather?", "tools": [tool], "tool_choice": "required"})
    called = await connector.complete(asked)
    assert called.finish is FinishReason.TOOL_CALLS
    assert called.tool_calls[0].function.name == "weather"
    assert "city" in json.loads(called.tool_calls[0].function.arguments)
    wanted = {"prompt": "Where?", "response_format": {"type": "json_schema", "json_schema": schema}}
    assert "city" in json.loads((await connector.complete(InferenceRequest.model_validate(wanted))).text)


@pytest.mark.parametrize("kind", ["openai", "gemini"])
async def test_embeddings_come_in_the_texts_order(kind: str, http: Http, simulator: Simulator) -> None:
    connector = build(config(kind, simulator.base_url(kind)), http)
    both = await connector.call(endpoint(kind, "e"), InferenceRequest(input=("a", "b"), model="e"))
    one = await connector.call(endpoint(kind, "e"), InferenceRequest(input="b", model="e"))
    assert len(both.response.embeddings) == 2
    assert both.response.embeddings[1] == one.response.embeddings[0]


async def test_what_a_provider_does_not_take_is_dropped_or_refused(http: Http, simulator: Simulator) -> None:
    connector = build(config("anthropic", simulator.base_url("anthropic")), http)
    answer = await connector.complete(InferenceRequest(prompt="A?", seed=3))
    assert answer.warnings == ("anthropic does not take seed; it was left out",)
    with pytest.raises(ProviderError) as error:
        await connector.complete(InferenceRequest(prompt="A?", seed=3, on_unsupported="fail"))
    assert error.value.failure.kind is K.UNSUPPORTED


# --- servers that misbehave ------------------------------------------------------------------------------

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(reply: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A server that reads one request and then does as it is told."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length")), 0
            )
            await reader.readexactly(length)
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


def said(body: bytes, status: str = "200 OK", headers: str = "content-type: application/json") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def always(data: bytes) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return reply


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(5)


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def stops(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    await asyncio.sleep(5)


async def drips(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(100):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


NOT_JSON = said(b"<html>hello</html>", headers="content-type: text/html")
EMPTY = b'{"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}'
BOMB = said(gzip.compress(b" " * 200_000_000, 9), headers="content-encoding: gzip")


@pytest.mark.parametrize(
    ("reply", "kind", "billed"),
    [
        (silent, K.TIMED_OUT, Billed.MAYBE),
        (stops, K.TIMED_OUT, Billed.MAYBE),
        (drips, K.TIMED_OUT, Billed.MAYBE),
        (reset, K.INTERRUPTED, Billed.MAYBE),
        (always(said(b"{}")[:-1]), K.INTERRUPTED, Billed.MAYBE),
        (always(NOT_JSON), K.MALFORMED, Billed.YES),
        (always(said(b"[]")), K.MALFORMED, Billed.YES),
        (always(said(b'{"choices": []}')), K.MALFORMED, Billed.YES),
        (always(said(EMPTY)), K.MALFORMED, Billed.YES),
        (always(said(b'{"error": {"type": "server_error", "message": "x"}}')), K.SERVER_ERROR, Billed.MAYBE),
        (always(said(b"[" * 100_000)), K.MALFORMED, Billed.YES),
        (always(said(b'{"a": ' + b"9" * 5000 + b"}")), K.MALFORMED, Billed.YES),
        (always(said(b"", "302 Found", "location: http://127.0.0.1:1/")), K.MALFORMED, Billed.NO),
        (always(said(b"x", headers="content-encoding: br")), K.MALFORMED, Billed.YES),
    ],
)  # fmt: skip
async def test_a_broken_answer_is_classified(reply: Any, kind: FailureKind, billed: Billed, http: Http) -> None:
    async with serving(reply) as url:
        connector = build(config("openai", url), http)
        with pytest.raises(ProviderError) as error:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="Hello, this is the prompt"), QUICK)
    assert (error.value.failure.kind, error.value.failure.billed) == (kind, billed)
    assert "test-key" not in str(error.value)


async def test_a_server_that_is_not_there_is_unavailable_and_costs_nothing(http: Http) -> None:
    connector = build(config("openai", "http://127.0.0.1:9"), http)
    with pytest.raises(ProviderError) as error:
        await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), QUICK)
    assert (error.value.failure.kind, error.value.failure.billed) == (K.UNAVAILABLE, Billed.NO)


async def test_a_compressed_bomb_is_cut_off_in_time(http: Http) -> None:
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with serving(always(BOMB)) as url:
        connector = build(config("openai", url), http)
        with pytest.raises(ProviderError) as error:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts())
    assert error.value.failure.kind is K.MALFORMED
    assert "more than 32 MB" in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb <= 64 * 1024


async def test_a_request_that_cannot_be_encoded_is_the_callers_fault(http: Http) -> None:
    connector = build(config("openai", "http://127.0.0.1:9"), http)
    with pytest.raises(ProviderError) as error:
        await connector.complete(InferenceRequest(prompt="A?", extras={"openai": {"user": "\ud800"}}))
    assert error.value.failure.kind is K.INVALID_REQUEST


FIRST_WORDS = {
    "openai": {"choices": [{"delta": {"content": "Hi"}}]},
    "anthropic": {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    "gemini": {"candidates": [{"content": {"parts": [{"text": "Hi"}]}}]},
}
ERROR_EVENTS = [
    ("openai", {"error": {"type": "server_error", "message": "no"}}, K.SERVER_ERROR),
    ("openai", {"error": {"code": "rate_limit_exceeded", "type": "rate_limit_error", "message": "no"}}, K.RATE_LIMITED),
    ("openai", {"error": {"code": 502, "message": "Upstream"}, "choices": []}, K.SERVER_ERROR),
    ("openai", {"error": "something went wrong"}, K.SERVER_ERROR),
    ("openai", {"error": {"type": "invalid_request_error", "message": "no"}}, K.INVALID_REQUEST),
    ("anthropic", {"type": "error", "error": {"type": "overloaded_error", "message": "no"}}, K.OVERLOADED),
    ("anthropic", {"type": "error", "error": {"type": "api_error", "message": "no"}}, K.SERVER_ERROR),
    ("gemini", {"error": {"code": 503, "status": "UNAVAILABLE", "message": "no"}}, K.OVERLOADED),
    ("gemini", {"error": {"code": 500, "status": "INTERNAL", "message": "no"}}, K.SERVER_ERROR),
]


@pytest.mark.parametrize(("kind", "event", "meant"), ERROR_EVENTS)
async def test_an_error_in_mid_stream_is_classified_and_may_have_been_billed(
    kind: str, event: dict[str, Any], meant: FailureKind, http: Http
) -> None:
    body = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in (FIRST_WORDS[kind], event))
    heard: list[str] = []

    async def hear(piece: str) -> None:
        heard.append(piece)

    async with serving(always(said(body, headers="content-type: text/event-stream"))) as url:
        connector = build(config(kind, url), http)
        with pytest.raises(ProviderError) as error:
            await connector.call(endpoint(kind), InferenceRequest(prompt="A?"), QUICK, hear)
    assert heard == ["Hi"]
    assert (error.value.failure.kind, error.value.failure.billed) == (meant, Billed.MAYBE)


async def test_a_connection_that_is_not_accepted_in_time_costs_nothing(http: Http) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        for _ in range(8):  # the kernel answers none beyond the backlog
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        connector = build(config("openai", f"http://127.0.0.1:{full.getsockname()[1]}"), http)
        with pytest.raises(ProviderError) as error:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), replace(QUICK, connect_s=0.2))
    assert (error.value.failure.kind, error.value.failure.billed) == (K.UNAVAILABLE, Billed.NO)


async def test_no_proxy_of_the_environment_is_used(
    http: Http, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    connector = build(config("openai", simulator.base_url("openai")), http)
    assert (await connector.complete(InferenceRequest(prompt="A?", model="m"))).text


async def test_the_total_deadline_holds_while_a_reader_of_the_stream_is_slow(http: Http) -> None:
    event = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
    never = asyncio.Event()

    async def stuck(_: str) -> None:
        await never.wait()

    async with serving(always(said(event, headers="content-type: text/event-stream"))) as url:
        connector = build(config("openai", url), http)
        with pytest.raises(ProviderError, match="no whole answer") as error:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), QUICK, stuck)
    assert (error.value.failure.kind, error.value.failure.billed) == (K.TIMED_OUT, Billed.MAYBE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
async def test_no_hostile_response_escapes_classification(kind: str, streaming: bool, http: Http) -> None:
    rng = random.Random(f"{SEED}{kind}{streaming}")
    current = b""

    async def reply(writer: asyncio.StreamWriter) -> None:
        cut = rng.randrange(len(current) + 1)  # in two pieces, at any place
        for piece in (current[:cut], current[cut:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async def ignore(_: str) -> None: ...

    async with serving(reply) as url:
        connector = build(config(kind, url), http)
        for number in range(HOSTILE // 6):
            current = hostile(rng)
            on_token = ignore if streaming else None
            try:
                await connector.call(endpoint(kind), InferenceRequest(prompt="A?"), QUICK, on_token)
            except ProviderError:
                pass  # and nothing else may come through
            except Exception as error:
                raise AssertionError(f"TURNOUT_SEED={SEED}, response {number}: {current!r}") from error


def hostile(rng: random.Random) -> bytes:
    """A response in which something may be wrong everywhere."""
    scraps: list[Any] = [
        None, [], {}, "", "x", 0, -1, 1e308, True, [None], [{}], {"message": None}, {"message": {"content": 7}},
        {"content": {"parts": [None]}}, {"type": "text"}, {"delta": None}, {"functionCall": 3}, [[]], "\x00",
    ]  # fmt: skip
    names = ["choices", "content", "candidates", "usage", "usageMetadata", "model", "error", "stop_reason", "type",
             "message", "index", "delta", "promptFeedback", "data"]  # fmt: skip
    body = json.dumps({name: rng.choice(scraps) for name in rng.sample(names, rng.randrange(6))}).encode()
    if rng.random() < 0.3:
        body = rng.randbytes(rng.randrange(200))
    if rng.random() < 0.5:
        body = b"".join(b"data: " + body + rng.choice([b"\n\n", b"\r\n\r\n", b"\n"]) for _ in range(rng.randrange(4)))
    status = rng.choice(["200 OK"] * 4 + ["204 No", "400 Bad", "429 Wait", "500 Oh", "599 Odd", "999 What"])
    kinds = ["content-type: application/json", "content-type: text/event-stream", "retry-after: soon"]
    headers = rng.choice([*kinds, "x-ratelimit-remaining-tokens: ∞", "content-encoding: gzip", "retry-after-ms: -1"])
    raw = said(body, status, headers)
    return raw[: rng.randrange(len(raw))] if rng.random() < 0.2 else raw
