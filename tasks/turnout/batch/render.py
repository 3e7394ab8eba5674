"""One outcome → one line of output, plain or in the OpenAI Batch format. Pure."""

from __future__ import annotations

import json
from typing import Any

from turnout.batch.line import Format, Line
from turnout.batch.openai_response import response_body
from turnout.request import MICROUSD_PER_USD, InferenceResponse
from turnout.result import Attempt, JobResult, JobStatus, Problem
from turnout.value import compact_json

_CONTENT = {"text", "tool_calls", "refusal", "reasoning_content", "embeddings", "finish", "warnings"}
_CALLERS_FAULT = {"invalid_request", "context_length", "content_filtered", "unsupported"}
"""Failures for which OpenAI's error lines carry a 400; any other failed call gets a 500."""
_OPENAI_CODES = {
    "context_length": "context_length_exceeded",
    "content_filtered": "content_filter",
    "rate_limited": "rate_limit_exceeded",
    "billing": "insufficient_quota",
    "unauthorized": "invalid_api_key",
}
"""OpenAI's names for failures that we name differently, for programs that expect them. Our `unsupported` has
several."""


def never_run(problem: Problem) -> JobResult:
    """The result of a line that can't be run: it failed, and never was a job."""
    return JobResult(id="", status=JobStatus.FAILED, error=problem)


def render(line: Line, result: JobResult) -> bytes:
    """The line of output, with its newline."""
    return _written(_openai(line, result) if line.format is Format.OPENAI else _plain(line, result))


def reason(rendered: bytes) -> str:
    """Why a line of output has no answer."""
    value = json.loads(rendered)
    message: str = (value["error"] or value["response"]["body"]["error"])["message"]
    return message


def moved(rendered: bytes, line: Line) -> bytes:
    """A line of output whose line of the input has moved."""
    if line.format is Format.OPENAI:
        return rendered
    return _written(json.loads(rendered) | {"id": line.id, "line": line.number})


def copied(rendered: bytes, line: Line) -> bytes:
    """The same answer for another line with the same request: it cost nothing more, and took no attempt."""
    value = json.loads(rendered)
    if line.format is Format.OPENAI:
        value |= {"id": f"{value['id']}_{line.number}", "custom_id": line.custom_id}
    else:
        value |= {"id": line.id, "line": line.number, "cost_usd": 0.0, "unsure_usd": 0.0, "attempts": []}
    return _written(value)


def _written(value: dict[str, Any]) -> bytes:
    return compact_json(value).encode(errors="replace") + b"\n"


def _plain(line: Line, result: JobResult) -> dict[str, Any]:
    return {"id": line.id, "line": line.number, **result_fields(result)}


def result_fields(result: JobResult) -> dict[str, Any]:
    """How a job ended, in plain values, without its id."""
    response, last = result.response, result.attempts[-1] if result.attempts else None
    error = result.error
    return {
        "metadata": result.metadata,
        "status": result.status.value,
        "response": _content(response) if response else None,
        "provider": response.provider if response else last and last.provider,
        "model": response.model_requested if response else last and last.model,
        "usage": response.usage.model_dump(mode="json", exclude_defaults=True) if response else None,
        "cost_usd": _usd(result.cost_microusd) if not response or response.cost_microusd is not None else None,
        "unsure_usd": _usd(result.unsure_microusd),
        "attempts": [_attempt(attempt) for attempt in result.attempts],
        "latency_s": round(response.latency_s, 3) if response else None,
        "simulated": response.simulated if response else None,
        "error": error.model_dump(mode="json", include={"code", "message"}) if error else None,
    }


def _content(response: InferenceResponse) -> dict[str, Any]:
    content = response.model_dump(mode="json", include=_CONTENT, exclude_defaults=True) | {"text": response.text}
    if response.tool_calls:  # complete, so that they can be sent back as they are
        content["tool_calls"] = [call.model_dump(mode="json") for call in response.tool_calls]
    return content


def _usd(microusd: int) -> float:
    return microusd / MICROUSD_PER_USD


def _attempt(attempt: Attempt) -> dict[str, Any]:
    fields: dict[str, Any] = {"endpoint": attempt.endpoint, "duration_s": round(attempt.duration_s, 3)}
    if attempt.failure is not None:
        fields |= {"failure": attempt.failure, "message": attempt.message}
    return fields


def _extension(response: InferenceResponse) -> dict[str, Any]:
    """What OpenAI's format has no place for, under a name that its readers ignore; empty if there is nothing."""
    fields: dict[str, Any] = {"warnings": response.warnings} if response.warnings else {}
    if (source := response.usage.source) != "reported":
        fields["usage"] = {"source": source}
    return {"turnout": fields} if fields else {}


def _openai(line: Line, result: JobResult) -> dict[str, Any]:
    id = result.id or f"line-{line.number}"
    value: dict[str, Any] = {"id": f"batch_req_{id}", "custom_id": line.custom_id, "response": None, "error": None}
    problem = result.error or Problem(code=result.status.value, message=result.status.value)
    if (response := result.response) is not None:
        created = int(result.settled_at or 0)
        request_id = response.request_id or id
        value["response"] = {
            "status_code": 200,
            "request_id": f"simulated-{request_id}" if response.simulated else request_id,
            "body": response_body(line.url, response, id, created),
        }
        value |= _extension(response)
    elif result.status is JobStatus.FAILED and result.attempts:
        status, kind = (400, "invalid_request_error") if problem.code in _CALLERS_FAULT else (500, "server_error")
        code = _OPENAI_CODES.get(problem.code, problem.code)
        error = {"message": problem.message, "type": kind, "param": None, "code": code}
        value["response"] = {"status_code": status, "request_id": id, "body": {"error": error}}
    else:
        codes = {JobStatus.EXPIRED: "batch_expired", JobStatus.CANCELLED: "batch_cancelled"}
        value["error"] = {"code": codes.get(result.status, problem.code), "message": problem.message}
    return value
