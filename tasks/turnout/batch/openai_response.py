"""Our responses → OpenAI's own bodies: chat completions, embeddings, responses. Pure."""

from __future__ import annotations

from typing import Any

from turnout.batch.openai_request import EMBEDDINGS, RESPONSES
from turnout.request import FinishReason, InferenceResponse

_ECHOED: dict[str, Any] = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "metadata": {}}
"""What OpenAI's answer repeats of its request, with the defaults."""


def response_body(url: str, response: InferenceResponse, job_id: str, created: int) -> dict[str, Any]:
    """The body that OpenAI's own endpoint would have answered with."""
    if url == EMBEDDINGS:
        return _embeddings_body(response)
    return (_response_body if url == RESPONSES else _completion_body)(response, job_id, created)


def _completion_body(response: InferenceResponse, job_id: str, created: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": response.text if response.text or not response.tool_calls else None,
        "refusal": response.refusal,
    }
    if response.tool_calls:
        message["tool_calls"] = [call.model_dump(mode="json") for call in response.tool_calls]
    if response.reasoning_content is not None:  # where DeepSeek puts it
        message["reasoning_content"] = response.reasoning_content
    finish = response.finish if response.finish in ("length", "tool_calls", "content_filter") else "stop"
    usage = response.usage
    return {
        "id": f"chatcmpl-{job_id}",
        "object": "chat.completion",
        "created": created,
        "model": response.model_served,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": str(finish)}],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        },
        "system_fingerprint": f"turnout:{'simulated:' if response.simulated else ''}{response.provider}",
    }


def _embeddings_body(response: InferenceResponse) -> dict[str, Any]:
    vectors = enumerate(response.embeddings)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in vectors],
        "model": response.model_served,
        "usage": {"prompt_tokens": response.usage.input_tokens, "total_tokens": response.usage.total_tokens},
    }


def _response_body(response: InferenceResponse, job_id: str, created: int) -> dict[str, Any]:
    cut = {FinishReason.LENGTH: "max_output_tokens", FinishReason.CONTENT_FILTER: "content_filter"}
    reason = cut.get(response.finish)
    status = "incomplete" if reason else "completed"
    content: list[dict[str, Any]] = []
    if response.text:
        content.append({"type": "output_text", "text": response.text, "annotations": []})
    if response.refusal:
        content.append({"type": "refusal", "refusal": response.refusal})
    output: list[dict[str, Any]] = []
    if content or not response.tool_calls:
        message = {"type": "message", "id": f"msg_{job_id}", "role": "assistant"}
        output.append({**message, "status": status, "content": content})
    for i, call in enumerate(response.tool_calls):
        called = {"id": f"fc_{job_id}_{i}", "call_id": call.id, **call.function.model_dump()}
        output.append({"type": "function_call", **called, "status": "completed"})
    usage = response.usage
    of_input = {"cached_tokens": usage.cache_read_tokens, "cache_write_tokens": usage.cache_write_tokens}
    return {
        "id": f"resp_{job_id}",
        "object": "response",
        "created_at": created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": response.model_served,
        "output": output,
        **_ECHOED,
        "usage": {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": of_input,
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        },
    }
