"""OpenAI's own request bodies → our requests: chat completions, embeddings, responses. Pure.

A field is mapped, kept for any provider that supports it (`extras`, see `InferenceRequest`), accepted with the one
value that changes nothing, or refused by name: none is ignored silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from turnout.batch.line import BadLine
from turnout.messages import NOT_INLINE, is_inline
from turnout.request import ANY_PROVIDER, OPENAI_FIELDS

CHAT, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses"

_MAX_TOKENS = ("max_tokens", "max_completion_tokens")
"""If both are set, the last one here holds, so that each run does the same."""
_MAPPED = {
    CHAT: {"model", "messages", "temperature", "top_p", "metadata", "stop", "seed", "tools", "tool_choice"}
    | {"response_format", "reasoning_effort", *_MAX_TOKENS},
    EMBEDDINGS: {"model", "input", "dimensions"},
}
_ONLY_WITH: Mapping[str, Any] = {
    "n": 1,
    "stream": False,
    "logprobs": False,
    "encoding_format": "float",
    "modalities": ["text"],
    "background": False,
    "truncation": "disabled",
    "include": [],
}
_OR_TEXT = "a string or a JSON array"


def request_fields(url: object, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `InferenceRequest`, not yet validated; raises BadLine."""
    if url == RESPONSES:
        url, body = CHAT, _as_chat(_without_nulls(body))
    if not isinstance(url, str) or url not in _MAPPED:
        raise BadLine(f"url: must be one of {', '.join((*_MAPPED, RESPONSES))}")
    fields: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    for name, value in _without_nulls(body).items():
        if name in _MAPPED[url]:
            fields[name] = value
        elif name in OPENAI_FIELDS:
            extras[name] = value
        elif name not in _ONLY_WITH:
            elsewhere = "options of a single provider can go into `extras` of a line in the plain format"
            raise BadLine(f"body.{name}: unknown or unsupported field; {elsewhere}")
        elif value != _ONLY_WITH[name]:
            raise BadLine(f"body.{name}: only {json.dumps(_ONLY_WITH[name])} is supported")
    for name in _MAX_TOKENS:
        if name in fields:
            fields["max_output_tokens"] = fields.pop(name)
    if "messages" in fields:
        fields["messages"] = _list(fields["messages"], "body.messages")
    if "tool_choice" in fields:
        fields["tool_choice"] = _tool_choice(fields["tool_choice"])
    return fields | ({"extras": {ANY_PROVIDER: extras}} if extras else {})


def _as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """A body of `/v1/responses` as one of `/v1/chat/completions`."""
    if chat_only := body.keys() & {"messages", *_MAX_TOKENS, "reasoning_effort", "verbosity", "response_format"}:
        raise BadLine(f"body.{min(chat_only)}: unknown or unsupported field")
    chat = dict(body)
    input, instructions = chat.pop("input", None), chat.pop("instructions", None)
    items = [{"role": "user", "content": input}] if isinstance(input, str) else _list(input, "body.input", _OR_TEXT)
    messages = chat["messages"] = [] if instructions is None else [{"role": "system", "content": instructions}]
    for i, item in enumerate(items):
        message = _response_item(item, f"body.input.{i}")
        if "tool_calls" in message and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])  # one turn is one message in a chat
        else:
            messages.append(message)
    chat["max_completion_tokens"] = chat.pop("max_output_tokens", None)
    if "tools" in chat:
        chat["tools"] = [_response_tool(tool) for tool in _list(chat["tools"], "body.tools")]
    chat["reasoning_effort"] = _part(chat, "reasoning", "effort").get("effort")
    text = _part(chat, "text", "format", "verbosity")
    chat["verbosity"] = text.get("verbosity")
    if "format" in text:
        form = _dict(text["format"], "body.text.format")
        inner = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": form.get("type"), **({"json_schema": inner} if inner else {})}
    return chat


def _without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """Null means absent."""
    return {name: value for name, value in body.items() if value is not None}


def _response_item(item: Any, where: str) -> dict[str, Any]:
    item = _dict(item, where)
    match item.get("type", "message"):
        case "message":
            content = item.get("content")
            if isinstance(content, list):
                content = [_response_part(part, f"{where}.content.{i}") for i, part in enumerate(content)]
            return {"role": _text(item, "role", where), "content": content}
        case "function_call":
            function = {name: _text(item, name, where) for name in ("name", "arguments")}
            call = {"id": _text(item, "call_id", where), "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        case "function_call_output":
            output = item.get("output")
            if not isinstance(output, str):
                parts = enumerate(_list(output, f"{where}.output", _OR_TEXT))
                output = [_response_part(part, f"{where}.output.{i}") for i, part in parts]
            return {"role": "tool", "tool_call_id": _text(item, "call_id", where), "content": output}
        case _:
            raise BadLine(f"{where}.type: only messages, function calls and their outputs are supported")


def _response_part(part: Any, where: str) -> dict[str, Any]:
    part = _dict(part, where)
    match part.get("type"):
        case "input_text" | "output_text":
            return {"type": "text", "text": _text(part, "text", where)}
        case "input_image":
            url = part.get("image_url")
            if url is None and "file_id" in part:
                raise BadLine(f"{where}.file_id: files are not fetched; give the image itself as image_url")
            if not is_inline(url):
                raise BadLine(f"{where}.image_url: {NOT_INLINE}")
            return {"type": "image_url", "image_url": {"url": url, "detail": part.get("detail")}}
        case _:
            raise BadLine(f"{where}.type: only input_text, input_image and output_text are supported")


def _response_tool(tool: Any) -> dict[str, Any]:
    tool = _dict(tool, "body.tools")
    if tool.get("type") != "function":
        raise BadLine("body.tools: only function tools are supported")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    name = choice.get("name") or _dict(choice.get("function", {}), "body.tool_choice.function").get("name")
    if choice.get("type") != "function" or name is None:
        raise BadLine("body.tool_choice: only a mode or one function is supported")
    return name


def _part(body: dict[str, Any], name: str, *known: str) -> dict[str, Any]:
    """Take an object out of the body."""
    part = _without_nulls(_dict(body.pop(name, {}), f"body.{name}"))
    if unknown := part.keys() - set(known):
        raise BadLine(f"body.{name}.{min(unknown)}: unknown or unsupported field")
    return part


def _dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadLine(f"{where}: must be a JSON object")
    return value


def _list(value: Any, where: str, kind: str = "a JSON array") -> list[Any]:
    if not isinstance(value, list):
        raise BadLine(f"{where}: must be {kind}")
    return value


def _text(body: Mapping[str, Any], name: str, where: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise BadLine(f"{where}.{name}: must be a string")
    return value
