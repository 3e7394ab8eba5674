"""Gemini's generateContent, streamGenerateContent and batchEmbedContents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from turnout_workers.simulator.answers import Answer, Call, pieces
from turnout_workers.simulator.wire import STATUS, Problem, Wire, content_text, event

_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "tool": "STOP"}
_ERRORS = {
    "not_found": "NOT_FOUND",
    "rate_limited": "RESOURCE_EXHAUSTED",
    "server_error": "INTERNAL",
    "overloaded": "UNAVAILABLE",
}
_PARAMETERS = ("parametersJsonSchema", "parameters_json_schema", "parameters")
"""The official Python client sends the second; Google's JSON accepts both cases."""
_QUOTAS = {
    "requests_per_minute": "GenerateRequestsPerMinutePerProjectPerModel",
    "input_tokens_per_minute": "GenerateContentInputTokensPerModelPerMinute",
}
_TYPE = "type.googleapis.com/google.rpc."


class Gemini(Wire):
    statuses = STATUS | {"unauthorized": 400}
    sends_retry_after = False  # the body says it

    def parse(self, path: str, body: Mapping[str, Any]) -> Call:
        name, _, method = path.removeprefix("models/").partition(":")
        if method == "batchEmbedContents":
            requests = body["requests"]
            texts = tuple(content_text(r["content"]["parts"]) for r in requests)
            return Call(name, texts, embed=True, dimensions=requests[0].get("outputDimensionality") or 256)
        if method not in ("generateContent", "streamGenerateContent"):
            raise Problem("not_found", f"Method not found: {method or path}")
        config = body.get("generationConfig") or {}
        contents = body["contents"]
        answered = any("functionResponse" in part for part in contents[-1]["parts"])
        rule = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
        mode, allowed = rule.get("mode", "AUTO"), rule.get("allowedFunctionNames")
        tools: tuple[tuple[str, Mapping[str, Any]], ...] = tuple(
            (f["name"], next((f[name] for name in _PARAMETERS if f.get(name)), {}))
            for tool in body.get("tools") or ()
            for f in tool.get("functionDeclarations") or ()
            if not allowed or f["name"] in allowed
        )
        if mode == "NONE" or (mode == "AUTO" and answered):
            tools = ()
        schema = config.get("responseJsonSchema") or config.get("responseSchema")
        if schema is None and config.get("responseMimeType") == "application/json":
            schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        system = (body.get("systemInstruction") or {}).get("parts")
        return Call(
            name,
            (*([content_text(system)] if system else ()), *(content_text(c["parts"]) for c in contents)),
            stream=method == "streamGenerateContent",
            max_output_tokens=config.get("maxOutputTokens"),
            tools=tools,
            schema=schema,
        )

    def body(self, call: Call, answer: Answer) -> dict[str, Any]:
        if call.embed:
            return {"embeddings": [{"values": vector} for vector in answer.vectors]}
        part: dict[str, Any] = {"text": answer.text}
        if answer.tool:
            part = {"functionCall": {"name": answer.tool[0], "args": answer.tool[1]}}
        return _chunk(call, answer, part, answer.output_tokens, _FINISH[answer.finish])

    def stream(self, call: Call, answer: Answer) -> Iterator[tuple[int, bytes]]:
        if answer.tool:
            yield answer.output_tokens, event(self.body(call, answer))
            return
        sent = 0
        for tokens, text in pieces(answer.words):
            sent += tokens
            finish = _FINISH[answer.finish] if sent == len(answer.words) else None
            yield tokens, event(_chunk(call, answer, {"text": text}, sent, finish))

    def models(self, names: Iterable[str]) -> dict[str, Any]:
        return {"models": [{"name": f"models/{name}"} for name in names]}

    def error(self, problem: Problem, status: int, request_id: str) -> dict[str, Any]:
        message, details = problem.message, list[dict[str, Any]]()
        if problem.kind == "unauthorized":
            message = "API key not valid. Please pass a valid API key."
            details = [{"@type": _TYPE + "ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]
        elif problem.kind == "rate_limited":
            details = [{"@type": _TYPE + "RetryInfo", "retryDelay": f"{problem.retry_after_s or 1:g}s"}]
            limit, value = problem.exceeded or ("", 0)
            if quota := _QUOTAS.get(limit):
                violation = {"quotaId": quota, "quotaValue": str(value)}
                details.append({"@type": _TYPE + "QuotaFailure", "violations": [violation]})
        elif problem.kind == "context_length":
            message = f"The input token count exceeds the maximum number of tokens allowed: {message}"
        name = _ERRORS.get(problem.kind, "INVALID_ARGUMENT")
        return {"error": {"code": status, "message": message, "status": name, "details": details}}


def _chunk(
    call: Call, answer: Answer, part: Mapping[str, Any], output_tokens: int, finish: str | None
) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": answer.input_tokens,
            "candidatesTokenCount": output_tokens,
            "totalTokenCount": answer.input_tokens + output_tokens,
        },
        "modelVersion": call.model,
        "responseId": answer.id,
    }
