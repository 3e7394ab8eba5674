"""Anthropic's Messages."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from multidict import istr

from turnout.messages import ImagePart, Message, TextPart
from turnout.request import FinishReason, InferenceRequest, Usage
from turnout_workers.providers.account import ProviderConfig
from turnout_workers.providers.body import at
from turnout_workers.providers.claude_schema import closed_schema
from turnout_workers.providers.connector import Connector
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.http import Http
from turnout_workers.providers.wire import (
    Answer,
    RequestDraft,
    StreamCollector,
    arguments,
    call_id,
    conversation,
    plausible_usage,
    tool_calls,
)
from turnout_workers.routing.failure import Billed
from turnout_workers.routing.fleet import Endpoint

FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
VERSION = "2023-06-01"
"""Version of the API, unless the configuration names one."""
DEFAULT_MAX_TOKENS = 4096
"""The format demands a limit. This one is used if the job sets none and the model's own is unknown."""
MAX_TEMPERATURE = 1.0
"""Also its default: a higher temperature is dropped."""
US_SURCHARGE = 1.1
"""Factor on all prices if a call had to be, and was, served in the US."""
JSON_ONLY = "Answer with one JSON object and nothing else: no other word, no code fence."
"""Added to the system prompt, because the format has no JSON mode."""
TEXT_ONLY_ROLES = ("system", "developer", "assistant")
"""Roles in whose messages images are refused."""
CALL_ID = re.compile("[a-zA-Z0-9_-]+")
"""Accepted ids of tool calls. Kimi's, for example, look different: `functions.weather:0`."""
TOOL_CHOICE = {"auto": "auto", "none": "none", "required": "any"}
EFFORT = {"minimal": "low"}
"""Efforts that have another name here."""
ALWAYS_THINKING = re.compile(r"opus-5[-.]5|fable-5")
"""Models whose thinking can't be turned off: the lowest effort is requested."""
THINKING_BETWEEN_TOOLS = re.compile(r"sonnet-5[-.]5")
"""Models whose thinking can be turned off, except for notes between tool calls."""


class AnthropicConnector(Connector):
    """`POST /v1/messages`."""

    dialect = DIALECTS["anthropic"]

    def __init__(self, config: ProviderConfig, http: Http) -> None:
        super().__init__(config, http)
        self._headers[istr("anthropic-version")] = config.version or VERSION

    def build_request(
        self, endpoint: Endpoint, request: InferenceRequest, draft: RequestDraft, stream: bool
    ) -> tuple[str, Any]:
        if request.is_embedding:
            raise ProviderError.unsupported(f"{self.name} does not support embeddings")
        limit = request.max_output_tokens or endpoint.max_output_tokens or DEFAULT_MAX_TOKENS
        draft.warn_about_images(*TEXT_ONLY_ROLES)
        if "low" in draft.image_details():
            draft.supports("the detail of an image")
        system, turns = conversation(request, "assistant", _blocks)
        messages = [{"role": role, "content": blocks} for role, blocks in turns]
        body: dict[str, Any] = {"model": endpoint.served_model, "max_tokens": limit, "messages": messages}
        wanted = request.response_format
        if wanted.type == "json_object":
            system = f"{system}\n\n{JSON_ONLY}".strip()
        if system:
            body["system"] = system
        if request.temperature is not None:
            named = (
                "temperature" if request.temperature <= MAX_TEMPERATURE else f"a temperature above {MAX_TEMPERATURE:g}"
            )
            if draft.supports(named):
                body["temperature"] = request.temperature
        # Claude 4.1 and later refuse both together.
        if request.top_p is not None and draft.supports(
            "top_p beside temperature" if "temperature" in body else "top_p"
        ):
            body["top_p"] = request.top_p
        body |= draft.values("seed")
        stops = [stop for stop in request.stop if stop.strip()]
        if len(stops) < len(request.stop):
            draft.supports("a blank stop")
        if stops and draft.supports("stop"):
            body["stop_sequences"] = stops
        if tools := draft.value("tools"):
            body["tools"] = [
                {"name": f.name, "description": f.description or "", "input_schema": f.parameters or {"type": "object"}}
                for f in (tool.function for tool in tools)
            ]
        if choice := draft.value("tool_choice"):
            mode = TOOL_CHOICE.get(choice)
            body["tool_choice"] = {"type": mode} if mode else {"type": "tool", "name": choice}
        output: dict[str, Any] = {}
        if wanted.type == "json_schema" and draft.supports("json_schema"):
            output["format"] = {"type": "json_schema", "schema": closed_schema(wanted.described_schema)}
        effort = draft.value("reasoning_effort")
        if effort == "none" and ALWAYS_THINKING.search(endpoint.served_model):
            output["effort"] = "low"
        elif effort == "none":
            between = THINKING_BETWEEN_TOOLS.search(endpoint.served_model)
            body["thinking"] = {"type": "between_tools" if between else "disabled"}
        elif effort:
            output["effort"] = EFFORT.get(effort, effort)
        if output:
            body["output_config"] = output
        if stream:
            body["stream"] = True
        return "/v1/messages", body

    def stream_collector(self) -> StreamCollector:
        return _Events()

    def parse_answer(self, request: InferenceRequest, body: Any) -> Answer:
        content, finish_raw, raw = body["content"], body.get("stop_reason"), body.get("usage")
        how = raw if isinstance(raw, dict) else {}
        calls = (block for block in content if block["type"] == "tool_use")
        return Answer(
            text="".join(block["text"] for block in content if block["type"] == "text"),
            tool_calls=tool_calls((call.get("id"), call["name"], call.get("input")) for call in calls),
            finish=FINISH.get(finish_raw, FinishReason.OTHER),
            finish_raw=finish_raw,
            # Anthropic says that it doesn't bill a refusal before the first word, yet reports its tokens.
            billed=Billed.MAYBE if finish_raw == "refusal" else Billed.YES,
            usage=plausible_usage(_usage, raw),
            service_tier="fast" if how.get("speed") == "fast" else how.get("service_tier"),
            surcharge=US_SURCHARGE if how.get("inference_geo") == "us" else 1.0,
            model=body.get("model"),
        )


class _Events:
    """Content blocks grow by deltas, and go into the message at its end."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._texts: defaultdict[int, list[str]] = defaultdict(list)
        self._inputs: defaultdict[int, list[str]] = defaultdict(list)
        """Pieces of each block: its text, or a tool's arguments as the model wrote them."""
        self._stopped = False

    def add(self, event: dict[str, Any]) -> str:
        match event.get("type"):
            case "message_start":
                self._message = dict(event["message"])
            case "content_block_start":
                block = self._blocks[event["index"]] = dict(event["content_block"])
                return str(block.get("text") or "")
            case "content_block_delta":
                index, delta = event["index"], event["delta"]
                self._blocks.setdefault(index, {"type": "text"})
                self._texts[index].append(text := delta.get("text") or "")
                self._inputs[index].append(delta.get("partial_json") or "")
                return str(text)
            case "message_delta":
                if (reason := event["delta"].get("stop_reason")) is not None:  # all blocks have ended by then
                    self._message["stop_reason"], self._stopped = reason, True
                # Some gateways repeat the counts of the start as 0 or null.
                news = {name: value for name, value in (event.get("usage") or {}).items() if value}
                self._message["usage"] = {**(self._message.get("usage") or {}), **news}
            case "message_stop":
                self._stopped = True
        return ""

    def body(self) -> dict[str, Any] | None:
        if not self._stopped:
            return None
        for index, block in self._blocks.items():
            if text := "".join(self._texts[index]):
                block["text"] = (block.get("text") or "") + text
            if written := "".join(self._inputs[index]):
                block["input"] = written
        return {**self._message, "content": [block for _, block in sorted(self._blocks.items())]}


def _blocks(message: Message) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            if part.text.strip():  # Anthropic refuses blank texts
                blocks.append({"type": "text", "text": part.text})
        elif isinstance(part, ImagePart) and message.role not in TEXT_ONLY_ROLES:
            media_type, data = part.inline
            source = {"type": "base64", "media_type": media_type, "data": data}
            blocks.append({"type": "image", "source": source})
    if message.role == "tool":
        content = blocks if any(block["type"] == "image" for block in blocks) else message.text
        result = {"tool_use_id": call_id(message.tool_call_id or "", CALL_ID), "content": content}
        return [{"type": "tool_result", **result}]
    for call in message.tool_calls:
        called = {"id": call_id(call.id, CALL_ID), "name": call.function.name, "input": arguments(call)}
        blocks.append({"type": "tool_use", **called})
    return blocks


def _usage(raw: Any) -> Usage:
    """Anthropic counts cached tokens beside `input_tokens`; ours include them. Of a call that condensed its own context
    the iterations are billed, and the counts above them are the last one's."""

    def count(*path: str) -> int:
        return sum(int(at(iteration, *path) or 0) for iteration in raw.get("iterations") or [raw])

    read, written = count("cache_read_input_tokens"), count("cache_creation_input_tokens")
    return Usage(
        input_tokens=count("input_tokens") + read + written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        cache_write_hour_tokens=count("cache_creation", "ephemeral_1h_input_tokens"),
        output_tokens=count("output_tokens"),
        reasoning_tokens=int(at(raw, "output_tokens_details", "thinking_tokens") or 0),
        web_searches=int(at(raw, "server_tool_use", "web_search_requests") or 0),
    )
