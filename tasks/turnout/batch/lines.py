"""One line of a batch file → one request, or the reason why it is none. Pure, and never raises.

Three formats, told apart by a file's first line:

    plain    {"prompt" | "messages" | "input": …, "model": …, "constraints": {…}, "id": …}, or a JSON string
    openai   {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    text     each line is a prompt as it stands (only when asked for, or by the suffix .txt)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import JsonValue, ValidationError

from turnout.batch import openai_format
from turnout.request import InferenceRequest

MAX_LINE_BYTES = 1_000_000
MAX_DEPTH = 64
MAX_ID_CHARS = 512
HASH_BITS = 2**60 - 1
"""As many as Python keeps in 32 bytes: two of a million ids are taken for one with a probability of 10⁻⁶."""


class Format(StrEnum):
    PLAIN = "plain"
    OPENAI = "openai"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds for every line that doesn't say otherwise: fields of the request and of its constraints."""

    request: Mapping[str, JsonValue] = field(default_factory=dict)
    constraints: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """A good line."""

    line: int
    """From 1, as an editor counts."""
    custom_id: str | int | None
    """The caller's own id (`custom_id`, or `id` in plain lines), given back with the result."""
    request: InferenceRequest
    format: Format = Format.PLAIN
    url: str = ""
    """OpenAI format: the endpoint, on which the shape of the answer depends."""
    base64: bool = False
    """OpenAI format: embeddings were asked for in base64."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that can't be run. Its `message` holds nothing of the line's content but names of fields."""

    line: int
    custom_id: str | int | None
    code: str
    message: str
    format: Format = Format.PLAIN


class _Unusable(Exception):
    """Why a line is bad: code and message."""


def detect(first_line: bytes) -> Format:
    """The format of a file, by its first line."""
    try:
        value = json.loads(first_line)
    except (ValueError, RecursionError):
        return Format.OPENAI if first_line.lstrip().startswith(b'{"custom_id"') else Format.PLAIN
    openai_fields = {"custom_id", "method", "url", "body"}
    if isinstance(value, dict) and len(openai_fields & value.keys()) >= 2:
        return Format.OPENAI
    return Format.PLAIN


def parse(raw: bytes, line: int, format: Format, defaults: Defaults = Defaults()) -> Item | BadLine:
    """Read line number `line`. What can't be run comes back as a `BadLine`, with its id where one is legible."""
    try:
        if len(raw) > MAX_LINE_BYTES:
            raise _Unusable("too_large", f"the line is longer than {MAX_LINE_BYTES:,} bytes")
        if format is Format.TEXT:
            return Item(line, None, _request({"prompt": _text(raw)}, defaults), format)
        value = _value(raw)
        return _openai(value, line, defaults) if format is Format.OPENAI else _plain(value, line, defaults)
    except _Unusable as error:
        code, message = error.args
        return BadLine(line, _legible_id(raw, format), code, f"line {line}: {message}", format)


def job_id(batch: str, item: Item, payload: str, dedupe: bool = False) -> str:
    """The same line of the same batch always gives the same id, so that a rerun finds its job.

    payload: the canonical JSON of its request. dedupe: lines that ask for the very same answer share one job.
    """
    which = f"{item.url}\0{item.base64}" if dedupe else item.line
    return hashlib.sha256(f"{batch}\0{which}\0{payload}".encode()).hexdigest()[:32]


def short(job_id: str) -> int:
    """Enough of it to tell a batch's jobs apart, in little memory."""
    return int(job_id[:15], 16)


class Uniqueness:
    """Remembers which line used an id first: hashes only, about 100 bytes an id."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def note(self, custom_id: str | int | None, line: int) -> int:
        """The line that used it first: this one, or an earlier one."""
        if custom_id is None:
            return line
        return self._first.setdefault(hash((type(custom_id), custom_id)) & HASH_BITS, line)

    def check(self, item: Item | BadLine) -> Item | BadLine:
        """The same line, or a BadLine where its id was used on an earlier one."""
        first = self.note(item.custom_id, item.line)
        if first == item.line or isinstance(item, BadLine):
            return item
        message = f"line {item.line}: id {item.custom_id!r} was used on line {first} already; ids must be unique"
        return BadLine(item.line, item.custom_id, "duplicate_custom_id", message, item.format)


# --- JSON, within limits ---------------------------------------------------------------------------------


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise _Unusable("invalid_number", "a whole number has more than 64 bits")
    return int(digits)


def _not_a_number(name: str) -> float:
    raise _Unusable("invalid_number", f"{name} is no JSON number")


_STRICT = json.JSONDecoder(parse_int=_int64, parse_constant=_not_a_number)
_LENIENT = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 20 else None)
_LEADING_ID = re.compile(rb'\s*\{\s*"(?:custom_id|id)"\s*:\s*("(?:[^"\\]|\\.)*")')


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Unusable("invalid_utf8", f"byte {error.start + 1} is not valid UTF-8") from None


def _value(raw: bytes) -> Any:
    text = _text(raw)
    too_deep = _Unusable("too_deep", f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise _Unusable("invalid_json", f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise too_deep from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise too_deep
    return value


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return depth


def _legible_id(raw: bytes, format: Format) -> str | int | None:
    """The id of a bad line: its field, or in broken JSON the text that it opens with, and never a guess."""
    if format is Format.TEXT:
        return None
    try:
        value = _LENIENT.decode(raw.decode("utf-8-sig")) if len(raw) <= MAX_LINE_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return _usable_id(value.get("custom_id" if format is Format.OPENAI else "id"))
    return _leading_id(raw)


def known_id(raw: bytes, format: Format) -> str | int | None:
    """The id of a line that was read once before: quickly."""
    return (None if format is Format.TEXT else _leading_id(raw)) or _legible_id(raw, format)


def _leading_id(raw: bytes) -> str | int | None:
    if match := _LEADING_ID.match(raw):
        try:
            return _usable_id(json.loads(match[1]))
        except ValueError:
            return None
    return None


def _usable_id(value: Any) -> str | int | None:
    if isinstance(value, str):
        return value if 0 < len(value) <= MAX_ID_CHARS and value.isprintable() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# --- the formats -----------------------------------------------------------------------------------------


def _plain(value: Any, line: int, defaults: Defaults) -> Item:
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise _Unusable("invalid_request", f"must be a JSON object or string, not {_kind(value)}")
    custom_id = None
    if (given := value.pop("id", None)) is not None and (custom_id := _usable_id(given)) is None:
        message = f"id: must be a whole number, or 1 to {MAX_ID_CHARS} printable characters"
        raise _Unusable("invalid_request", message)
    return Item(line, custom_id, _request(value, defaults), Format.PLAIN)


def _openai(value: Any, line: int, defaults: Defaults) -> Item:
    if not isinstance(value, dict):
        raise _Unusable("invalid_request", f"must be a JSON object, not {_kind(value)}")
    if unknown := value.keys() - {"custom_id", "method", "url", "body", "constraints"}:
        raise _Unusable("invalid_request", f"{min(unknown)}: unknown field")
    custom_id = _usable_id(value.get("custom_id"))
    if not isinstance(custom_id, str):
        raise _Unusable("invalid_request", f"custom_id: must be 1 to {MAX_ID_CHARS} printable characters")
    if value.get("method", "POST") != "POST":
        raise _Unusable("invalid_request", 'method: must be "POST"')
    url, body = value.get("url"), value.get("body")
    if not isinstance(body, dict):
        raise _Unusable("invalid_request", f"body: must be a JSON object, not {_kind(body)}")
    try:
        fields = openai_format.request_fields(url, body)
    except openai_format.Unmappable as error:
        raise _Unusable("invalid_request", str(error)) from None
    if (constraints := value.get("constraints")) is not None:
        fields["constraints"] = constraints
    base64 = body.get("encoding_format") == "base64"
    return Item(line, custom_id, _request(fields, defaults), Format.OPENAI, str(url), base64)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _request(fields: dict[str, Any], defaults: Defaults) -> InferenceRequest:
    fields = {**defaults.request, **fields}
    if isinstance(own := fields.get("constraints", {}), dict):
        fields["constraints"] = {**defaults.constraints, **own}
    try:
        # Written out once more, for two checks at once: JSON has strict types where Python's objects don't,
        # and a lone surrogate or an overflown number can be read but not written.
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
        return InferenceRequest.model_validate_json(text, strict=True)
    except UnicodeEncodeError:
        raise _Unusable("invalid_text", "a text has half a surrogate pair, which is no character") from None
    except ValidationError as error:
        raise _Unusable("invalid_request", explain(error)) from None
    except ValueError:
        raise _Unusable("invalid_number", "a number is too large") from None


_UNION_MEMBERS = {"str", "int", "float", "bool", "list", "dict", "none"}


def explain(error: ValidationError) -> str:
    """The most telling problems by field, without any of the input's content."""
    found: dict[tuple[str, ...], str] = {}
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        path: tuple[str, ...] = ()
        for part in map(str, problem["loc"]):
            # A union adds its members' names to the path: `str`, `tuple[…]`, or a tag equal to its field.
            if part not in _UNION_MEMBERS and "[" not in part and part not in path[-1:]:
                path += (part[:100],)
        unknown = problem["type"] == "extra_forbidden"
        found.setdefault(path, "unknown field" if unknown else problem["msg"].removeprefix("Value error, "))
    deepest = {p: m for p, m in found.items() if not any(q[: len(p)] == p and q != p for q in found)}
    told = [f"{'.'.join(path)}: {message}" if path else message for path, message in deepest.items()]
    return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")
