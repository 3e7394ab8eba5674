"""What a failed call means to the router: an error response, or an exception of aiohttp, becomes a `Failure`.

Status codes alone mislead: a 429 may mean an account without credit, a 400 a bad key. So the vendor's own codes and
words come first: the tests are ordered by how far they can be believed.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp

from turnout.request import OPENAI_FIELDS
from turnout_workers.providers.body import at, list_at
from turnout_workers.providers.errors import MAX_ERROR, request_id
from turnout_workers.providers.scrub import scrubbed
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope

_BILLING = (
    "insufficient_quota", "credit_balance_exhausted", "spend_limit_exceeded", "usage_limit_exceeded",
    "billing_hard_limit_reached", "billing_not_active", "account_deactivated", "spend_limit_reached",
    "billing_unavailable", "organization_on_hold", "billing_error", "payment_required", "budget_exceeded",
    "blocked_api_access", "organization_restricted",
)  # fmt: skip
_BILLING_WORDS = (
    "specified api usage limits", "specified workspace api usage limits", "credit balance is too low",
    "insufficient balance", "doesn't have any credits", "monthly spending limit", "spending cap",
    "prepayment credits are depleted", "key limit exceeded", "budget has been exceeded",
)  # fmt: skip
_AUTH = (
    "invalid_api_key", "api_key_invalid", "unauthenticated", "authentication_error", "invalid_authentication",
    "no_db_connection",
)  # fmt: skip
"""The last one is LiteLLM's 400 for a key other than its own, if it has no database of keys."""
_AUTH_WORDS = ("api key not valid", "incorrect api key provided", "organization has been disabled")
_CONTEXT = (
    "context_length_exceeded", "model_context_window_exceeded", "string_above_max_length",
    "exceed_context_size_error",
)  # fmt: skip
_CONTEXT_WORDS = (
    "context length", "prompt is too long", "input token count", "exceeds the maximum number of tokens",
    "context window", "reduce the length of the messages", "exceeds the available context size",
    "maximum prompt length", "maximum model length", "exceed context limit", "`inputs` tokens + `max_new_tokens`",
    "maximum allowed number of output tokens", "model supports at most", "cannot be greater than max_model_len",
)  # fmt: skip
_AZURES_FILTER = "responsibleaipolicyviolation"
"""Azure answers 400, yet bills a prompt that its filter has read."""
_XAIS_FILTER = ("violates usage guidelines", "safety_check_type")
"""xAI answers 403, yet bills a prompt that fails its checks."""
_CONTENT = (
    "content_filter", "content_policy_violation", _AZURES_FILTER, "invalid_prompt", "moderation", "cyber_policy",
)  # fmt: skip
_MODEL = (
    "model_not_found", "unknown_model", "invalid_model", "model_decommissioned", "deploymentnotfound",
    "model_not_available", "model_terms_required", "model_access_denied", "model_not_supported",
)  # fmt: skip
_MODEL_WORDS = (
    "invalid model name passed in", "server is pinned to", "is not a valid model id", "model not exist",
    "supported api model names are", "model not found:", "is not supported by any provider",
)  # fmt: skip
_STATUSES = frozenset(map(str, range(400, 600)))
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
_UNSUPPORTED_WORDS = (
    "extra inputs are not permitted", "unrecognized request argument",
    "is not supported with this model", "not supported by this model",
    "is not supported for this model", "are not supported for this model", "not supported on this model",
    "is not enabled for this model",
    "is deprecated for this model", "to turn thinking off on this model",
    "does not support", "only works in thinking mode", "is unsupported", "type is unavailable now",
    "is not a multimodal model", "image input is not supported", "image urls are only allowed for messages with role",
    "`reasoning_effort` must be one of", "'reasoning_effort' : value is not one of",
    "function tools with reasoning_effort are not", "unsupported json schema", "invalid schema for response_format",
    "output_config.format", "compiled grammar is too large", "too many states for serving",
    "must be passed back to the api",
)  # fmt: skip
_ABOUT_IMAGES = ("image", "mime type")
"""Vendors support different formats, numbers, sizes and places of images, and refuse others in their own words. If a
refusal is about images, another vendor may accept them."""
_OPTIONAL = {name: name for name in ("temperature", "top_p", "stop", "seed", "reasoning_effort", "stream")}
_OPTIONAL |= dict.fromkeys(("effort", "reasoningeffort", "thinking", "thinking_level"), "reasoning_effort")
_OPTIONAL |= dict.fromkeys(("reasoning value", "think value"), "reasoning_effort")
_OPTIONAL |= {"stop_sequences": "stop", "streaming": "stream"} | {name: name for name in OPENAI_FIELDS}
"""Parameters that a call can do without: our name for each name that vendors use."""
_MENTIONED = re.compile(rf"\b({'|'.join(_OPTIONAL.keys() - {'store', 'user'})})\b")
"""Such a name in a message. The two left out are ordinary words, too."""
_MODELS_FAULT = ("json_validate_failed", "tool_use_failed", "output_parse_failed")
"""Groq: the model should have written JSON or a tool call, and didn't."""
_UNREACHED = (
    aiohttp.ClientConnectorError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.NonHttpUrlClientError,
    ValueError,  # an address or header that no request can have
)
_OUR_LIMITS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""This machine can't open another connection. Not EADDRNOTAVAIL: that may mean used-up ports, but also an IPv6 address
without IPv6, and the job would wait as long as that is configured."""
_QUOTATION = re.compile(r"\n|\\n|<Raw| when reading| b['\"]")
"""Where an aiohttp exception begins to quote what it received: an answer, or an echoed prompt or key."""


def classify_response(
    status: int,
    headers: Mapping[str, str],
    body: Any,
    wait_s: float | None,
    scrub: tuple[str, ...],
    has_images: bool,
) -> Failure:
    """The failure that a response stands for.

    body: parsed JSON, or text. scrub: texts that must not be shown. has_images: the request has some.
    """
    kind_word, code, text, upstream = _envelope(body)
    if status == 200 and code in _STATUSES:  # an error in the body of a 200
        status = int(code)
    words = f"{text} {upstream}".lower()
    body_id = at(body, "request_id")
    call_id = request_id({"x-request-id": body_id, **headers} if isinstance(body_id, str) else headers)
    message = scrubbed(text, scrub) or f"HTTP {status}"
    should_retry, parameter = headers.get("x-should-retry"), _parameter(body, words)

    def failure(kind: FailureKind, billed: Billed = Billed.NO, scope: Scope = Scope.ENDPOINT) -> Failure:
        return Failure(kind, message, billed, scope, wait_s, call_id, repeatable=should_retry != "false")

    def named(codes: tuple[str, ...]) -> bool:
        return any(one in kind_word or one in code for one in codes)

    def says(texts: tuple[str, ...]) -> bool:
        return any(text in words for text in texts)

    # Money.
    if named(_BILLING) or status == 402 or says(_BILLING_WORDS):
        if says(("or fewer max_tokens",)):  # OpenRouter
            return failure(FailureKind.UNAFFORDABLE)
        if status == 402 and wait_s is not None:  # OpenRouter: credit held for calls in flight, soon released
            return failure(FailureKind.RATE_LIMITED, scope=Scope.ACCOUNT)
        return failure(FailureKind.BILLING, scope=Scope.ACCOUNT)
    # The key.
    if (status == 401 and not named(_MODEL)) or named(_AUTH) or says(_AUTH_WORDS):
        return failure(FailureKind.UNAUTHORIZED, scope=Scope.ACCOUNT)
    # The request itself.
    if named(_CONTEXT) or (status in (400, 403, 413, 422) and says(_CONTEXT_WORDS)):  # 403: Together
        return failure(FailureKind.CONTEXT_LENGTH)
    if named(_CONTENT) or (status == 403 and says(("moderation", "flagged", *_XAIS_FILTER))):
        has_read = named((_AZURES_FILTER,)) or says(_XAIS_FILTER)
        return failure(FailureKind.CONTENT_FILTERED, Billed.MAYBE if has_read else Billed.NO)
    if says(("no endpoints found that support", "no endpoints found that can handle")):
        return failure(FailureKind.UNSUPPORTED)  # OpenRouter has the model, but not for this request
    if named(_MODEL) or says(_MODEL_WORDS) or status in (404, 405, 410):
        return failure(FailureKind.MODEL_NOT_FOUND)
    if status == 403 and not isinstance(body, dict):  # from a firewall before the API, for this prompt or all calls
        return failure(FailureKind.MALFORMED)
    if status == 403 or kind_word == "permission_denied":
        return failure(FailureKind.FORBIDDEN, scope=Scope.ENDPOINT if "model" in words else Scope.ACCOUNT)
    if status == 413:
        return failure(FailureKind.CONTEXT_LENGTH)
    # Limits.
    if status == 429 or kind_word in ("rate_limit_error", "resource_exhausted"):
        # Gemini, Mistral: this account has no quota at all for this model
        if "limit: 0" in words or headers.get("x-ratelimit-limit-req-minute") == "0":
            return failure(FailureKind.MODEL_NOT_FOUND)
        if "request too large" in words:
            return failure(FailureKind.CONTEXT_LENGTH)
        if "PerDay" in json.dumps(body) or headers.get("x-ratelimit-remaining-tokens-month") == "0":
            return failure(FailureKind.QUOTA_EXHAUSTED)
        return failure(FailureKind.RATE_LIMITED)
    # The server.
    if status in (498, 503, 529) or kind_word == "overloaded_error" or code in ("server_is_overloaded", "slow_down"):
        return failure(FailureKind.OVERLOADED)
    if status in (408, 504, 524) or kind_word in ("timeout_error", "deadline_exceeded"):
        return failure(FailureKind.TIMED_OUT, Billed.MAYBE)
    if status in (409, 425):
        return failure(FailureKind.CONFLICT)
    if named(_UNSUPPORTED) or says(_UNSUPPORTED_WORDS):  # llama.cpp says so with a 500
        return replace(failure(FailureKind.UNSUPPORTED), parameter=parameter)
    unsure = status == 200 and kind_word in ("api_error", "server_error", "internal", "unavailable")
    if status == 424 or status >= 500 or unsure:
        return failure(FailureKind.SERVER_ERROR, Billed.MAYBE)
    if kind_word == "failed_precondition":  # Gemini: billing is not enabled for this project or region
        return failure(FailureKind.BILLING, scope=Scope.ACCOUNT)
    # What is left.
    if named(_MODELS_FAULT):
        return failure(FailureKind.OFF_SCHEMA, Billed.MAYBE)
    if should_retry == "true":
        return failure(FailureKind.CONFLICT)
    if 200 < status < 300:
        return failure(FailureKind.MALFORMED, Billed.MAYBE)
    if status < 200 or 300 <= status < 400 or (status > 400 and status != 422):
        return failure(FailureKind.MALFORMED)  # not from the API itself; no redirect is followed
    if status == 200 and "invalid" not in kind_word:
        return failure(FailureKind.SERVER_ERROR, Billed.MAYBE)  # nothing says that it was the request's fault
    if parameter == "reasoning_effort":  # servers know different values, and each refuses in its own words
        return replace(failure(FailureKind.UNSUPPORTED), parameter="reasoning_effort")
    about_images = has_images and says(_ABOUT_IMAGES)
    return failure(FailureKind.UNSUPPORTED if about_images else FailureKind.INVALID_REQUEST)


def _parameter(body: Any, words: str) -> str | None:
    """The optional parameter that the error is about, by our name: the one in `param`, else the first mentioned."""
    param = at(body, "error", "param")
    mentioned = _MENTIONED.search(words)
    return _OPTIONAL.get(str(param)) or (_OPTIONAL[mentioned[1]] if mentioned and param in (None, "", "None") else None)


def _envelope(body: Any) -> tuple[str, str, str, str]:
    """From any vendor's error body: its type or status word and its code, both in lower case, its message, and, if the
    vendor is itself a router, the message of the provider behind it."""
    if not isinstance(body, dict):
        return "", "", body if isinstance(body, str) else "", ""
    error = body.get("error", body)
    if not isinstance(error, dict):  # xAI, Ollama: {"code": …, "error": "what happened"}
        error = {**body, "message": error if isinstance(error, str) else body.get("message")}
    word = error.get("status") if isinstance(error.get("status"), str) else error.get("type")
    code = at(error, "details", "error_code") or error.get("code")
    for detail in list_at(error, "details"):
        code = at(detail, "reason") or code
    if inner := at(error, "innererror", "code") or at(error, "inner_error", "code"):
        code = f"{code} {inner}"
    message = error.get("message") or body.get("detail") or ""
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    upstream = str(at(error, "metadata", "raw") or "")
    word, code = str(word or "")[:MAX_ERROR].lower(), str("" if code is None else code)[:MAX_ERROR].lower()
    return word, code, text[:MAX_ERROR], upstream[:MAX_ERROR]


def classify_exception(error: BaseException, keys: tuple[str, ...] = (), texts: tuple[str, ...] = ()) -> Failure:
    """The failure that an aiohttp exception stands for: the call may or may not have been answered.

    keys, texts: the operator's keys and the prompt's texts, which must not be shown. A server that wasn't reached can't
    repeat a prompt; searching for a long one takes time, which is scarce when many calls fail at once.
    """
    message = _QUOTATION.split(str(error))[0].rstrip(" :'\"")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, _UNREACHED):
        is_ours = isinstance(error, OSError) and error.errno in _OUR_LIMITS
        return Failure(FailureKind.LOCAL if is_ours else FailureKind.UNAVAILABLE, scrubbed(text, keys))
    kind = FailureKind.MALFORMED
    if isinstance(error, aiohttp.ServerTimeoutError):
        kind = FailureKind.TIMED_OUT
    elif isinstance(error, aiohttp.ClientError | OSError) and not isinstance(error, aiohttp.ClientResponseError):
        kind = FailureKind.INTERRUPTED
    return Failure(kind, scrubbed(text, keys + texts), Billed.MAYBE)
