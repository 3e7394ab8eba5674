"""Gemini's generateContent and batchEmbedContents, in v1beta or v1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from turnout.messages import ImagePart, Message, TextPart
from turnout.request import FinishReason, InferenceRequest, Usage
from turnout_workers.providers.body import list_at
from turnout_workers.providers.connector import Connector
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.wire import (
    Answer,
    RequestDraft,
    StreamCollector,
    arguments,
    conversation,
    plausible_usage,
    tool_calls,
)
from turnout_workers.routing.fleet import Endpoint

VERSION = "v1beta"
"""Version of the API, unless the configuration names one."""
MAX_TEXTS = 100
"""In one embedding call."""
FILTERED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})
FINISH = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    **dict.fromkeys(("MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE"), FinishReason.ERROR),
    **dict.fromkeys(FILTERED, FinishReason.CONTENT_FILTER),
}
TOOL_MODE = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
BUDGETED = re.compile(r"gemini-[12]\b")
"""Models whose thinking is limited by a number of tokens; later ones take a level."""
THINKING_LEVEL = {"none": "minimal", "xhigh": "high", "max": "high"}
THINKING_TOKENS = {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24576}
"""As Google's OpenAI-compatible layer maps the efforts."""
NO_SIGNATURE = "skip_thought_signature_validator"
"""In place of the signature of a call that another model made, or whose signature is lost. Later models demand one."""


class GeminiConnector(Connector):
    """`POST /v1beta/models/MODEL:generateContent`."""

    dialect = DIALECTS["gemini"]

    def build_request(
        self, endpoint: Endpoint, request: InferenceRequest, draft: RequestDraft, stream: bool
    ) -> tuple[str, Any]:
        model = f"{self._version}/models/{endpoint.served_model}"
        if request.is_embedding:
            if len(request.texts) > MAX_TEXTS:
                raise ProviderError.unsupported(
                    f"{self.name} embeds at most {MAX_TEXTS} texts in one call, not {len(request.texts)}"
                )
            one = {"model": f"models/{endpoint.served_model}", **draft.values(dimensions="outputDimensionality")}
            asked = [{**one, "content": {"parts": [{"text": text}]}} for text in request.texts]
            return f"{model}:batchEmbedContents", {"requests": asked}
        method = "streamGenerateContent?alt=sse" if stream else "generateContent"
        return f"{model}:{method}", _body(request, draft, endpoint.served_model)

    def stream_collector(self) -> StreamCollector:
        return _Chunks()

    def parse_answer(self, request: InferenceRequest, body: Any) -> Answer:
        return _embeddings(body) if request.is_embedding else _candidate(body)

    @property
    def health_path(self) -> str:
        return f"{self._version}{self.dialect.health_path}"

    @property
    def _version(self) -> str:
        return f"/{self.config.version or VERSION}"


def _body(request: InferenceRequest, draft: RequestDraft, model: str) -> dict[str, Any]:
    draft.warn_about_images("system", "developer", "tool")
    options: dict[str, Any] = {}
    if request.max_output_tokens is not None:
        options["maxOutputTokens"] = request.max_output_tokens
    options |= draft.values("temperature", "seed", top_p="topP", stop="stopSequences")
    if effort := draft.value("reasoning_effort"):
        level = THINKING_LEVEL.get(effort, effort)
        tokens = THINKING_TOKENS.get(effort, THINKING_TOKENS[level])
        options["thinkingConfig"] = {"thinkingBudget": tokens} if BUDGETED.match(model) else {"thinkingLevel": level}
    details = draft.image_details()
    if details == {"low"}:
        options["mediaResolution"] = "MEDIA_RESOLUTION_LOW"
    elif "low" in details:  # one of all images is for this format to set, and what it does unasked is "high"
        draft.supports("the detail of one image among others")
    wanted = request.response_format
    if wanted.type != "text" and draft.supports(wanted.type):
        options["responseMimeType"] = "application/json"
        if wanted.json_schema is not None:
            options["responseJsonSchema"] = wanted.described_schema
    system, contents = _conversation(request, model)
    body: dict[str, Any] = {"contents": contents}
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if tools := draft.value("tools"):
        declared = [
            {"name": f.name, "description": f.description or ""}
            | ({"parametersJsonSchema": f.parameters} if f.parameters else {})
            for f in (tool.function for tool in tools)
        ]
        body["tools"] = [{"functionDeclarations": declared}]
    if choice := draft.value("tool_choice"):
        mode = TOOL_MODE.get(choice)
        calling = {"mode": mode} if mode else {"mode": "ANY", "allowedFunctionNames": [choice]}
        body["toolConfig"] = {"functionCallingConfig": calling}
    body["generationConfig"] = options  # even if empty: extras are merged into it
    return body


def _conversation(request: InferenceRequest, model: str) -> tuple[str, list[dict[str, Any]]]:
    """The system text, and the turns. A function's result carries the function's name, not the call's id."""
    signature = {} if BUDGETED.match(model) else {"thoughtSignature": NO_SIGNATURE}
    names = {call.id: call.function.name for message in request.chat for call in message.tool_calls}
    system, turns = conversation(request, "model", partial(_parts, names, signature))
    return system, [{"role": role, "parts": parts} for role, parts in turns]


def _parts(names: Mapping[str, str], signature: Mapping[str, str], message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        name = names.get(message.tool_call_id or "", message.name or "tool")
        return [{"functionResponse": {"name": name, "response": {"result": message.text}}}]
    parts: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            parts.append({"text": part.text})
        elif isinstance(part, ImagePart):
            media_type, data = part.inline
            parts.append({"inlineData": {"mimeType": media_type, "data": data}})
    for call in message.tool_calls:
        parts.append({"functionCall": {"name": call.function.name, "args": arguments(call)}, **signature})
    return parts


class _Chunks:
    """Collects the parts of chunks that each look like a whole answer."""

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self._finish: Any = None
        self._grounding: Any = None
        self._rest: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> str:
        kept = ("usageMetadata", "modelVersion", "promptFeedback")
        self._rest |= {name: event[name] for name in kept if name in event}
        text = ""
        for candidate in (event.get("candidates") or ())[:1]:
            self._finish = candidate.get("finishReason") or self._finish
            self._grounding = candidate.get("groundingMetadata") or self._grounding
            parts = (candidate.get("content") or {}).get("parts") or ()
            self._parts += parts
            text += _text(parts)
        return text

    def body(self) -> dict[str, Any] | None:
        if self._finish is None:
            return self._rest if "promptFeedback" in self._rest else None
        whole = {"content": {"parts": self._parts}, "finishReason": self._finish, "groundingMetadata": self._grounding}
        return {**self._rest, "candidates": [whole]}


def _candidate(body: Any) -> Answer:
    model, searches = body.get("modelVersion"), _searches(body)
    usage = plausible_usage(partial(_usage, searches=searches), body.get("usageMetadata"))
    if not body.get("candidates") and (feedback := body.get("promptFeedback")):  # the prompt was read, and is billed
        why = feedback["blockReason"]
        return Answer(finish=FinishReason.CONTENT_FILTER, finish_raw=why, usage=usage, model=model)
    candidate = body["candidates"][0]
    parts, raw = (candidate.get("content") or {}).get("parts") or (), candidate.get("finishReason")
    called = (part["functionCall"] for part in parts if part.get("functionCall"))
    calls = tool_calls((one.get("id"), one["name"], one.get("args")) for one in called)
    finish = FINISH.get(raw, FinishReason.OTHER)
    return Answer(
        text=_text(parts),
        tool_calls=calls,
        finish=FinishReason.TOOL_CALLS if calls and finish is FinishReason.STOP else finish,
        finish_raw=raw,
        usage=usage,
        model=model,
    )


def _text(parts: Any) -> str:
    return "".join(part["text"] for part in parts if part.get("text") and not part.get("thought"))


def _embeddings(body: Any) -> Answer:
    vectors = tuple(tuple(map(float, row["values"])) for row in body["embeddings"])
    return Answer(embeddings=vectors, usage=plausible_usage(_usage, body.get("usageMetadata")))


def _searches(body: Any) -> int:
    """What is billed of Google's searches for the answer: each, or, of earlier models, all of them together."""
    candidates = list_at(body, "candidates")[:1]
    asked = sum(bool(query) for one in candidates for query in list_at(one, "groundingMetadata", "webSearchQueries"))
    return min(asked, 1) if BUDGETED.match(str(body.get("modelVersion"))) else asked


def _usage(raw: Any, searches: int = 0) -> Usage:
    """Here thoughts count beside the candidates' tokens, tools' results beside the prompt's; ours include both."""
    thoughts = int(raw.get("thoughtsTokenCount") or 0)
    return Usage(
        input_tokens=int(raw["promptTokenCount"]) + int(raw.get("toolUsePromptTokenCount") or 0),
        cache_read_tokens=int(raw.get("cachedContentTokenCount") or 0),
        output_tokens=int(raw.get("candidatesTokenCount") or 0) + thoughts,
        reasoning_tokens=thoughts,
        web_searches=searches,
    )
