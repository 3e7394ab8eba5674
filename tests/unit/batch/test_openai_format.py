"""OpenAI's own bodies, in and out, and each output line as its own types read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from turnout.batch.line import Defaults, Format, Line, RawLine, RequestOrProblem
from turnout.batch.openai_request import CHAT, EMBEDDINGS, RESPONSES
from turnout.batch.parse import parse
from turnout.batch.render import never_run, reason, render
from turnout.messages import FunctionCall, ToolCall
from turnout.request import FinishReason, InferenceRequest, InferenceResponse, Usage
from turnout.result import Attempt, JobResult, JobStatus, Problem

HELLO = [{"role": "user", "content": "Hi"}]
USAGE = Usage(input_tokens=9, cache_read_tokens=4, output_tokens=5, reasoning_tokens=2)
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "m", "messages": HELLO},
    EMBEDDINGS: {"model": "m", "input": ["a", "b"]},
    RESPONSES: {"model": "m", "input": "Hi"},
}


def read(url: str, **body: Any) -> tuple[Line, RequestOrProblem]:
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {**BODIES[url], **body}}
    return parse(RawLine(7, json.dumps(line).encode(), Format.OPENAI), Defaults())


def asked(url: str, **body: Any) -> InferenceRequest:
    _, found = read(url, **body)
    assert isinstance(found, InferenceRequest), found
    return found


def answered(url: str, body: dict[str, Any] | None = None, **answer: Any) -> dict[str, Any]:
    """The line of output of a request that was answered so."""
    response = InferenceResponse(
        **{"text": "Hello", "usage": USAGE, "provider": "p", "model_requested": "m", "model_served": "m-1", **answer}
    )
    result = JobResult(id="j", status=JobStatus.SUCCEEDED, response=response, settled_at=1_700_000_000.5)
    told: dict[str, Any] = json.loads(render(read(url, **(body or {}))[0], result))
    assert told.keys() == {"id", "custom_id", "response", "error"}
    assert (told["custom_id"], told["error"], told["response"]["status_code"]) == ("a", None, 200)
    return dict(told["response"]["body"])


@pytest.mark.parametrize(
    ("answer", "finish"),
    [
        ({}, "stop"),
        ({"finish": FinishReason.LENGTH}, "length"),
        ({"finish": FinishReason.CONTENT_FILTER, "refusal": "No."}, "content_filter"),
        ({"finish": FinishReason.OTHER}, "stop"),
        (
            {
                "text": "",
                "finish": FinishReason.TOOL_CALLS,
                "tool_calls": (ToolCall(id="c", function=FunctionCall(name="f", arguments="{}")),),
            },
            "tool_calls",
        ),
    ],
)
def test_completions_parse_strictly(answer: dict[str, Any], finish: str) -> None:
    completion = ChatCompletion.model_validate(answered(CHAT, **answer), strict=True)
    (choice,) = completion.choices
    assert choice.finish_reason == finish
    assert choice.message.content == (answer.get("text", "Hello") or None)
    assert bool(choice.message.tool_calls) == bool(answer.get("tool_calls"))
    usage = completion.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert (usage.total_tokens, usage.prompt_tokens_details.cached_tokens) == (14, 4)


def test_embeddings_parse_strictly() -> None:
    vectors = ((0.5, 0.25), (1.0, -2.0))
    floats = CreateEmbeddingResponse.model_validate(answered(EMBEDDINGS, text="", embeddings=vectors))
    assert [tuple(one.embedding) for one in floats.data] == list(vectors)


@pytest.mark.parametrize(
    ("answer", "status", "kinds"),
    [
        ({}, "completed", ["message"]),
        ({"finish": FinishReason.LENGTH}, "incomplete", ["message"]),
        ({"text": "", "refusal": "No."}, "completed", ["message"]),
        (
            {"text": "", "tool_calls": (ToolCall(id="c", function=FunctionCall(name="f")),)},
            "completed",
            ["function_call"],
        ),
    ],
)
def test_responses_parse_strictly(answer: dict[str, Any], status: str, kinds: list[str]) -> None:
    response = Response.model_validate(answered(RESPONSES, **answer))
    assert (response.status, [one.type for one in response.output]) == (status, kinds)
    assert response.output_text == (answer.get("text", "Hello"))
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 2


def test_what_is_to_be_told_of_an_answer_stands_beside_its_body() -> None:
    def told(**answer: Any) -> Any:
        response = InferenceResponse(provider="p", model_requested="m", model_served="m", **answer)
        return json.loads(render(read(CHAT)[0], JobResult(id="j", status=JobStatus.SUCCEEDED, response=response)))

    assert "turnout" not in told()
    assert told(warnings=("p does not support seed; it was dropped",))["turnout"] == {
        "warnings": ["p does not support seed; it was dropped"]
    }
    assert told(usage=Usage(input_tokens=9, source="estimated"))["turnout"] == {"usage": {"source": "estimated"}}


CALLED = (Attempt(endpoint="p/m", provider="p", model="m", started_at=1.0, failure="x"),)


@pytest.mark.parametrize(
    ("status", "code", "attempts", "http", "error"),
    [
        (JobStatus.FAILED, "context_length", CALLED, 400, "context_length_exceeded"),
        (JobStatus.FAILED, "content_filtered", CALLED, 400, "content_filter"),
        (JobStatus.FAILED, "unsupported", CALLED, 400, "unsupported"),
        (JobStatus.FAILED, "rate_limited", CALLED, 500, "rate_limit_exceeded"),
        (JobStatus.FAILED, "billing", CALLED, 500, "insufficient_quota"),
        (JobStatus.FAILED, "unauthorized", CALLED, 500, "invalid_api_key"),
        (JobStatus.FAILED, "model_not_found", CALLED, 500, "model_not_found"),
        (JobStatus.FAILED, "a_new_one", CALLED, 500, "a_new_one"),
        (JobStatus.FAILED, "refused", (), None, "refused"),
        (JobStatus.EXPIRED, "deadline", CALLED, None, "batch_expired"),
        (JobStatus.CANCELLED, "cancelled", (), None, "batch_cancelled"),
    ],
)
def test_lines_without_an_answer_are_error_lines_of_its_two_shapes_with_its_own_names(
    status: JobStatus, code: str, attempts: tuple[Attempt, ...], http: int | None, error: str
) -> None:
    result = JobResult(id="j", status=status, error=Problem(code=code, message="why"), attempts=attempts)
    told = json.loads(render(read(CHAT)[0], result))
    assert told["custom_id"] == "a"
    if http is None:
        assert (told["response"], told["error"]) == (None, {"code": error, "message": "why"})
    else:
        assert (told["error"], told["response"]["status_code"]) == (None, http)
        assert reason(json.dumps(told).encode()) == told["response"]["body"]["error"]["message"]
        assert told["response"]["body"]["error"] | {"type": ""} == {
            "message": "why", "type": "", "param": None, "code": error,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("url", "body", "names"),
    [
        (CHAT, {"n": 2}, "body.n"),
        (CHAT, {"stream": True}, "body.stream"),
        (CHAT, {"audio": {}}, "body.audio"),
        (CHAT, {"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "body.tool_choice"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "odd": 1}}}, "odd"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "json_schema must be given"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "a"}}}, "json_schema must be given"),
        (CHAT, {"logprobs": True}, "body.logprobs: only false is supported"),
        (EMBEDDINGS, {"encoding_format": "int8"}, "body.encoding_format"),
        (EMBEDDINGS, {"input": [[1, 2]]}, "input"),
        (RESPONSES, {"previous_response_id": "r"}, "body.previous_response_id"),
        (RESPONSES, {"verbosity": "low", "reasoning": {"effort": "low"}}, "body.verbosity"),
        (RESPONSES, {"reasoning": {"summary": "auto"}}, "body.reasoning.summary"),
        (RESPONSES, {"tools": [{"type": "web_search"}]}, "body.tools"),
        (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "body.input.0.type"),
    ],
)
def test_what_can_not_be_mapped_is_refused_by_name(url: str, body: dict[str, Any], names: str) -> None:
    line, bad = read(url, **body)
    assert isinstance(bad, Problem), bad
    assert bad.message.startswith("line 7: ")
    assert names in bad.message
    told = json.loads(render(line, never_run(bad)))
    assert (told["custom_id"], told["response"], told["error"]["code"]) == ("a", None, "invalid_request")


def test_a_response_asks_what_the_same_chat_completion_does() -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    schema = {"name": "a", "schema": {"type": "object"}, "strict": True}
    image = "data:image/png;base64,iVBOR"
    shown = {"type": "image_url", "image_url": {"url": image}}
    called = {"call_id": "c", "name": "f", "arguments": "{}"}
    response = asked(
        RESPONSES,
        instructions="Be brief.",
        input=[
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "?"}, {"type": "input_image", "image_url": image}],
            },
            {"type": "function_call", **called},
            {"type": "function_call_output", "call_id": "c", "output": "42"},
        ],
        max_output_tokens=9,
        tools=[{"type": "function", **function}],
        tool_choice={"type": "function", "name": "f"},
        text={"format": {"type": "json_schema", **schema}},
        store=False,
        background=False,
    )
    chat = asked(
        CHAT,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "?"}, shown]},
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
        max_completion_tokens=9,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "f"}},
        response_format={"type": "json_schema", "json_schema": schema},
        store=False,
    )  # fmt: skip
    assert response == chat


def test_options_of_openais_own_are_kept_for_whoever_takes_them_and_nulls_are_as_if_not_given() -> None:
    chat = asked(CHAT, user="u", verbosity="low", temperature=None, n=1, stream=False)
    assert chat.extras == {"*": {"user": "u", "verbosity": "low"}}
    response = asked(RESPONSES, user="u", text={"verbosity": "low"}, reasoning={"effort": "low", "summary": None})
    assert response.extras == {"*": {"user": "u", "verbosity": "low"}}
    assert response.reasoning_effort == "low"


def test_a_conversation_of_responses_is_the_chat_that_it_would_have_been() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    image = "data:image/png;base64,AAAA"
    found = asked(
        RESPONSES,
        instructions="Be brief.",
        max_output_tokens=9,
        input=[
            {"role": "user", "content": [
                {"type": "input_text", "text": "Where?"}, {"type": "input_image", "image_url": image, "detail": "low"},
            ]},
            {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"},
            {**OUTPUT, "output": [{"type": "input_text", "text": "Os"}, {"type": "input_text", "text": "lo"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Oslo."}]},
        ],
        tools=[{"type": "function", "name": "find", "parameters": schema}],
        tool_choice={"type": "function", "name": "find"},
        text={"format": {"type": "json_schema", "name": "place", "schema": schema}},
    )  # fmt: skip
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    parts = [{"type": "text", "text": "Where?"}, {"type": "image_url", "image_url": {"url": image, "detail": "low"}}]
    chat = asked(
        CHAT,
        max_completion_tokens=9,
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {
                "role": "tool",
                "tool_call_id": "c",
                "content": [
                    {"type": "text", "text": "Os"},
                    {"type": "text", "text": "lo"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "Oslo."}]},
        ],
        tools=[{"type": "function", "function": {"name": "find", "parameters": schema}}],
        tool_choice={"type": "function", "function": {"name": "find"}},
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
    )
    assert found == chat
    assert (found.tool_choice, found.max_output_tokens) == ("find", 9)


def test_what_deepseek_demands_back_is_in_the_answer_as_it_gives_it() -> None:
    """So that the message can be given back whole, in a line of the next file."""
    calls = (ToolCall(id="c", function=FunctionCall(name="f")),)
    message = answered(CHAT, tool_calls=calls, reasoning_content="I must look.")["choices"][0]["message"]
    assert message["reasoning_content"] == "I must look."
    assert asked(CHAT, messages=[message]).chat[0].reasoning_content == "I must look."
    assert "reasoning_content" not in answered(CHAT)["choices"][0]["message"]


def test_function_calls_of_responses_are_those_of_the_message_before_them() -> None:
    """OpenAI refuses an assistant's message with calls that the next message gives no result of."""
    calls = [{"type": "function_call", "call_id": id, "name": "find", "arguments": "{}"} for id in "ab"]
    outputs = [{**OUTPUT, "call_id": id, "output": id} for id in "ba"]
    spoken = {"role": "assistant", "content": "Let me look."}
    given = [{"role": "user", "content": "?"}, *calls, *outputs, spoken, *calls, *outputs]
    told = [(m.role, m.content, [call.id for call in m.tool_calls]) for m in asked(RESPONSES, input=given).chat]
    results = [("tool", "b", []), ("tool", "a", [])]
    first, second = ("assistant", None, ["a", "b"]), ("assistant", "Let me look.", ["a", "b"])
    assert told == [("user", "?", []), first, *results, second, *results]
    assert spoken == {"role": "assistant", "content": "Let me look."}, "what was given is left as it was"


OUTPUT = {"type": "function_call_output", "call_id": "c"}


def said(**part: Any) -> dict[str, Any]:
    """A user's message of one part."""
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"method": "GET"}, 'method: must be "POST"'),
        ({"body": []}, "body: must be a JSON object, not an array"),
        ({"custom_id": 7}, "custom_id: must be a string of 1 to 512 printable characters"),
        ({"prompt": "Hi"}, "prompt: unknown field"),
        ({"constraints": {"max_cost": 1}}, "constraints.max_cost: unknown field"),
        ({"body": {"model": "m", "messages": "Hi"}}, "body.messages: must be a JSON array"),
        ({"url": RESPONSES, "body": {"input": "Hi", "messages": HELLO}}, "body.messages: unknown or unsupported field"),
        (
            {"body": {**BODIES[CHAT], "top_k": 4}},
            "body.top_k: unknown or unsupported field; options of a single provider",
        ),
        ({"url": RESPONSES, "body": {"model": "m"}}, "body.input: must be a string or a JSON array"),
        ({"url": RESPONSES, "body": {"input": ["Hi"]}}, "body.input.0: must be a JSON object"),
        ({"url": RESPONSES, "body": {"input": [{"content": "Hi"}]}}, "body.input.0.role: must be a string"),
        (
            {"url": RESPONSES, "body": {"input": [said(type="input_image", file_id="f")]}},
            "body.input.0.content.0.file_id: files are not fetched",
        ),
        (
            {"url": RESPONSES, "body": {"input": [said(type="input_image", image_url="https://a.example/x.png")]}},
            "body.input.0.content.0.image_url: must be a data:image/…;base64,… URI",
        ),
        (
            {"url": RESPONSES, "body": {"input": [said(type="input_text")]}},
            "body.input.0.content.0.text: must be a string",
        ),
        (
            {"url": RESPONSES, "body": {"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}},
            "body.input.0.arguments: must be a string",
        ),
        (
            {"url": RESPONSES, "body": {"input": [{**OUTPUT, "output": [{"type": "input_image"}]}]}},
            "body.input.0.output.0.image_url: must be a data:image/…;base64,… URI",
        ),
        (
            {"url": RESPONSES, "body": {"input": [{**OUTPUT, "output": [{"type": "input_file"}]}]}},
            "body.input.0.output.0.type:",
        ),
        (
            {"url": RESPONSES, "body": {"input": [said(type="input_file")]}},
            "body.input.0.content.0.type:",
        ),
    ],
)
def test_a_line_that_is_wrong_around_its_question_says_where(changed: dict[str, Any], told: str) -> None:
    line = {"custom_id": "a", "url": CHAT, "body": BODIES[CHAT], **changed}
    _, bad = parse(RawLine(7, json.dumps(line).encode(), Format.OPENAI))
    assert isinstance(bad, Problem)
    assert bad.message.startswith(f"line 7: {told}")


def test_an_image_that_a_function_gave_is_shown_to_the_model() -> None:
    image = "data:image/png;base64,AAAA"
    called = {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"}
    shown = {**OUTPUT, "output": [{"type": "input_image", "image_url": image}]}
    (_, result) = asked(RESPONSES, input=[called, shown]).chat
    assert [part.image_url.url for part in result.parts if part.type == "image_url"] == [image]


def test_a_line_of_anthropics_batches_is_told_to_be_one() -> None:
    theirs = {"custom_id": "a", "params": {"model": "m", "max_tokens": 9, "messages": HELLO}}
    _, bad = parse(RawLine(7, json.dumps(theirs).encode(), Format.OPENAI))
    assert isinstance(bad, Problem)
    assert bad.message.startswith("line 7: params: Anthropic's batch format isn't supported;")


def test_a_line_may_have_constraints_beside_its_body() -> None:
    line = {"custom_id": "a", "url": CHAT, "body": BODIES[CHAT], "constraints": {"only": ["groq"], "no_training": None}}
    _, found = parse(RawLine(7, json.dumps(line).encode(), Format.OPENAI))
    assert isinstance(found, InferenceRequest)
    assert found.constraints.only == ("groq",)
