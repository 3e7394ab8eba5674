"""Anthropic's Messages format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from turnout_workers.simulator.answers import Answer, Call, pieces
from turnout_workers.simulator.wire import Problem, Wire, content_text, event

_FINISH = {"stop": "end_turn", "length": "max_tokens", "tool": "tool_use"}
_ERRORS = {
    "unauthorized": "authentication_error",
    "not_found": "not_found_error",
    "rate_limited": "rate_limit_error",
    "server_error": "api_error",
    "overloaded": "overloaded_error",
}


class Anthropic(Wire):
    request_id_header = "request-id"

    def parse(self, path: str, body: Mapping[str, Any]) -> Call:
        if path != "messages":
            raise Problem("not_found", f"Not found: /v1/{path}")
        if not isinstance(body.get("max_tokens"), int):
            raise Problem("invalid", "max_tokens: Field required")
        choice = body.get("tool_choice") or {"type": "auto"}
        last = body["messages"][-1]["content"]
        answered = not isinstance(last, str) and any(p.get("type") == "tool_result" for p in last)
        tools = tuple((t["name"], t.get("input_schema", {})) for t in body.get("tools") or ())
        if choice["type"] == "tool":
            tools = tuple(tool for tool in tools if tool[0] == choice["name"])
        elif choice["type"] == "none" or (choice["type"] == "auto" and answered):
            tools = ()
        output = (body.get("output_config") or {}).get("format") or {}
        system = [content_text(body["system"])] if body.get("system") else []
        return Call(
            body["model"],
            (*system, *(content_text(m["content"]) for m in body["messages"])),
            stream=bool(body.get("stream")),
            max_output_tokens=body["max_tokens"],
            tools=tools,
            schema=output.get("schema"),
        )

    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        block: dict[str, Any] = {"type": "text", "text": answer.text}
        if answer.tool:
            name, arguments = answer.tool
            block = {"type": "tool_use", "id": f"toolu_{answer.id}", "name": name, "input": arguments}
        return {
            "id": f"msg_{answer.id}",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": [block],
            "stop_reason": _FINISH[answer.finish],
            "stop_sequence": None,
            "usage": {
                "input_tokens": answer.input_tokens,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": answer.output_tokens,
            },
        }

    def stream(self, call: Call, answer: Answer) -> Iterator[tuple[int, bytes]]:
        def named(kind: str, **fields: Any) -> bytes:
            return event({"type": kind, **fields}, kind)

        whole = self.body(call, answer)
        (block,), usage = whole["content"], whole["usage"]
        begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
        yield 0, named("message_start", message=begun)
        empty = {**block, "input": {}} if answer.tool else {**block, "text": ""}
        yield 0, named("content_block_start", index=0, content_block=empty)
        if answer.tool:
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"], ensure_ascii=False)}
            yield answer.output_tokens, named("content_block_delta", index=0, delta=delta)
        for tokens, text in pieces(answer.words):
            delta = {"type": "text_delta", "text": text}
            yield tokens, named("content_block_delta", index=0, delta=delta)
        yield 0, named("content_block_stop", index=0)
        stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
        yield 0, named("message_delta", delta=stop, usage={"output_tokens": answer.output_tokens})
        yield 0, named("message_stop")

    def models(self, names: Iterable[str]) -> dict[str, Any]:
        data = [{"type": "model", "id": n, "display_name": n, "created_at": "2030-01-01T00:00:00Z"} for n in names]
        return {"data": data, "has_more": False, "first_id": None, "last_id": None}

    def error(self, problem: Problem, status: int, request_id: str) -> dict[str, Any]:
        message = ("prompt is too long: " if problem.kind == "context_length" else "") + problem.message
        error = {"type": _ERRORS.get(problem.kind, "invalid_request_error"), "message": message}
        return {"type": "error", "error": error, "request_id": f"req_{request_id}"}
