"""Every error body that a vendor is known to send, and what the router makes of it."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import datetime
from typing import Any

import aiohttp
import httpx
import pytest

from turnout.request import Usage
from turnout_workers.providers.classify import classify, scrubbed
from turnout_workers.providers.http import classify_exception
from turnout_workers.providers.prices import cost_microusd, list_price
from turnout_workers.providers.retry_after import observed_limits, retry_after_s, seconds
from turnout_workers.providers.settings import Secret
from turnout_workers.routing.failure import Billed, Failure, FailureKind, Scope
from turnout_workers.routing.fleet import Price

NOW = 1_800_000_000.0
K = FailureKind


def openai(type: str | None = None, code: str | None = None, message: str = "no") -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


def anthropic(type: str, message: str = "no", code: str | None = None) -> dict[str, Any]:
    error: dict[str, Any] = {"type": type, "message": message}
    if code:
        error["details"] = {"error_code": code}
    return {"type": "error", "error": error, "request_id": "req_1"}


def gemini(status: str, message: str = "no", *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": 0, "message": message, "status": status, "details": list(details)}}


def quota(id: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": id}]}


INFO = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "26s"}

CASES: list[tuple[int, dict[str, str], Any, FailureKind]] = [
    (401, {}, openai("invalid_request_error", "invalid_api_key"), K.UNAUTHORIZED),
    (401, {}, anthropic("authentication_error"), K.UNAUTHORIZED),
    (400, {}, gemini("INVALID_ARGUMENT", "API key not valid.", INFO), K.UNAUTHORIZED),
    (402, {}, {"error": {"code": 402, "message": "Insufficient credits"}}, K.BILLING),
    (402, {"retry-after": "3"}, {"error": {"code": 402, "message": "in flight"}}, K.RATE_LIMITED),
    (429, {}, openai("insufficient_quota", "insufficient_quota"), K.BILLING),
    (429, {}, openai("insufficient_quota", "credit_balance_exhausted"), K.BILLING),
    (429, {}, anthropic("rate_limit_error", code="enforced_spend_limit_reached"), K.BILLING),
    (400, {}, anthropic("invalid_request_error", "You have reached your specified API usage limits"), K.BILLING),
    (400, {}, [gemini("FAILED_PRECONDITION", "billing")], K.BILLING),
    (429, {}, openai("requests", "rate_limit_exceeded"), K.RATE_LIMITED),
    (429, {}, anthropic("rate_limit_error"), K.RATE_LIMITED),
    (429, {}, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited"}, K.RATE_LIMITED),
    (429, {}, gemini("RESOURCE_EXHAUSTED", "q", quota("PerMinutePerModel"), RETRY), K.RATE_LIMITED),
    (429, {}, gemini("RESOURCE_EXHAUSTED", "q", quota("RequestsPerDayPerModel"), RETRY), K.QUOTA_EXHAUSTED),
    (429, {}, gemini("RESOURCE_EXHAUSTED", "quota exceeded, limit: 0"), K.MODEL_NOT_FOUND),
    (503, {}, "<html>Bad gateway</html>", K.OVERLOADED),
    (529, {}, anthropic("overloaded_error"), K.OVERLOADED),
    (498, {}, openai(None, "capacity"), K.OVERLOADED),
    (500, {}, openai("server_error"), K.SERVER_ERROR),
    (502, {}, "", K.SERVER_ERROR),
    (408, {}, "", K.TIMED_OUT),
    (504, {}, gemini("DEADLINE_EXCEEDED"), K.TIMED_OUT),
    (524, {}, "", K.TIMED_OUT),
    (409, {}, "", K.CONFLICT),
    (400, {}, openai(None, "context_length_exceeded"), K.CONTEXT_LENGTH),
    (400, {}, anthropic("invalid_request_error", "prompt is too long: 250 > 50 maximum"), K.CONTEXT_LENGTH),
    (413, {}, "", K.CONTEXT_LENGTH),
    (400, {}, openai(None, "content_filter"), K.CONTENT_FILTERED),
    (403, {}, {"error": {"code": 403, "message": "flagged by moderation"}}, K.CONTENT_FILTERED),
    (400, {}, openai(None, "unsupported_parameter"), K.UNSUPPORTED),
    (400, {}, anthropic("invalid_request_error", "temperature: Extra inputs are not permitted"), K.UNSUPPORTED),
    (404, {}, openai(None, "model_not_found"), K.MODEL_NOT_FOUND),
    (404, {}, {"error": "model 'x' not found"}, K.MODEL_NOT_FOUND),
    (403, {}, openai(None, None, "not allowed"), K.FORBIDDEN),
    (422, {}, {"detail": [{"loc": ["body"], "msg": "field required"}]}, K.INVALID_REQUEST),
    (400, {}, openai("invalid_request_error", None, "bad"), K.INVALID_REQUEST),
    (302, {}, "", K.MALFORMED),
    (200, {}, openai("server_error", None, "late trouble"), K.SERVER_ERROR),
    (200, {}, anthropic("overloaded_error"), K.OVERLOADED),
]


@pytest.mark.parametrize(("status", "headers", "body", "kind"), CASES)
def test_an_error_response_is_named_by_its_consequence(
    status: int, headers: dict[str, str], body: Any, kind: FailureKind
) -> None:
    failure = classify(status, httpx.Headers(headers), body, NOW)
    assert failure.kind is kind
    assert failure.status == status
    account_wide = {K.UNAUTHORIZED, K.BILLING}
    if kind in account_wide:
        assert failure.scope is Scope.ACCOUNT
    expected = Billed.MAYBE if kind in {K.SERVER_ERROR, K.TIMED_OUT} else Billed.NO
    assert failure.billed is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6m0s", 360), ("7.66s", 7.66), ("12ms", 0.012), ("1h2m3s", 3723), ("2", 2), (str(int(NOW + 9)), 9),
        (str(int((NOW + 9) * 1000)), 9), ("2027-01-15T08:00:04Z", 4), ("Fri, 15 Jan 2027 08:00:07 GMT", 7),
        ("nan", None), ("-3", None), ("soon", None), ("", None), (None, None), ("1e300", 30 * 86400),
    ],
)  # fmt: skip
def test_every_spelling_of_a_delay_is_read(text: str | None, expected: float | None) -> None:
    assert seconds(text, NOW) == (expected if expected is None else pytest.approx(expected, abs=0.01))


def test_the_delays_are_believed_in_order() -> None:
    both = httpx.Headers({"retry-after-ms": "500", "retry-after": "30"})
    assert retry_after_s(both, None, NOW) == 0.5
    assert retry_after_s(httpx.Headers({"Retry-After": "30"}), None, NOW) == 30
    assert retry_after_s(httpx.Headers(), gemini("RESOURCE_EXHAUSTED", "q", RETRY), NOW) == 26
    used_up = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    left = {"x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-requests": "1h"}
    assert retry_after_s(httpx.Headers(used_up | left), None, NOW) == 360, "only the limit that is used up"


def test_limits_are_read_from_either_vendors_headers() -> None:
    told = observed_limits(
        httpx.Headers(
            {
                "x-ratelimit-limit-requests": "100",
                "x-ratelimit-remaining-requests": "99",
                "x-ratelimit-reset-requests": "12ms",
                "anthropic-ratelimit-input-tokens-limit": "5000",
                "anthropic-ratelimit-input-tokens-remaining": "4000",
                "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:00:04Z",
                "x-ratelimit-remaining-tokens": "-1",
            }
        ),
        NOW,
    )
    by_kind = {limit.kind: (limit.limit, limit.remaining) for limit in told}
    assert by_kind == {"requests_per_minute": (100, 99), "input_tokens_per_minute": (5000, 4000)}
    daily = observed_limits(httpx.Headers({"x-ratelimit-remaining-requests": "1"}), NOW, requests_are_daily=True)
    assert daily[0].kind == "requests_per_day"


@pytest.mark.parametrize("skew_s", [-3600, 0, 3600])
def test_a_wrong_clock_of_ours_changes_no_delay(skew_s: float) -> None:
    date = {"date": "Fri, 15 Jan 2027 08:00:00 GMT"}
    later = {"retry-after": "Fri, 15 Jan 2027 08:00:07 GMT"}
    assert retry_after_s(httpx.Headers(date | later), None, NOW + skew_s) == 7
    limits = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:04Z",
    }
    assert retry_after_s(httpx.Headers(date | limits), None, NOW + skew_s) == 4
    (told,) = observed_limits(httpx.Headers(date | limits), NOW + skew_s)
    assert told.reset_s == 4


def test_no_key_and_no_prompt_is_repeated() -> None:
    text = scrubbed(
        "Incorrect API key provided: sk-abcdefghijkl1234. Prompt was: tell me a secret thing",
        ("tell me a secret thing",),
    )
    assert "sk-abc" not in text
    assert "secret thing" not in text
    assert len(scrubbed("x" * 10_000)) == 500


def _subclasses(base: type) -> list[type]:
    return [base, *(c for s in base.__subclasses__() for c in _subclasses(s))]


@pytest.mark.parametrize("kind", _subclasses(httpx.HTTPError) + _subclasses(httpx.StreamError) + [httpx.InvalidURL])
def test_every_httpx_exception_is_mapped(kind: type[Exception]) -> None:
    error = kind.__new__(kind)
    Exception.__init__(error, "x")
    assert isinstance(classify_exception(error), Failure)


@pytest.mark.parametrize("kind", _subclasses(aiohttp.ClientError))
def test_every_aiohttp_exception_is_mapped(kind: type[Exception]) -> None:
    class Quiet(kind):  # type: ignore[valid-type,misc]
        def __str__(self) -> str:
            return "x"

    failure = classify_exception(Quiet.__new__(Quiet))
    unreached = issubclass(kind, aiohttp.ClientConnectorError)
    assert failure.billed is (Billed.NO if unreached else failure.billed)
    assert failure.kind is not K.INVALID_REQUEST, "never the job's fault"


def test_a_refused_connection_costs_nothing_and_a_lost_one_may() -> None:
    refused = httpx.ConnectError("refused")
    assert classify_exception(refused).billed is Billed.NO
    lost = httpx.ConnectTimeout("x")
    lost.__cause__ = aiohttp.ServerDisconnectedError()
    assert classify_exception(lost).kind is K.INTERRUPTED
    assert classify_exception(lost).billed is Billed.MAYBE


def test_a_secret_shows_nowhere() -> None:
    secret = Secret("sk-very-secret")
    shown = f"{secret} {secret!r} {[secret]}"
    assert "very" not in shown
    with pytest.raises(TypeError):
        json.dumps(secret)
    for leak in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError):
            leak(secret)


def test_a_cost_is_rounded_up_to_a_whole_microdollar() -> None:
    price = Price(input=0.10, output=0.32, cache_read=0.05)
    assert cost_microusd(price, Usage(input_tokens=10, output_tokens=10)) == 5  # 4.2
    assert cost_microusd(price, Usage(input_tokens=100, cache_read_tokens=100)) == 5
    assert cost_microusd(Price(0, 0), Usage(input_tokens=100)) == 0


def test_the_price_list_knows_what_it_knows() -> None:
    price = list_price("openai", "gpt-4o-mini")
    assert price is not None
    assert (price.input, price.output) == (0.15, 0.6)
    assert price.cache_read == 0.075
    assert price.source.startswith("genai-prices")
    assert list_price("openai", "no-such-model-anywhere") is None


def test_a_list_price_goes_by_the_date_and_the_time_of_day() -> None:
    def input_price(model: str, provider: str, at: str) -> float:
        price = list_price(provider, model, datetime.fromisoformat(at).timestamp())
        assert price is not None
        return price.input

    by_day = [input_price("deepseek-v4-pro", "deepseek", f"2026-10-01T{hour}:00+00:00") for hour in ("00", "02", "05")]
    assert by_day[0] == by_day[2] < by_day[1]
    assert input_price("o3", "openai", "2025-06-01T00:00+00:00") > input_price("o3", "openai", "2025-07-01T00:00+00:00")


def test_cached_and_stored_input_have_prices_of_their_own() -> None:
    used = Usage(input_tokens=1000, cache_read_tokens=400, cache_write_tokens=500, output_tokens=10)
    assert cost_microusd(Price(2.0, 10.0, 0.2, 2.5), used) == 100 * 2 + 400 * 0.2 + 500 * 2.5 + 10 * 10
    assert cost_microusd(Price(2.0, 10.0), used) == 1000 * 2 + 10 * 10


def test_the_price_list_knows_what_storing_input_costs() -> None:
    price = list_price("anthropic", "claude-sonnet-4-5")
    assert price is not None
    assert price.cache_write is not None
    assert price.cache_write > price.input
