"""Anthropic's Messages."""

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
from turnout_workers.providers.base import CallOutcome, OnToken, Timeouts
from turnout_workers.providers.connector import Connector, Sent, malformed
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.http import Http
from turnout_workers.providers.settings import ProviderConfig
from turnout_workers.routing.failure import Billed, Failure, FailureKind
from turnout_workers.routing.fleet import Endpoint

FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
DEFAULT_MAX_TOKENS = 4096
"""The format demands a limit; this is ours where the job sets none and the model's own is larger."""
WITHOUT_SAMPLING = "2026-10-21"
"""From this version on, `temperature` and `top_p` are refused."""
TOOL_CHOICE = {"auto": "auto", "none": "none", "required": "any"}


class AnthropicConnector(Connector):
    """`POST /v1/messages`."""

    def __init__(self, config: ProviderConfig, http: Http) -> None:
        super().__init__(config, http)
        self._version = config.version or self.dialect.version or "2023-06-01"
        self._headers["anthropic-version"] = self._version

    async def call(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        timeouts: Timeouts = Timeouts(),
        on_token: OnToken | None = None,
    ) -> CallOutcome:
        if request.is_embedding:
            raise ProviderError.unsupported(f"{self.name} has no embeddings")
        parameters = self.dialect.parameters
        if self._version >= WITHOUT_SAMPLING:
            parameters -= {"temperature", "top_p"}
        sent = self.begin(endpoint, request, parameters)
        body = self._body(endpoint, request, sent)
        url = f"{self.config.base_url}/v1/messages"
        if on_token is None:
            reply = await self.http.json("POST", url, sent.headers, body, timeouts, sent.scrub)
            return self.end(_response(endpoint, reply.body), endpoint, sent, reply.headers, reply.latency_s, None)
        started = time.monotonic()
        answer, headers, first_token_s = await self.gathered(
            self._stream(url, sent, body, timeouts, on_token, started), timeouts
        )
        latency_s = time.monotonic() - started
        return self.end(_response(endpoint, answer), endpoint, sent, headers, latency_s, first_token_s)

    def _body(self, endpoint: Endpoint, request: InferenceRequest, sent: Sent) -> dict[str, Any]:
        limit = request.max_output_tokens or min(endpoint.max_output_tokens or DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS)
        body: dict[str, Any] = {
            "model": endpoint.served_model,
            "max_tokens": limit,
            "messages": _turns(request.chat),
        }
        if system := "\n\n".join(m.text for m in request.chat if m.role in ("system", "developer")):
            body["system"] = system
        for name in ("temperature", "top_p"):
            if (value := getattr(request, name)) is not None and sent.takes(name):
                body[name] = value
        if request.stop and sent.takes("stop"):
            body["stop_sequences"] = list(request.stop)
        if request.seed is not None:
            sent.takes("seed")
        if request.reasoning_effort is not None:
            sent.takes("reasoning_effort")
        if request.tools and sent.takes("tools"):
            body["tools"] = [
                {
                    "name": tool.function.name,
                    "description": tool.function.description or "",
                    "input_schema": tool.function.parameters or {"type": "object"},
                }
                for tool in request.tools
            ]
        if (choice := request.tool_choice) is not None and sent.takes("tool_choice"):
            mode = TOOL_CHOICE.get(choice)
            body["tool_choice"] = {"type": mode} if mode else {"type": "tool", "name": choice}
        wanted = request.response_format
        if wanted.type == "json_schema" and sent.takes("json_schema"):
            body["output_config"] = {"format": {"type": "json_schema", "schema": wanted.json_schema}}
        elif wanted.type == "json_object":
            sent.takes("json_object")
        return sent.with_extras(body)

    async def _stream(
        self, url: str, sent: Sent, body: dict[str, Any], timeouts: Timeouts, on_token: OnToken, started: float
    ) -> tuple[dict[str, Any], Mapping[str, str], float | None]:
        """Gather a stream into the answer that the same call would have given without streaming."""
        answer: dict[str, Any] = {}
        blocks: dict[int, dict[str, Any]] = {}
        stopped, first_token_s = False, None
        headers: Mapping[str, str] = {}
        events = self.http.events(url, sent.headers, {**body, "stream": True}, timeouts, sent.scrub)
        async for headers, event in events:  # noqa: B007  (the last ones are returned)
            match event.get("type"):
                case "message_start":
                    answer = dict(event.get("message") or {})
                case "content_block_start":
                    block = dict(event.get("content_block") or {})
                    if block.get("type") == "tool_use":
                        block["input"] = ""
                    blocks[event.get("index", 0)] = block
                case "content_block_delta":
                    delta, block = event.get("delta") or {}, blocks.setdefault(event.get("index", 0), {})
                    if piece := delta.get("text"):
                        if first_token_s is None:
                            first_token_s = time.monotonic() - started
                        block["text"] = block.get("text", "") + piece
                        await on_token(piece)
                    block["input"] = block.get("input", "") + (delta.get("partial_json") or "")
                case "message_delta":
                    answer["stop_reason"] = (event.get("delta") or {}).get("stop_reason")
                    answer["usage"] = {**(answer.get("usage") or {}), **(event.get("usage") or {})}
                case "message_stop":
                    stopped = True
        if not stopped:
            raise ProviderError(Failure(FailureKind.INTERRUPTED, "the stream ended early", Billed.MAYBE))
        for block in blocks.values():
            if block.get("type") == "tool_use":
                block["input"] = _loads(block["input"])
        answer["content"] = [block for _, block in sorted(blocks.items())]
        return answer, headers, first_token_s


def _loads(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text  # as the model wrote it


def _turns(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """User and assistant turns; results of tools are the user's, and neighbours of one role are one turn."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += _blocks(message)
        else:
            turns.append({"role": role, "content": _blocks(message)})
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id or "", "content": message.text}]
    blocks: list[dict[str, Any]] = []
    if isinstance(message.content, tuple):
        for part in message.content:
            if isinstance(part, TextPart):
                blocks.append({"type": "text", "text": part.text})
            elif isinstance(part, ImagePart):
                media_type, data = inline_image(part)
                source = {"type": "base64", "media_type": media_type, "data": data}
                blocks.append({"type": "image", "source": source})
    elif message.content:
        blocks.append({"type": "text", "text": message.content})
    for call in message.tool_calls:
        called = {"id": call.id, "name": call.function.name, "input": _loads(call.function.arguments)}
        blocks.append({"type": "tool_use", **called})
    return blocks


def inline_image(part: ImagePart) -> tuple[str, str]:
    """Media type and base64 data of a data: URI."""
    head, _, data = part.image_url.url.partition(",")
    return head.removeprefix("data:").partition(";")[0], data


def _response(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    content = body.get("content")
    if not isinstance(content, list):
        raise malformed("an answer without content")
    raw = body.get("stop_reason")
    try:
        text = "".join(block["text"] for block in content if block.get("type") == "text")
        calls = tuple(
            ToolCall(
                id=str(block.get("id") or ""),
                function=FunctionCall(name=block["name"], arguments=_arguments(block.get("input"))),
            )
            for block in content
            if block.get("type") == "tool_use"
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        raise malformed("a content block that can't be read") from None
    finish = FINISH.get(raw, FinishReason.OTHER) if isinstance(raw, str) else FinishReason.OTHER
    if not text and not calls and finish is not FinishReason.LENGTH:
        if finish is FinishReason.CONTENT_FILTER:
            raise ProviderError(Failure(FailureKind.CONTENT_FILTERED, "refused", Billed.YES, status=200))
        raise malformed("an empty answer")
    served = body.get("model")
    return {
        "text": text,
        "tool_calls": calls,
        "finish": finish,
        "finish_raw": raw if isinstance(raw, str) else None,
        "usage": _usage(body.get("usage")),
        "model_served": served if isinstance(served, str) and served else endpoint.served_model,
    }


def _arguments(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given or {}, ensure_ascii=False)


def _usage(told: Any) -> Usage | None:
    """Cached tokens are told apart from `input_tokens` here; ours include them."""
    try:
        read = int(told.get("cache_read_input_tokens") or 0)
        written = int(told.get("cache_creation_input_tokens") or 0)
        return Usage(
            input_tokens=int(told["input_tokens"]) + read + written,
            cache_read_tokens=read,
            cache_write_tokens=written,
            output_tokens=int(told.get("output_tokens") or 0),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
