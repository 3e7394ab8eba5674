"""A configuration is right as a whole, or refused with file, line, field and what to do."""

from __future__ import annotations

import json
import re
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis

from turnout.request import Capability, InferenceRequest, Lane, RoutingStrategy, Usage
from turnout_workers import providers
from turnout_workers.config import (
    ConfigError,
    Settings,
    Source,
    accounts,
    configured,
    credentials,
    discovery,
    load,
    source,
    toml_lines,
)
from turnout_workers.config.tables import CeilingTable, ModelTable, MonitoringTable, ProviderTable, WebhookTable
from turnout_workers.providers.dialects import DIALECTS, GENERIC
from turnout_workers.providers.prices import call_cost_microusd
from turnout_workers.routing.eligibility import refusal, upper_cost_microusd
from turnout_workers.routing.fleet import Endpoint, Fleet, Limits, Price
from turnout_workers.routing.images import Fixed, rule_of
from turnout_workers.routing.profile import JobProfile
from turnout_workers.simulator import load as load_scenario

ROOT = Path(__file__).parents[2]
ENVIRON = {name: f"key-of-{name}" for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY_2")} | {
    "GROQ_API_KEY": "key-of-groq",
    "ORDERS_WEBHOOK_SECRET": "whsec_" + "c2VjcmV0" * 4,
}


def settings(text: str, environ: dict[str, str] | None = None, with_keys: bool = True) -> Settings:
    return load(Source("t.toml", text), environ or {}, with_keys)


def told(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        settings(text, environ)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = ", "t.toml:1: this is not TOML: Invalid value"),
        ("\n\n[a\n", "t.toml:3: this is not TOML"),
        ("\nnamespice = 'a'", "t.toml:2: namespice: there is no such field; did you mean namespace?"),
        ("namespace = 'a b'", "t.toml:1: namespace: must be 1 to 64 "),
        (
            "[router]\n\ndefault_strategy = 'cheapest'",
            "t.toml:3: router.default_strategy: Input should be 'balanced'",
        ),
        ("[lanes.fast]\nreserved_share = 0.5", "t.toml:1: lanes.fast: there is no such field"),
        ("[lanes.batch]\nreserved_share = 1.0", "t.toml:2: lanes.batch.reserved_share: "),
        ("[providers.x]\nbase_url = 'ftp://x'", "t.toml:2: providers.x.base_url: must be an http:// or https://"),
        *(
            (f"[providers.x]\nbase_url = '{url}'", "t.toml:2: providers.x.base_url: must be an http:// or https://")
            for url in ("http://", "https:///path", "http://h:port", "http://h:70000", "https://[::1", "http://a..b")
        ),
        (
            "[webhooks.x]\nurl = 'https://a.example'\nsecret_env = 'S'",
            "t.toml:1: webhooks.x: no signing secret in S, or in the",
        ),
        ("[webhooks.x]\nurl = 'https://[::1'\nsecret_env = 'S'", "t.toml:2: webhooks.x.url: must be an http://"),
        ("providers = 1", "t.toml:1: providers: must be a table"),
        ("[providers.x]\nmodels = { m = 1 }", "t.toml:2: providers.x.models.m: must be a table"),
        (
            "[providers.x]\nmodels = ['m', 'm#2']",
            "t.toml:2: providers.x.models.m#2: must not end in #2, which stands for a key: write other-name = 'm#2'",
        ),
        ("[providers.'a b']\n", "t.toml:1: providers.a b: "),
        ("[providers.x]\n[providers.x.models.m]\ncontext = 3", "did you mean context_tokens?"),
        (
            "[providers.x]\nmodels = { m = { input_usd_per_mtok = 1 } }",
            "t.toml:2: providers.x.models.m: give both input_usd_per_mtok and output_usd_per_mtok",
        ),
        (
            "[providers.x]\nmodels = { m = { cache_read_usd_per_mtok = 1 } }",
            "t.toml:2: providers.x.models.m: give both input_usd_per_mtok and output_usd_per_mtok",
        ),
        (
            "[providers.x]\nbase_url = 'http://h/v1?api-version=3'",
            "t.toml:2: providers.x.base_url: must not contain ? or #",
        ),
        ('[providers.x]\nheaders = { x = "a\\nb" }', "t.toml:2: providers.x.headers: 'x' holds characters that"),
        ("[providers.x]\nheaders = { 'x y' = 'a' }", "t.toml:2: providers.x.headers: 'x y' holds characters that"),
        ("[providers.x]\nmodels = ['m', 3]", "t.toml:2: providers.x.models: must be a list of names, or a "),
        ("[providers.x]\nrequests_per_minute = 0", "t.toml:2: providers.x.requests_per_minute: "),
        ("[ceilings.total]\nper_day_usd = nan", "t.toml:2: ceilings.total.per_day_usd: "),
        ("[retention]\nresults_s = 1e10", "t.toml:2: retention.results_s: Input should be less than or"),
        (
            "[ceilings.providers.grok]\nper_day_usd = 1\n[providers.groq]\napi_key = 'k'",
            "t.toml:1: ceilings.providers.grok: there is no provider of this name; there are groq",
        ),
        ("[ceilings.providers.'*']\nper_day_usd = 1", "t.toml:1: ceilings.providers.*: there is no provider of this"),
        ("[ceilings.total]\nper_day_usd = 1e10", "t.toml:2: ceilings.total.per_day_usd: Input should be less than or"),
        ("redis_url = 'localhost'", "t.toml:1: redis_url: must be a redis://"),
        (
            "\n[providers.groq]\napi_key_env = 'NO_SUCH_KEY'",
            "t.toml:2: providers.groq: environment variable NO_SUCH_KEY is not set; set it, or remove this provider",
        ),
        ("[providers.x]\nmodels = ['m']", "t.toml:1: providers.x: base_url is missing"),
        ("[providers.groq]\napi_key = 'k'\nversion = '1'", "t.toml:1: providers.groq: version is only for Anthropic's"),
        ("[providers.azure]\nbase_url = 'http://x'\nmodels = ['m']", "there is no key: set AZURE_OPENAI_API_KEY, or"),
        ("[providers.x]\nbase_url = 'http://x'", "t.toml:1: providers.x: models is missing"),
        ("[providers.groq]\nkind = 'soap'", "there is no connector of kind soap; there are anthropic, gemini, openai"),
        ("[providers.groq]\ndialect = 'grok'", "t.toml:2: providers.groq.dialect: there is no such preset; there are "),
        ("[providers.groq]\napi_key_file = '/nowhere/key'", "api_key_file /nowhere/key can't be read: No such file"),
    ],
)
def test_an_error_names_file_line_and_field(text: str, expected: str) -> None:
    assert expected in told(text)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("api_base = 'http://x'", "there is no such field; did you mean base_url?"),
        ("api_version = '2024-10-21'", "there is no such field; Azure needs none where base_url ends with /openai/v1"),
        ("rpm = 5", "there is no such field; did you mean requests_per_minute?"),
        ("models.m.tpm = 5", "there is no such field; did you mean tokens_per_minute?"),
        ("models = ['*']", "wildcards aren't supported: list the models"),
        ("models = ['openai/*']", "wildcards aren't supported: list the models"),
        ("kind = 'azure'", 'azure is a preset, not a kind: write dialect = "azure" instead'),
    ],
)
def test_who_comes_from_another_tool_is_told_what_to_write_instead(line: str, hint: str) -> None:
    assert told(f"[providers.x]\n{line}").endswith(hint)


def test_no_part_of_a_password_that_makes_an_address_unreadable_is_told() -> None:
    said = told("redis_url = 'redis://:slash/in-it@h:1'")
    assert "must be a redis://" in said
    assert "slash" not in said


def test_a_connector_of_another_package_needs_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "kinds", lambda: frozenset({"acme"}))
    (account,) = accounts(settings("[providers.x]\nkind = 'acme'\nmodels = ['m']"))
    assert (account.kind, account.base_url) == ("acme", "")


def test_all_errors_are_told_at_once() -> None:
    text = "namespace = ''\n[worker]\nconcurrency = -1\n[providers.x]\nweight = 0"
    assert [line.split(" ")[0] for line in told(text).splitlines()] == ["t.toml:1:", "t.toml:3:", "t.toml:5:"]


def test_an_error_from_the_environment_names_its_variable() -> None:
    environ = {"TURNOUT_CONCURRENCY": "many"}
    assert told("", environ).startswith("environment variable TURNOUT_CONCURRENCY: ")
    assert told("worker = 3", environ).startswith("t.toml:1: worker: ")


def test_the_environment_overrides_the_file() -> None:
    text = "redis_url = 'redis://file/0'\n[worker]\nconcurrency = 5"
    environ = {"REDIS_URL": "redis://environment/0", "TURNOUT_CONCURRENCY": "7", "TURNOUT_STRATEGY": "cost"}
    config = settings(text, environ).config
    assert (config.redis_url, config.worker.concurrency) == ("redis://environment/0", 7)
    assert config.router.default_strategy is RoutingStrategy.COST_OPTIMIZED


def test_a_lane_left_out_keeps_its_own_default() -> None:
    lanes = settings("[lanes.standard]\nreserved_share = 0.2").config.lanes
    assert [getattr(lanes, lane).reserved_share for lane in Lane] == [0.0, 0.2, 0.35]


def test_a_vendors_key_is_found_in_its_usual_variable_or_the_file_that_one_names(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    usual, named = "[providers.groq]", "[providers.groq]\napi_key_env = 'OTHER'"
    file = str(tmp_path / "key")
    assert settings(usual, {"GROQ_API_KEY": "k"}).keys["groq"] == ("k",)
    assert settings(usual, {"GROQ_API_KEY_FILE": file}).keys["groq"] == ("from-file",)
    assert settings(named, {"OTHER_FILE": file, "GROQ_API_KEY": "k"}).keys["groq"] == ("from-file",)
    assert "GROQ_API_KEY_FILE=/nowhere can't be read: No such file" in told(usual, {"GROQ_API_KEY_FILE": "/nowhere"})
    elsewhere = "[providers.groq]\nbase_url = 'http://127.0.0.1:9'"
    assert settings(elsewhere, {"GROQ_API_KEY": "k"}).keys["groq"] == (), "a vendor's key is for the vendor"


def test_a_model_that_is_in_no_catalogue_is_known_by_its_name_and_the_price_list() -> None:
    text = "[providers.{}]\nmodels = ['{}']"
    environ = {"OPENAI_API_KEY": "k", "DEEPSEEK_API_KEY": "k", "MISTRAL_API_KEY": "k"}

    def only(provider: str, model: str) -> Endpoint:
        return accounts(settings(text.format(provider, model), environ))[0].endpoints[0]

    new = only("openai", "gpt-5.6-sol")
    assert {Capability.TOOLS, Capability.VISION, Capability.JSON_SCHEMA} <= new.capabilities
    assert new.context_tokens
    assert new.context_tokens > 200_000
    assert only("openai", "text-embedding-9").capabilities == {Capability.EMBEDDINGS}
    assert only("openai", "ft:house-model").capabilities == set()
    assert Capability.JSON_SCHEMA not in only("deepseek", "deepseek-chat").capabilities, "the vendor doesn't take it"
    assert Capability.JSON_SCHEMA in only("mistral", "mistral-large").capabilities


def test_a_service_tier_has_its_own_list_price() -> None:
    text = "[providers.flexible]\ndialect = 'openai'\nservice_tier = 'flex'\nmodels = ['gpt-5']"
    (account,) = accounts(settings(text, {"OPENAI_API_KEY": "k"}))
    (endpoint,) = account.endpoints
    assert endpoint.price is not None
    assert (account.service_tier, endpoint.price.input) == ("flex", 0.625)


def input_usd(provider: str, table: str, model: str) -> float | None:
    text = f"[providers.{provider}]\napi_key = 'k'\nmodels = ['{model}']\n{table}"
    (endpoint,) = accounts(settings(text))[0].endpoints
    return endpoint.price and endpoint.price.input


def test_a_service_tier_that_the_list_lacks_costs_what_the_vendor_says_or_nobody_knows_what() -> None:
    usual = input_usd("gemini", "", "gemini-3.8-flash")
    assert usual
    for tier, factor in (("standard", 1.0), ("flex", 0.5), ("priority", 1.8)):
        price = input_usd("gemini", f"service_tier = '{tier}'", "gemini-3.8-flash")
        assert price == pytest.approx(factor * usual)
    assert input_usd("gemini", "service_tier = 'velvet'", "gemini-3.8-flash") is None
    assert input_usd("groq", "service_tier = 'flex'", "gpt-oss-120b") == input_usd("groq", "", "gpt-oss-120b")
    assert input_usd("groq", "service_tier = 'performance'", "gpt-oss-120b") is None, "it is bought by the month"
    assert input_usd("openai", "service_tier = 'flex'", "text-embedding-3-small") == 0.02, "which has no tiers"


@pytest.mark.parametrize(
    ("host", "model", "factor"),
    [
        ("eu", "gpt-5.4-mini", 1.1),
        ("us", "gpt-6-luna", 1.1),
        ("eu", "gpt-5.2", 1.0),
        ("eu", "gpt-4o", 1.0),
        ("eu", "o3", 1.0),
        ("eu", "ft:gpt-4o-2024-08-06:acme::x", 1.0),
        ("eu", "chatgpt-4o-latest", 1.0),
        ("eu", "codex-mini-latest", 1.0),
        ("eu", "text-embedding-3-small", 1.0),
    ],
)
def test_openai_takes_a_tenth_more_of_later_models_where_data_stays_in_a_region(
    host: str, model: str, factor: float
) -> None:
    usual = input_usd("openai", "", model)
    assert usual
    assert input_usd("openai", f"base_url = 'https://{host}.api.openai.com/v1'", model) == pytest.approx(factor * usual)
    assert input_usd("openai", "base_url = 'https://api.openai.com/v1'", model) == usual


def test_no_error_and_no_repr_shows_a_key() -> None:
    text = "[providers.groq]\napi_key = ['sk-canary']\nheaders = { x-secret = 'sk-canary' }\n"
    assert "sk-canary" not in repr(settings(text))
    assert "sk-canary" not in told(text + "weight = 'a'")
    assert "sk-canary" not in told("[providers.groq]\napi_key_env = 'K'", {"K": "sk-canary\n\tbroken"})


def test_the_version_is_of_what_workers_follow_and_other_keys_make_another_configuration(tmp_path: Path) -> None:
    secret = tmp_path / "key"

    def made(text: str, key: str) -> Settings:
        secret.write_text(key)
        return settings(f"{text}\n[providers.groq]\napi_key_file = '{secret}'", {"HOME": key})

    first = made("", "one")
    assert made("", "one") == first
    for other in (made("", "two"), made("monitoring.metrics_port = 1", "one")):
        assert other.version == first.version
        assert other != first
    assert made("", "one").version == made("# A word.", "one").version
    assert made("retention.failed_s = 9", "one").version != first.version
    regions = "providers.x = {{ models = ['m'], base_url = 'http://x', regions = {} }}"
    one, same = (made(regions.format(names), "one").version for names in (["eu", "us", "uk"], ["uk", "eu", "us"]))
    assert one == same


def test_a_configuration_is_read_again_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker does it every two seconds, beside its loop."""
    text = "redis_url = 'redis://127.0.0.1:1/0'\n[providers.groq]\napi_key = 'k'"
    first = settings(text)
    monkeypatch.setattr(providers, "entry_points", None)
    monkeypatch.setattr(redis, "ConnectionPool", None)
    assert settings(text) == first


def test_the_example_is_right_and_shows_every_field() -> None:
    text = (ROOT / "turnout.example.toml").read_text("utf-8").replace("/run/secrets/gemini", str(ROOT / "README.md"))
    with pytest.raises(ConfigError, match="holds spaces"):  # the example's key file stands for a real one
        settings(text, ENVIRON)
    text = text.replace(f'api_key_file = "{ROOT / "README.md"}"', 'api_key = "from-file"')
    config = settings(text, ENVIRON).config
    named = set(re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE))
    for table in (CeilingTable, WebhookTable, ProviderTable, ModelTable):
        assert table.model_fields.keys() <= named
    assert {"redis_url", "namespace"} <= named
    for shown in (config.router, config.worker, config.lanes, config.retention):
        assert shown.model_dump() == type(shown)().model_dump(), "what is shown is the default"
        assert shown.model_fields_set == set(type(shown).model_fields)
    assert config.monitoring == MonitoringTable(metrics_port=9464)


@pytest.mark.parametrize(
    ("name", "sees"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", True),
        ("qwen2.5vl:7b", True),
        ("qwen/qwen3.8-27b", True),
        ("google/gemma-3-27b-it", True),
        ("gemma3:4b", True),
        ("meta-llama/Llama-4-Scout-17B-16E", True),
        ("llama3.2-vision", True),
        ("llava:13b", True),
        ("mistralai/Pixtral-12B-2409", True),
        ("OpenGVLab/InternVL3-8B", True),
        ("zai-org/glm-4.5v", True),
        ("Qwen/Qwen3-32B", False),
        ("gemma2:9b", False),
        ("llama3.1:8b", False),
        ("glm-4.7", False),
        ("Qwen/Qwen3-VL-Embedding-8B", False),
    ],
)
def test_an_open_model_that_sees_is_known_by_its_name(name: str, sees: bool) -> None:
    """Without a table of its capabilities, as of a server on this machine that was found by itself."""
    text = f"[providers.vllm]\nmodels = ['{name}']"
    (endpoint,) = accounts(settings(text))[0].endpoints
    assert (Capability.VISION in endpoint.capabilities) == sees
    assert Capability.STREAMING in endpoint.capabilities or "Embedding" in name


@pytest.mark.parametrize(
    ("provider", "counts"), [("openai", (True, True)), ("groq", (False, True)), ("anthropic", (False, False))]
)
def test_an_endpoint_knows_what_its_providers_limits_count(provider: str, counts: tuple[bool, bool]) -> None:
    (account,) = accounts(settings(f"[providers.{provider}]\napi_key = 'a-long-enough-key'\nmodels = ['m']"))
    (one,) = account.endpoints
    assert (one.limits_count_cached, one.limits_count_max_output) == counts


def test_the_example_names_every_preset() -> None:
    told = (ROOT / "turnout.example.toml").read_text("utf-8").replace("\n# ", " ")
    assert f"Presets: {', '.join(DIALECTS)}." in told


def test_a_server_of_ones_own_is_no_preset_and_has_no_list_price() -> None:
    """It takes the wire format and no vendor's additions; what it costs is for the operator to say."""
    text = "[providers.{}]\nbase_url = 'http://x'\nmodels = ['gpt-5.4-mini']"
    for name, preset in (("office", GENERIC), ("vllm", DIALECTS["vllm"])):
        found = settings(text.format(name))
        (endpoint,) = accounts(found)[0].endpoints
        assert (found.config.providers[name].preset, endpoint.price) == (preset, None)


def test_a_vendors_own_format_is_its_preset_under_any_name() -> None:
    (account,) = accounts(settings("[providers.second]\nkind = 'anthropic'\napi_key = 'k'"))
    assert account.base_url == "https://api.anthropic.com"
    assert {endpoint.price is None for endpoint in account.endpoints} == {False}


def test_a_yes_or_no_fits_under_a_small_ceiling_at_the_dearest_vendor() -> None:
    text = "[providers.anthropic]\napi_key = 'k'\nmodels = ['claude-opus-5-5']"
    asked = InferenceRequest(prompt="Is this spam? Answer yes or no: hello there", max_output_tokens=4)
    cost_microusd = upper_cost_microusd(JobProfile.of(asked), accounts(settings(text))[0].endpoints[0])
    assert cost_microusd is not None
    assert cost_microusd <= 500


def test_a_deployment_has_the_price_of_the_model_that_it_is_of() -> None:
    text = "[providers.azure]\nbase_url = 'http://x'\napi_key = 'k'\nmodels = { 'gpt-5.4-mini' = 'ours' }"
    (endpoint,) = accounts(settings(text))[0].endpoints
    assert endpoint.served_model == "ours"
    assert endpoint.price is not None
    assert endpoint.price.input == 0.75


def test_a_deployment_that_is_named_like_another_model_is_not_taken_for_it() -> None:
    text = "[providers.azure]\nbase_url = 'http://x'\napi_key = 'k'\nmodels = { 'gpt-4o' = 'gpt-4' }"
    (endpoint,) = accounts(settings(text))[0].endpoints
    assert endpoint.price is not None
    assert (endpoint.served_model, endpoint.price.input, endpoint.context_tokens) == ("gpt-4", 2.5, 128_000)
    cost = call_cost_microusd(endpoint, DIALECTS["azure"], "http://x", Usage(input_tokens=1000), None, tier="default")
    assert cost == 2500, "nor when the answer tells its tier, whose price is looked up then"


@pytest.mark.parametrize(
    ("provider", "media_type", "is_taken"),
    [
        ("openai", "image/gif", True),
        ("openai", "image/heic", False),
        ("azure", "image/heic", False),
        ("vllm", "image/heic", True),
        ("anthropic", "image/webp", True),
        ("anthropic", "image/heic", False),
        ("gemini", "image/heic", True),
        ("gemini", "image/gif", False),
    ],
)
def test_an_image_of_a_type_that_a_vendor_refuses_is_not_for_its_models(
    provider: str, media_type: str, is_taken: bool
) -> None:
    text = f"[providers.{provider}]\nbase_url = 'http://x'\napi_key = 'k'\n[providers.{provider}.models]\n"
    (endpoint,) = accounts(settings(text + "m = { capabilities = ['vision'] }"))[0].endpoints
    image = {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,AAAA"}}
    asked = InferenceRequest.model_validate({"messages": [{"role": "user", "content": [image]}]})
    refused = refusal(JobProfile.of(asked), Fleet([endpoint]))
    assert (refused is None) == is_taken
    assert is_taken or f"{provider}/m: takes no {media_type}" in str(refused)


def test_an_endpoint_counts_images_as_its_model_does_and_a_deployment_as_the_model_that_it_is_of() -> None:
    text = "[providers.azure]\nbase_url = 'http://x'\napi_key = 'k'\nmodels = { 'gpt-6-luna' = 'gpt-4o' }"
    text += "\n[providers.gemini]\napi_key = 'k'\nmodels = ['gemini-flash']"
    text += "\n[providers.groq]\napi_key = 'k'\nmodels = ['qwen-3.8-27b']"
    rules = {e.id: e.image_rule for account in accounts(settings(text)) for e in account.endpoints}
    assert rules == {
        "azure/gpt-6-luna": rule_of("gpt-6-luna"),
        "gemini/gemini-flash": rule_of("gemini-3.8-flash"),
        "groq/qwen-3.8-27b": Fixed(2048),  # at Groq every image counts the same
    }


def test_the_example_gives_an_endpoint_for_each_model_and_key() -> None:
    text = (ROOT / "turnout.example.toml").read_text("utf-8").replace('api_key_file = "/run/secrets/gemini"', "")
    assert "providers.gemini: there is no key: set GEMINI_API_KEY or GOOGLE_API_KEY, or" in told(text, ENVIRON)
    text = text.replace("[providers.gemini]", "[providers.gemini]\napi_key = 'k'")
    fleet = {e.id: e for account in accounts(settings(text, ENVIRON)) for e in account.endpoints}
    assert list(fleet) == [
        "openai/gpt-5.4-mini",
        "openai/text-embedding-3-small",
        "groq/gpt-oss-120b",
        "anthropic/claude-sonnet-4-5",
        "anthropic/claude-sonnet-4-5#2",
        "gemini/gemini-3.8-flash",
        "office/llama-3.3-70b",
    ]
    groq, office = fleet["groq/gpt-oss-120b"], fleet["office/llama-3.3-70b"]
    assert groq.served_model == "openai/gpt-oss-120b"
    assert (groq.limits.requests_per_minute, groq.weight) == (1000, 2.0)
    assert groq.price is not None
    assert groq.price.source.startswith("genai-prices")
    assert office.price == Price(0.0, 0.0)
    assert office.served_model == "meta-llama/Llama-3.3-70B-Instruct"
    assert fleet["anthropic/claude-sonnet-4-5"].price == Price(3.0, 15.0, 0.3, 3.75)


def test_a_providers_limits_are_shared_by_its_models_and_bound_each_of_them() -> None:
    text = "[providers.x]\nbase_url = 'http://x'\nrequests_per_minute = 10\nconcurrency = 4\n[providers.x.models]\n"
    text += "a = {requests_per_minute = 3, concurrency = 8}\n"
    (alone,) = accounts(settings(text))[0].endpoints
    assert (alone.limits, alone.shared_limits) == (Limits(requests_per_minute=3, concurrency=4), Limits())
    both = accounts(settings(text + "b = {}"))[0].endpoints
    assert [e.limits.requests_per_minute for e in both] == [3, 10]
    assert {e.shared_limits for e in both} == {Limits(requests_per_minute=10, concurrency=4)}


def test_a_file_is_found_by_the_variable_before_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "turnout.toml").write_text("namespace = 'here'")
    assert configured({}).config.namespace == "here"
    with pytest.raises(ConfigError, match=r"/there.toml: can't be read: No such file"):
        configured({"TURNOUT_CONFIG": "/there.toml"})
    assert source({"TURNOUT_CONFIG": "/there.toml"}, Path("told.toml")) == Source("told.toml")


# --- without a file --------------------------------------------------------------------------------------


def test_without_a_file_the_environments_keys_are_the_fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    environ = ENVIRON | {"OPENAI_BASE_URL": "http://proxy.example/v1", "PATH": "/bin"}
    tables = configured(environ).config.providers
    assert {name: table.kind for name, table in tables.items()} == {
        "openai": "openai",
        "anthropic": "anthropic",
        "groq": "openai",
    }
    assert tables["openai"].base_url == "http://proxy.example/v1"


@pytest.mark.parametrize(
    ("name", "told", "meant"),
    [
        ("GROQ", "https://api.groq.com", "https://api.groq.com/openai/v1"),
        ("CEREBRAS", "https://api.cerebras.ai/", "https://api.cerebras.ai/v1"),
        ("GROQ", "https://api.groq.com/openai/v1", "https://api.groq.com/openai/v1"),
        ("OPENAI", "http://127.0.0.1:4000", "http://127.0.0.1:4000"),
        ("TOGETHER", "http://127.0.0.1:4000", "http://127.0.0.1:4000"),
        ("ANTHROPIC", "http://127.0.0.1:4000", "http://127.0.0.1:4000"),
        ("GROQ", "", None),
    ],
)
def test_a_base_url_in_the_environment_means_what_it_means_to_the_vendors_client(
    name: str, told: str, meant: str | None
) -> None:
    tables = discovery.from_environment({f"{name}_API_KEY": "k", f"{name}_BASE_URL": told})
    assert tables["providers"][name.lower()]["base_url"] == meant


def test_a_key_may_be_in_a_file_that_the_environment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("abc\n")
    assert configured({"GEMINI_API_KEY_FILE": "key"}).keys["gemini"] == ("abc",)
    assert configured({"GEMINI_API_KEY_FILE": "/nowhere"}, with_keys=False).version, "who only looks on needs no key"


@pytest.mark.parametrize(
    ("text", "locations"),
    [
        ("[providers.groq]", ("GROQ_API_KEY",)),
        ("[providers.groq]\nbase_url = 'http://x'", ()),
        ("[providers.groq]\napi_key = 'k'", ()),
        ("[providers.groq]\napi_key_env = 'A'\napi_key_file = 'f'", ("A", "f")),
        ("[providers.azure]\nbase_url = 'http://x'\nmodels = ['m']", ("AZURE_OPENAI_API_KEY",)),
    ],
)
def test_the_location_of_a_key_is_shown_where_there_is_one(text: str, locations: tuple[str, ...]) -> None:
    (table,) = settings(text, with_keys=False).config.providers.values()
    assert credentials.key_locations(table) == locations


class _Models(BaseHTTPRequestHandler):
    """Lists what the first part of the path names in `answers`."""

    answers: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        answer = self.answers[self.path.split("/")[1]]
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + answer if answer else b"SSH-2.0-OpenSSH_9.2\r\n")

    def log_message(self, *_: Any) -> None: ...


def test_local_servers_are_found_by_what_they_answer() -> None:
    many = [{"id": "llama3.2:3b"}, *({"id": f"model-{i}", "note": "x" * 100} for i in range(5000))]
    odd = [{"id": "/My Models/tiny.gguf", "owned_by": "llamacpp", "meta": {"n_ctx": 512}}, {"id": ""}, {"id": "\x7f"}]
    answers: dict[str, Any] = {
        "ollama": {"data": many},
        "vllm": {"data": [{"id": "tiny-qwen", "owned_by": "vllm", "max_model_len": 1024}]},
        "llamacpp": {"data": odd},
        "other": {"other": 1},
        "names": {"data": ["m"]},
        "list": [1],
    }
    _Models.answers = {name: json.dumps(answer).encode() for name, answer in answers.items()}
    _Models.answers |= {"ssh": b"", "text": b"welcome", "deep": b"[" * 100_000}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Models) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        urls = {name: f"http://127.0.0.1:{server.server_port}/{name}" for name in _Models.answers}
        found = discovery.from_local_servers({**urls, "closed": "http://127.0.0.1:1/v1"}, timeout_s=60)
        server.shutdown()
    config = settings(toml_lines.dumps(found)).config
    assert list(config.providers) == ["ollama", "vllm", "llamacpp"]
    assert config.providers["ollama"].models["llama3.2:3b"].input_usd_per_mtok == 0.0
    assert {name: model.name for name, model in config.providers["llamacpp"].models.items()} == {
        "/My_Models/tiny.gguf": "/My Models/tiny.gguf"
    }


def test_the_simulated_fleet_is_configured_like_any_other() -> None:
    scenario = load_scenario()
    urls = {name: f"http://127.0.0.1:1/{name}" for name in scenario.providers}
    simulated: Settings = settings(toml_lines.dumps(scenario.configuration(urls)))
    assert simulated.simulated
    assert all(e.simulated for account in accounts(simulated) for e in account.endpoints)
    swift = simulated.config.providers["sim-swift"]
    limit = swift.models["llama-3.3-70b"].requests_per_minute
    assert (swift.base_url, limit) == ("http://127.0.0.1:1/sim-swift", 240)
    model, told = swift.models["llama-3.3-70b"], scenario.providers["sim-swift"]
    assert (model.expected_ttft_s, model.expected_s_per_token) == (told.ttft_s, told.s_per_token)
    assert (model.name, model.input_usd_per_mtok) == ("llama-3.3-70b-versatile", 0.59)


def test_tables_written_as_toml_read_back_the_same() -> None:
    values: list[Any] = [
        "plain",
        'quo"te',
        "back\\slash",
        "új\nsor",
        1,
        1.5,
        True,
        ["a", "b"],
        {"deep.er": {"x": 1}},
        {},
    ]
    tables = {f"key {i}": value for i, value in enumerate(values)} | {"none": None}
    read = tomllib.loads(toml_lines.dumps(tables))
    assert read == {name: value for name, value in tables.items() if value is not None}
    assert list(read) == list(tables)[:-1]
