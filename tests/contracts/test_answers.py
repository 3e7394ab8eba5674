"""What every wire format's answers mean, whole and streamed: text, tools, refusals, and every token and cent."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing
from typing import Any

import pytest
from tests.contracts.responses import Heard, said

from turnout.request import FinishReason, InferenceRequest, InferenceResponse
from turnout_workers.providers import Http, ProviderConfig, build
from turnout_workers.providers.conformance import always, serving
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.prices import list_price, period
from turnout_workers.providers.wire import Answer, RequestDraft, failure_of
from turnout_workers.routing.failure import Billed, FailureKind
from turnout_workers.routing.fleet import Endpoint, Price
from turnout_workers.routing.images import rule_of

K = FailureKind
OPERATORS = Price(2.0, 10.0, cache_read=0.5, cache_write=3.0, cache_write_hour=4.0)
LISTED = Price(1.25, 10.0, 0.125, web_search=10.0, source="genai-prices 0")


async def answered(
    dialect: str,
    body: Any,
    price: Price | None = OPERATORS,
    headers: str = "x-test: 1",
    model: str = "m",
    stop: tuple[str, ...] = (),
    request: InferenceRequest | None = None,
) -> InferenceResponse:
    """The answer to a call; a list as the body is sent as a stream of events."""
    kind, endpoint = DIALECTS[dialect].kind, Endpoint("p", "m", model, price=price, image_rule=rule_of(model))
    stream = isinstance(body, list)
    raw = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in body) if stream else body
    raw = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    heard = Heard()
    http = Http()
    try:
        media = "text/event-stream" if stream else "application/json"
        async with serving(always(said(raw, headers=f"content-type: {media}\r\n{headers}"))) as url:
            connector = build(ProviderConfig("p", kind, url, (endpoint,), dialect), http)
            embeds = isinstance(body, dict) and ("data" in body or "embeddings" in body)
            usual = InferenceRequest(input="x") if embeds else InferenceRequest(prompt="x" * 100, stop=stop)
            response = (await connector.call(endpoint, request or usual, on_token=heard if stream else None)).response
    finally:
        await http.aclose()
    assert not stream or "".join(heard) == response.text
    return response


def chat(usage: Any = None, finish: Any = "stop", **message: Any) -> dict[str, Any]:
    message = message or {"content": "Hi"}
    return {"model": "m-1", "choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def claude(usage: Any = None, stop: str = "end_turn", *content: Any) -> dict[str, Any]:
    blocks = content or ({"type": "text", "text": "Hi"},)
    return {"type": "message", "model": "m-1", "content": list(blocks), "stop_reason": stop, "usage": usage}


def gemini(usage: Any = None, finish: str | None = "STOP", *parts: Any) -> dict[str, Any]:
    candidate = {"content": {"parts": list(parts or ({"text": "Hi"},))}, "finishReason": finish}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m-1"}


ASKED = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
CACHED = {**ASKED, "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 20}}
THOUGHT = {"prompt_tokens": 100, "completion_tokens": 10, "completion_tokens_details": {"reasoning_tokens": 7}}
TICKS = {**ASKED, "total_tokens": 117, "cost_in_usd_ticks": 232_856_000}
UPSTREAM = {"cost_details": {"upstream_inference_cost": 0.03608}}
PERPLEXITYS = {"input_tokens_cost": 0.00001, "output_tokens_cost": 0.0001, "request_cost": 0.005, "total_cost": 0.00511}
KEPT = {"input_tokens": 40, "cache_read_input_tokens": 40, "cache_creation_input_tokens": 20, "output_tokens": 10}
TOLD = {"promptTokenCount": 90, "toolUsePromptTokenCount": 10, "candidatesTokenCount": 3, "thoughtsTokenCount": 7}

# Format, body, then tokens: input, cache read, cache write, output, reasoning; and micro-dollars.
USAGE: list[tuple[str, Any, tuple[int, ...], int]] = [
    ("openai", chat(ASKED), (100, 0, 0, 10, 0), 300),
    ("openai", chat(CACHED), (100, 40, 20, 10, 0), 40 * 2 + 40 // 2 + 20 * 3 + 100),
    ("openai", chat({**THOUGHT, "total_tokens": 110}), (100, 0, 0, 10, 7), 300),
    ("xai", chat({**THOUGHT, "total_tokens": 117}), (100, 0, 0, 17, 7), 370),
    ("xai", chat(TICKS), (100, 0, 0, 17, 0), 23286),
    ("xai", chat({**ASKED, "cost_in_usd_ticks": 10**400}), (100, 0, 0, 10, 0), 300),
    ("xai", chat({**ASKED, "cost_in_usd_ticks": "many"}), (100, 0, 0, 10, 0), 300),
    ("deepseek", chat({**ASKED, "prompt_cache_hit_tokens": 40}), (100, 40, 0, 10, 0), 60 * 2 + 20 + 100),
    ("openrouter", chat({**ASKED, "cost": 0.00123}), (100, 0, 0, 10, 0), 1230),
    ("openrouter", chat({**ASKED, "cost": 0}), (100, 0, 0, 10, 0), 0),
    ("openrouter", chat({**ASKED, "cost": 0.001, "is_byok": True, **UPSTREAM}), (100, 0, 0, 10, 0), 37_080),
    ("openrouter", chat({**ASKED, "cost": 0, "is_byok": True}), (100, 0, 0, 10, 0), 300),
    ("openrouter", chat({**ASKED, "cost": 0.00123, "is_byok": False, **UPSTREAM}), (100, 0, 0, 10, 0), 1230),
    ("openrouter", chat({**ASKED, "cost": -1}), (100, 0, 0, 10, 0), 300),
    ("openrouter", chat({**ASKED, "cost": True}), (100, 0, 0, 10, 0), 300),
    ("openrouter", chat({**ASKED, "cost": False}), (100, 0, 0, 10, 0), 300),
    ("openrouter", chat({**ASKED, "cost": 1e300}), (100, 0, 0, 10, 0), 300),
    ("openrouter", {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 8, "cost": 7e-6}}, (8, 0, 0, 0, 0), 7),
    ("openai", chat({**ASKED, "cost": PERPLEXITYS}), (100, 0, 0, 10, 0), 5110),
    ("openai", chat({**ASKED, "cost": {"request_cost": 0.005}}), (100, 0, 0, 10, 0), 300),
    ("openai", {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 8}}, (8, 0, 0, 0, 0), 16),
    ("openai", {"data": [{"embedding": [0.5]}], "usage": {"total_tokens": 8}}, (8, 0, 0, 0, 0), 16),
    ("anthropic", claude(KEPT), (100, 40, 20, 10, 0), 40 * 2 + 20 + 60 + 100),
    ("anthropic", claude({**KEPT, "output_tokens_details": {"thinking_tokens": 4}}), (100, 40, 20, 10, 4), 260),
    ("anthropic", claude({**KEPT, "cache_creation": {"ephemeral_1h_input_tokens": 15}}), (100, 40, 20, 10, 0), 275),
    ("gemini", gemini(TOLD), (100, 0, 0, 10, 7), 300),
    ("gemini", gemini({**TOLD, "cachedContentTokenCount": 40}), (100, 40, 0, 10, 7), 240),
    ("anthropic", claude({**KEPT, "iterations": [KEPT, {**KEPT, "input_tokens": 1040}]}), (1200, 80, 40, 20, 0), 2520),
    (
        "openai",
        [chunk(content="H"), chunk("stop", content="i"), {"choices": [], "usage": CACHED}],
        (100, 40, 20, 10, 0),
        260,
    ),
    (
        "openai",  # as Moonshot streams it
        [chunk(content="Hi"), {"choices": [{"delta": {}, "finish_reason": "stop", "usage": ASKED}]}],
        (100, 0, 0, 10, 0),
        300,
    ),
    (
        "anthropic",  # as gateways stream it that repeat the prompt's counts as 0
        [
            {"type": "message_start", "message": {"usage": {**KEPT, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn"},
                "usage": {**dict.fromkeys(KEPT, 0), "output_tokens": 10},
            },
        ],
        (100, 40, 20, 10, 0),
        260,
    ),
    ("gemini", [gemini({"promptTokenCount": 100}, None), gemini(TOLD)], (100, 0, 0, 10, 7), 300),
    (
        "anthropic",
        [
            {"type": "message_start", "message": {"usage": {**KEPT, "output_tokens": 1}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
            {"type": "message_delta", "delta": {}, "usage": {**dict.fromkeys(KEPT), "output_tokens": 10}},
            {"type": "message_stop"},
        ],
        (100, 40, 20, 10, 0),
        260,
    ),
]


@pytest.mark.parametrize(("dialect", "body", "tokens", "microusd"), USAGE)
async def test_every_token_is_counted_and_every_cent(
    dialect: str, body: Any, tokens: tuple[int, ...], microusd: int
) -> None:
    response = await answered(dialect, body)
    used = response.usage
    found = (used.input_tokens, used.cache_read_tokens, used.cache_write_tokens, used.output_tokens)
    assert (*found, used.reasoning_tokens) == tokens
    assert (response.cost_microusd, used.source) == (microusd, "reported")


NONSENSE: list[Any] = [
    None, [], "many", {}, {"prompt_tokens": "x"}, {"prompt_tokens": -1}, {"prompt_tokens": 10**30},
    {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 1000}}, {"prompt_tokens": float("nan")},
    {"prompt_tokens": 1, "completion_tokens": int("9" * 4000)}, dict.fromkeys(ASKED, 0),
]  # fmt: skip


@pytest.mark.parametrize("usage", NONSENSE, ids=range(len(NONSENSE)))
async def test_usage_that_makes_no_sense_is_estimated_instead(usage: Any) -> None:
    response = await answered("openai", chat(usage))
    assert (response.usage.source, response.usage.input_tokens) == ("estimated", 33)
    assert response.warnings == ("the provider reported no usage; it is estimated",)


async def test_an_estimate_counts_images_as_the_model_does() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlhAAQABA=="}}  # 1,024 × 1,024
    given = ({"messages": [{"role": "user", "content": [image] * count}]} for count in (1, 2))
    asked = [InferenceRequest.model_validate(one) for one in given]
    one, two = [(await answered("openai", chat(), model="gpt-4o", request=request)).usage for request in asked]
    assert (two.source, two.input_tokens - one.input_tokens) == ("estimated", 85 + 4 * 170)


async def test_only_the_answers_tokens_are_estimated_where_the_prompts_were_reported() -> None:
    for dialect, body in (
        ("openai", chat({"prompt_tokens": 100, "completion_tokens": 0})),
        ("gemini", gemini({"promptTokenCount": 100})),
        ("anthropic", claude({"input_tokens": 100, "output_tokens": 0})),
    ):
        used = (await answered(dialect, body)).usage
        assert (used.source, used.input_tokens, used.output_tokens) == ("estimated", 100, 1)


async def test_an_estimate_of_tokens_tells_no_cost() -> None:
    assert (await answered("openai", chat())).cost_microusd is None
    assert (await answered("openai", chat(), Price(0.0, 0.0))).cost_microusd == 0, "whatever it counts, it is free"
    assert (await answered("openai", chat({"cost": 0.00123}))).cost_microusd == 1230, "the provider says so"


async def test_an_estimate_counts_the_calls_of_tools() -> None:
    call = {"id": "1", "function": {"name": "find", "arguments": '{"what": "' + "x" * 84 + '"}'}}
    response = await answered("openai", chat(None, "tool_calls", tool_calls=[call]))
    assert (response.usage.source, response.usage.output_tokens) == ("estimated", 25)


@pytest.mark.parametrize(
    ("dialect", "body", "headers", "microusd"),
    [
        ("openai", {**chat(ASKED), "service_tier": "default"}, "", 225),
        ("openai", {**chat(ASKED), "service_tier": "flex"}, "", 113),
        ("openai", {**chat(ASKED), "service_tier": "priority"}, "", 450),
        ("openai", [chunk("stop", content="Hi") | {"service_tier": "flex"}, {"usage": ASKED}], "", 113),
        ("openai", chat(ASKED), "x-gemini-service-tier: priority", 450),
    ],
)
async def test_a_call_costs_what_its_tier_costs(dialect: str, body: Any, headers: str, microusd: float) -> None:
    response = await answered(dialect, body, LISTED, f"x-test: 1\r\n{headers}".strip(), "gpt-5")
    assert response.cost_microusd == microusd
    operators = await answered(dialect, body, OPERATORS, f"x-test: 1\r\n{headers}".strip(), "gpt-5")
    assert operators.cost_microusd in (260, 300), "the operator's own price holds for every tier"


@pytest.mark.parametrize(
    ("how", "microusd"),
    [
        ({"inference_geo": "global", "speed": "standard"}, 180),
        ({"service_tier": "standard"}, 40 * 4 + 40 * 0.2 + 20 * 5 + 10 * 20),
        ({"service_tier": "priority"}, 180),
        ({"inference_geo": "us", "server_tool_use": {"web_search_requests": 3}}, 30_198),
        ({"inference_geo": "us"}, 198),
        ({"speed": "fast"}, 40 * 8 + 40 * 0.4 + 20 * 10 + 10 * 40),
        ({"inference_geo": "us", "speed": "fast", "service_tier": "standard"}, 1030),
    ],
)
async def test_claude_costs_more_at_its_fast_speed_and_in_the_us(how: dict[str, Any], microusd: float | None) -> None:
    body = claude({**KEPT, **how})
    assert (await answered("anthropic", body, LISTED, model="claude-opus-5-5")).cost_microusd == microusd
    assert (await answered("anthropic", body, OPERATORS)).cost_microusd == 260, "the operator's price has it in it"


@pytest.mark.parametrize(("model", "microusd"), [("gemini-3.8-flash", 2 * 14_000), ("gemini-2.5-pro", 35_000)])
@pytest.mark.parametrize("streams", [False, True])
async def test_googles_searches_cost_what_the_list_says(model: str, microusd: int, streams: bool) -> None:
    """Each, or of earlier models all of a call together."""
    price = list_price("google", model, period(time.time()))
    grounded = gemini(TOLD) | {"modelVersion": model}
    plain = await answered("gemini", grounded, price)
    grounded["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b", ""]}
    searched = await answered("gemini", [grounded, {"usageMetadata": TOLD}] if streams else grounded, price)
    assert None not in (searched.cost_microusd, plain.cost_microusd)
    assert (searched.cost_microusd or 0) - (plain.cost_microusd or 0) == microusd


async def test_an_unknown_price_stays_unknown() -> None:
    assert (await answered("openai", chat(ASKED), None)).cost_microusd is None


@pytest.mark.parametrize(("told", "microusd"), [("1.35e-05", 14), ("0", 300), ("0.0", 300), ("None", 300)])
async def test_litellm_says_in_a_header_what_an_answer_costs(told: str, microusd: int) -> None:
    """As its proxy 1.108.7 does, save in streams, whose usage says so. Nothing is the cost of models that it doesn't
    know."""
    response = await answered(
        "openai", chat(ASKED), headers=f"x-litellm-call-id: e0387c03\r\nx-litellm-response-cost: {told}"
    )
    assert (response.cost_microusd, response.request_id) == (microusd, "e0387c03")


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
PARTIAL = [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}]
REST = [{"index": 0, "function": {"arguments": ": 1}"}}]
TOOL_USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}
CLAUDES = [
    {"type": "message_start", "message": {"model": "m-1", "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "server_tool_use", "input": {}}},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "c1", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 5}},
    {"type": "message_stop"},
]
PARTS = [
    chunk(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]),
    chunk(content=[{"type": "text", "text": "H"}]),
    chunk("stop", content="i"),
]
FUNCTION_CALL = {"functionCall": {"name": "f", "args": {"a": 1}}}


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("openai", chat(ASKED, "tool_calls", tool_calls=[CALL])),
        ("openai", [chunk(tool_calls=PARTIAL), chunk(tool_calls=REST), chunk("tool_calls")]),
        ("anthropic", claude(KEPT, "tool_use", TOOL_USE)),
        ("anthropic", CLAUDES),
        ("gemini", gemini(TOLD, "STOP", {"text": "Hm", "thought": True}, FUNCTION_CALL)),
        ("gemini", [gemini(None, None, FUNCTION_CALL), gemini(TOLD, "STOP", {"text": ""})]),
    ],
)
async def test_a_call_of_a_tool_is_the_same_from_all(dialect: str, body: Any) -> None:
    response = await answered(dialect, body)
    (call,) = response.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": 1})
    assert (response.finish, response.text) == (FinishReason.TOOL_CALLS, "")


def part(id: str | None, name: str | None, arguments: str, **index: int) -> dict[str, Any]:
    return chunk(tool_calls=[{**index, "id": id, "function": {"name": name, "arguments": arguments}}])


@pytest.mark.parametrize(
    "parts",
    [
        [
            part("c1", "f", "{", index=0),
            part("c2", "g", "{", index=1),
            *(part(None, None, "}", index=i) for i in (0, 1)),
        ],
        [part("c1", "f", "{}", index=0), part("c2", "g", "{}", index=0)],  # Ollama
        [part("c1", "f", "{"), part(None, None, "}"), part("c2", "g", "{}")],  # Gemini's likeness
        [part("c1", "f", "{", index=0), part("x", None, "}", index=0), part("c2", "g", "{}", index=1)],  # older vLLM
    ],
)
async def test_several_calls_of_tools_stay_apart_in_a_stream(parts: list[Any]) -> None:
    response = await answered("ollama", [*parts, chunk("tool_calls")])
    calls = [(call.id, call.function.name, call.function.arguments) for call in response.tool_calls]
    assert calls == [("c1", "f", "{}"), ("c2", "g", "{}")]


@pytest.mark.parametrize(
    ("dialect", "body", "text", "finish", "refusal"),
    [
        ("openai", chat(None, "length", content=""), "", FinishReason.LENGTH, None),
        ("openai", chat(None, "stop", content=None, refusal="I won't"), "", FinishReason.STOP, "I won't"),
        ("openai", [chunk(refusal="I "), chunk(refusal="won't"), chunk("stop")], "", FinishReason.STOP, "I won't"),
        ("mistral", chat(None, "model_length", content=[{"text": "Hi"}]), "Hi", FinishReason.LENGTH, None),
        ("mistral", PARTS, "Hi", FinishReason.STOP, None),
        ("openai", chat(None, "strange"), "Hi", FinishReason.OTHER, None),
        ("together", chat(None, "eos"), "Hi", FinishReason.STOP, None),
        ("openai", json.dumps(chat(None, content="a\ud800b")).encode(), "a?b", FinishReason.STOP, None),
        ("anthropic", claude(None, "model_context_window_exceeded"), "Hi", FinishReason.LENGTH, None),
        ("anthropic", claude(None, "refusal"), "Hi", FinishReason.CONTENT_FILTER, None),
        ("anthropic", claude(None, "pause_turn"), "Hi", FinishReason.OTHER, None),
        ("gemini", gemini(None, "MAX_TOKENS"), "Hi", FinishReason.LENGTH, None),
        ("gemini", gemini(None, "SAFETY"), "Hi", FinishReason.CONTENT_FILTER, None),
    ],
)  # fmt: skip
async def test_an_answer_is_whole_or_says_why_not(
    dialect: str, body: Any, text: str, finish: FinishReason, refusal: str | None
) -> None:
    response = await answered(dialect, body)
    assert (response.text, response.finish, response.refusal) == (text, finish, refusal)


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("openai", chat(ASKED, "stop", content="")),
        ("openai", [chunk("stop"), {"choices": [], "usage": ASKED}]),
        ("anthropic", claude(KEPT, "stop_sequence", {"type": "text", "text": ""})),
        ("gemini", gemini(TOLD, "STOP", {"text": ""})),
    ],
)
async def test_an_answer_that_begins_with_what_stops_it_is_an_empty_one(dialect: str, body: Any) -> None:
    response = await answered(dialect, body, stop=("END",))
    assert (response.text, response.finish) == ("", FinishReason.STOP)


def broke_off(code: int, text: str, usage: Any = None) -> dict[str, Any]:
    """As OpenRouter tells in a 200 what happened to the provider behind it: beside the message, not above it."""
    choice = {"message": {"content": text}, "finish_reason": None, "error": {"code": code, "message": "no"}}
    return {"choices": [choice], "usage": usage}


BLOCKED = {"promptFeedback": {"blockReason": "OTHER"}}
NONE: list[tuple[str, Any, FailureKind, Billed]] = [
    ("openai", {"choices": []}, K.MALFORMED, Billed.YES),
    ("openai", chat(ASKED, "stop", content=""), K.EMPTY, Billed.YES),
    ("openai", chat(ASKED, "stop", content=None, reasoning_content="Hm"), K.EMPTY, Billed.YES),
    ("openai", chat(ASKED, "stop", content=7), K.MALFORMED, Billed.YES),
    ("openai", chat(None, "stop", content=True), K.MALFORMED, Billed.YES),
    ("openai", chat(ASKED, ["stop"]), K.MALFORMED, Billed.YES),
    ("openai", chat(ASKED, "content_filter", content=""), K.CONTENT_FILTERED, Billed.YES),
    ("openrouter", chat(ASKED, "error", content="Hi"), K.SERVER_ERROR, Billed.YES),
    ("deepseek", chat(ASKED, "insufficient_system_resource", content="Hi"), K.SERVER_ERROR, Billed.YES),
    ("vllm", [chunk(content="Hi"), chunk("abort")], K.SERVER_ERROR, Billed.YES),
    ("openrouter", broke_off(502, "Hi", ASKED), K.SERVER_ERROR, Billed.MAYBE),
    ("openrouter", broke_off(429, ""), K.RATE_LIMITED, Billed.NO),
    ("openrouter", broke_off(429, "Hi", ASKED), K.RATE_LIMITED, Billed.MAYBE),
    ("openrouter", [broke_off(429, "")], K.RATE_LIMITED, Billed.NO),
    ("openrouter", [chunk(content="Hi"), broke_off(429, "")], K.RATE_LIMITED, Billed.MAYBE),
    ("openrouter", {"choices": [{"error": {"code": 429, "message": "no"}}]}, K.RATE_LIMITED, Billed.NO),
    ("openai", [chunk(content="Hi")], K.INTERRUPTED, Billed.MAYBE),
    ("openai", [chunk(content=["Hi"])], K.MALFORMED, Billed.YES),
    ("openai", {"data": [{"embedding": [float("nan")]}]}, K.MALFORMED, Billed.YES),
    ("openai", {"data": []}, K.MALFORMED, Billed.YES),
    ("anthropic", claude(KEPT, "refusal", {"type": "text", "text": ""}), K.CONTENT_FILTERED, Billed.MAYBE),
    ("anthropic", CLAUDES[:-2], K.INTERRUPTED, Billed.MAYBE),
    ("anthropic", CLAUDES[:6] + CLAUDES[7:], K.MALFORMED, Billed.YES),
    ("gemini", BLOCKED, K.CONTENT_FILTERED, Billed.YES),
    ("gemini", [BLOCKED], K.CONTENT_FILTERED, Billed.YES),
    ("gemini", gemini(TOLD, "SAFETY", {"text": ""}), K.CONTENT_FILTERED, Billed.YES),
    ("gemini", gemini(TOLD, "MALFORMED_FUNCTION_CALL", {"text": ""}), K.SERVER_ERROR, Billed.YES),
    ("gemini", {"candidates": []}, K.MALFORMED, Billed.YES),
    ("gemini", [gemini(None, None)], K.INTERRUPTED, Billed.MAYBE),
]


@pytest.mark.parametrize(("dialect", "body", "kind", "billed"), NONE)
async def test_a_200_that_is_no_answer_is_a_failure(dialect: str, body: Any, kind: FailureKind, billed: Billed) -> None:
    with pytest.raises(ProviderError) as error:
        await answered(dialect, body)
    assert (error.value.failure.kind, error.value.failure.billed) == (kind, billed)


def rows(*vectors: Any, indices: Any = None) -> dict[str, Any]:
    indices = range(len(vectors)) if indices is None else indices
    return {"data": [{"index": i, "embedding": v} for i, v in zip(indices, vectors, strict=True)]}


async def embedded(dialect: str, body: dict[str, Any], texts: int = 2, dimensions: int | None = None) -> Any:
    http = Http()
    try:
        async with serving(always(said(json.dumps(body).encode()))) as url:
            endpoint = Endpoint("p", "m", "m")
            connector = build(ProviderConfig("p", DIALECTS[dialect].kind, url, (endpoint,), dialect), http)
            request = InferenceRequest(input=("x",) * texts, dimensions=dimensions)
            return (await connector.call(endpoint, request)).response.embeddings
    finally:
        await http.aclose()


@pytest.mark.parametrize(
    ("body", "how"),
    [
        (rows([], []), {}),
        (rows([1, 2, 3], [4]), {}),
        (rows([1], [2], indices=(1, 1)), {}),
        (rows([1], [2], indices=(0, 5)), {}),
        (rows([1], [2], indices=(None, 2)), {}),
        (rows("AADAfw==", "AADAfw=="), {}),  # NaN
        (rows(*([n] for n in range(11)), indices=map(str, range(11))), {"texts": 11}),
        (rows("123", "456"), {}),
        (rows("1234", "5678"), {}),
        (rows({"1": 1}, {"2": 2}), {}),
        (rows([[1]], [[2]]), {}),
    ],
)
async def test_embeddings_that_are_not_of_each_text_and_of_one_length_are_no_answer(
    body: dict[str, Any], how: dict[str, Any]
) -> None:
    with pytest.raises(ProviderError) as error:
        await embedded("openai", body, **how)
    assert (error.value.failure.kind, error.value.failure.billed) == (K.MALFORMED, Billed.YES)


@pytest.mark.parametrize(
    "body",
    [
        rows([1, 2], [3, 4]),
        rows([3, 4], [1, 2], indices=(1, 0)),
        rows([1, 2], [3, 4], indices=(None, None)),
        rows([1, 2], [3, 4], indices=(None, 1)),  # Gemini
        rows([1, 2], [3, 4], indices=(0, 0)),  # LiteLLM, of Gemini
        rows("AACAPwAAAEA=", "AABAQAAAgEA="),
        {"data": [{"embedding": [1, 2]}, {"embedding": [3, 4]}]},
    ],
)
async def test_embeddings_are_read_in_whatever_order_and_form_they_come(body: dict[str, Any]) -> None:
    assert await embedded("openai", body, dimensions=2) == ((1, 2), (3, 4))


@pytest.mark.parametrize("wish", ["drop", "fail"])
def test_who_is_given_dimensions_and_heeds_none_has_its_answer_taken_unless_the_job_says_otherwise(wish: Any) -> None:
    """As llama.cpp: it is well, and no other job has to do without it."""
    draft = RequestDraft(InferenceRequest(input="x", dimensions=3, on_unsupported=wish), "p", frozenset({"dimensions"}))
    assert draft.values("dimensions")
    failure = failure_of(Answer(embeddings=((1.0, 2.0),)), draft)
    assert (failure and failure.kind) == (K.UNSUPPORTED if wish == "fail" else None)
    assert draft.warnings == ([] if wish == "fail" else ["p returned 2 dimensions, not 3"])


def test_who_takes_no_dimensions_answers_in_its_own() -> None:
    draft = RequestDraft(InferenceRequest(input="x", dimensions=3), "p", frozenset())
    assert not draft.values("dimensions")
    assert failure_of(Answer(embeddings=((1.0, 2.0),)), draft) is None


@pytest.mark.parametrize(
    ("dialect", "body", "microusd"),
    [
        ("openai", chat(ASKED, "stop", content=""), 300),
        ("openai", chat(ASKED, "error"), 300),
        ("anthropic", claude(KEPT, "refusal", {"type": "text", "text": ""}), 260),
        ("gemini", gemini(TOLD, "SAFETY", {"text": ""}), 300),
        ("gemini", gemini(None, "SAFETY", {"text": ""}), None),
        ("gemini", BLOCKED | {"usageMetadata": {"promptTokenCount": 100}}, 200),
        ("gemini", [BLOCKED | {"usageMetadata": {"promptTokenCount": 100}}], 200),
        ("gemini", BLOCKED, None),
    ],
)
async def test_an_answer_of_no_use_costs_what_it_reports(dialect: str, body: Any, microusd: int | None) -> None:
    with pytest.raises(ProviderError) as error:
        await answered(dialect, body)
    response = error.value.response
    assert (response.cost_microusd if response else None) == microusd


@pytest.mark.parametrize(
    ("dialect", "events"),
    [
        ("openai", [chunk(content="H"), chunk("stop", content="i"), {"usage": ASKED}]),
        ("anthropic", CLAUDES),
        ("gemini", [gemini(None, None), gemini(TOLD)]),
    ],
)
async def test_a_stream_that_is_cut_off_anywhere_is_interrupted_or_whole(dialect: str, events: list[Any]) -> None:
    """From a server that tells no length: the end of the connection is the end of the stream."""
    raw = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)
    endpoint, ends = Endpoint("p", "m", "m"), list[Any]()

    async def reply(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + raw[: len(ends)])
        writer.close()

    async with aclosing(Http()) as http, serving(reply) as url:
        connector = build(ProviderConfig("p", DIALECTS[dialect].kind, url, (endpoint,), dialect), http)
        while len(ends) <= len(raw):
            try:
                ends.append(
                    (await connector.call(endpoint, InferenceRequest(prompt="x"), on_token=Heard())).response.finish
                )
            except ProviderError as error:
                ends.append(error.failure.kind)
    broken = ends.count(K.INTERRUPTED)
    assert ends == [K.INTERRUPTED] * broken + [ends[-1]] * (len(ends) - broken)
    assert 0 < broken < len(ends)


@pytest.mark.parametrize(
    "raw",
    [
        b"the prompt\r\n",
        b"HTTP/1.1 the prompt\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-echo: the prompt\r\n",
        b"HTTP/1.1 200 " + b"the prompt" * 10_000,
        b"HTTP/1.1 200 OK\r\nx-echo: " + b"the prompt" * 10_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx-echo: \0the prompt\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: the prompt\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{the prompt}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nthe prompt\r\n",
    ],
)
async def test_what_is_no_http_is_not_repeated(raw: bytes) -> None:
    """It may be the prompt, or somebody's answer."""
    http, endpoint = Http(), Endpoint("p", "m", "m")
    try:
        async with serving(always(raw)) as url:
            connector = build(ProviderConfig("p", "openai", url, (endpoint,)), http)
            with pytest.raises(ProviderError) as error:
                await connector.call(endpoint, InferenceRequest(prompt="x"))
    finally:
        await http.aclose()
    assert error.value.failure.billed is Billed.MAYBE
    assert "prompt" not in error.value.failure.message
