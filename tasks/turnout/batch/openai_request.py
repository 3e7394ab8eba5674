"""OpenAI's own request bodies → our requests: chat completions, embeddings, responses. Pure.

A field is mapped, kept for OpenAI alone (`extras`, see `InferenceRequest`), accepted at the one value that
changes nothing, or refused by name: none is ignored silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from turnout.batch.line import Unusable
from turnout.messages import without_empty

CHAT, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/responses"

_MAPPED = {
    CHAT: {"model", "temperature", "top_p", "metadata", "messages", "max_tokens", "max_completion_tokens", "stop"}
    | {"seed", "tools", "tool_choice", "response_format", "reasoning_effort"},
    EMBEDDINGS: {"model", "input", "dimensions"},
    RESPONSES: {"model", "temperature", "top_p", "metadata", "input", "instructions", "max_output_tokens"}
    | {"tools", "tool_choice", "text", "reasoning"},
}
_SAME = {"model", "temperature", "top_p", "metadata", "seed", "reasoning_effort", "dimensions"}
_SAME |= {"tools", "stop", "response_format"}
"""Of these, what we call by the same name."""
_MOST_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Of several the last: which one holds must be the same at each run."""
_FOR_OPENAI_ALONE = {
    CHAT: {"frequency_penalty", "presence_penalty", "logit_bias", "parallel_tool_calls", "verbosity", "user"}
    | {"service_tier", "store", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "prediction"},
    EMBEDDINGS: {"user"},
    RESPONSES: {"parallel_tool_calls", "user", "service_tier", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_retention"},
}
_ONLY_AT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "encoding_format": ("float",),
    "modalities": (["text"],),
    "background": (False,),
    "store": (False, True),
    "truncation": ("disabled",),
    "include": ([],),
}


def request_fields(url: object, body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an `InferenceRequest`, not yet validated; raises Unusable."""
    if not isinstance(url, str) or url not in _MAPPED:
        raise Unusable(f"url: must be one of {', '.join(_MAPPED)}")
    body = {name: value for name, value in body.items() if value is not None}  # null means: not given
    alone: dict[str, Any] = {}
    for name, value in body.items():
        if name in _FOR_OPENAI_ALONE[url]:
            alone[name] = value
        elif name in _ONLY_AT and name not in _MAPPED[url]:
            if value not in _ONLY_AT[name]:
                raise Unusable(f"body.{name}: only {json.dumps(_ONLY_AT[name][0])} is supported")
        elif name not in _MAPPED[url]:
            raise Unusable(f"body.{name}: unknown or unsupported field")
    fields = {name: body[name] for name in _SAME & body.keys()}
    for name in _MOST_TOKENS:
        if name in body:
            fields["max_output_tokens"] = body[name]
    if "tool_choice" in body:
        fields["tool_choice"] = _tool_choice(body["tool_choice"])
    fields |= {CHAT: _chat, EMBEDDINGS: _embeddings, RESPONSES: _responses}[url](body)
    alone |= fields.pop("for_openai", {})
    if alone:
        fields["extras"] = {"openai": alone}
    return fields


def _chat(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [*map(without_empty, _list(body.get("messages"), "body.messages"))]}


def _embeddings(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"input": body.get("input")}


def _responses(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else _list(given, "body.input")
    messages = [_response_item(item, f"body.input.{i}") for i, item in enumerate(items)]
    if "instructions" in body:
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    fields: dict[str, Any] = {"messages": messages}
    if "tools" in body:
        fields["tools"] = [_response_tool(tool) for tool in _list(body["tools"], "body.tools")]
    if (effort := _part(body, "reasoning", "effort").get("effort")) is not None:
        fields["reasoning_effort"] = effort
    text = _part(body, "text", "format", "verbosity")
    if "format" in text:
        form = _dict(text["format"], "body.text.format")
        inner = {name: value for name, value in form.items() if name != "type"}
        fields["response_format"] = {"type": form.get("type"), **({"json_schema": inner} if inner else {})}
    if "verbosity" in text:
        fields["for_openai"] = {"verbosity": text["verbosity"]}
    return fields


def _response_item(item: Any, where: str) -> dict[str, Any]:
    item = _dict(item, where)
    match item.get("type", "message"):
        case "message":
            parts = item.get("content")
            if isinstance(parts, list):
                parts = [_response_part(part, f"{where}.content.{i}") for i, part in enumerate(parts)]
            return {"role": item.get("role"), "content": parts}
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            return {"role": "assistant", "tool_calls": [call]}
        case "function_call_output":
            return {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
        case _:
            raise Unusable(f"{where}.type: only messages, function calls and their outputs are supported")


def _response_part(part: Any, where: str) -> dict[str, Any]:
    part = _dict(part, where)
    match part.get("type"):
        case "input_text" | "output_text":
            return {"type": "text", "text": part.get("text")}
        case "input_image":
            image = {"url": part.get("image_url"), "detail": part.get("detail")}
            return {"type": "image_url", "image_url": image}
        case _:
            raise Unusable(f"{where}.type: only input_text, input_image and output_text are supported")


def _response_tool(tool: Any) -> dict[str, Any]:
    tool = _dict(tool, "body.tools")
    if tool.get("type") != "function":
        raise Unusable("body.tools: only function tools are supported")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _tool_choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    name = choice.get("name") or _dict(choice.get("function", {}), "body.tool_choice.function").get("name")
    if choice.get("type") != "function" or name is None:
        raise Unusable("body.tool_choice: only a mode or one function is supported")
    return name


def _part(body: Mapping[str, Any], name: str, *known: str) -> dict[str, Any]:
    """An object within the body, without what is null."""
    given = {key: value for key, value in _dict(body.get(name, {}), f"body.{name}").items() if value is not None}
    if unknown := given.keys() - set(known):
        raise Unusable(f"body.{name}.{min(unknown)}: unknown or unsupported field")
    return given


def _dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unusable(f"{where}: must be a JSON object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise Unusable(f"{where}: must be a JSON array")
    return value
