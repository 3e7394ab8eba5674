"""OpenAI's chat completions and embeddings, as about a dozen vendors and self-hosted servers speak them."""

from __future__ import annotations

import struct
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from turnout.messages import ImagePart, Message, TextPart, Tool
from turnout.request import FinishReason, InferenceRequest, Usage
from turnout_workers.providers.connector import Connector
from turnout_workers.providers.dialects import Dialect
from turnout_workers.providers.errors import malformed
from turnout_workers.providers.wire import Answer, RequestDraft, StreamCollector, call_id, plausible_usage, tool_calls
from turnout_workers.routing.fleet import Endpoint

FINISH = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    # stopped by the provider: OpenRouter, vLLM, SGLang, DeepSeek
    **dict.fromkeys(("error", "abort", "aborted", "insufficient_system_resource"), FinishReason.ERROR),
}
NO_PARAMETERS = {"type": "object", "properties": {}}


class OpenAIConnector(Connector):
    """`POST /chat/completions` and `/embeddings`; what differs by vendor is in its dialect."""

    def build_request(
        self, endpoint: Endpoint, request: InferenceRequest, draft: RequestDraft, stream: bool
    ) -> tuple[str, Any]:
        model = endpoint.served_model
        if request.is_embedding:
            body: dict[str, Any] = {"model": model, "input": list(request.texts), "encoding_format": "float"}
            return "/embeddings", body | draft.values("dimensions")
        body = {"model": model, **self._chat(request, draft)}
        if stream:
            body["stream"] = True
            if self.dialect.stream_usage:
                body["stream_options"] = {"include_usage": True}
        return "/chat/completions", body

    @property
    def health_path(self) -> str:
        """Without a key, any endpoint will do: there is no key to check."""
        return self.dialect.health_path if self.config.api_key is not None else "/models"

    def stream_collector(self) -> StreamCollector:
        return _Chunks(self.dialect.wants_reasoning_back)

    def parse_answer(self, request: InferenceRequest, body: Any) -> Answer:
        if request.is_embedding:
            return _embeddings(body)
        answer = _completion(body)
        if self.dialect.wants_reasoning_back and answer.tool_calls:
            return replace(answer, reasoning_content=body["choices"][0]["message"].get("reasoning_content") or None)
        return answer

    def _chat(self, request: InferenceRequest, draft: RequestDraft) -> dict[str, Any]:
        dialect = self.dialect
        draft.warn_about_images(*dialect.text_only_roles)
        body: dict[str, Any] = {"messages": [_message(message, dialect) for message in request.chat]}
        if request.max_output_tokens is not None:
            body[dialect.max_tokens] = request.max_output_tokens
        body |= draft.values("temperature", "top_p", "stop", "reasoning_effort", seed=dialect.seed)
        if dialect.no_reasoning is not None and body.get("reasoning_effort") == "none":
            del body["reasoning_effort"]
            body |= dialect.no_reasoning
        if tools := draft.value("tools"):
            body["tools"] = [_tool(tool) for tool in tools]
        if choice := draft.value("tool_choice"):
            is_mode = choice in ("auto", "none", "required")
            body["tool_choice"] = choice if is_mode else {"type": "function", "function": {"name": choice}}
        wanted = request.response_format
        if wanted.type == "json_schema" and draft.supports("json_schema"):
            schema: dict[str, Any] = {"name": wanted.name} | (
                {"description": wanted.description} if wanted.description else {}
            )
            schema |= {"schema": wanted.json_schema, "strict": wanted.is_strict}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif wanted.type == "json_object" and draft.supports("json_object"):
            body["response_format"] = {"type": "json_object"}
        return body


def _tool(tool: Tool) -> dict[str, Any]:
    function = tool.function.model_dump(mode="json", exclude_none=True)
    # Some vendors refuse an empty schema, others a missing one. A null within a schema belongs to it.
    return {"type": tool.type, "function": {**function, "parameters": tool.function.parameters or NO_PARAMETERS}}


def _message(message: Message, dialect: Dialect) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role}
    if message.role in ("system", "developer"):
        body["role"] = dialect.system_role
    if isinstance(content := message.content_or_refusal, tuple):
        kept = (part for part in content if isinstance(part, TextPart) or message.role not in dialect.text_only_roles)
        body["content"] = [_part(part, dialect) for part in kept] or ""
    else:
        body["content"] = content
    if message.tool_calls:
        calls = (call.model_dump(mode="json") for call in message.tool_calls)
        body["tool_calls"] = [{**call, "id": call_id(call["id"], dialect.call_id)} for call in calls]
    if message.tool_call_id is not None:
        body["tool_call_id"] = call_id(message.tool_call_id, dialect.call_id)
    if message.name is not None:
        body["name"] = message.name
    if dialect.wants_reasoning_back and message.reasoning_content is not None:
        body["reasoning_content"] = message.reasoning_content
    return body


def _part(part: TextPart | ImagePart, dialect: Dialect) -> dict[str, Any]:
    body = part.model_dump(mode="json", exclude_none=True)
    if isinstance(part, ImagePart) and part.image_url.detail == "original" and not dialect.original_images:
        body["image_url"]["detail"] = "high"
    return body


class _Chunks:
    """Assembles a message from its deltas."""

    def __init__(self, wants_reasoning_back: bool) -> None:
        self._keeps_reasoning = wants_reasoning_back
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}
        """The last call for each index."""
        self._finish: Any = None
        self._rest: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> str:
        self._rest |= {name: event[name] for name in ("model", "usage", "service_tier") if event.get(name)}
        text = ""
        for choice in (event.get("choices") or ())[:1]:
            self._finish = choice.get("finish_reason") or self._finish
            if choice.get("usage"):  # Moonshot's index for it
                self._rest["usage"] = choice["usage"]
            delta = choice.get("delta") or {}
            text = _text(delta.get("content"))
            self._text.append(text)
            self._refusal.append(delta.get("refusal") or "")
            if self._keeps_reasoning and isinstance(thought := delta.get("reasoning_content"), str):
                self._reasoning.append(thought)
            for part in delta.get("tool_calls") or ():
                self._add_call(part)
        return text

    def _add_call(self, part: Mapping[str, Any]) -> None:
        index, id, function = part.get("index"), part.get("id"), part.get("function") or {}
        name, call = function.get("name"), self._by_index.get(index or 0)
        # Ollama gives all calls the same index, others none: so a new id with a name begins another call.
        if call is None or (id and name and call["id"] != id):
            call = self._by_index[index or 0] = {"id": id or "", "name": "", "arguments": []}
            self._calls.append(call)
        call["id"] = call["id"] or id
        call["name"] = name or call["name"]
        call["arguments"].append(function.get("arguments") or "")

    def body(self) -> dict[str, Any] | None:
        if self._finish is None:
            return None
        calls = [
            {"id": call["id"], "function": {"name": call["name"], "arguments": "".join(call["arguments"])}}
            for call in self._calls
        ]
        message = {
            "content": "".join(self._text),
            "refusal": "".join(self._refusal),
            "reasoning_content": "".join(self._reasoning),
            "tool_calls": calls,
        }
        return {**self._rest, "choices": [{"message": message, "finish_reason": self._finish}]}


def _completion(body: Any) -> Answer:
    choice = body["choices"][0]
    message, finish_raw, refusal = choice["message"], choice.get("finish_reason"), choice["message"].get("refusal")
    raw = body.get("usage")
    return Answer(
        text=_text(message.get("content")),
        tool_calls=tool_calls(
            (call.get("id"), call["function"]["name"], call["function"].get("arguments"))
            for call in message.get("tool_calls") or ()
        ),
        refusal=refusal or None,
        finish=FINISH.get(finish_raw, FinishReason.OTHER),
        finish_raw=finish_raw,
        usage=plausible_usage(usage, raw),
        cost_usd=_cost_usd(raw),
        service_tier=body.get("service_tier"),
        model=body.get("model"),
    )


def _text(content: Any) -> str:
    if isinstance(content, list):  # Mistral answers in parts; those without a text are thoughts
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def _embeddings(body: Any) -> Answer:
    rows = body["data"]
    indexes = [row.get("index") or 0 for row in rows]  # Gemini leaves out a 0
    if any(indexes):  # otherwise they are in order
        by_index = dict(zip(indexes, rows, strict=True))
        if sorted(by_index) != list(range(len(rows))):
            raise malformed("embeddings with duplicate or missing indexes")
        rows = [by_index[index] for index in range(len(rows))]
    vectors = tuple(_vector(row["embedding"]) for row in rows)
    raw = body.get("usage")
    if isinstance(raw, dict) and "total_tokens" in raw:  # all that some vendors report, such as Voyage
        raw = {"prompt_tokens": raw["total_tokens"], **raw}
    cost = _cost_usd(raw)
    return Answer(embeddings=vectors, usage=plausible_usage(usage, raw), cost_usd=cost, model=body.get("model"))


def _vector(raw: Any) -> tuple[float, ...]:
    if isinstance(raw, str):  # base64, from servers that ignore `encoding_format`
        packed = b64decode(raw, validate=True)
        return struct.unpack(f"<{len(packed) // 4}f", packed)
    if not isinstance(raw, list):
        raise malformed("an embedding that is not a list")
    return tuple(map(float, raw))


def usage(raw: Any) -> Usage:
    """Tokens as reported. xAI and Gemini's OpenAI-compatible layer count reasoning only in the total."""
    inside, outside = raw.get("prompt_tokens_details") or {}, raw.get("completion_tokens_details") or {}
    asked, answered = int(raw["prompt_tokens"]), int(raw.get("completion_tokens") or 0)
    return Usage(
        input_tokens=asked,
        cache_read_tokens=int(inside.get("cached_tokens") or raw.get("prompt_cache_hit_tokens") or 0),
        cache_write_tokens=int(inside.get("cache_write_tokens") or 0),
        output_tokens=max(answered, int(raw.get("total_tokens") or 0) - asked),
        reasoning_tokens=int(outside.get("reasoning_tokens") or 0),
    )


def _cost_usd(raw: Any) -> Any:
    """OpenRouter reports dollars, Perplexity a table of them, xAI ten-billionths of a dollar. With the operator's own
    key, OpenRouter's `cost` is only its fee, and the vendor's bill another field; otherwise `cost` includes both."""
    try:
        ticks, cost = raw.get("cost_in_usd_ticks"), raw.get("cost")
        if raw.get("is_byok") is True:
            return cost + raw["cost_details"]["upstream_inference_cost"]
        if isinstance(cost, dict):
            return cost["total_cost"]
        return cost if ticks is None else ticks / 1e10
    except (AttributeError, KeyError, OverflowError, TypeError):
        return None
