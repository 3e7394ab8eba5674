"""The vendors' own clients talk to the simulator and find what they expect of the vendor."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest
from google import genai
from google.genai import errors as genai_errors
from google.genai import types as genai_types

from turnout_workers.simulator import Fault, Scenario
from turnout_workers.simulator.server import Simulator

PROMPT = [{"role": "user", "content": "Where does the freight train go?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
    "required": ["city", "days"],
}
ERRORS = [  # fault, and the exception of each client
    (Fault(kind="error", status=500), "InternalServerError", "InternalServerError", 500),
    (Fault(kind="error", status=503), "InternalServerError", "ServiceUnavailableError", 503),
    (Fault(kind="error", status=529), "InternalServerError", "OverloadedError", 529),
    (Fault(kind="error", status=429, retry_after_s=7), "RateLimitError", "RateLimitError", 429),
]


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    models = {
        "m": {"name": "m-1", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0, "context_tokens": 1000},
        "e": {"input_usd_per_mtok": 0.5, "output_usd_per_mtok": 0.0, "capabilities": ["embeddings"]},
    }
    limits = {"requests_per_minute": 100, "tokens_per_minute": 100_000, "input_tokens_per_minute": 90_000}
    scenario = Scenario(
        providers={
            kind: {"models": models, "kind": kind, "api_key": "right", **limits}
            for kind in ("openai", "anthropic", "gemini")
        }
    )
    async with Simulator(scenario) as running:
        yield running


def openai_client(simulator: Simulator, key: str = "right") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=simulator.base_url("openai"), api_key=key, max_retries=0)


def anthropic_client(simulator: Simulator, key: str = "right") -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=simulator.base_url("anthropic"), api_key=key, max_retries=0)


def gemini_client(simulator: Simulator, key: str = "right") -> Any:
    options = genai_types.HttpOptions(base_url=simulator.base_url("gemini"))
    return genai.Client(api_key=key, http_options=options).aio


# --- OpenAI ----------------------------------------------------------------------------------------------


async def test_openai_answers_whole_and_in_pieces_with_usage_and_limits(simulator: Simulator) -> None:
    ask = openai_client(simulator).chat.completions
    raw = await ask.with_raw_response.create(model="m-1", messages=PROMPT)
    chat = raw.parse()
    assert chat.choices[0].finish_reason == "stop"
    assert "[simulated by openai]" in chat.choices[0].message.content
    assert chat.usage.prompt_tokens + chat.usage.completion_tokens == chat.usage.total_tokens
    assert raw.headers["x-ratelimit-remaining-requests"] == "99"
    assert raw.headers["x-ratelimit-limit-tokens"] == "100000"
    assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    assert raw.headers["x-turnout-simulated"] == "1"
    assert raw.headers["x-request-id"]
    options = {"include_usage": True}
    streamed = await ask.create(model="m-1", messages=PROMPT, stream=True, stream_options=options)
    chunks = [chunk async for chunk in streamed]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert (text, chunks[-1].usage) == (chat.choices[0].message.content, chat.usage)
    assert chunks[-2].choices[0].finish_reason == "stop"
    cut = await ask.create(model="m-1", messages=PROMPT, max_completion_tokens=5)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_openai_calls_a_tool_once_and_then_answers(simulator: Simulator, stream: bool) -> None:
    client = openai_client(simulator)
    tools = [{"type": "function", "function": {"name": "forecast", "parameters": PARAMETERS}}]
    if stream:
        async with client.chat.completions.stream(model="m-1", messages=PROMPT, tools=tools) as events:
            chat = await events.get_final_completion()
    else:
        chat = await client.chat.completions.create(model="m-1", messages=PROMPT, tools=tools)
    (call,) = chat.choices[0].message.tool_calls
    assert (chat.choices[0].finish_reason, call.function.name) == ("tool_calls", "forecast")
    assert 1 <= json.loads(call.function.arguments)["days"] <= 7
    answered = [
        *PROMPT,
        {"role": "assistant", "tool_calls": [call.model_dump(include={"id", "type", "function"})]},
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    chat = await client.chat.completions.create(model="m-1", messages=answered, tools=tools)
    assert chat.choices[0].finish_reason == "stop"


async def test_openai_embeds(simulator: Simulator) -> None:
    client = openai_client(simulator)
    packed = await client.embeddings.create(model="e", input=["one", "two"], dimensions=8)
    plain = await client.embeddings.create(model="e", input="one", dimensions=8, encoding_format="float")
    assert [len(d.embedding) for d in packed.data] == [8, 8]
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == 10


async def test_openai_errors_are_typed(simulator: Simulator) -> None:
    ask = openai_client(simulator).chat.completions.create
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        await openai_client(simulator, "wrong").chat.completions.create(model="m-1", messages=PROMPT)
    with pytest.raises(openai.NotFoundError) as no_model:
        await ask(model="nowhere", messages=PROMPT)
    with pytest.raises(openai.BadRequestError) as too_long:
        await ask(model="m-1", messages=[{"role": "user", "content": "x" * 5000}])
    codes = [error.value.code for error in (wrong_key, no_model, too_long)]
    assert codes == ["invalid_api_key", "model_not_found", "context_length_exceeded"]


# --- Anthropic -------------------------------------------------------------------------------------------


async def test_anthropic_answers_whole_and_in_pieces_with_usage_and_limits(simulator: Simulator) -> None:
    messages = anthropic_client(simulator).messages
    asked: Any = {"model": "m-1", "max_tokens": 500, "system": "Be brief.", "messages": PROMPT}
    raw = await messages.with_raw_response.create(**asked)
    whole = await raw.parse()
    assert (whole.stop_reason, whole.content[0].type) == ("end_turn", "text")
    assert whole.usage.input_tokens == 19
    assert raw.headers["anthropic-ratelimit-requests-remaining"] == "99"
    assert raw.headers["anthropic-ratelimit-input-tokens-limit"] == "90000"
    assert raw.headers["request-id"]
    async with messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert streamed.content[0].text == whole.content[0].text
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)


async def test_anthropic_uses_a_tool(simulator: Simulator) -> None:
    tools: Any = {
        "tools": [{"name": "forecast", "input_schema": PARAMETERS}],
        "tool_choice": {"type": "tool", "name": "forecast"},
    }
    messages = anthropic_client(simulator).messages
    async with messages.stream(model="m-1", max_tokens=500, messages=PROMPT, **tools) as events:
        message = await events.get_final_message()
    (block,) = message.content
    assert (message.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "forecast")
    assert set(block.input) == {"city", "days"}


async def test_anthropic_errors_are_typed(simulator: Simulator) -> None:
    ask = anthropic_client(simulator).messages.create
    with pytest.raises(anthropic.AuthenticationError):
        await anthropic_client(simulator, "wrong").messages.create(model="m-1", max_tokens=5, messages=PROMPT)
    with pytest.raises(anthropic.NotFoundError):
        await ask(model="nowhere", max_tokens=5, messages=PROMPT)
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        await ask(model="m-1", max_tokens=5, messages=[{"role": "user", "content": "x" * 5000}])


# --- Gemini ----------------------------------------------------------------------------------------------


async def test_gemini_answers_whole_and_in_pieces_with_usage(simulator: Simulator) -> None:
    models = gemini_client(simulator).models
    whole = await models.generate_content(model="m-1", contents="Where to?")
    chunks = [c async for c in await models.generate_content_stream(model="m-1", contents="Where to?")]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert whole.candidates[0].finish_reason.name == chunks[-1].candidates[0].finish_reason.name == "STOP"
    assert whole.usage_metadata.candidates_token_count == chunks[-1].usage_metadata.candidates_token_count > 0


async def test_gemini_calls_a_function_and_embeds(simulator: Simulator) -> None:
    models = gemini_client(simulator).models
    function = genai_types.FunctionDeclaration(name="forecast", parameters_json_schema=PARAMETERS)
    tools = genai_types.GenerateContentConfig(tools=[genai_types.Tool(function_declarations=[function])])
    called = await models.generate_content(model="m-1", contents="Rain?", config=tools)
    assert called.function_calls[0].name == "forecast"
    assert set(called.function_calls[0].args) == {"city", "days"}
    told = await models.embed_content(model="e", contents=["one", "two"], config={"output_dimensionality": 8})
    assert [len(embedding.values) for embedding in told.embeddings] == [8, 8]


async def test_gemini_errors_are_typed(simulator: Simulator) -> None:
    with pytest.raises(genai_errors.ClientError) as wrong_key:
        await gemini_client(simulator, "wrong").models.generate_content(model="m-1", contents="x")
    assert (wrong_key.value.code, "API_KEY_INVALID" in str(wrong_key.value.details)) == (400, True)
    with pytest.raises(genai_errors.ClientError) as no_model:
        await gemini_client(simulator).models.generate_content(model="nowhere", contents="x")
    assert (no_model.value.code, no_model.value.status) == (404, "NOT_FOUND")


# --- all of them -----------------------------------------------------------------------------------------


async def test_each_client_lists_the_models(simulator: Simulator) -> None:
    of_openai = [model.id async for model in openai_client(simulator).models.list()]
    of_anthropic = [model.id async for model in anthropic_client(simulator).models.list()]
    of_gemini = [model.name async for model in await gemini_client(simulator).models.list()]
    assert of_openai == of_anthropic == ["m-1", "e"]
    assert of_gemini == ["models/m-1", "models/e"]


@pytest.mark.parametrize(("fault", "openai_error", "anthropic_error", "status"), ERRORS)
async def test_faults_arrive_as_each_clients_own_exception(
    simulator: Simulator, fault: Fault, openai_error: str, anthropic_error: str, status: int
) -> None:
    for provider in ("openai", "anthropic", "gemini"):
        simulator.fail(provider, fault)
    with pytest.raises(openai.APIStatusError) as first:
        await openai_client(simulator).chat.completions.create(model="m-1", messages=PROMPT)
    assert (type(first.value).__name__, first.value.status_code) == (openai_error, status)
    with pytest.raises(anthropic.APIStatusError) as second:
        await anthropic_client(simulator).messages.create(model="m-1", max_tokens=5, messages=PROMPT)
    assert (type(second.value).__name__, second.value.status_code) == (anthropic_error, status)
    with pytest.raises(genai_errors.APIError) as third:
        await gemini_client(simulator).models.generate_content(model="m-1", contents="x")
    assert third.value.code == status
    if status == 429:
        assert first.value.response.headers["retry-after"] == "7"
        assert second.value.response.headers["retry-after"] == "7"
        assert "'retryDelay': '7s'" in str(third.value.details)
