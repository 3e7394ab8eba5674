"""One line of a batch file → one request, or the reason why it isn't one. Pure, and never raises.

Three formats, recognized by a file's name or by its first legible line:

    plain    {"prompt" | "messages" | "input": …, "model": …, "constraints": {…}, "id": …}, or a JSON string
    openai   {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    text     each line is a prompt as it stands (a file named .txt)
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from turnout.batch import openai_request
from turnout.batch.ids import legible_id, usable_id
from turnout.batch.line import BadLine, Defaults, Format, Line, RawLine, RequestOrProblem
from turnout.request import InferenceRequest, merged_fields
from turnout.result import Problem
from turnout.validation import MAX_ID_CHARS, explain


def detect(line: bytes) -> Format | None:
    """The format of a file, if this line shows it."""
    try:
        value = from_json(line.removeprefix(BOM_UTF8))
    except ValueError:
        return Format.OPENAI if line.startswith(b'{"custom_id"') else None
    if isinstance(value, dict) and value.keys() & {"custom_id", "body"}:
        return Format.OPENAI
    return Format.PLAIN if isinstance(value, dict | str) else None


def parse(raw: RawLine, defaults: Defaults = Defaults()) -> tuple[Line, RequestOrProblem]:
    """Read one line. One that can't be run keeps its id if that is legible."""
    number, data, format = raw.number, raw.data, raw.format
    try:
        if len(data) > raw.max_bytes:
            raise BadLine(
                f"the line is longer than {raw.max_bytes:,} bytes; --max-line-bytes allows longer ones", "too_large"
            )
        if raw.flaw:
            raise BadLine(raw.flaw)
        if format is Format.TEXT:
            line, fields = Line(number, None, format), {"prompt": _as_text(data)}
        else:
            line, fields = (_openai if format is Format.OPENAI else _plain)(_decoded(data), number)
        return line, _request(fields, defaults)
    except BadLine as error:
        problem = Problem(code=error.code, message=f"line {number}: {error.message}")
        return Line(number, legible_id(data, format), format), problem


def _decoded(raw: bytes) -> Any:
    """The value of JSON that any reader accepts: no NaN, no lone surrogate, at most some 200 levels deep."""
    try:
        return from_json(raw.removeprefix(BOM_UTF8), allow_inf_nan=False)
    except ValueError as error:
        raise BadLine(f"not JSON: {error}".replace(" line 1 column", " column"), "invalid_json") from None


def _as_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadLine(f"byte {error.start + 1} is not valid UTF-8") from None


def _plain(value: Any, number: int) -> tuple[Line, dict[str, Any]]:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise BadLine(f"must be a JSON object or string, not {_kind(value)}")
    custom_id = None
    if (id := value.pop("id", None)) is not None and (custom_id := usable_id(id)) is None:
        raise BadLine(f"id: must be a whole number, or 1 to {MAX_ID_CHARS} printable characters")
    return Line(number, custom_id), value


def _openai(value: Any, number: int) -> tuple[Line, dict[str, Any]]:
    if not isinstance(value, dict):
        raise BadLine(f"must be a JSON object, not {_kind(value)}")
    if "params" in value:
        raise BadLine(
            "params: Anthropic's batch format isn't supported; use OpenAI's, or the plain one, "
            'for any provider: {"id": …, "messages": […], "model": …}'
        )
    if unknown := value.keys() - {"custom_id", "method", "url", "body", "constraints"}:
        raise BadLine(f"{min(unknown)}: unknown field")
    custom_id = usable_id(value.get("custom_id"))
    if not isinstance(custom_id, str):
        raise BadLine(f"custom_id: must be a string of 1 to {MAX_ID_CHARS} printable characters")
    if value.get("method", "POST") != "POST":
        raise BadLine('method: must be "POST"')
    url, body = value.get("url"), value.get("body")
    if not isinstance(body, dict):
        raise BadLine(f"body: must be a JSON object, not {_kind(body)}")
    fields = openai_request.request_fields(url, body)
    if (constraints := value.get("constraints")) is not None:
        fields["constraints"] = constraints
    return Line(number, custom_id, Format.OPENAI, str(url)), fields


_NULLS_KEPT = {"tools", "response_format", "extras"}
"""Fields with JSON schemas and vendors' own options, in which null may have a meaning."""


def _without_nulls(value: Any) -> Any:
    """Null means absent, at any depth, as in the struct of a Parquet row."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list) else value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _request(fields: dict[str, Any], defaults: Defaults) -> InferenceRequest:
    own = {
        name: value if name in _NULLS_KEPT else _without_nulls(value)
        for name, value in fields.items()
        if value is not None
    }
    merged = merged_fields(defaults.request, {"constraints": defaults.constraints}, own)
    try:
        # Through JSON, which is validated with strict types, while Python's objects are not.
        text = json.dumps(merged, ensure_ascii=False, allow_nan=False).encode()
        return InferenceRequest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise BadLine(explain(error)) from None
    except ValueError:
        raise BadLine("a text is not UTF-8, or a number is too large") from None
