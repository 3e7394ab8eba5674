"""What each constraint lets through, on its borders, and what a refusal says."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from tests.unit.routing.fleets import chosen, decide, endpoint, job, reasons, request

from turnout.request import Capability, InferenceRequest, Quality
from turnout_workers.routing import NoEligibleEndpoint
from turnout_workers.routing.decision import Action
from turnout_workers.routing.eligibility import match, refusal, upper_cost_microusd, upper_input_tokens
from turnout_workers.routing.fleet import Fleet, Limits, Price
from turnout_workers.routing.profile import DEFAULT_MAX_OUTPUT_TOKENS, JobProfile

UNKNOWN_PRICE = {"price": None}

CASES: list[tuple[dict[str, Any], dict[str, Any], str | None]] = [
    ({}, {}, None),
    ({"model": "llama"}, {}, None),
    ({"model": "llama-3.3"}, {}, None),
    ({"model": "fast"}, {"aliases": frozenset({"fast"})}, None),
    ({"model": ("gpt", "llama")}, {}, None),
    ({"model": "gpt"}, {}, "model"),
    ({"only": ("groq",)}, {}, None),
    ({"only": ("openai",)}, {}, "only"),
    ({"ignore": ("groq",)}, {}, "ignore"),
    ({"ignore": ("openai",)}, {}, None),
    ({"regions": ("eu", "ch")}, {"regions": frozenset({"eu"})}, None),
    ({"regions": ("eu",)}, {"regions": frozenset({"eu", "us"})}, "region"),
    ({"regions": ("eu",)}, {}, "region"),
    ({"no_training": True}, {}, "no_training"),
    ({"no_training": True}, {"no_training": True}, None),
    ({"zero_retention": True}, {}, "zero_retention"),
    ({"zero_retention": True}, {"zero_retention": True}, None),
    ({"capabilities": {"vision"}}, {}, "capability"),
    ({"capabilities": {"vision"}}, {"capabilities": frozenset({Capability.VISION})}, None),
    ({"min_quality": "good"}, {}, "quality"),
    ({"min_quality": "good"}, {"quality": Quality.BASIC}, "quality"),
    ({"min_quality": "good"}, {"quality": Quality.GOOD}, None),
    ({"min_quality": "good"}, {"quality": Quality.BEST}, None),
    ({"min_context_tokens": 8000}, {}, "context"),
    ({"min_context_tokens": 8000}, {"context_tokens": 7999}, "context"),
    ({"min_context_tokens": 8000}, {"context_tokens": 8000}, None),
    ({"max_output_tokens": 500}, {"max_output_tokens": 499}, "output"),
    ({"max_output_tokens": 500}, {"max_output_tokens": 500}, None),
    ({"prompt": "x" * 4000, "max_output_tokens": 100}, {"context_tokens": 1107}, "context"),
    ({"prompt": "x" * 4000, "max_output_tokens": 100}, {"context_tokens": 1108}, None),
    ({"prompt": "x" * 4000, "max_output_tokens": 100}, {"limits": Limits(tokens_per_minute=1107)}, "limit"),
    ({"prompt": "x" * 4000, "max_output_tokens": 100}, {"limits": Limits(tokens_per_minute=1108)}, None),
    ({"prompt": "x" * 4000}, {"limits": Limits(input_tokens_per_minute=1007)}, "limit"),
    # Most of it may be in the cache.
    ({"prompt": "x" * 4000}, {"limits": Limits(input_tokens_per_minute=1007), "limits_count_cached": False}, None),
    ({"prompt": "x" * 4000, "max_output_tokens": None}, {"shared_limits": Limits(tokens_per_day=1000)}, "limit"),
    ({"prompt": "x" * 4000, "max_output_tokens": None}, {"shared_limits": Limits(tokens_per_day=1100)}, None),
    ({"max_input_usd_per_mtok": 1.0}, {}, None),
    ({"max_input_usd_per_mtok": 0.99}, {}, "price"),
    ({"max_output_usd_per_mtok": 2.0}, {}, None),
    ({"max_output_usd_per_mtok": 1.99}, {}, "price"),
    ({"max_input_usd_per_mtok": 1e6}, UNKNOWN_PRICE, "price_unknown"),
    ({"max_cost_usd": 100.0}, UNKNOWN_PRICE, "price_unknown"),
    ({}, UNKNOWN_PRICE, None),
    # 115 input tokens at most (7 of text, 8 for the message, 100 of a template) at 1, and 100 output at 2
    # micro-dollars: 315.
    ({"max_cost_usd": 315e-6}, {}, None),
    ({"max_cost_usd": 314e-6}, {}, "cost"),
    ({"max_cost_usd": 0.0}, {"price": Price(0, 0)}, None),
]


@pytest.mark.parametrize(("constraints", "changes", "reason"), CASES)
def test_each_constraint_excludes_exactly_what_breaks_it(
    constraints: dict[str, Any], changes: dict[str, Any], reason: str | None
) -> None:
    decision = decide(job(**constraints), endpoint(**changes))
    assert reasons(decision) == ({"groq": reason} if reason else {})
    assert decision.action is (Action.REFUSE if reason else Action.GO)
    assert (refusal(job(**constraints), Fleet([endpoint(**changes)])) is None) == (reason is None)


def test_a_refusal_tells_the_reason_of_every_endpoint() -> None:
    fleet = [endpoint("groq"), endpoint("azure", regions=frozenset({"us"})), endpoint("mistral", model="large")]
    wanted = job(model="llama", regions=("eu",))
    forecast = refusal(wanted, Fleet(fleet))
    assert forecast is not None
    assert forecast.reasons == {
        "groq/llama": "its region is unknown",
        "azure/llama": "may process in us, not only in eu",
        "mistral/large": "doesn't serve llama",
    }
    refused = decide(wanted, *fleet).refusal
    assert refused is not None
    assert "azure/llama: may process in us" in str(refused)
    assert refused.reasons == forecast.reasons


def test_an_empty_fleet_refuses_with_a_hint() -> None:
    assert "none is registered" in str(decide(job()).refusal)


def test_the_message_of_a_refusal_sums_up_and_begins_with_what_came_nearest() -> None:
    reasons = {f"p/m{n}": "serves no gpt" for n in range(200)} | {"q/gpt": "may train on the data"}
    refused = NoEligibleEndpoint(reasons)
    assert str(refused) == (
        "no endpoint can serve this job: q/gpt: may train on the data; p/m0, p/m1, p/m2 and 197 more: serves no gpt"
    )
    assert len(refused.reasons) == 201, "none is lost"
    again = pickle.loads(pickle.dumps(refused))
    assert (str(again), again.reasons) == (str(refused), reasons), "as it may come from another process"
    many = NoEligibleEndpoint({f"p/m{n}": f"may cost ${n}" for n in range(200)})
    assert str(many).endswith("; p/m4: may cost $4 and 195 more")


def test_what_was_spent_counts_against_the_cost_ceiling() -> None:
    wanted = request(max_cost_usd=400e-6)
    fresh, spent = JobProfile.of(wanted), JobProfile.of(wanted, spent_microusd=100)
    fleet = Fleet([endpoint()])
    assert refusal(fresh, fleet) is None
    assert "may cost $0.000315, $0.000300 of its ceiling left" in str(refusal(spent, fleet))


def test_an_answer_without_limit_is_priced_at_the_longest_one() -> None:
    wanted = JobProfile.of(request(max_output_tokens=None))
    assert upper_cost_microusd(wanted, endpoint()) == 115 + 2 * DEFAULT_MAX_OUTPUT_TOKENS
    assert upper_cost_microusd(wanted, endpoint(context_tokens=100_000)) == 115 + 2 * 100_000
    assert upper_cost_microusd(wanted, endpoint(context_tokens=100_000, max_output_tokens=1000)) == 115 + 2 * 1000


def test_what_a_chat_template_adds_counts_where_there_is_one() -> None:
    chat, texts = (JobProfile.of(one) for one in (request(), InferenceRequest(input="xx")))
    vendors, hosts = endpoint(template_tokens=10), endpoint(template_tokens=100)
    assert [upper_input_tokens(chat, one) for one in (vendors, hosts)] == [25, 115]
    assert upper_input_tokens(texts, hosts) == upper_input_tokens(texts, vendors), "a text to embed gets none"


def test_a_job_without_a_ceiling_fits_anywhere_whatever_it_costs() -> None:
    wanted = JobProfile.of(request())
    assert match(Fleet([endpoint(), endpoint("other", price=None)]), wanted.requirements).fits_everywhere(wanted)


def test_the_most_a_call_can_cost_takes_all_input_as_stored_where_that_is_dearer() -> None:
    at = endpoint(max_output_tokens=1000, price=Price(1.0, 2.0, 0.1, 2.0))
    assert upper_cost_microusd(JobProfile.of(request(max_output_tokens=None)), at) == 115 * 2 + 2 * 1000


def test_an_endpoint_that_showed_it_cannot_do_the_job_is_never_offered_again() -> None:
    wanted = JobProfile.of(request(), unsuited=frozenset({"groq/llama"}))
    assert chosen(decide(wanted, endpoint("groq"), endpoint("azure"))) == ["azure"]
    assert "groq/llama: has shown that it can't do this job" in str(refusal(wanted, Fleet([endpoint("groq")])))


def test_under_anybodys_ceiling_a_price_must_be_known() -> None:
    wanted = JobProfile.of(request(), priced=True)
    decision = decide(wanted, endpoint("groq"), endpoint("azure", price=None))
    assert chosen(decision) == ["groq"]
    assert reasons(decision) == {"azure": "price_unknown"}


def test_a_job_without_fallback_stays_with_the_endpoint_that_was_chosen() -> None:
    wanted = JobProfile.of(request(allow_fallback=False), pinned="groq/llama")
    decision = decide(wanted, endpoint("groq"), endpoint("azure"), endpoint("groq", account="eu"))
    assert [candidate.endpoint.id for candidate in decision.candidates] == ["groq/llama"]
    assert set(reasons(decision).values()) == {"pinned"}


def test_two_keys_of_one_provider_need_two_accounts() -> None:
    with pytest.raises(ValueError, match="groq/llama is there twice"):
        Fleet([endpoint(), endpoint()])
    assert Fleet([endpoint(), endpoint(account="eu")]).ids == ("groq/llama", "groq/llama#eu")
