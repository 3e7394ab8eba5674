"""The three connectors over real HTTP: against the simulated fleet, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import random
import re
import resource
import socket
import sys
import time
import traceback
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contracts.responses import Heard, said

from turnout.request import Capability, FinishReason, InferenceRequest
from turnout_workers.providers import Http, ProviderConfig, Secret, build
from turnout_workers.providers.anthropic import JSON_ONLY
from turnout_workers.providers.base import CallOutcome, Timeouts
from turnout_workers.providers.body import MAX_COMMAS, MAX_PARTS, parse_json, sse_data
from turnout_workers.providers.conformance import Reply, always, serving, silent
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.http import MAX_BODY
from turnout_workers.providers.openai import OpenAIConnector
from turnout_workers.providers.scrub import prompt_texts
from turnout_workers.providers.wire import MAX_TOOL_CALLS, RequestDraft
from turnout_workers.routing.failure import Billed, FailureKind
from turnout_workers.routing.fleet import Endpoint, Price
from turnout_workers.routing.profile import estimate_input_tokens
from turnout_workers.simulator.scenario import Scenario
from turnout_workers.simulator.server import Simulator

K = FailureKind
KINDS = ("openai", "anthropic", "gemini")
PRICE = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 3.0}
CHAT = frozenset({Capability.STREAMING, Capability.TOOLS, Capability.JSON_SCHEMA, Capability.VISION})
MODELS = {
    "m": {**PRICE, "capabilities": CHAT},
    "e": {**PRICE, "capabilities": ["embeddings"]},
}
SCENARIO = Scenario(providers={kind: {"models": MODELS, "kind": kind} for kind in KINDS})
HOSTILE = int(os.environ.get("TURNOUT_HOSTILE", "10000"))
"""Hostile responses in all."""
SEED = os.environ.get("TURNOUT_SEED", "1")
QUICK = Timeouts(connect_s=2, first_byte_s=0.4, idle_s=0.4, total_s=1.5)
"""For servers that say nothing more. Others get the time that a busy machine takes."""


def endpoint(kind: str, model: str = "m") -> Endpoint:
    return Endpoint(kind, model, model, price=Price(1.0, 3.0))


def config(kind: str, base_url: str) -> ProviderConfig:
    return ProviderConfig(
        kind, kind, base_url, (endpoint(kind), endpoint(kind, "e")), kind, Secret("test-key-12345678")
    )


async def asked(http: Http, kind: str, url: str, timeouts: Timeouts | None = None, hear: Any = None) -> CallOutcome:
    """What a connector makes of the answer of the server there."""
    connector = build(config(kind, url), http)
    return await connector.call(endpoint(kind), InferenceRequest(prompt="A?"), timeouts or Timeouts(), hear)


async def refusal(*there: Any) -> ProviderError:
    with pytest.raises(ProviderError) as error:
        await asked(*there)
    return error.value


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
    pieces = Heard()
    streamed = await connector.call(endpoint(kind), request, on_token=pieces)
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


async def test_more_texts_than_gemini_embeds_at_once_are_left_to_others_before_a_call(http: Http) -> None:
    """400: "BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch"."""
    async with recorder(said(json.dumps({"embeddings": [{"values": [1.0]}] * 100}).encode())) as (url, seen):
        connector = build(config("gemini", url), http)
        most = await connector.call(endpoint("gemini", "e"), InferenceRequest(input=("a",) * 100))
        with pytest.raises(ProviderError, match="gemini embeds at most 100 texts in one call, not 101") as error:
            await connector.call(endpoint("gemini", "e"), InferenceRequest(input=("a",) * 101))
    assert (len(most.response.embeddings), error.value.failure.kind, len(seen)) == (100, K.UNSUPPORTED, 1)


async def test_what_a_provider_does_not_take_is_dropped_or_refused(http: Http, simulator: Simulator) -> None:
    connector = build(config("anthropic", simulator.base_url("anthropic")), http)
    answer = await connector.complete(InferenceRequest(prompt="A?", seed=3))
    assert answer.warnings == ("anthropic does not support seed; it was dropped",)
    with pytest.raises(ProviderError) as error:
        await connector.complete(InferenceRequest(prompt="A?", seed=3, on_unsupported="fail"))
    assert error.value.failure.kind is K.UNSUPPORTED


@pytest.mark.parametrize(
    ("kind", "dialect", "roles"),
    [
        ("anthropic", "anthropic", ("system", "developer", "assistant")),
        ("gemini", "gemini", ("system", "developer", "tool")),
        ("openai", "openai", ("system", "developer", "assistant", "tool")),
        ("openai", "azure", ("system", "developer", "assistant", "tool")),
    ],
)
async def test_an_image_where_a_format_has_texts_alone_is_dropped_or_refused(
    kind: str, dialect: str, roles: tuple[str, ...], http: Http
) -> None:
    """OpenAI: "Image URLs are only allowed for messages with role 'user'"; Claude: "'image' blocks are not permitted
    within assistant turns"."""
    there = replace(config(kind, ""), dialect=dialect)
    shown = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}},
    ]
    for role in roles:
        once = {"role": role, "content": shown, "tool_call_id": "c1"}
        asked = {"messages": [once, once, {"role": "user", "content": "What is it?"}]}
        _, body, warnings = await sent(there, asked, http)
        assert warnings == (f"{kind} does not support an image in a message of role {role}; it was dropped",)
        assert ("iVBOR" in json.dumps(body), "Look" in json.dumps(body)) == (False, True)
        with pytest.raises(ProviderError) as error:
            await sent(there, {**asked, "on_unsupported": "fail"}, http)
        assert error.value.failure.kind is K.UNSUPPORTED


async def test_other_servers_of_openais_format_are_shown_the_image_that_a_tool_gave(http: Http) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}
    asked = {"messages": [TURNS["messages"][2], {"role": "tool", "tool_call_id": "c1", "content": [image]}]}
    _, body, warnings = await sent(replace(config("openai", ""), dialect="vllm"), asked, http)
    assert (body["messages"][-1]["content"], warnings) == ([image], ())


async def test_claude_is_shown_the_image_that_a_tool_gave(http: Http, simulator: Simulator) -> None:
    _, _, call, *_ = TURNS["messages"]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}
    given = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "Here"}, image]}
    asked = {"messages": [{"role": "user", "content": "?"}, call, given]}
    _, body, warnings = await sent(config("anthropic", ""), asked, http)
    ((result,), shown) = body["messages"][-1]["content"], CLAUDE["messages"][0]["content"][1]
    assert (result["content"], warnings) == ([{"type": "text", "text": "Here"}, shown], ())
    connector = build(config("anthropic", simulator.base_url("anthropic")), http)
    assert (await connector.complete(InferenceRequest.model_validate(asked))).text


@pytest.mark.parametrize(("dialect", "private"), [("openrouter", "/v1/key"), ("llamacpp", "/props")])
async def test_a_bad_key_shows_where_the_list_of_models_is_for_everybody(
    dialect: str, private: str, http: Http
) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        told = {"/v1/models": said(b'{"data": []}'), private: said(b"{}", "401 Unauthorized")}
        writer.write(told.get(path, said(b"{}", "404 Not Found")))
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        connector = build(replace(config("openai", url), dialect=dialect), http)
        with pytest.raises(ProviderError) as refused:
            await connector.check_health()
    assert refused.value.failure.kind is K.UNAUTHORIZED


def test_a_llamacpp_without_a_key_needs_no_more_than_a_list_of_models(http: Http) -> None:
    bare = replace(config("openai", "http://127.0.0.1:8080/v1"), dialect="llamacpp", api_key=None)
    assert build(bare, http).health_path == "/models"


async def test_a_health_check_takes_any_list_of_models(http: Http) -> None:
    async with serving(always(said(b'[{"id": "m"}]'))) as url:  # Together's is no object
        await build(config("openai", url), http).check_health()


# --- what is sent ------------------------------------------------------------------------------------------

TURNS: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look"},
                                     {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBOR"}}]},
        {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "user", "content": "And now?"},
    ],
    "max_output_tokens": 9, "temperature": 0.5, "seed": 3, "stop": ["X"], "reasoning_effort": "low",
    "tools": [{"function": {"name": "f", "parameters": {"type": "object"}}}], "tool_choice": "f",
    "response_format": {"type": "json_schema", "json_schema": {"type": "object", "properties": {}}},
}  # fmt: skip
CLAUDE = {
    "model": "m",
    "max_tokens": 9,
    "system": "Be brief.",
    "messages": [
        {"role": "user", "content": [
            {"type": "text", "text": "Look"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBOR"}}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "42"},
                                     {"type": "text", "text": "And now?"}]},
    ],
    "temperature": 0.5,
    "stop_sequences": ["X"],
    "tools": [{"name": "f", "description": "", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "f"},
    "output_config": {"effort": "low", "format": {
        "type": "json_schema", "schema": {"type": "object", "properties": {}, "additionalProperties": False}}},
}  # fmt: skip
GEMINI = {
    "systemInstruction": {"parts": [{"text": "Be brief."}]},
    "contents": [
        {"role": "user", "parts": [{"text": "Look"}, {"inlineData": {"mimeType": "image/png", "data": "iVBOR"}}]},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"a": 1}},
                                     "thoughtSignature": "skip_thought_signature_validator"}]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {"result": "42"}}},
                                   {"text": "And now?"}]},
    ],
    "generationConfig": {
        "maxOutputTokens": 9, "temperature": 0.5, "seed": 3, "stopSequences": ["X"],
        "thinkingConfig": {"thinkingLevel": "low"},
        "responseMimeType": "application/json", "responseJsonSchema": {"type": "object", "properties": {}},
    },
    "tools": [{"functionDeclarations": [
        {"name": "f", "description": "", "parametersJsonSchema": {"type": "object"}}]}],
    "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["f"]}},
}  # fmt: skip


@asynccontextmanager
async def recorder(*responses: bytes) -> AsyncIterator[tuple[str, list[tuple[str, Any]]]]:
    """A server that gives these answers in turn, the last one again and again: its address, and what it was sent."""
    seen: list[tuple[str, Any]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length
        path = head.split(b" ")[1].decode()
        seen.append((path, json.loads(await reader.readexactly(int(length[1])))))
        writer.write(responses[min(len(seen), len(responses)) - 1])
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


def answer(kind: str) -> bytes:
    return said(json.dumps(WHOLE[kind]).encode())


async def sent(config: ProviderConfig, asked: dict[str, Any], http: Http) -> tuple[str, Any, tuple[str, ...]]:
    """The path and body that a request becomes, and the warnings of its answer."""
    async with recorder(answer(config.kind)) as (url, seen):
        connector = build(replace(config, base_url=url), http)
        outcome = await connector.call(endpoint(config.kind), InferenceRequest.model_validate(asked))
    ((path, body),) = seen
    return path, body, outcome.response.warnings


async def test_a_request_becomes_each_formats_own(http: Http) -> None:
    path, body, warnings = await sent(config("anthropic", ""), TURNS, http)
    assert (path, body, warnings) == ("/v1/messages", CLAUDE, ("anthropic does not support seed; it was dropped",))
    path, body, warnings = await sent(config("gemini", ""), TURNS, http)
    assert (path, body, warnings) == ("/v1beta/models/m:generateContent", GEMINI, ())
    path, body, warnings = await sent(config("openai", ""), TURNS, http)
    assert (path, warnings) == ("/chat/completions", ())
    assert (body["messages"][0]["role"], body["max_completion_tokens"], body["seed"]) == ("developer", 9, 3)
    assert body["messages"][1]["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBOR"
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object", "properties": {}}


@pytest.mark.parametrize("described", ["Sorted by n.", None])
async def test_what_a_schema_is_for_is_told_in_each_format(described: str | None, http: Http) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "description": described, "schema": schema}}
    asked = {"prompt": "?", "response_format": form}
    _, openai, _ = await sent(config("openai", ""), asked, http)
    _, claude, _ = await sent(config("anthropic", ""), asked, http)
    _, gemini, _ = await sent(config("gemini", ""), asked, http)
    told = {"description": described} if described else {}
    assert openai["response_format"]["json_schema"] == {"name": "a", **told, "schema": schema, "strict": False}
    assert claude["output_config"]["format"]["schema"] == told | schema | {"additionalProperties": False}
    assert gemini["generationConfig"]["responseJsonSchema"] == told | schema


async def test_a_format_has_its_usual_version_under_another_formats_preset(http: Http) -> None:
    path, _, _ = await sent(replace(config("gemini", ""), dialect="deepseek"), {"prompt": "?"}, http)
    assert path == "/v1beta/models/m:generateContent"


@pytest.mark.parametrize("before", [[], [{"role": "system", "content": "Be brief."}]])
async def test_claude_which_has_no_json_mode_is_asked_for_json_in_words(before: list[Any], http: Http) -> None:
    asked = {"messages": [*before, {"role": "user", "content": "?"}], "response_format": {"type": "json_object"}}
    _, body, warnings = await sent(config("anthropic", ""), {**asked, "on_unsupported": "fail"}, http)
    assert body["system"] == "\n\n".join([*(message["content"] for message in before), JSON_ONLY])
    assert ("output_config" in body, warnings) == (False, ())


@pytest.mark.parametrize(
    ("dialect", "asked", "there", "gone"),
    [
        ("mistral", {"seed": 3, "max_output_tokens": 9}, {"random_seed": 3, "max_tokens": 9}, "seed"),
        ("groq", {"max_output_tokens": 9, "reasoning_effort": "low"}, {"max_completion_tokens": 9}, "max_tokens"),
        ("deepseek", {"seed": 3, "temperature": 1}, {"temperature": 1}, "seed"),
        ("vllm", {"max_output_tokens": 9}, {"max_tokens": 9}, "max_completion_tokens"),
    ],
)
async def test_a_preset_has_its_own_names(
    dialect: str, asked: dict[str, Any], there: dict[str, Any], gone: str, http: Http
) -> None:
    _, body, _ = await sent(replace(config("openai", ""), dialect=dialect), {"prompt": "?", **asked}, http)
    assert there.items() <= body.items()
    assert gone not in body


@pytest.mark.parametrize(
    ("kind", "dialect", "own", "wanted"),
    [("openai", "mistral", "a1B2c3D4e", "[a-zA-Z0-9]{9}"), ("anthropic", None, "toolu_01-VpEm", "[a-zA-Z0-9_-]+")],
)
async def test_a_vendor_gets_ids_of_tool_calls_as_it_wants_them_whoever_made_them_up(
    kind: str, dialect: str | None, own: str, wanted: str, http: Http
) -> None:
    def called(id: str) -> list[dict[str, Any]]:
        call = {"id": id, "function": {"name": "f", "arguments": "{}"}}
        return [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": id, "content": "42"}]

    there = replace(config(kind, ""), dialect=dialect)
    _, body, _ = await sent(there, {"messages": [*called("functions.f:0"), *called(own)]}, http)
    told = re.findall('"(?:id|tool_call_id|tool_use_id)": "(.*?)"', json.dumps(body["messages"]))
    made = told[0]
    assert told == [made, made, own, own]
    assert re.fullmatch(wanted, made)


@pytest.mark.parametrize("kind", ["openai", "gemini"])
async def test_calls_of_tools_without_an_id_get_one_that_is_new_in_each_turn(kind: str, http: Http) -> None:
    function = {"name": "f", "arguments": "{}"}
    body = {
        "openai": {"choices": [{"message": {"tool_calls": [{"function": function}] * 2}}]},
        "gemini": {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f", "args": {}}}] * 2}}]},
    }[kind]
    async with recorder(said(json.dumps(body).encode())) as (url, _):
        connector = build(config(kind, url), http)
        turns = [await connector.call(endpoint(kind), InferenceRequest(prompt="?")) for _ in range(2)]
    assert len({call.id for turn in turns for call in turn.response.tool_calls}) == 4


async def test_results_of_parallel_calls_are_given_in_the_order_of_the_calls(http: Http) -> None:
    """Gemini knows them by their function's name alone, so that two of one function would change places."""
    calls = [{"id": id, "function": {"name": "weather", "arguments": "{}"}} for id in ("paris", "rome")]
    results = [{"role": "tool", "tool_call_id": id, "content": f"in {id}"} for id in ("rome", "paris")]
    turn = [{"role": "assistant", "tool_calls": calls}, *results]
    asked = {"messages": [{"role": "user", "content": "?"}, *turn, *turn, {"role": "user", "content": "And now?"}]}
    _, gemini, _ = await sent(config("gemini", ""), asked, http)
    told = [json.dumps(turn) for turn in gemini["contents"] if turn["role"] == "user"]
    assert [re.findall("in (?:paris|rome)|And now", turn) for turn in told] == [
        [], ["in paris", "in rome"], ["in paris", "in rome", "And now"]
    ]  # fmt: skip
    _, claude, _ = await sent(config("anthropic", ""), asked, http)
    assert [block["tool_use_id"] for block in claude["messages"][2]["content"]] == ["paris", "rome"]


THOUGHT = {
    "content": "", "reasoning_content": "I must look.", "tool_calls": [{"id": "c1", "function": {"name": "f"}}],
}  # fmt: skip


@pytest.mark.parametrize("streams", [False, True])
async def test_deepseek_gets_what_it_thought_before_it_called_a_tool_back_and_nobody_else_does(
    streams: bool, http: Http
) -> None:
    """400: "The `reasoning_content` in the thinking mode must be passed back to the API."."""
    whole = {"choices": [{"message": THOUGHT, "finish_reason": "tool_calls"}]}
    pieces = [{"reasoning_content": "I must"}, {**THOUGHT, "reasoning_content": " look."}]
    events = [{"choices": [{"delta": piece}]} for piece in pieces]
    events.append({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    body = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    reply = said(body, headers="content-type: text/event-stream") if streams else said(json.dumps(whole).encode())
    there = replace(config("openai", ""), dialect="deepseek")
    hear = Heard() if streams else None
    async with serving(always(reply)) as url:
        connector = build(replace(there, base_url=url), http)
        response = (await connector.call(endpoint("openai"), InferenceRequest(prompt="?"), on_token=hear)).response
    assert (response.reasoning_content, response.text) == ("I must look.", "")
    given = {"role": "assistant", **response.model_dump(include={"tool_calls", "reasoning_content"})}
    asked = {"messages": [{"role": "user", "content": "?"}, given, TURNS["messages"][3]]}
    _, deepseek, _ = await sent(there, asked, http)
    assert deepseek["messages"][1]["reasoning_content"] == "I must look."
    for kind in KINDS:
        assert "I must look." not in json.dumps((await sent(config(kind, ""), asked, http))[1])
    request = InferenceRequest.model_validate(asked)
    assert "I must look." not in f"{response!r}{request!r}{request.messages!r}"
    assert "I must look." in prompt_texts(request), "which no error may repeat"
    bare = [asked["messages"][0], {**given, "reasoning_content": None}, asked["messages"][2]]
    without = InferenceRequest.model_validate({"messages": bare})
    assert estimate_input_tokens(request) > estimate_input_tokens(without), "it is paid for"


@pytest.mark.parametrize(
    ("dialect", "message"), [("openai", THOUGHT), (None, THOUGHT), ("deepseek", {**THOUGHT, "tool_calls": []})]
)
async def test_thoughts_that_nobody_needs_back_are_not_kept(
    dialect: str | None, message: dict[str, Any], http: Http
) -> None:
    whole = {"choices": [{"message": {**message, "content": "Hi"}, "finish_reason": "stop"}]}
    async with serving(always(said(json.dumps(whole).encode()))) as url:
        connector = build(replace(config("openai", url), dialect=dialect), http)
        outcome = await connector.call(endpoint("openai"), InferenceRequest(prompt="?"))
    assert outcome.response.reasoning_content is None


async def test_a_function_without_parameters_is_told_to_have_none_and_a_null_in_a_schema_stays(http: Http) -> None:
    """DeepSeek's 400: "Invalid schema for function 'now': schema must be of 'type: "object"', got 'type: null'"."""
    schema = {"type": "object", "properties": {"a": {"enum": ["x", None], "default": None}}}
    tools = [{"function": {"name": "now"}}, {"function": {"name": "f", "parameters": schema}}]
    _, body, _ = await sent(config("openai", ""), {"prompt": "?", "tools": tools}, http)
    assert body["tools"] == [
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
        {"type": "function", "function": {"name": "f", "parameters": schema}},
    ]


async def test_geminis_older_models_think_by_the_token_and_know_no_signatures(http: Http) -> None:
    old = replace(endpoint("gemini"), served_model="gemini-2.5-flash")
    async with recorder(answer("gemini")) as (url, seen):
        await build(config("gemini", url), http).call(old, InferenceRequest.model_validate(TURNS))
    ((path, body),) = seen
    assert path == "/v1beta/models/gemini-2.5-flash:generateContent"
    assert body["generationConfig"]["thinkingConfig"] == {"thinkingBudget": 1024}
    assert "thoughtSignature" not in json.dumps(body)


@pytest.mark.parametrize("effort", ["xhigh", "max"])
async def test_the_highest_efforts_are_asked_for_as_far_as_a_format_has_them(effort: str, http: Http) -> None:
    asked = {"prompt": "?", "reasoning_effort": effort}
    assert (await sent(config("openai", ""), asked, http))[1]["reasoning_effort"] == effort
    assert (await sent(config("anthropic", ""), asked, http))[1]["output_config"] == {"effort": effort}
    _, body, _ = await sent(config("gemini", ""), asked, http)
    assert body["generationConfig"]["thinkingConfig"] == {"thinkingLevel": "high"}


@pytest.mark.parametrize("dialect", [*(name for name, one in DIALECTS.items() if one.kind == "openai"), None])
async def test_all_who_speak_openais_format_are_asked_for_an_effort(dialect: str | None, http: Http) -> None:
    there = replace(config("openai", ""), dialect=dialect)
    _, body, warnings = await sent(there, {"prompt": "?", "reasoning_effort": "low"}, http)
    assert (body["reasoning_effort"], warnings) == ("low", ())


async def test_no_thinking_is_asked_of_deepseek_in_its_own_words(http: Http) -> None:
    there = replace(config("openai", ""), dialect="deepseek")
    _, body, warnings = await sent(there, {"prompt": "?", "reasoning_effort": "none"}, http)
    assert ("reasoning_effort" in body, body["thinking"], warnings) == (False, {"type": "disabled"}, ())
    told = b'{"error": {"message": "thinking type disabled is not supported by this model"}}'
    async with recorder(said(told, "400 Bad Request"), answer("openai")) as (url, seen):
        request = InferenceRequest(prompt="?", reasoning_effort="none")
        await build(replace(there, base_url=url), http).call(endpoint("openai"), request)
    assert ["thinking" in body for _, body in seen] == [True, False]


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("claude-haiku-5-5", {"thinking": {"type": "disabled"}}),
        ("claude-opus-5", {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-5-5", {"thinking": {"type": "between_tools"}}),
        ("claude-opus-5-5", {"output_config": {"effort": "low"}}),
        ("anthropic.claude-fable-5-1", {"output_config": {"effort": "low"}}),
    ],
)
async def test_no_thinking_is_asked_of_each_claude_in_the_way_that_it_takes(
    model: str, asked: dict[str, Any], http: Http
) -> None:
    request = InferenceRequest(prompt="?", reasoning_effort="none")
    async with recorder(answer("anthropic")) as (url, seen):
        at = replace(endpoint("anthropic"), served_model=model)
        outcome = await build(config("anthropic", url), http).call(at, request)
    ((_, body),) = seen
    assert {name: body[name] for name in ("thinking", "output_config") if name in body} == asked
    assert outcome.response.warnings == ()


async def test_anthropic_is_given_no_blank_part_which_it_would_refuse(http: Http) -> None:
    parts = [{"type": "text", "text": text} for text in ("", "Hi", " \n")]
    _, body, _ = await sent(config("anthropic", ""), {"messages": [{"role": "user", "content": parts}]}, http)
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


@pytest.mark.parametrize(("kind", "turns"), [("anthropic", "messages"), ("gemini", "contents")])
async def test_a_turn_that_says_nothing_is_left_out_where_it_would_be_refused(
    kind: str, turns: str, http: Http
) -> None:
    said = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", ""), ("user", "b"))]
    _, body, _ = await sent(config(kind, ""), {"messages": said}, http)
    assert [turn["role"] for turn in body[turns]] == ["user", "user"]


@pytest.mark.parametrize("content", ["Write a haiku.", [{"type": "text", "text": "Write a haiku."}]], ids=str)
async def test_what_only_the_system_says_is_the_users_turn_where_one_is_demanded(content: Any, http: Http) -> None:
    asked = {"messages": [{"role": "system", "content": content}]}
    _, claude, _ = await sent(config("anthropic", ""), asked, http)
    _, gemini, _ = await sent(config("gemini", ""), asked, http)
    _, openai, _ = await sent(config("openai", ""), asked, http)
    assert claude["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Write a haiku."}]}]
    assert gemini["contents"] == [{"role": "user", "parts": [{"text": "Write a haiku."}]}]
    assert ("system" in claude, "systemInstruction" in gemini) == (False, False)
    assert openai["messages"] == [{"role": "developer", "content": content}]


@pytest.mark.parametrize(("stop", "left"), [(["\n", "X", "\n\n"], {"stop_sequences": ["X"]}), (["\n"], {})])
async def test_claude_is_given_no_blank_stop_which_it_would_refuse(
    stop: list[str], left: dict[str, Any], http: Http
) -> None:
    """400: "stop_sequences: each stop sequence must contain non-whitespace"."""
    _, body, warnings = await sent(config("anthropic", ""), {"prompt": "?", "stop": stop}, http)
    assert {name: body[name] for name in ("stop_sequences",) if name in body} == left
    assert warnings == ("anthropic does not support a blank stop; it was dropped",)
    with pytest.raises(ProviderError) as error:
        await sent(config("anthropic", ""), {"prompt": "?", "stop": stop, "on_unsupported": "fail"}, http)
    assert error.value.failure.kind is K.UNSUPPORTED


async def test_a_blank_stop_that_claude_was_not_given_has_not_stopped_its_answer(http: Http) -> None:
    empty = b'{"type": "message", "content": [], "stop_reason": "end_turn", "usage": {"output_tokens": 0}}'
    async with serving(always(said(empty))) as url:
        connector = build(config("anthropic", url), http)
        with pytest.raises(ProviderError) as error:
            await connector.call(endpoint("anthropic"), InferenceRequest(prompt="?", stop=("\n",)))
    assert error.value.failure.kind is K.EMPTY


async def test_a_jpeg_is_told_by_the_name_of_its_type(http: Http) -> None:
    """Claude knows no other, and `image/jpg` is what many write."""
    image = {"type": "image_url", "image_url": {"url": "data:image/jpg;base64,/9j/4AAQ"}}
    asked = {"messages": [{"role": "user", "content": [image]}]}
    _, claude, _ = await sent(config("anthropic", ""), asked, http)
    _, gemini, _ = await sent(config("gemini", ""), asked, http)
    ((block,), (part,)) = claude["messages"][0]["content"], gemini["contents"][0]["parts"]
    assert block["source"]["media_type"] == part["inlineData"]["mimeType"] == "image/jpeg"


def with_images(*details: str | None, **fields: Any) -> dict[str, Any]:
    url = "data:image/png;base64,iVBOR"
    images = [{"type": "image_url", "image_url": {"url": url, "detail": detail}} for detail in details]
    return {"messages": [{"role": "user", "content": images}], **fields}


@pytest.mark.parametrize(
    ("kind", "details", "resolution", "is_warned"),
    [
        ("gemini", ("low", "low"), "MEDIA_RESOLUTION_LOW", False),
        ("gemini", ("low", "high"), None, True),
        ("gemini", ("auto", "high", "original", None), None, False),
        ("anthropic", ("low",), None, True),
        ("anthropic", ("auto", "high", "original", None), None, False),
    ],
)
async def test_a_detail_that_a_format_cannot_tell_is_not_dropped_in_silence(
    kind: str, details: tuple[str | None, ...], resolution: str | None, is_warned: bool, http: Http
) -> None:
    """Whoever asks for the low one wants to save money."""
    _, body, warnings = await sent(config(kind, ""), with_images(*details), http)
    assert body.get("generationConfig", {}).get("mediaResolution") == resolution
    assert bool(warnings) == is_warned
    if is_warned:
        with pytest.raises(ProviderError) as error:
            await sent(config(kind, ""), with_images(*details, on_unsupported="fail"), http)
        assert error.value.failure.kind is K.UNSUPPORTED


@pytest.mark.parametrize(("dialect", "detail"), [("openai", "original"), ("azure", "original"), ("vllm", "high")])
async def test_the_original_detail_is_sent_where_it_is_known_and_else_the_highest(
    dialect: str, detail: str, http: Http
) -> None:
    _, body, _ = await sent(replace(config("openai", ""), dialect=dialect), with_images("original", "low"), http)
    assert [part["image_url"]["detail"] for part in body["messages"][0]["content"]] == [detail, "low"]


@pytest.mark.parametrize("written", ["[" * 1500, '{"a":', "[1]", "null", ""])
async def test_arguments_of_a_tool_that_are_no_object_are_an_empty_one_where_all_else_is_refused(
    written: str, http: Http
) -> None:
    """A model may have written anything. It cost innocent jobs the endpoint, and money for what was never sent."""
    call = {"id": "c1", "function": {"name": "f", "arguments": written}}
    asked = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    _, claude, _ = await sent(config("anthropic", ""), asked, http)
    _, gemini, _ = await sent(config("gemini", ""), asked, http)
    _, openai, _ = await sent(config("openai", ""), asked, http)
    assert claude["messages"][0]["content"][0]["input"] == {}
    assert gemini["contents"][0]["parts"][0]["functionCall"]["args"] == {}
    assert openai["messages"][0]["tool_calls"][0]["function"]["arguments"] == written


@pytest.mark.parametrize("content", [None, ""])
async def test_a_turn_that_only_refused_says_so_in_words(content: str | None, http: Http) -> None:
    """Where content was null, vendors refused the conversation; formats with turns lost the model's."""
    refused = {"role": "assistant", "content": content, "refusal": "I won't."}
    asked = {"messages": [{"role": "user", "content": "a"}, refused, {"role": "user", "content": "b"}]}
    _, openai, _ = await sent(config("openai", ""), asked, http)
    _, claude, _ = await sent(config("anthropic", ""), asked, http)
    _, gemini, _ = await sent(config("gemini", ""), asked, http)
    assert openai["messages"][1] == {"role": "assistant", "content": "I won't."}
    assert claude["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "I won't."}]}
    assert gemini["contents"][1] == {"role": "model", "parts": [{"text": "I won't."}]}


@pytest.mark.parametrize(("known", "limit"), [(64_000, 64_000), (None, 4096)])
async def test_anthropic_which_demands_a_limit_is_given_the_models_own(
    known: int | None, limit: int, http: Http
) -> None:
    async with recorder(answer("anthropic")) as (url, seen):
        at = replace(endpoint("anthropic"), max_output_tokens=known)
        await build(config("anthropic", url), http).call(at, InferenceRequest(prompt="?"))
    assert [body["max_tokens"] for _, body in seen] == [limit]


async def test_anthropic_is_given_a_temperature_or_top_p(http: Http) -> None:
    _, both, warnings = await sent(config("anthropic", ""), {"prompt": "?", "temperature": 0.5, "top_p": 0.9}, http)
    _, alone, _ = await sent(config("anthropic", ""), {"prompt": "?", "top_p": 0.9}, http)
    assert ("temperature" in both, "top_p" in both, alone["top_p"]) == (True, False, 0.9)
    assert warnings == ("anthropic does not support top_p beside temperature; it was dropped",)


async def test_anthropic_is_given_no_temperature_above_one(http: Http) -> None:
    for temperature in (0.5, 1.5):
        _, body, warnings = await sent(config("anthropic", ""), {"prompt": "?", "temperature": temperature}, http)
        assert ("temperature" in body) == (not warnings) == (temperature <= 1)


async def test_extras_are_one_providers_and_can_not_change_what_a_call_may_cost(http: Http) -> None:
    asked = {
        "prompt": "?", "max_output_tokens": 9,
        "extras": {
            "gemini": {"generationConfig": {"topK": 4, "maxOutputTokens": 9999}, "cachedContent": "c",
                       "generation_config": {"maxOutputTokens": 9999}},
            "openai": {"n": 8, "max_completion_tokens": 9999, "messages": [], "user": "u"},
        },
    }  # fmt: skip
    _, body, warnings = await sent(config("gemini", ""), asked, http)
    assert (body["generationConfig"], body["cachedContent"]) == ({"maxOutputTokens": 9, "topK": 4}, "c")
    assert "generation_config" not in body
    refused = ("maxOutputTokens", "generation_config")
    assert warnings == tuple(f"extras can't set {name}; it was dropped" for name in refused)
    unlimited = {
        "prompt": "?",
        "extras": {"gemini": {"generationConfig": {"candidate_count": 8, "maxOutputTokens": 9}}},
    }
    assert (await sent(config("gemini", ""), unlimited, http))[1]["generationConfig"] == {}
    _, body, warnings = await sent(config("openai", ""), asked, http)
    assert (body["max_completion_tokens"], body["user"], "n" in body) == (9, "u", False)
    assert len(warnings) == 3
    flexible = replace(config("openai", ""), service_tier="flex")
    asked["extras"] = {"openai": {"service_tier": "priority"}}
    assert (await sent(flexible, asked, http))[1]["service_tier"] == "flex"


OPENAIS = {"logit_bias": {"50256": -100.0}, "parallel_tool_calls": False}


@pytest.mark.parametrize("dialect", ["openai", "azure"])
async def test_openais_own_fields_go_to_each_account_there(dialect: str, http: Http) -> None:
    second = replace(config("openai", ""), name="second", dialect=dialect)
    _, body, warnings = await sent(second, {"prompt": "?", "extras": {"*": OPENAIS}}, http)
    assert (OPENAIS.items() <= body.items(), warnings) == (True, ())


@pytest.mark.parametrize(("kind", "dialect"), [("openai", "groq"), ("openai", None), ("anthropic", "anthropic")])
async def test_who_does_not_take_openais_own_fields_says_so(kind: str, dialect: str | None, http: Http) -> None:
    other = replace(config(kind, ""), name="other", dialect=dialect)
    asked = {"prompt": "?", "extras": {"*": OPENAIS, "other": {"logit_bias": {"1": 2}}}}
    _, body, warnings = await sent(other, asked, http)
    assert (body["logit_bias"], "parallel_tool_calls" in body) == ({"1": 2}, False)
    assert warnings == ("other does not support parallel_tool_calls; it was dropped",)
    with pytest.raises(ProviderError, match="other does not support parallel_tool_calls"):
        await sent(other, {**asked, "on_unsupported": "fail"}, http)


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "Unrecognized request argument supplied: prompt_cache_key", "param": None, "code": None},
        {"message": "Unknown parameter: 'prompt_cache_key'.", "param": "prompt_cache_key", "code": "unknown_parameter"},
    ],
)
async def test_a_field_of_openais_that_one_of_its_models_refuses_is_left_out(refusal: Any, http: Http) -> None:
    no = said(json.dumps({"error": {**refusal, "type": "invalid_request_error"}}).encode(), "400 Bad Request")
    request = InferenceRequest.model_validate({"prompt": "?", "extras": {"*": {"prompt_cache_key": "k", "user": "u"}}})
    async with recorder(no, answer("openai")) as (url, seen):
        outcome = await build(config("openai", url), http).call(endpoint("openai"), request)
    assert outcome.response.warnings == ("openai does not support prompt_cache_key; it was dropped",)
    assert [("prompt_cache_key" in body, "user" in body) for _, body in seen] == [(True, True), (False, True)]


async def test_neither_embeddings_nor_messages_know_what_is_the_providers_own(http: Http) -> None:
    """A service tier is asked for answers only; the values of configured headers are secrets."""
    vectors = said(b'{"data": [{"embedding": [1.0]}]}')
    no = said(b'{"error": {"message": "who is token-of-the-gateway?"}}', "403 Forbidden")
    async with recorder(vectors, no) as (url, seen):
        own = replace(config("openai", url), service_tier="flex", headers=(("x-gateway", "token-of-the-gateway"),))
        connector = build(own, http)
        await connector.call(endpoint("openai", "e"), InferenceRequest(input="x"))
        with pytest.raises(ProviderError, match=r"who is …\?"):
            await connector.call(endpoint("openai"), InferenceRequest(prompt="?"))
    assert ["service_tier" in body for _, body in seen] == [False, True]


REFUSALS = [
    ("openai", {"error": {"code": "unsupported_value", "param": "temperature", "message": "no"}}),
    ("openai", {"error": {"code": None, "message": "'temperature' is not supported with this model"}}),
    (
        "anthropic",
        {"error": {"type": "invalid_request_error", "message": "temperature: Extra inputs are not permitted"}},
    ),
    ("anthropic", {"error": {"type": "invalid_request_error", "message": "temperature is deprecated for this model."}}),
]
FORCED = {
    "type": "invalid_request_error",
    "message": 'tool_choice: type "tool" and "any" are not supported for this model.',
}


async def test_a_model_that_can_not_be_forced_to_call_a_tool_leaves_the_job_to_others(http: Http) -> None:
    """Without it, the answer would be another one than was asked for."""
    no = said(json.dumps({"type": "error", "error": FORCED}).encode(), "400 Bad Request")
    asked = {"prompt": "?", "tools": [{"function": {"name": "f"}}], "tool_choice": "required"}
    async with recorder(no) as (url, seen):
        with pytest.raises(ProviderError) as error:
            await build(config("anthropic", url), http).call(
                endpoint("anthropic"), InferenceRequest.model_validate(asked)
            )
    assert (error.value.failure.kind, error.value.failure.parameter, len(seen)) == (K.UNSUPPORTED, None, 1)


@pytest.mark.parametrize(("kind", "refusal"), REFUSALS)
async def test_a_parameter_that_a_model_refuses_is_left_out_from_then_on(
    kind: str, refusal: dict[str, Any], http: Http
) -> None:
    no = said(json.dumps(refusal).encode(), "400 Bad Request")
    request = InferenceRequest(prompt="?", temperature=0.0, top_p=0.5)
    async with recorder(no, answer(kind)) as (url, seen):
        connector = build(config(kind, url), http)
        for _ in range(2):
            outcome = await connector.call(endpoint(kind), request)
            assert outcome.response.warnings == (f"{kind} does not support temperature; it was dropped",)
        with pytest.raises(ProviderError, match="does not support temperature"):
            await connector.call(endpoint(kind), request.model_copy(update={"on_unsupported": "fail"}))
    assert ["temperature" in body for _, body in seen] == [True, False, False]
    assert all(body["top_p"] == 0.5 for _, body in seen[1:])


@pytest.mark.parametrize(
    "refusal",
    [
        {"message": "Your organization must be verified to.", "param": "stream", "code": "unsupported_value"},
        {"message": "This model does not support streaming."},
    ],
)
async def test_a_model_that_may_not_be_streamed_answers_in_one_piece(refusal: dict[str, str], http: Http) -> None:
    no = said(json.dumps({"error": refusal}).encode(), "400 Bad Request")
    pieces = Heard()
    async with recorder(no, answer("openai")) as (url, seen):
        connector = build(config("openai", url), http)
        for _ in range(2):
            outcome = await connector.call(endpoint("openai"), InferenceRequest(prompt="?"), Timeouts(), pieces)
            assert outcome.response.warnings == ("openai does not support stream; it was dropped",)
    assert ["stream" in body for _, body in seen] == [True, False, False]
    assert pieces == [outcome.response.text] * 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_never_streams_answers_a_stream_in_one_piece(kind: str, http: Http) -> None:
    """As LiteLLM's proxy 1.108.7 does in Anthropic's format for models that it mocks: the answer is paid for."""
    pieces = Heard()
    async with recorder(answer(kind)) as (url, _):
        outcome = await asked(http, kind, url, Timeouts(), pieces)
    assert pieces == [outcome.response.text] != [""]
    assert outcome.response.time_to_first_token_s is None


async def test_an_empty_body_in_place_of_a_stream_is_no_answer(http: Http) -> None:
    async with recorder(said(b"{}")) as (url, _):
        connector = build(config("openai", url), http)
        with pytest.raises(ProviderError) as refused:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="?"), Timeouts(), Heard())
    assert refused.value.failure.kind is FailureKind.MALFORMED


async def test_a_model_may_refuse_several_parameters_one_after_the_other(http: Http) -> None:
    told: list[dict[str, Any]] = [{"error": {"code": "unsupported_parameter", "param": "temperature"}}]
    told += [{"code": "invalid-argument", "error": "Argument not supported on this model: stop"}]
    told += [{"code": "invalid-argument", "error": "Model grok-4 does not support parameter reasoningEffort."}]
    no = [said(json.dumps(body).encode(), "400 Bad Request") for body in told]
    request = InferenceRequest(prompt="?", temperature=0.0, stop=("x",), reasoning_effort="low", seed=1)
    async with recorder(*no, answer("openai")) as (url, seen):
        await build(config("openai", url), http).call(endpoint("openai"), request)
    given = [[name for name in ("temperature", "stop", "reasoning_effort", "seed") if name in body] for _, body in seen]
    assert given == [
        ["temperature", "stop", "reasoning_effort", "seed"],
        ["stop", "reasoning_effort", "seed"],
        ["reasoning_effort", "seed"],
        ["seed"],
    ]


async def test_an_effort_that_a_model_refuses_costs_others_nothing(http: Http) -> None:
    told = {"error": {"message": "`reasoning_effort` must be one of `none` or `default`"}}
    no = said(json.dumps(told).encode(), "400 Bad Request")
    async with recorder(no, answer("openai")) as (url, seen):
        connector = build(config("openai", url), http)
        for effort in ("low", "low", "none"):
            request = InferenceRequest.model_validate({"prompt": "?", "reasoning_effort": effort})
            await connector.call(endpoint("openai"), request)
    assert [body.get("reasoning_effort") for _, body in seen] == ["low", None, None, "none"]


async def test_an_effort_that_is_refused_beside_tools_is_asked_for_without_them(http: Http) -> None:
    told = {
        "message": "Function tools with reasoning_effort are not supported for gpt-5.4 in /v1/chat/completions.",
        "type": "invalid_request_error", "param": "reasoning_effort", "code": None,
    }  # fmt: skip
    no = said(json.dumps({"error": told}).encode(), "400 Bad Request")
    tools = {"tools": [{"function": {"name": "f"}}]}
    async with recorder(no, answer("openai")) as (url, seen):
        connector = build(config("openai", url), http)
        for more in (tools, tools, {}):
            request = InferenceRequest.model_validate({"prompt": "?", "reasoning_effort": "high", **more})
            await connector.call(endpoint("openai"), request)
    assert [body.get("reasoning_effort") for _, body in seen] == ["high", None, None, "high"]


async def test_a_parameter_that_is_refused_whatever_is_left_out_ends_in_a_failure(http: Http) -> None:
    no = said(json.dumps(REFUSALS[0][1]).encode(), "400 Bad Request")
    async with recorder(no) as (url, seen):
        with pytest.raises(ProviderError) as error:
            await build(config("openai", url), http).call(
                endpoint("openai"), InferenceRequest(prompt="?", temperature=0.0)
            )
    assert (error.value.failure.kind, len(seen)) == (K.UNSUPPORTED, 2)


# --- servers that misbehave ------------------------------------------------------------------------------


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def stops_after(begun: bytes) -> Reply:
    async def reply(writer: asyncio.StreamWriter) -> None:
        await always(begun)(writer)
        await silent(writer)

    return reply


begins = stops_after(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
stops = stops_after(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
rejects_silently = stops_after(b"HTTP/1.1 401 No\r\ncontent-length: 100\r\n\r\n")


async def drips(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(100):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("reply", "kind", "billed"),
    [
        (stops, K.TIMED_OUT, Billed.MAYBE),
        (drips, K.TIMED_OUT, Billed.MAYBE),
        (rejects_silently, K.UNAUTHORIZED, Billed.NO),
        (reset, K.INTERRUPTED, Billed.MAYBE),
        (always(b"SSH-2.0-OpenSSH_9.7\r\n"), K.MALFORMED, Billed.MAYBE),
        (always(b"HTTP/1.1 200 OK\r\nauthorization test-key-12345678\r\n\r\n"), K.MALFORMED, Billed.MAYBE),
        (always(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"), K.MALFORMED, Billed.MAYBE),
        (always(said(b"[" * 100_000)), K.MALFORMED, Billed.YES),
        (always(said(b'{"a": ' + b"9" * 5000 + b"}")), K.MALFORMED, Billed.YES),
        (always(said(b"", "204 No Content")), K.MALFORMED, Billed.MAYBE),
        (always(said(b"x", headers="content-encoding: br")), K.MALFORMED, Billed.YES),
    ],
)  # fmt: skip
async def test_a_broken_answer_is_classified(reply: Any, kind: FailureKind, billed: Billed, http: Http) -> None:
    async with serving(reply) as url:
        brief = {stops: Timeouts(idle_s=0.4), drips: Timeouts(total_s=1.5), rejects_silently: Timeouts(idle_s=0.4)}
        timeouts = brief.get(reply, Timeouts())
        error = await refusal(http, "openai", url, timeouts)
    assert (error.failure.kind, error.failure.billed) == (kind, billed)
    assert "test-key" not in "".join(traceback.format_exception(error))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid", "https://127.0.0.1:9"])
async def test_a_server_that_is_not_there_is_unavailable_and_costs_nothing(url: str, http: Http) -> None:
    error = await refusal(http, "openai", url, Timeouts())
    assert (error.failure.kind, error.failure.billed) == (K.UNAVAILABLE, Billed.NO)


@pytest.mark.parametrize(
    ("reply", "timeouts"),
    [
        (silent, Timeouts(first_byte_s=0.2)),
        (begins, Timeouts(idle_s=0.2)),
        (stops, Timeouts(idle_s=0.2)),
        (drips, Timeouts(total_s=0.5)),
        (rejects_silently, Timeouts(idle_s=0.2)),
    ],
)  # fmt: skip
async def test_each_deadline_holds_alone(reply: Any, timeouts: Timeouts, http: Http) -> None:
    async with serving(reply) as url, asyncio.timeout(20):
        await refusal(http, "openai", url, timeouts)


async def test_a_name_that_is_not_found_in_time_costs_nothing(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", hang)
    error = await refusal(http, "openai", "http://slow.example.com", Timeouts(connect_s=0.2))
    assert (error.failure.kind, error.failure.billed) == (K.UNAVAILABLE, Billed.NO)


async def test_a_server_without_tls_costs_nothing(http: Http) -> None:
    """Nothing was sent, whether it answers the handshake with plain text or not at all."""
    for answers in (True, False):

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool = answers) -> None:
            if answers:
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read(-1)
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            error = await refusal(http, "openai", url, Timeouts(connect_s=0.2))
        assert (error.failure.kind, error.failure.billed) == (K.UNAVAILABLE, Billed.NO)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is set back by /proc")
@pytest.mark.parametrize(("status", "kind"), [("200 OK", K.MALFORMED), ("503 Busy", K.OVERLOADED)])
async def test_an_endless_answer_is_cut_off_in_time(status: str, kind: FailureKind, http: Http) -> None:
    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())
        while True:
            writer.write(b" " * 1_000_000)
            await writer.drain()

    async with serving(reply) as url:
        connector = build(config("openai", url), http)
        Path("/proc/self/clear_refs").write_text("5")
        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ProviderError) as error:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts())
    assert error.value.failure.kind is kind
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb <= 64 * 1024


GZIP = "content-type: application/json\r\ncontent-encoding: gzip"


async def test_gzip_that_nobody_asked_for_is_read_all_the_same(http: Http) -> None:
    answer = {"choices": [{"message": {"content": "Yes."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    async with serving(always(said(gzip.compress(json.dumps(answer).encode()), headers=GZIP))) as url:
        outcome = await build(config("openai", url), http).call(
            endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts()
        )
    assert outcome.response.text == "Yes."


OUT_OF_MONEY = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        ("429 Slow", gzip.compress(OUT_OF_MONEY), GZIP, K.BILLING),
        ("429 Slow", b"no gzip", GZIP, K.RATE_LIMITED),
        ("200 OK", gzip.compress(OUT_OF_MONEY)[:-20], GZIP, K.MALFORMED),
        ("200 OK", gzip.compress(b" " * (MAX_BODY + 1) + OUT_OF_MONEY), GZIP, K.MALFORMED),
        ("200 OK", gzip.compress(b"data: {}"), GZIP.replace("application/json", "text/event-stream"), K.MALFORMED),
        ("200 OK", OUT_OF_MONEY, GZIP.replace("gzip", "br"), K.MALFORMED),
    ],
    ids=["an error", "a broken error", "cut off", "a bomb", "a stream", "brotli"],
)
async def test_of_what_comes_packed_all_that_can_be_read_counts(
    status: str, body: bytes, headers: str, kind: FailureKind, http: Http
) -> None:
    async with serving(always(said(body, status, headers))) as url:
        with pytest.raises(ProviderError) as error:
            await build(config("openai", url), http).call(
                endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts(), Heard()
            )
    assert error.value.failure.kind is kind


async def longest_turn_s(done: asyncio.Task[Any]) -> float:
    """The most processor time that this event loop gives to others in one piece until the task is done."""
    longest = 0.0
    while not done.done():
        begun = time.thread_time()
        await asyncio.sleep(0)
        longest = max(longest, time.thread_time() - begun)
    return longest


@pytest.mark.parametrize(
    "piece",
    [
        b"\n", b"ab\n", b"data:\n", b"data:{}\n\n", b'data:{"choices":[{"delta":{"content":"a"}}]}\n\n',
        b'data:{"choices":[{"delta":{"tool_calls":[{"id":"%d","function":{"name":"f"}}]}}]}\n\n',
    ],
)  # fmt: skip
async def test_no_dense_stream_holds_up_the_other_calls(piece: bytes, http: Http) -> None:
    times = MAX_BODY // len(piece)
    raw = b"".join(piece % n for n in range(100_000)) if b"%d" in piece else piece * times
    async with serving(always(said(raw, headers="content-type: text/event-stream"))) as url:
        connector = build(config("openai", url), http)
        asked = connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts(), Heard())
        call = asyncio.create_task(asked)
        assert await longest_turn_s(call) < 0.4
    error = call.exception()
    assert isinstance(error, ProviderError)
    assert error.failure.kind in (K.MALFORMED, K.INTERRUPTED)


DELAYED = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s" * 15_000_000}


@pytest.mark.parametrize(
    "error",
    [
        {"message": "a " * 15_000_000},
        {"message": f"try again in {'1s' * 15_000_000}_"},
        {"message": "x", "metadata": {"raw": "y z " * 7_000_000}},
        {"message": "x", "details": [DELAYED]},
        {"message": "x", "code": "y" * 30_000_000},
    ],
)
async def test_no_long_error_in_a_200_holds_up_the_other_calls(error: dict[str, Any], http: Http) -> None:
    async with serving(always(said(json.dumps({"error": error}).encode()))) as url:
        call = asyncio.create_task(asked(http, "openai", url))
        assert await longest_turn_s(call) < 1
    told = call.exception()
    assert isinstance(told, ProviderError)
    assert (told.failure.kind, told.failure.retry_after_s) == (K.SERVER_ERROR, None)


@pytest.mark.parametrize(("part", "most"), [(b"[],", MAX_PARTS), (b'{"a":1},', MAX_PARTS // 2), (b"1,", MAX_COMMAS)])
def test_json_of_too_many_parts_is_none(part: bytes, most: int) -> None:
    assert parse_json(b"[" + part * (most - 1) + b"0]") is not None
    assert parse_json(b"[" + part * (most + 1) + b"0]") is None


def test_no_embeddings_that_fit_into_an_answer_have_too_many_parts() -> None:
    row = b"0.12345678," * 3071 + b"-0.1234567"
    rows = MAX_BODY // (len(row) + 30)
    body = b'{"data":[' + b",".join([b'{"index":0,"embedding":[' + row + b"]}"] * rows) + b"]}"
    assert MAX_BODY * 0.99 < len(body) < MAX_BODY
    assert parse_json(body) is not None


CALLS: dict[str, Callable[[int], Any]] = {
    "openai": lambda count: {
        "choices": [{"message": {"tool_calls": [{"function": {"name": "f"}}] * count}, "finish_reason": "tool_calls"}]
    },
    "anthropic": lambda count: {"content": [{"type": "tool_use", "name": "f"}] * count, "stop_reason": "tool_use"},
    "gemini": lambda count: {"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}] * count}}]},
}


@pytest.mark.parametrize("name", CALLS)
async def test_an_answer_with_a_thousand_calls_of_tools_is_an_answer_and_one_with_more_is_not(
    name: str, http: Http
) -> None:
    async def calls(count: int) -> int:
        async with serving(always(said(json.dumps(CALLS[name](count)).encode()))) as url:
            outcome = await asked(http, name, url)
        return len(outcome.response.tool_calls)

    assert await calls(MAX_TOOL_CALLS) == MAX_TOOL_CALLS
    with pytest.raises(ProviderError, match="more than 1000 tool calls"):
        await calls(MAX_TOOL_CALLS + 1)


async def test_a_line_without_end_is_read_in_linear_time(http: Http) -> None:
    """In thousands of pieces, up to the cap: joining each to the rest would copy gigabytes."""

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x" * 1024

    async def took_s(size: int) -> float:
        started = time.process_time()
        assert [event async for event in sse_data(pieces(size))] == []
        return time.process_time() - started

    await took_s(100)
    assert await took_s(32_000) < 40 * max(await took_s(3_200), 0.0005), (
        "ten times as much takes some ten times as long"
    )


async def test_a_request_that_cannot_be_encoded_is_the_callers_fault(http: Http) -> None:
    connector = build(config("openai", "http://127.0.0.1:9"), http)
    with pytest.raises(ProviderError) as error:
        await connector.complete(InferenceRequest(prompt="A?", extras={"openai": {"user": "\ud800"}}))
    assert error.value.failure.kind is K.INVALID_REQUEST


class Stumbling(OpenAIConnector):
    def build_request(
        self, endpoint: Endpoint, request: InferenceRequest, draft: RequestDraft, stream: bool
    ) -> tuple[str, Any]:
        raise KeyError(request.prompt)


async def test_a_request_that_a_format_stumbles_over_is_not_sent_and_costs_nothing(
    http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does the endpoint's health suffer: what one job asks is no other job's fault."""
    connector = Stumbling(config("openai", "http://127.0.0.1:9"), http)
    with pytest.raises(ProviderError, match="its connector raised KeyError") as error:
        await connector.complete(InferenceRequest(prompt="the secret prompt"))
    assert (error.value.failure.kind, error.value.failure.billed) == (K.INVALID_REQUEST, Billed.NO)
    assert "in build_request" in caplog.text
    assert "secret" not in caplog.text + str(error.value)


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
    heard = Heard()
    async with serving(always(said(body, headers="content-type: text/event-stream"))) as url:
        error = await refusal(http, kind, url, Timeouts(), heard)
    assert heard == ["Hi"]
    assert (error.failure.kind, error.failure.billed) == (meant, Billed.MAYBE)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def streamed(kind: str) -> bytes:
    """The events of a whole answer."""
    last = b"data: [DONE]\n\n" if kind == "openai" else b""
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in EVENTS[kind]) + last


@pytest.mark.parametrize("kind", KINDS)
async def test_a_whole_answer_whose_connection_stays_open_or_breaks_is_one(kind: str, http: Http) -> None:
    """It was paid for, and would be again."""
    lingers, breaks = stops_after(HEAD + b"\r\n" + streamed(kind)), HEAD + b"content-length: 9999\r\n\r\n"
    for reply, timeouts in (
        (lingers, Timeouts(idle_s=0.2)),
        (lingers, Timeouts(total_s=0.5)),
        (always(breaks + streamed(kind)), Timeouts()),
    ):
        heard = Heard()
        async with serving(reply) as url, asyncio.timeout(20):
            outcome = await asked(http, kind, url, timeouts, heard)
        assert heard == [outcome.response.text] == ["Hi"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("media", "around"),
    [
        ("Text/Event-Stream; charset=UTF-8", "{}"),
        ("text/event-stream", "\ufeff{}"),
        ("text/event-stream", "data:\n\n{}data: \n\n"),
        ("text/event-stream", "{}data: [DONE] \n\n"),
        ("text/event-stream", "{}data:[DONE]\r\n\r\n"),
    ],
)
async def test_a_stream_is_read_however_it_is_framed(kind: str, media: str, around: str, http: Http) -> None:
    heard = Heard()
    raw = around.format(streamed(kind).decode()).encode()
    async with serving(always(said(raw, headers=f"content-type: {media}"))) as url:
        assert (await asked(http, kind, url, Timeouts(), heard)).response.text == "Hi"
    assert heard == ["Hi"]


async def test_a_mark_of_the_byte_order_may_come_in_pieces() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"\xef", b"\xbb", b"\xbfda", b"ta: {}\n", b"\n"):
            yield piece

    assert [event async for event in sse_data(pieces())] == [b"{}"]


@pytest.mark.parametrize(
    ("kind", "words"), [("openai", b": still here\n\n"), ("anthropic", b'data: {"type": "ping"}\n\n')]
)
async def test_nothing_that_drips_on_after_the_last_event_holds_an_answer_back(
    kind: str, words: bytes, http: Http
) -> None:
    async def drips_on(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n" + streamed(kind))
        with suppress(ConnectionError):
            while True:
                writer.write(words)
                await writer.drain()
                await asyncio.sleep(0.05)

    async with serving(drips_on) as url, asyncio.timeout(20):
        assert (await asked(http, kind, url, Timeouts(total_s=60), Heard())).response.text == "Hi"


async def test_a_stream_that_ends_too_early_and_lingers_is_not_said_to_have_taken_all_its_time(http: Http) -> None:
    lingers = stops_after(HEAD + b"\r\ndata: " + json.dumps(FIRST_WORDS["openai"]).encode() + b"\n\ndata: [DONE]\n\n")
    async with serving(lingers) as url, asyncio.timeout(20):
        error = await refusal(http, "openai", url, Timeouts(total_s=60), Heard())
    assert (error.failure.kind, error.failure.message) == (K.TIMED_OUT, "no rest of the answer in time")


@pytest.mark.parametrize(("ends", "opened"), [(True, 1), (False, 2)])
async def test_a_connection_serves_the_next_call_if_the_stream_ends_soon_after_its_last_event(
    ends: bool, opened: int, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("turnout_workers.providers.http.STREAM_END_S", 20.0 if ends else 0.1)
    heard, connections = asyncio.Event(), 0

    async def hear(_: str) -> None:
        heard.set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while length := re.search(rb"content-length: (\d+)", (await reader.readuntil(b"\r\n\r\n")).lower()):
                await reader.readexactly(int(length[1]))
                all_but_the_end = streamed("openai")
                writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
                writer.write(b"%x\r\n%b\r\n" % (len(all_but_the_end), all_but_the_end))
                await heard.wait()
                if ends:
                    writer.write(b"0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server, asyncio.timeout(20):
        connector = build(config("openai", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), http)
        for _ in "12":
            heard.clear()
            await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts(), hear)
    assert connections == opened


def answering(text: str) -> bytes:
    """A whole answer of OpenAI's, after which the connection may be kept."""
    body = json.dumps({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}).encode()
    return said(body).replace(b"connection: close\r\n", b"")


@pytest.mark.parametrize("unasked", [answering("1"), answering("1")[:20], b"\0", said(b"", "408 Request Timeout")])
async def test_what_comes_on_an_idle_connection_is_not_the_next_calls_answer(unasked: bytes, http: Http) -> None:
    """An answer once more, the beginning of one, what is no HTTP, or a balancer's farewell."""
    asked_of: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while length := re.search(rb"content-length: (\d+)", (await reader.readuntil(b"\r\n\r\n")).lower()):
                await reader.readexactly(int(length[1]))
                asked_of.append(writer)
                writer.write(answering(str(len(asked_of))))
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server, asyncio.timeout(20):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await asked(http, "openai", url)).response.text == "1"
        asked_of[0].write(unasked)
        async with serving(always(answering("another server's"))) as elsewhere:
            await asked(http, "openai", elsewhere)  # by the end of this one, all that was written has been read
        assert (await asked(http, "openai", url)).response.text == "2"
        assert len(asked_of) == 2


@pytest.mark.parametrize(
    ("timeouts", "kind"), [(Timeouts(connect_s=0.2), K.UNAVAILABLE), (Timeouts(first_byte_s=0.2), K.TIMED_OUT)]
)
async def test_a_connection_that_is_not_accepted_in_time_costs_nothing(
    timeouts: Timeouts, kind: FailureKind, http: Http
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, ExitStack() as waiting:
        with suppress(TimeoutError):  # the kernel answers none beyond the backlog
            while True:
                waiting.enter_context(socket.create_connection(full.getsockname(), timeout=0.2))
        error = await refusal(http, "openai", f"http://127.0.0.1:{full.getsockname()[1]}", timeouts)
    assert (error.failure.kind, error.failure.billed) == (kind, Billed.NO)


@pytest.mark.filterwarnings("ignore:BasicAuth is:DeprecationWarning", "ignore:The 'proxy_auth':DeprecationWarning")
async def test_only_a_configured_proxy_is_used(
    http: Http, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    direct = config("openai", simulator.base_url("openai"))
    assert (await build(direct, http).complete(InferenceRequest(prompt="A?", model="m"))).text
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(said(b"", "407 Proxy Authentication Required"))
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        address = f"http://us%40er:pass@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for url in ("http://api.example.com", "https://api.example.com"):
            through = replace(direct, base_url=url, proxy=address)
            assert "pass" not in repr(through)
            with pytest.raises(ProviderError) as error:
                await build(through, http).complete(InferenceRequest(prompt="A?", model="m"))
            assert "pass" not in str(error.value)
    assert seen[0].startswith(b"POST http://api.example.com/chat/completions HTTP/1.1\r\n")
    assert seen[1].startswith(b"CONNECT api.example.com:443 HTTP/1.1\r\n")
    login = b64encode(b"us@er:pass")
    assert all(b"Proxy-Authorization: Basic " + login in head for head in seen)


async def test_the_total_deadline_holds_while_a_reader_of_the_stream_is_slow(http: Http) -> None:
    event = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
    never = asyncio.Event()

    async def stuck(_: str) -> None:
        await never.wait()

    async with serving(always(said(event, headers="content-type: text/event-stream"))) as url:
        connector = build(config("openai", url), http)
        with pytest.raises(ProviderError, match="no whole answer") as error:
            await connector.call(endpoint("openai"), InferenceRequest(prompt="A?"), Timeouts(total_s=1.5), stuck)
    assert (error.value.failure.kind, error.value.failure.billed) == (K.TIMED_OUT, Billed.MAYBE)


def test_a_client_serves_one_event_loop_after_the_other_until_it_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    http = Http()

    async def served() -> str:
        body = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}'
        async with serving(always(said(body))) as url:
            return (await asked(http, "openai", url)).response.text

    assert [asyncio.run(served()) for _ in "12"] == ["Hi", "Hi"]
    asyncio.run(http.aclose())
    gc.collect()
    assert not caplog.records, "none of its sessions is left open, which aiohttp would log as an error"
    with pytest.raises(RuntimeError, match="closed"):  # by its own program, which no provider is to pay for
        asyncio.run(served())


# --- 10,000 hostile responses ------------------------------------------------------------------------------

WHOLE: dict[str, Any] = {
    "openai": {
        "model": "m",
        "choices": [{"message": {"content": "Hi", "tool_calls": [{"id": "c", "function": {"name": "f"}}]},
                     "delta": {"content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
    },
    "anthropic": {
        "content": [{"type": "text", "text": "Hi"}, {"type": "tool_use", "name": "f", "input": {}}],
        "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 3},
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": "Hi"}, {"functionCall": {"name": "f", "args": {}}}]},
                        "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3}, "promptFeedback": {"blockReason": "X"},
    },
}  # fmt: skip
EVENTS: dict[str, list[Any]] = {
    "openai": [WHOLE["openai"]],
    "anthropic": [
        {"type": "message_start", "message": {"model": "m", "usage": {"input_tokens": 9}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"text": "Hi", "partial_json": "{"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    ],
    "gemini": [WHOLE["gemini"]],
}
ERROR = {
    "type": "error", "message": "no", "object": "error", "request_id": "r",
    "error": {"message": "no", "status": "INTERNAL", "type": "x", "code": "y", "metadata": {"headers": {"a": "b"}},
              "details": [{"@type": "RetryInfo", "reason": "x", "retryDelay": "1s"}], "innererror": {"code": "z"}},
}  # fmt: skip
SCRAPS: list[Any] = [
    None, [], {}, "", "x", 0, -1, 1e308, True, [None], [[]], [{}], "\x00", "\ud800", 10**300, float("nan"), "9" * 5000,
]  # fmt: skip
STATUSES = ["204 No", "302 Go", "400 Bad", "429 Wait", "500 Oh", "599 Odd", "999 What"]
HEADERS = [
    "retry-after: soon", "x-ratelimit-limit-tokens: 1e308\r\nx-ratelimit-remaining-tokens: ∞", "content-encoding: gzip",
    "retry-after-ms: -1", "retry-after: 1e400", "date: yesterday", "transfer-encoding: chunked", "content-length: 5",
    "x: \xff", "content-type: text/event-stream", "content-type: application/json",
]  # fmt: skip


def spoilt(value: Any, rng: random.Random, share: float) -> Any:
    """The same with some of what is in it replaced by something else."""
    if rng.random() < share:
        return rng.choice(SCRAPS)
    if isinstance(value, dict):
        return {name: spoilt(inner, rng, share) for name, inner in value.items() if rng.random() > share / 4}
    return [spoilt(inner, rng, share) for inner in value] if isinstance(value, list) else value


def hostile(kind: str, rng: random.Random) -> list[bytes]:
    """A response, in pieces, in which something may be wrong everywhere."""
    share, media = rng.choice([0.0, 0.02, 0.1, 0.3]), "application/json"
    events = EVENTS[kind] if rng.random() < 0.5 else rng.choices([*EVENTS[kind], ERROR], k=rng.randrange(6))
    if rng.random() < 0.5:
        end = rng.choice([b"\n\n", b"\r\n\r\n"]) if rng.random() < 0.9 else b"\n"
        body = b"".join(b"data: %b%b" % (json.dumps(spoilt(event, rng, share)).encode(), end) for event in events)
        media = "text/event-stream"
    else:
        body = json.dumps(spoilt(WHOLE[kind] if rng.random() < 0.8 else ERROR, rng, share)).encode()
    if rng.random() < 0.1:
        body = rng.randbytes(rng.randrange(200))
    header = f"content-type: {media}" if rng.random() < 0.7 else rng.choice(HEADERS)
    raw = said(body, "200 OK" if rng.random() < 0.7 else rng.choice(STATUSES), header)
    if rng.random() < 0.1:
        raw = raw[: rng.randrange(len(raw))]
    cut = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randrange(3)))
    return [raw[start:end] for start, end in zip([0, *cut], [*cut, len(raw)], strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streaming", [False, True])
async def test_no_hostile_response_escapes_classification(kind: str, streaming: bool, http: Http) -> None:
    rng, pace = random.Random(f"{SEED}{kind}{streaming}"), random.Random(SEED)
    request, answers = InferenceRequest(prompt="A?"), 0
    current: list[bytes] = []

    async def reply(writer: asyncio.StreamWriter) -> None:
        for piece in current:
            writer.write(piece)
            await asyncio.sleep(0 if pace.random() < 0.99 else QUICK.idle_s * pace.random() / 4)

    async with serving(reply) as url:
        connector = build(config(kind, url), http)
        for number in range(HOSTILE // 6):
            current = hostile(kind, rng)
            try:
                outcome = await connector.call(endpoint(kind), request, QUICK, Heard() if streaming else None)
                answers += 1
                outcome.response.model_dump_json().encode()
            except ProviderError as error:
                repr(error.failure).encode()
            except Exception as error:
                raise AssertionError(f"TURNOUT_SEED={SEED}, response {number}: {current!r}") from error
    assert answers > HOSTILE / 6 / 50, "some are good answers"
