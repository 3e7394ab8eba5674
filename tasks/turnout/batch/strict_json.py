"""JSON within limits. What passes can be stored, sent on and written again."""

from __future__ import annotations

import json
from typing import Any

from turnout.batch.line import Unusable

MAX_DEPTH = 64


def decoded(raw: bytes) -> Any:
    """The value. Raises Unusable."""
    too_deep = Unusable(f"nested deeper than {MAX_DEPTH} levels", "too_deep")
    try:
        value = _DECODER.decode(as_text(raw))
    except json.JSONDecodeError as error:
        raise Unusable(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}", "invalid_json") from None
    except RecursionError:
        raise too_deep from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise too_deep
    return value


def as_text(raw: bytes) -> str:
    """The line as text. Raises Unusable."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unusable(f"byte {error.start + 1} is not valid UTF-8", "invalid_utf8") from None


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise Unusable("a whole number has more than 64 bits", "invalid_number")
    return int(digits)


def _not_a_number(name: str) -> float:
    raise Unusable(f"{name} is no JSON number", "invalid_number")


_DECODER = json.JSONDecoder(parse_int=_int64, parse_constant=_not_a_number)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
    return depth
