"""What an error response means to the router: status, headers and body become a `Failure`.

Status codes alone mislead: a 429 may be an empty account, a 400 a bad key. So the vendor's own codes and words
come first. The order of the tests is the order of belief.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from turnout_workers.providers.retry_after import retry_after_s
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope

MESSAGE_LENGTH = 500
DAY_QUOTA_S = 3600.0

_BILLING = (
    "insufficient_quota", "credit_balance_exhausted", "spend_limit_exceeded", "usage_limit_exceeded",
    "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "spend_limit_reached",
    "billing_unavailable", "organization_on_hold", "billing_error",
)  # fmt: skip
_BILLING_WORDS = (
    "specified api usage limits", "specified workspace api usage limits", "credit balance is too low",
)  # fmt: skip
_AUTH = ("invalid_api_key", "api_key_invalid", "unauthenticated", "authentication_error", "invalid_authentication")
_CONTEXT = (
    "context_length_exceeded", "model_context_window_exceeded", "string_above_max_length",
    "exceed_context_size_error",
)  # fmt: skip
_CONTEXT_WORDS = (
    "maximum context length", "prompt is too long", "input token count", "exceeds the maximum number of tokens",
    "context window", "reduce the length of the messages", "exceeds the available context size",
)  # fmt: skip
_CONTENT = (
    "content_filter",
    "content_policy_violation",
    "responsibleaipolicyviolation",
    "invalid_prompt",
    "moderation",
)
_MODEL = (
    "model_not_found", "unknown_model", "invalid_model", "model_decommissioned", "deploymentnotfound",
    "model_terms_required",
)  # fmt: skip
_STATUSES = frozenset(map(str, range(400, 600)))
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
_UNSUPPORTED_WORDS = (
    "extra inputs are not permitted", "is not supported with this model", "not supported by this model",
    "does not support",
)  # fmt: skip


def classify(status: int, headers: Mapping[str, str], body: Any, now: float, scrub: tuple[str, ...] = ()) -> Failure:
    """The failure that a response stands for. `body`: parsed JSON, or text. `scrub`: texts never to be shown."""
    kind_word, code, said = _envelope(body)
    if status == 200 and code in _STATUSES:  # an error in what began as an answer
        status = int(code)
    words = said.lower()
    wait_s = retry_after_s(headers, body, now)
    request_id = headers.get("x-request-id") or headers.get("request-id")
    message = scrubbed(said or f"HTTP {status}", scrub)

    def failure(
        kind: FailureKind, billed: Billed = Billed.NO, scope: Scope = Scope.ENDPOINT, after_s: float | None = wait_s
    ) -> Failure:
        return Failure(kind, message, billed, scope, after_s, status, request_id)

    def named(codes: tuple[str, ...]) -> bool:
        return any(known in kind_word or known in code for known in codes)

    if named(_BILLING) or status == 402 or any(text in words for text in _BILLING_WORDS):
        if status == 402 and wait_s is not None:  # OpenRouter: money of calls in flight, free again in a moment
            return failure(FailureKind.RATE_LIMITED, scope=Scope.ACCOUNT)
        return failure(FailureKind.BILLING, scope=Scope.ACCOUNT)
    if status == 401 or named(_AUTH) or "api key not valid" in words:
        return failure(FailureKind.UNAUTHORIZED, scope=Scope.ACCOUNT)
    if named(_CONTEXT) or (status in (400, 413, 422) and any(text in words for text in _CONTEXT_WORDS)):
        return failure(FailureKind.CONTEXT_LENGTH)
    if named(_CONTENT) or (status == 403 and ("moderation" in words or "flagged" in words)):
        return failure(FailureKind.CONTENT_FILTERED)
    if named(_MODEL) or status == 404:
        return failure(FailureKind.MODEL_NOT_FOUND)
    if status == 403 or kind_word == "permission_denied":
        return failure(FailureKind.FORBIDDEN, scope=Scope.ENDPOINT if "model" in words else Scope.ACCOUNT)
    if status == 413:
        return failure(FailureKind.CONTEXT_LENGTH)
    if status == 429 or kind_word in ("rate_limit_error", "resource_exhausted"):
        return _rate_limit(body, words, wait_s, failure)
    if status in (498, 503, 529) or kind_word == "overloaded_error" or code in ("server_is_overloaded", "slow_down"):
        return failure(FailureKind.OVERLOADED)
    if status in (408, 504, 524) or kind_word in ("timeout_error", "deadline_exceeded"):
        return failure(FailureKind.TIMED_OUT, Billed.MAYBE)
    if status in (409, 425):
        return failure(FailureKind.CONFLICT)
    if status == 424 or status >= 500 or kind_word in ("api_error", "server_error", "internal", "unavailable"):
        return failure(FailureKind.SERVER_ERROR, Billed.MAYBE)
    if kind_word == "failed_precondition":  # Gemini: billing is not enabled for this project or region
        return failure(FailureKind.BILLING, scope=Scope.ACCOUNT)
    if named(_UNSUPPORTED) or any(text in words for text in _UNSUPPORTED_WORDS):
        return failure(FailureKind.UNSUPPORTED)
    if 300 <= status < 400:
        return failure(FailureKind.MALFORMED)  # a redirect is not followed: it could lead anywhere
    if status == 200 and "invalid" not in kind_word:
        return failure(FailureKind.SERVER_ERROR, Billed.MAYBE)  # nothing says that it was the request's fault
    return failure(FailureKind.INVALID_REQUEST)


def _rate_limit(body: Any, words: str, wait_s: float | None, failure: Any) -> Failure:
    if "limit: 0" in words:  # Gemini: this account has no quota at all for this model
        return failure(FailureKind.MODEL_NOT_FOUND)  # type: ignore[no-any-return]
    if "request too large" in words:
        return failure(FailureKind.CONTEXT_LENGTH)  # type: ignore[no-any-return]
    if "PerDay" in json.dumps(body):
        return failure(FailureKind.QUOTA_EXHAUSTED, after_s=max(wait_s or 0.0, DAY_QUOTA_S))  # type: ignore[no-any-return]
    return failure(FailureKind.RATE_LIMITED)  # type: ignore[no-any-return]


def _envelope(body: Any) -> tuple[str, str, str]:
    """Type or status word, code, and message, out of any vendor's error body. The first two in lower case."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]  # Gemini, sometimes
    if not isinstance(body, dict):
        return "", "", body if isinstance(body, str) else ""
    error = body.get("error", body)
    if isinstance(error, str):
        return "", "", error
    if not isinstance(error, dict):
        error = body
    word = error.get("status") if isinstance(error.get("status"), str) else error.get("type")
    details, code = error.get("details"), error.get("code")
    if isinstance(details, dict):
        code = details.get("error_code") or code
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and detail.get("reason"):
            code = detail["reason"]
    inner = error.get("innererror") or error.get("inner_error")
    if isinstance(inner, dict) and inner.get("code"):
        code = f"{code} {inner['code']}"
    said = error.get("message") or body.get("detail") or ""
    text = said if isinstance(said, str) else json.dumps(said)
    return str(word or "").lower(), str("" if code is None else code).lower(), text


_KEY = re.compile(r"\b(?:sk|gsk|key|AIza|xai|r8|csk|fw|tgp)[-_][A-Za-z0-9_*.-]{8,}|\bAIza[A-Za-z0-9_-]{20,}")


def scrubbed(text: str, secrets: tuple[str, ...] = ()) -> str:
    """The provider's words without our key, anything that looks like one, or a piece of the prompt; bounded."""
    for secret in secrets:
        if len(secret) >= 8:
            text = text.replace(secret, "…")
    text = _KEY.sub("…", " ".join(text.split()))
    return text if len(text) <= MESSAGE_LENGTH else f"{text[: MESSAGE_LENGTH - 1]}…"
