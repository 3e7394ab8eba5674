"""OpenAI's wire format: chat completions, embeddings, models."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from turnout_workers.simulator.answers import Answer, Call, pieces
from turnout_workers.simulator.wire import Problem, Wire, content_text, event

_CREATED = 1_893_456_000
_FINISH = {"stop": "stop", "length": "length", "tool": "tool_calls"}
_ERRORS = {
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "not_found": ("invalid_request_error", "model_not_found"),
    "context_length": ("invalid_request_error", "context_length_exceeded"),
    "rate_limited": ("requests", "rate_limit_exceeded"),
    "server_error": ("server_error", None),
    "overloaded": ("service_unavailable", None),
}


class OpenAI(Wire):
    request_id_header = "x-request-id"

    def parse(self, path: str, body: Mapping[str, Any]) -> Call:
        if path == "embeddings":
            texts = body["input"]
            return Call(
                body["model"],
                (texts,) if isinstance(texts, str) else tuple(str(text) for text in texts),
                embed=True,
                dimensions=body.get("dimensions") or 256,
            )
        if path != "chat/completions":
            raise Problem("not_found", f"Unknown request URL: POST /v1/{path}")
        choice = body.get("tool_choice") or "auto"
        tools = tuple((t["function"]["name"], t["function"].get("parameters", {})) for t in body.get("tools") or ())
        if isinstance(choice, dict):
            tools = tuple(tool for tool in tools if tool[0] == choice["function"]["name"])
        elif choice == "none" or (choice == "auto" and body["messages"][-1]["role"] == "tool"):
            tools = ()
        response_format = body.get("response_format") or {}
        schema = response_format.get("json_schema", {}).get("schema")
        if response_format.get("type") == "json_object":
            schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        return Call(
            body["model"],
            tuple(content_text(m.get("content")) for m in body["messages"]),
            stream=bool(body.get("stream")),
            stream_usage=bool((body.get("stream_options") or {}).get("include_usage")),
            max_output_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            tools=tools,
            schema=schema,
        )

    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        tokens_in, tokens = answer.input_tokens, answer.input_tokens + answer.output_tokens
        if call.embed:
            return {
                "object": "list",
                "model": call.model,
                "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(answer.vectors)],
                "usage": {"prompt_tokens": tokens_in, "total_tokens": tokens},
            }
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if answer.tool:
            name, arguments = answer.tool
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            message["tool_calls"] = [{"id": f"call_{answer.id}", "type": "function", "function": function}]
        return {
            "id": f"chatcmpl-{answer.id}",
            "object": "chat.completion",
            "created": _CREATED,
            "model": call.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _FINISH[answer.finish]}],
            "usage": {
                "prompt_tokens": tokens_in,
                "completion_tokens": answer.output_tokens,
                "total_tokens": tokens,
                "prompt_tokens_details": {"cached_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0},
            },
        }

    def stream(self, call: Call, answer: Answer) -> Iterator[tuple[int, bytes]]:
        frame = self.body(call, answer) | {"object": "chat.completion.chunk"}
        (whole,), usage = frame["choices"], frame.pop("usage")

        def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
            return event({**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        yield 0, chunk({"role": "assistant", "content": ""})
        for called in whole["message"].get("tool_calls", ()):
            yield answer.output_tokens, chunk({"tool_calls": [{"index": 0, **called}]})
        for tokens, text in pieces(answer.words):
            yield tokens, chunk({"content": text})
        yield 0, chunk({}, whole["finish_reason"])
        if call.stream_usage:
            yield 0, event({**frame, "choices": [], "usage": usage})
        yield 0, b"data: [DONE]\n\n"

    def models(self, names: Iterable[str]) -> dict[str, Any]:
        data = [{"id": n, "object": "model", "created": _CREATED, "owned_by": "simulated"} for n in names]
        return {"object": "list", "data": data}

    def error(self, problem: Problem, status: int, request_id: str) -> dict[str, Any]:
        kind, code = _ERRORS.get(problem.kind, ("invalid_request_error", None))
        return {"error": {"message": problem.message, "type": kind, "param": None, "code": code}}
