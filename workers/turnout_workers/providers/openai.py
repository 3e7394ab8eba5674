"""OpenAI's chat completions and embeddings, as some dozen vendors and self-hosted servers speak them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from turnout.request import (
    FinishReason,
    FunctionCall,
    InferenceRequest,
    Message,
    ToolCall,
    Usage,
)
from turnout_workers.providers.base import CallOutcome, OnToken, Timeouts
from turnout_workers.providers.connector import Connector, Sent, malformed
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint

FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    "error": FinishReason.ERROR,
}


class OpenAIConnector(Connector):
    """`POST /chat/completions` and `/embeddings`; the vendor's ways are in its dialect."""

    async def call(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        timeouts: Timeouts = Timeouts(),
        on_token: OnToken | None = None,
    ) -> CallOutcome:
        sent = self.begin(endpoint, request)
        if request.is_embedding:
            return await self._embed(endpoint, request, timeouts, sent)
        body = self._chat_body(endpoint, request, sent)
        url = f"{self.config.base_url}/chat/completions"
        if on_token is None:
            reply = await self.http.json("POST", url, sent.headers, body, timeouts, sent.scrub)
            choice, first_token_s = _choice(reply.body), None
            answer, headers, latency_s = reply.body, reply.headers, reply.latency_s
        else:
            started = time.monotonic()
            answer, headers, first_token_s = await self.gathered(
                self._stream(url, sent, body, timeouts, on_token, started), timeouts
            )
            choice, latency_s = answer["choices"][0], time.monotonic() - started
        return self.end(_response(endpoint, request, choice, answer), endpoint, sent, headers, latency_s, first_token_s)

    def _chat_body(self, endpoint: Endpoint, request: InferenceRequest, sent: Sent) -> dict[str, Any]:
        dialect = self.dialect
        body: dict[str, Any] = {
            "model": endpoint.served_model,
            "messages": [_message(message, dialect.system_role) for message in request.chat],
        }
        if request.max_output_tokens is not None:
            body[dialect.max_tokens] = request.max_output_tokens
        for name in ("temperature", "top_p", "reasoning_effort"):
            if (value := getattr(request, name)) is not None and sent.takes(name):
                body[name] = value
        if request.stop and sent.takes("stop"):
            body["stop"] = list(request.stop)
        if request.seed is not None and sent.takes("seed"):
            body[dialect.seed] = request.seed
        if request.tools and sent.takes("tools"):
            body["tools"] = [tool.model_dump(mode="json", exclude_none=True) for tool in request.tools]
        if request.tool_choice is not None and sent.takes("tool_choice"):
            mode = request.tool_choice in ("auto", "none", "required")
            choice = request.tool_choice if mode else {"type": "function", "function": {"name": request.tool_choice}}
            body["tool_choice"] = choice
        wanted = request.response_format
        if wanted.type == "json_schema" and sent.takes("json_schema"):
            schema = {"name": wanted.name, "schema": wanted.json_schema, "strict": wanted.strict}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif wanted.type == "json_object" and sent.takes("json_object"):
            body["response_format"] = {"type": "json_object"}
        return sent.with_extras(body)

    async def _embed(
        self, endpoint: Endpoint, request: InferenceRequest, timeouts: Timeouts, sent: Sent
    ) -> CallOutcome:
        body: dict[str, Any] = {
            "model": endpoint.served_model,
            "input": list(request.texts),
            "encoding_format": "float",
        }
        if request.dimensions is not None and sent.takes("dimensions"):
            body["dimensions"] = request.dimensions
        url = f"{self.config.base_url}/embeddings"
        reply = await self.http.json("POST", url, sent.headers, sent.with_extras(body), timeouts, sent.scrub)
        try:
            rows = sorted(reply.body["data"], key=lambda row: row.get("index", 0))
            vectors = tuple(tuple(float(x) for x in row["embedding"]) for row in rows)
        except (KeyError, TypeError, ValueError, AttributeError):
            vectors = ()
        if len(vectors) != len(request.texts):
            raise malformed(f"{len(vectors)} embeddings for {len(request.texts)} texts")
        response = {"embeddings": vectors, "usage": usage(reply.body.get("usage")), **_names(endpoint, reply.body)}
        return self.end(response, endpoint, sent, reply.headers, reply.latency_s, None)

    async def _stream(
        self,
        url: str,
        sent: Sent,
        body: dict[str, Any],
        timeouts: Timeouts,
        on_token: OnToken,
        started: float,
    ) -> tuple[dict[str, Any], Mapping[str, str], float | None]:
        """Gather a stream into the answer that the same call would have given without streaming."""
        body |= {"stream": True}
        if self.dialect.stream_usage:
            body["stream_options"] = {"include_usage": True}
        text: list[str] = []
        calls: dict[int, dict[str, Any]] = {}
        finish: str | None = None
        answer: dict[str, Any] = {}
        headers: Mapping[str, str] = {}
        first_token_s: float | None = None
        async for headers, event in self.http.events(url, sent.headers, body, timeouts, sent.scrub):  # noqa: B007
            answer |= {name: event[name] for name in ("id", "model", "usage") if event.get(name)}
            for choice in event.get("choices") or ():
                delta = choice.get("delta") or {}
                if piece := delta.get("content"):
                    if first_token_s is None:
                        first_token_s = time.monotonic() - started
                    text.append(piece)
                    await on_token(piece)
                for part in delta.get("tool_calls") or ():
                    call = calls.setdefault(part.get("index", 0), {"id": "", "name": "", "arguments": ""})
                    function = part.get("function") or {}
                    call["id"] = part.get("id") or call["id"]
                    call["name"] = function.get("name") or call["name"]
                    call["arguments"] += function.get("arguments") or ""
                finish = choice.get("finish_reason") or finish
        if finish is None:
            raise ProviderError(Failure(FailureKind.INTERRUPTED, "the stream ended early", Billed.MAYBE))
        tool_calls = [{"id": c["id"], "function": c} for _, c in sorted(calls.items())]
        message = {"content": "".join(text), "tool_calls": tool_calls}
        answer["choices"] = [{"message": message, "finish_reason": finish}]
        return answer, headers, first_token_s


def _message(message: Message, system_role: str) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role}
    if message.role in ("system", "developer"):
        body["role"] = system_role
    if isinstance(message.content, tuple):
        body["content"] = [part.model_dump(mode="json", exclude_none=True) for part in message.content]
    else:
        body["content"] = message.content
    if message.tool_calls:
        body["tool_calls"] = [call.model_dump(mode="json") for call in message.tool_calls]
    for name in ("tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            body[name] = value
    return body


def _choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise malformed("an answer without choices")
    if not isinstance(choices[0].get("message"), dict):
        raise malformed("a choice without a message")
    return choices[0]


def _names(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    served = body.get("model")
    return {"model_served": served if isinstance(served, str) and served else endpoint.served_model}


def _response(
    endpoint: Endpoint, request: InferenceRequest, choice: Mapping[str, Any], body: Mapping[str, Any]
) -> dict[str, Any]:
    message = choice["message"]
    raw = choice.get("finish_reason")
    text = _text(message.get("content"))
    try:
        calls = tuple(
            ToolCall(
                id=str(call.get("id") or ""),
                function=FunctionCall(
                    name=call["function"]["name"], arguments=call["function"].get("arguments") or "{}"
                ),
            )
            for call in message.get("tool_calls") or ()
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise malformed("a tool call that can't be read") from None
    finish = FINISH.get(raw, FinishReason.OTHER) if isinstance(raw, str) else FinishReason.OTHER
    refusal = message.get("refusal")
    if not text and not calls and not refusal and finish is not FinishReason.LENGTH and not message.get("reasoning"):
        if finish is FinishReason.CONTENT_FILTER:
            raise ProviderError(
                Failure(FailureKind.CONTENT_FILTERED, "the answer was filtered", Billed.YES, status=200)
            )
        raise malformed("an empty answer")
    return {
        "text": text,
        "tool_calls": calls,
        "refusal": refusal if isinstance(refusal, str) else None,
        "finish": finish,
        "finish_raw": raw if isinstance(raw, str) else None,
        "usage": usage(body.get("usage")),
        "reported_cost_usd": (body.get("usage") or {}).get("cost") if isinstance(body.get("usage"), dict) else None,
        **_names(endpoint, body),
    }


def _text(content: Any) -> str:
    if isinstance(content, list):  # Mistral and others answer in parts
        return "".join(part.get("text", "") for part in content if isinstance(part, dict) and part.get("text"))
    return content if isinstance(content, str) else ""


def usage(told: Any) -> Usage | None:
    """Tokens as reported; None if they weren't, or make no sense."""
    if not isinstance(told, dict):
        return None
    inside = told.get("prompt_tokens_details") or {}
    outside = told.get("completion_tokens_details") or {}
    try:
        return Usage(
            input_tokens=int(told["prompt_tokens"]),
            cache_read_tokens=int(inside.get("cached_tokens") or 0),
            output_tokens=int(told.get("completion_tokens") or 0),
            reasoning_tokens=int(outside.get("reasoning_tokens") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
