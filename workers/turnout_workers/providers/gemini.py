"""Gemini's generateContent and batchEmbedContents, in v1beta or v1."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from turnout.request import (
    FinishReason,
    FunctionCall,
    ImagePart,
    InferenceRequest,
    Message,
    TextPart,
    ToolCall,
    Usage,
)
from turnout_workers.providers.anthropic import inline_image
from turnout_workers.providers.base import CallOutcome, OnToken, Timeouts
from turnout_workers.providers.connector import Connector, Sent, malformed
from turnout_workers.providers.errors import ProviderError
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint

FILTERED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})
FINISH = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "MALFORMED_FUNCTION_CALL": FinishReason.ERROR,
    **dict.fromkeys(FILTERED, FinishReason.CONTENT_FILTER),
}
TOOL_MODE = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
THINKING_TOKENS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}
"""What Google's own OpenAI-compatible layer maps the efforts to."""


class GeminiConnector(Connector):
    """`POST /v1beta/models/MODEL:generateContent`."""

    async def call(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        timeouts: Timeouts = Timeouts(),
        on_token: OnToken | None = None,
    ) -> CallOutcome:
        sent = self.begin(endpoint, request)
        model = f"{self._root}/models/{endpoint.served_model}"
        if request.is_embedding:
            return await self._embed(endpoint, request, timeouts, sent, model)
        body = self._body(request, sent)
        if on_token is None:
            reply = await self.http.json("POST", f"{model}:generateContent", sent.headers, body, timeouts, sent.scrub)
            return self.end(_response(endpoint, reply.body), endpoint, sent, reply.headers, reply.latency_s, None)
        started = time.monotonic()
        url = f"{model}:streamGenerateContent?alt=sse"
        answer, headers, first_token_s = await self.gathered(
            self._stream(url, sent, body, timeouts, on_token, started), timeouts
        )
        latency_s = time.monotonic() - started
        return self.end(_response(endpoint, answer), endpoint, sent, headers, latency_s, first_token_s)

    @property
    def _root(self) -> str:
        return f"{self.config.base_url}/{self.config.version or self.dialect.version}"

    def _health_url(self) -> str:
        return f"{self._root}/models"

    def _body(self, request: InferenceRequest, sent: Sent) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if request.max_output_tokens is not None:
            options["maxOutputTokens"] = request.max_output_tokens
        for name, theirs in (("temperature", "temperature"), ("top_p", "topP"), ("seed", "seed")):
            if (value := getattr(request, name)) is not None and sent.takes(name):
                options[theirs] = value
        if request.stop and sent.takes("stop"):
            options["stopSequences"] = list(request.stop)
        if request.reasoning_effort is not None and sent.takes("reasoning_effort"):
            options["thinkingConfig"] = {"thinkingBudget": THINKING_TOKENS[request.reasoning_effort]}
        wanted = request.response_format
        if wanted.type != "text" and sent.takes(wanted.type):
            options["responseMimeType"] = "application/json"
            if wanted.json_schema is not None:
                options["responseJsonSchema"] = wanted.json_schema
        body: dict[str, Any] = {"contents": _contents(request.chat)}
        if system := "\n\n".join(m.text for m in request.chat if m.role in ("system", "developer")):
            body["systemInstruction"] = {"parts": [{"text": system}]}
        if request.tools and sent.takes("tools"):
            declared = [
                {
                    "name": tool.function.name,
                    "description": tool.function.description or "",
                    **({"parametersJsonSchema": tool.function.parameters} if tool.function.parameters else {}),
                }
                for tool in request.tools
            ]
            body["tools"] = [{"functionDeclarations": declared}]
        if (choice := request.tool_choice) is not None and sent.takes("tool_choice"):
            mode = TOOL_MODE.get(choice)
            calling = {"mode": mode} if mode else {"mode": "ANY", "allowedFunctionNames": [choice]}
            body["toolConfig"] = {"functionCallingConfig": calling}
        if options:
            body["generationConfig"] = options
        return sent.with_extras(body)

    async def _embed(
        self, endpoint: Endpoint, request: InferenceRequest, timeouts: Timeouts, sent: Sent, model: str
    ) -> CallOutcome:
        one: dict[str, Any] = {"model": f"models/{endpoint.served_model}"}
        if request.dimensions is not None and sent.takes("dimensions"):
            one["outputDimensionality"] = request.dimensions
        body = {"requests": [{**one, "content": {"parts": [{"text": text}]}} for text in request.texts]}
        url = f"{model}:batchEmbedContents"
        reply = await self.http.json("POST", url, sent.headers, sent.with_extras(body), timeouts, sent.scrub)
        try:
            vectors = tuple(tuple(float(x) for x in row["values"]) for row in reply.body["embeddings"])
        except (KeyError, TypeError, ValueError):
            vectors = ()
        if len(vectors) != len(request.texts):
            raise malformed(f"{len(vectors)} embeddings for {len(request.texts)} texts")
        used = _usage(reply.body.get("usageMetadata"))
        answer = {"embeddings": vectors, "usage": used, "model_served": endpoint.served_model}
        return self.end(answer, endpoint, sent, reply.headers, reply.latency_s, None)

    async def _stream(
        self, url: str, sent: Sent, body: dict[str, Any], timeouts: Timeouts, on_token: OnToken, started: float
    ) -> tuple[dict[str, Any], Mapping[str, str], float | None]:
        """Gather a stream into the answer that the same call would have given without streaming."""
        answer: dict[str, Any] = {}
        parts: list[Any] = []
        finish, first_token_s = None, None
        headers: Mapping[str, str] = {}
        async for headers, event in self.http.events(url, sent.headers, body, timeouts, sent.scrub):  # noqa: B007
            kept = ("usageMetadata", "modelVersion", "promptFeedback", "responseId")
            answer |= {name: event[name] for name in kept if name in event}
            for candidate in (event.get("candidates") or ())[:1]:
                finish = candidate.get("finishReason") or finish
                for part in (candidate.get("content") or {}).get("parts") or ():
                    parts.append(part)
                    if (piece := part.get("text")) and not part.get("thought"):
                        if first_token_s is None:
                            first_token_s = time.monotonic() - started
                        await on_token(piece)
        if finish is None and "promptFeedback" not in answer:
            raise ProviderError(Failure(FailureKind.INTERRUPTED, "the stream ended early", Billed.MAYBE))
        if finish is not None:
            answer["candidates"] = [{"content": {"parts": parts}, "finishReason": finish}]
        return answer, headers, first_token_s


def _contents(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Turns of user and model. A function's result is named by the function, not by the call's id."""
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    contents: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "model" if message.role == "assistant" else "user"
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += _parts(message, names)
        else:
            contents.append({"role": role, "parts": _parts(message, names)})
    return contents


def _parts(message: Message, names: Mapping[str, str]) -> list[dict[str, Any]]:
    if message.role == "tool":
        name = names.get(message.tool_call_id or "", message.name or "tool")
        return [{"functionResponse": {"name": name, "response": {"result": message.text}}}]
    parts: list[dict[str, Any]] = []
    if isinstance(message.content, tuple):
        for part in message.content:
            if isinstance(part, TextPart):
                parts.append({"text": part.text})
            elif isinstance(part, ImagePart):
                media_type, data = inline_image(part)
                parts.append({"inlineData": {"mimeType": media_type, "data": data}})
    elif message.content:
        parts.append({"text": message.content})
    for call in message.tool_calls:
        try:
            arguments = json.loads(call.function.arguments)
        except ValueError:
            arguments = {}
        parts.append({"functionCall": {"name": call.function.name, "args": arguments}})
    return parts


def _response(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    candidates = body.get("candidates")
    if not isinstance(candidates, list) or not candidates:
        feedback = body.get("promptFeedback")
        if isinstance(feedback, dict) and (why := feedback.get("blockReason")):
            raise ProviderError(Failure(FailureKind.CONTENT_FILTERED, f"blocked: {why}", status=200))
        raise malformed("an answer without candidates")
    raw = candidates[0].get("finishReason") if isinstance(candidates[0], dict) else None
    try:
        parts = (candidates[0].get("content") or {}).get("parts") or []
        text = "".join(part["text"] for part in parts if part.get("text") and not part.get("thought"))
        calls = tuple(
            ToolCall(
                id=str(part["functionCall"].get("id") or f"call_{number}"),
                function=FunctionCall(
                    name=part["functionCall"]["name"],
                    arguments=json.dumps(part["functionCall"].get("args") or {}, ensure_ascii=False),
                ),
            )
            for number, part in enumerate(parts)
            if part.get("functionCall")
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise malformed("a part that can't be read") from None
    finish = FINISH.get(raw, FinishReason.OTHER) if isinstance(raw, str) else FinishReason.OTHER
    if calls and finish is FinishReason.STOP:
        finish = FinishReason.TOOL_CALLS
    if not text and not calls and finish is not FinishReason.LENGTH:
        if finish is FinishReason.CONTENT_FILTER:
            raise ProviderError(Failure(FailureKind.CONTENT_FILTERED, f"filtered: {raw}", Billed.YES, status=200))
        raise malformed("an empty answer")
    served = body.get("modelVersion")
    return {
        "text": text,
        "tool_calls": calls,
        "finish": finish,
        "finish_raw": raw if isinstance(raw, str) else None,
        "usage": _usage(body.get("usageMetadata")),
        "model_served": served if isinstance(served, str) and served else endpoint.served_model,
    }


def _usage(told: Any) -> Usage | None:
    """Thoughts are told apart from the candidates' tokens here; ours include them."""
    try:
        thoughts = int(told.get("thoughtsTokenCount") or 0)
        return Usage(
            input_tokens=int(told["promptTokenCount"]),
            cache_read_tokens=int(told.get("cachedContentTokenCount") or 0),
            output_tokens=int(told.get("candidatesTokenCount") or 0) + thoughts,
            reasoning_tokens=thoughts,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
