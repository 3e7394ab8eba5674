"""Requests as the ledger stores them: whatever can be asked is read again as it was."""

from __future__ import annotations

from typing import Any

import pytest

from turnout.request import InferenceRequest

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
CALL = {"id": "call-1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"input": ["a", "b"], "dimensions": 8},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE]}]},
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "call-1"}]},
        {"prompt": "a", "tools": [{"function": {"name": "weather"}}], "tool_choice": "weather"},
        {"prompt": "a", "response_format": {"type": "json_schema", "json_schema": SCHEMA}},
        {"prompt": "a", "model": ["x", "y"], "extras": {"acme": {"k": [1]}}, "metadata": {"k": "v"}},
        {"prompt": "a", "constraints": {"capabilities": ["tools", "vision"], "deadline": "2030-01-31T12:00:00Z"}},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_a_request_is_read_again_as_it_was_stored(fields: dict[str, Any]) -> None:
    request = InferenceRequest.model_validate(fields)
    assert InferenceRequest.model_validate_json(request.canonical_json()) == request
