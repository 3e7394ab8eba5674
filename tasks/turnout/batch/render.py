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
"""OpenAI's error lines carry a 400 for a job that failed as these, a 500 for any other that was called."""
_OPENAIS_CODE = {
    "context_length": "context_length_exceeded",
    "content_filtered": "content_filter",
    "rate_limited": "rate_limit_exceeded",
    "billing": "insufficient_quota",
    "unauthorized": "invalid_api_key",
}
"""Its names of failures that we call otherwise, for those who look for them. What we call `unsupported` has several."""


def never_run(problem: Problem) -> JobResult:
    """A line that can't be run ends as a failed one, and never was a job."""
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
    """A line of output, where its line of the input has moved."""
    if line.format is Format.OPENAI:
        return rendered
    return _written(json.loads(rendered) | {"id": line.id, "line": line.number})


def copied(rendered: bytes, line: Line) -> bytes:
    """A line of output, as a further line of the same request has it: it cost nothing more, and took no attempt."""
    value = json.loads(rendered)
    if line.format is Format.OPENAI:
        value |= {"id": f"{value['id']}_{line.number}", "custom_id": line.custom_id}
    else:
        value |= {"id": line.id, "line": line.number, "cost_usd": 0.0, "unsure_usd": 0.0, "attempts": []}
    return _written(value)


def _written(value: dict[str, Any]) -> bytes:
    return compact_json(value).encode(errors="replace") + b"\n"


def _plain(line: Line, result: JobResult) -> dict[str, Any]:
    return {"id": line.id, "line": line.number, **told(result)}


def told(result: JobResult) -> dict[str, Any]:
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
    told = response.model_dump(mode="json", include=_CONTENT, exclude_defaults=True) | {"text": response.text}
    if response.tool_calls:  # whole, so that they can be given back as they are
        told["tool_calls"] = [call.model_dump(mode="json") for call in response.tool_calls]
    return told


def _usd(microusd: int) -> float:
    return microusd / MICROUSD_PER_USD


def _attempt(attempt: Attempt) -> dict[str, Any]:
    told: dict[str, Any] = {"endpoint": attempt.endpoint, "duration_s": round(attempt.duration_s, 3)}
    if attempt.failure is not None:
        told |= {"failure": attempt.failure, "message": attempt.message}
    return told


def _beside(response: InferenceResponse) -> dict[str, Any]:
    """What OpenAI's format has no place for, under a name that its readers pass over; nothing if there is nothing."""
    told: dict[str, Any] = {"warnings": response.warnings} if response.warnings else {}
    if (source := response.usage.source) != "reported":
        told["usage"] = {"source": source}
    return {"turnout": told} if told else {}


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
        value |= _beside(response)
    elif result.status is JobStatus.FAILED and result.attempts:
        status, kind = (400, "invalid_request_error") if problem.code in _CALLERS_FAULT else (500, "server_error")
        code = _OPENAIS_CODE.get(problem.code, problem.code)
        error = {"message": problem.message, "type": kind, "param": None, "code": code}
        value["response"] = {"status_code": status, "request_id": id, "body": {"error": error}}
    else:
        ended = {JobStatus.EXPIRED: "batch_expired", JobStatus.CANCELLED: "batch_cancelled"}
        value["error"] = {"code": ended.get(result.status, problem.code), "message": problem.message}
    return value
