"""Delays, secrets and prices: the arithmetic of what providers say."""

from __future__ import annotations

import copy
import html
import json
import math
import pickle
import re
import time
from datetime import datetime

import pytest
from genai_prices import Usage as ListUsage
from genai_prices import calc_price
from hypothesis import given
from hypothesis import strategies as st

from turnout.request import InferenceRequest, Usage
from turnout_workers.providers.account import Secret
from turnout_workers.providers.catalogue import served_by
from turnout_workers.providers.dialects import DIALECTS
from turnout_workers.providers.errors import ProviderError, request_id
from turnout_workers.providers.prices import cost_microusd, list_price, period
from turnout_workers.providers.retry_after import observed_limits, retry_after_s, seconds
from turnout_workers.providers.scrub import PIECE_LENGTH, scrubbed
from turnout_workers.providers.wire import filtered, parsed_or_malformed
from turnout_workers.routing.eligibility import upper_cost_microusd
from turnout_workers.routing.failure import FailureKind
from turnout_workers.routing.fleet import Endpoint, Price
from turnout_workers.routing.profile import JobProfile

NOW = 1_800_000_000.0
QUARTER = period(datetime.fromisoformat("2026-11-26T00:00+00:00").timestamp())
"""Of which list prices are."""
K = FailureKind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6m0s", 360), ("7.66s", 7.66), ("12ms", 0.012), ("1h2m3s", 3723), ("2", 2), (str(int(NOW + 9)), 9),
        (str(int((NOW + 9) * 1000)), 9), ("2027-01-15T08:00:04Z", 4), ("Fri, 15 Jan 2027 08:00:07 GMT", 7),
        ("Fri, 15 Jan 99999999999 08:00:07 GMT", None),
        ("nan", None), ("-3", None), ("soon", None), ("", None), (None, None), ("1e300", 30 * 86400),
    ],
)  # fmt: skip
def test_every_spelling_of_a_delay_is_read(text: str | None, expected: float | None) -> None:
    assert seconds(text, NOW) == (expected if expected is None else pytest.approx(expected, abs=0.01))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("Please try again in 7m12s.", 432), ("Try again in 812ms. Visit the console", 0.812), ("Retry after 20", 20),
        ("Please retry after 26 seconds.", 26), ("retry after 1 second", 1), ("try again in 30 sec", 30),
        ("try again in 5 minutes.", 300), ("try again in 1.5 Hours", 5400), ("try again in 2 days", 172_800),
        ("try again in 20. Visit the console", 20), ("try again in 1.5 weeks", None), ("try again in 5months", None),
    ],
)  # fmt: skip
def test_a_wait_told_in_words_is_read_with_its_unit(words: str, expected: float | None) -> None:
    assert retry_after_s({}, {"error": {"message": words}}, NOW) == expected


def test_words_are_believed_before_a_reset_that_tells_when_a_limit_is_full_again() -> None:
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "23h59m52s",
    }
    limits = observed_limits(headers, NOW, DIALECTS["groq"].limit_headers)
    words = {"error": {"message": "on requests per day (RPD): Limit 14400. Please try again in 5.88s."}}
    assert retry_after_s(headers, words, NOW, limits) == 5.88
    assert retry_after_s(headers, {"error": {"message": "too many requests"}}, NOW, limits) == 86_392


@pytest.mark.parametrize(
    ("project", "expected"), [(59_000, (60_000, 59_000, 1.0)), (None, (2_000_000, 1_999_000, 0.03))]
)
def test_of_two_headers_about_one_limit_the_scarcer_counts(project: int | None, expected: tuple[float, ...]) -> None:
    def told(name: str, limit: int, remaining: int, reset: str) -> dict[str, str]:
        values = {"limit": str(limit), "remaining": str(remaining), "reset": reset}
        return {f"x-ratelimit-{word}-{name}": value for word, value in values.items()}

    headers = told("tokens", 2_000_000, 1_999_000, "30ms")
    headers |= told("project-tokens", 60_000, project, "1s") if project else {}
    (limit,) = observed_limits(headers, NOW, DIALECTS["openai"].limit_headers)
    assert (limit.kind, limit.limit, limit.remaining, limit.reset_s) == ("tokens_per_minute", *expected)


@pytest.mark.parametrize("skew_s", [-3600, 0, 3600])
def test_a_wrong_clock_of_ours_changes_no_delay(skew_s: float) -> None:
    date = {"date": "Fri, 15 Jan 2027 08:00:00 GMT"}
    later = {"retry-after": "Fri, 15 Jan 2027 08:00:07 GMT"}
    assert retry_after_s(date | later, None, NOW + skew_s) == 7
    limits = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:04Z",
    }
    (told,) = observed_limits(date | limits, NOW + skew_s, DIALECTS["anthropic"].limit_headers)
    assert told.reset_s == 4
    assert retry_after_s({}, None, NOW, [told]) == 4


def test_what_looks_like_a_key_is_not_repeated_and_a_message_is_bounded() -> None:
    assert scrubbed("Incorrect API key provided: sk-abcdefghijkl1234.") == "Incorrect API key provided: …"
    assert len(scrubbed("x" * 10_000)) == 500


@given(st.text("ab", max_size=200), st.text("ab", max_size=200))
def test_no_long_piece_of_a_prompt_is_repeated(prompt: str, around: str) -> None:
    told = scrubbed(f"{around}{prompt[5:]}{around}", (prompt,))
    assert not any(prompt[at : at + 2 * PIECE_LENGTH] in told for at in range(len(prompt) - 2 * PIECE_LENGTH + 1))


WORDS = 'Für "alle" Fälle:\n\tC:\\neu & <b>你好</b> 😀, and that at some length'


@pytest.mark.parametrize("spelt", [
    WORDS, json.dumps(WORDS), json.dumps(WORDS, ensure_ascii=False), json.dumps(json.dumps(WORDS)), repr(WORDS),
    json.dumps(json.dumps(json.dumps(WORDS))), json.dumps(html.escape(WORDS)), html.escape(html.escape(WORDS)),
    json.dumps(WORDS).replace("<", "\\u003c").replace("&", "\\u0026"), re.sub("ü", "&#252;", WORDS),
    html.escape(WORDS), html.escape(json.dumps(WORDS)), " ".join(WORDS.split()),
])  # fmt: skip
def test_a_prompt_is_known_however_it_is_escaped(spelt: str) -> None:
    assert re.fullmatch("can't read [\"']*…[\"']*", scrubbed(f"can't read {spelt}", (WORDS,)))
    assert scrubbed(r"no such pattern: '\d+' &c", (WORDS,)) == r"no such pattern: '\d+' &c", "else it is as it was told"


def test_a_long_prompt_is_looked_for_in_little_time() -> None:
    """For all calls wait meanwhile, and in an outage it is done for each of them."""
    prompt = 'A line of "code", and &lt;more&gt; of it.\\n' * 25_000
    started = time.process_time()
    " ".join(html.unescape(prompt).split())
    read = time.process_time()
    assert scrubbed("The service is unavailable. Ask again later. " * 40, (prompt,)).startswith("The service")
    assert time.process_time() - read < 2 * (read - started)


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    assert scrubbed("\x1b[31mno\x07\u202e\n\x9bK credit") == "[31mno K credit"


@pytest.mark.parametrize("id", ["", "a b", "\x1b[31m", "\udcff", "x" * 201])
def test_what_is_no_id_of_a_call_is_not_taken_for_one(id: str) -> None:
    assert request_id({"x-request-id": id, "cf-ray": "8f-FRA"}) == "8f-FRA"


def test_of_a_filter_no_more_than_a_word_is_repeated() -> None:
    assert filtered("SAFETY").message == "filtered: SAFETY"
    for other in ("because of: a prompt", None, ["SAFETY"], "x" * 99):
        assert filtered(other).message == "filtered: no reason given"


class Odd(Exception):
    """As a connector of another package may have."""


@pytest.mark.parametrize(
    "error", [Odd(), StopIteration(), AssertionError(), KeyError("text"), RecursionError()], ids=repr
)
def test_whatever_reading_an_answer_raises_it_is_no_answer(error: Exception) -> None:
    def read() -> None:
        raise error

    with pytest.raises(ProviderError, match="malformed: an answer"):
        parsed_or_malformed(read)


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
    price = list_price("openai", "gpt-4o-mini", QUARTER)
    assert price is not None
    assert (price.input, price.output) == (0.15, 0.6)
    assert price.cache_read == 0.075
    assert price.source.startswith("genai-prices")
    assert list_price("openai", "no-such-model-anywhere", QUARTER) is None


def test_a_list_price_goes_by_the_date_and_the_time_of_day() -> None:
    def input_price(model: str, provider: str, at: str) -> float:
        price = list_price(provider, model, period(datetime.fromisoformat(at).timestamp()))
        assert price is not None
        return price.input

    by_day = [input_price("deepseek-v4-pro", "deepseek", f"2026-10-01T{hour}:00+00:00") for hour in ("00", "02", "05")]
    assert by_day[0] == by_day[2] < by_day[1]
    assert input_price("o3", "openai", "2025-06-01T00:00+00:00") > input_price("o3", "openai", "2025-07-01T00:00+00:00")


def test_cached_and_stored_input_have_prices_of_their_own() -> None:
    used = Usage(input_tokens=1000, cache_read_tokens=400, cache_write_tokens=500, output_tokens=10)
    assert cost_microusd(Price(2.0, 10.0, 0.2, 2.5), used) == 100 * 2 + 400 * 0.2 + 500 * 2.5 + 10 * 10
    assert cost_microusd(Price(2.0, 10.0), used) == 1000 * 2 + 10 * 10


def listed(provider: str, model: str, tier: str | None = None) -> Price:
    price = list_price(provider, model, QUARTER, tier)
    assert price is not None
    return price


def test_every_model_of_the_catalogue_has_a_list_price_where_it_is_served() -> None:
    vendors = ("openai", "anthropic", "gemini", "deepseek", "xai", "mistral", "groq", "cerebras", "openrouter")
    asked = [
        (DIALECTS[vendor].price_id or "", model.names[vendor]) for vendor in vendors for model in served_by(vendor)
    ]
    assert [pair for pair in asked if list_price(*pair, QUARTER) is None] == []


def test_the_price_list_knows_what_storing_input_costs() -> None:
    price = listed("anthropic", "claude-sonnet-4-5")
    assert (price.input, price.cache_write, price.cache_write_hour, price.cache_read) == (3.0, 3.75, 6.0, 0.3)


def test_a_service_tier_has_its_own_price_and_an_unknown_one_none() -> None:
    usual, flex, priority = (listed("openai", "gpt-5", tier) for tier in ("default", "flex", "priority"))
    assert (usual.input, usual.output, usual.cache_read) == (1.25, 10.0, 0.125)
    assert (flex.input, flex.output, flex.cache_read) == (0.625, 5.0, 0.0625)
    assert (priority.input, priority.output, priority.cache_read) == (2.5, 20.0, 0.25)
    assert listed("openai", "gpt-5") == usual
    assert list_price("openai", "gpt-5", QUARTER, "velvet") is None


def test_a_long_prompt_makes_the_whole_call_dearer() -> None:
    price = listed("google", "gemini-2.5-pro")
    short, long = (Usage(input_tokens=tokens, output_tokens=10) for tokens in (200_000, 200_001))
    assert cost_microusd(price, short) == 200_000 * 1.25 + 10 * 10
    assert cost_microusd(price, long) == math.ceil(200_001 * 2.5 + 10 * 15)


def test_the_most_that_a_call_can_cost_goes_by_the_length_of_its_prompt() -> None:
    endpoint = Endpoint("google", "m", "m", price=Price(1.0, 2.0, longer=(1000, Price(3.0, 4.0))))
    most = [
        upper_cost_microusd(JobProfile.of(InferenceRequest(prompt="x" * size, max_output_tokens=10)), endpoint)
        for size in (1000, 4000)
    ]
    assert most == [608 * 1 + 10 * 2, 2108 * 3 + 10 * 4]


@pytest.mark.parametrize(
    ("provider", "model"), [("openai", "gpt-5"), ("google", "gemini-2.5-pro"), ("x-ai", "grok-4.5")]
)
@given(st.integers(0, 600_000), st.integers(0, 100_000), st.integers(0, 60_000))
def test_our_arithmetic_agrees_with_the_price_lists_own(
    provider: str, model: str, fresh: int, cached: int, output: int
) -> None:
    used = ListUsage(input_tokens=fresh + cached, cache_read_tokens=cached, output_tokens=output)
    at = datetime.fromisoformat("2026-11-26T00:00+00:00")
    theirs = calc_price(used, model, provider_id=provider, genai_request_timestamp=at).total_price * 1_000_000
    ours = Usage(input_tokens=fresh + cached, cache_read_tokens=cached, output_tokens=output)
    assert cost_microusd(listed(provider, model), ours) == math.ceil(round(theirs, 6))
