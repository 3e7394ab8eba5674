"""What `turnout.toml` may hold: every table and field, its type, range, unit and default.

`turnout.example.toml` explains the same to operators; a test keeps the two in step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from turnout.ledger.keys import checked_namespace
from turnout.redis_address import checked
from turnout.request import MAX_NUMBER, Capability, Lane, Quality, RoutingStrategy
from turnout.value import Name, Value
from turnout_workers.providers.dialects import DIALECTS, GENERIC, Dialect
from turnout_workers.routing.fleet import Price
from turnout_workers.routing.health import EJECTION_S
from turnout_workers.routing.sharing import RESERVED


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def named_models(value: object) -> object:
    """A list of names, or a table whose values may be just the provider's name."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, dict):
        return {ours: {"name": model} if isinstance(model, str) else model for ours, model in value.items()}
    raise ValueError("must be a list of names, or a table by name")


def _http(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and parts.port != 0 and (parts.hostname or "").encode("idna")
    except ValueError:  # a port that isn't a number, an open bracket, an invalid label
        is_valid = False
    if not is_valid:
        raise ValueError("must be an http:// or https:// address")
    return url.rstrip("/")


def _extensible(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("must not contain ? or #, because the path of each call is appended to it")
    return url


def _sendable(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!-9;-~]+", name) or not re.fullmatch(r"[^\x00-\x08\n-\x1f\x7f]*", value):
            raise ValueError(f"{name!r} holds characters that no header can carry")
    return headers


def _ours(model: str) -> str:
    if "*" in model:
        raise ValueError("wildcards aren't supported: list the models")
    mark, account = model.rpartition("#")[1:]
    if mark and "/" not in account:  # otherwise it names a deployment at Fireworks
        raise ValueError(f"must not end in #{account}, which stands for a key: write other-name = '{model}'")
    return model


def _preset(name: str) -> str:
    if name not in DIALECTS:
        raise ValueError(f"there is no such preset; there are {', '.join(sorted(DIALECTS))}")
    return name


ProviderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
ModelName = Annotated[Name, AfterValidator(_ours)]
Strings = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Url = Annotated[str, AfterValidator(_http)]
Usd = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Count = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=MAX_NUMBER)]


class LimitFields(Value):
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    output_tokens_per_minute: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_day: Count | None = None
    concurrency: Count | None = None


class ModelTable(LimitFields):
    """What the operator knows better than the catalogue about one model at one provider."""

    name: str | None = None
    """The provider's name for it. None: the catalogue's, else ours."""
    input_usd_per_mtok: Usd | None = None
    output_usd_per_mtok: Usd | None = None
    cache_read_usd_per_mtok: Usd | None = None
    cache_write_usd_per_mtok: Usd | None = None
    context_tokens: Count | None = None
    max_output_tokens: Count | None = None
    capabilities: frozenset[Capability] | None = None
    quality: Quality | None = None
    aliases: Strings = ()
    priority: int | None = None
    weight: Annotated[float, Field(gt=0)] | None = None
    expected_ttft_s: Seconds | None = None
    expected_s_per_token: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _whole_price(self) -> ModelTable:
        prices = {name for name in self.model_fields_set if name.endswith("_usd_per_mtok")}
        if prices and not prices >= {"input_usd_per_mtok", "output_usd_per_mtok"}:
            raise ValueError("give both input_usd_per_mtok and output_usd_per_mtok, or no price at all")
        return self

    @property
    def price(self) -> Price | None:
        if self.input_usd_per_mtok is None or self.output_usd_per_mtok is None:
            return None
        more = (self.cache_read_usd_per_mtok, self.cache_write_usd_per_mtok)
        return Price(self.input_usd_per_mtok, self.output_usd_per_mtok, *more)


class ProviderTable(LimitFields):
    """One provider: how to reach it, and what it offers."""

    kind: str = "openai"
    """The wire format: openai, anthropic, gemini, or one that another package registers. Left out: the preset's."""
    dialect: Annotated[str, AfterValidator(_preset)] | None = None
    """A preset of the wire format. Left out: that with the provider's name, if there is one, else the plain format."""
    base_url: Annotated[Url, AfterValidator(_extensible)] | None = None
    """None: the preset's."""
    api_key_env: Strings = ()
    """Variable with the key; or, with `_FILE` appended, with the name of a file that holds it. If no key is named at
    all, the preset's variables are used."""
    api_key_file: Strings = ()
    api_key: Strings = Field(default=(), repr=False)
    """Each key, wherever it comes from, is an account with the limits of this table for all its models."""
    models: Annotated[Mapping[ModelName, ModelTable], BeforeValidator(named_models)] = Field(default_factory=dict)
    priority: int = 100
    weight: Annotated[float, Field(gt=0)] = 1.0
    regions: frozenset[str] = frozenset()
    no_training: bool = False
    zero_retention: bool = False
    version: str | None = None
    """Version of the provider's API, if it has one: Anthropic's date, Gemini's v1 or v1beta."""
    headers: Annotated[dict[str, str], AfterValidator(_sendable)] = Field(default_factory=dict, repr=False)
    service_tier: str | None = None
    """Requested in every call, at its list price: flex, priority, … None: the provider's default."""
    proxy: Url | None = Field(default=None, repr=False)
    """For its calls. None: no proxy, whatever the environment says. May hold user and password."""
    traceparent: bool = False
    """Whether its calls carry W3C trace context. Only useful for your own server."""
    simulated: bool = False
    """Its answers are made up; every result says so."""

    @property
    def preset(self) -> Dialect:
        return DIALECTS.get(self.dialect or "", GENERIC)


def with_presets(providers: object) -> object:
    """Give a provider without a dialect the preset with its name, if there is one. A preset sets the kind."""

    def filled(name: str, table: dict[str, object]) -> dict[str, object]:
        plain = None if table.get("kind") == "openai" else table.get("kind")  # a vendor's own format is its preset, too
        named = table.get("dialect", name if name in DIALECTS else plain)
        preset = DIALECTS.get(str(named))
        return {"kind": preset.kind, "dialect": named, **table} if preset else table

    if not isinstance(providers, dict):
        return providers
    return {name: filled(name, table) if isinstance(table, dict) else table for name, table in providers.items()}


class RouterTable(Value):
    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED
    health_check_interval: Seconds = 30.0
    failover_cooldown: Seconds = EJECTION_S
    """The first ejection (not a cooldown) of a failing endpoint. Each further one in a row doubles it, up to 10 s."""
    hedge: bool = False
    """Whether an interactive call slower than 95 % of its endpoint's may be doubled, for at most 3 % of all calls."""


class WorkerTable(Value):
    concurrency: Annotated[int, Field(gt=0, le=10_000)] = 100
    """Jobs in flight in one worker process."""
    drain_s: Seconds = 30.0
    """How long a stopping worker lets its calls finish."""
    lease_s: Annotated[float, Field(ge=1, le=600)] = 30.0
    """How long a job stays claimed without a heartbeat, and so how soon a worker's death is noticed."""


class LaneTable(Value):
    reserved_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each rate limit, and of each worker's slots, that this lane leaves to more urgent ones."""


class LanesTable(Value):
    """The defaults keep interactive jobs fast under three times the load that the limits allow (simulated)."""

    interactive: LaneTable = LaneTable()
    standard: LaneTable = LaneTable(reserved_share=RESERVED[Lane.STANDARD])
    batch: LaneTable = LaneTable(reserved_share=RESERVED[Lane.BATCH])


class CeilingTable(Value):
    per_day_usd: Usd | None = None
    per_month_usd: Usd | None = None


class CeilingsTable(Value):
    """Spending limits. Days and months are UTC."""

    total: CeilingTable = CeilingTable()
    tenants: dict[Name, CeilingTable] = Field(default_factory=dict)
    """By tenant. `*` is for every tenant not named."""
    providers: dict[Name, CeilingTable] = Field(default_factory=dict)


class RetentionTable(Value):
    results_s: Seconds = 86_400.0
    """How long a settled job and its result are kept."""
    failed_s: Seconds = 7 * 86_400.0
    """The same for failed jobs, which can be replayed."""


class MonitoringTable(Value):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    task_events: bool = True
    """Celery's events, which Flower shows. They cost some throughput."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Where each worker process serves its metrics. None: nowhere. 0: any free port, shown in the log."""
    metrics_host: str = "127.0.0.1"


class WebhookTable(Value):
    """Called when a job that names this webhook has ended."""

    url: Url
    secret_env: str
    """Variable with the signing secret; or, with `_FILE` appended, with the name of a file that holds it. `whsec_` and
    base64, as the Standard Webhooks libraries make it."""
    private: bool = False
    """Whether the address may be in your own network, and use plain http."""


class Config(Value):
    """The whole of turnout.toml."""

    redis_url: Annotated[str, AfterValidator(checked)] = "redis://127.0.0.1:6379/0"
    namespace: Annotated[str, AfterValidator(checked_namespace)] = "turnout"
    router: RouterTable = RouterTable()
    worker: WorkerTable = WorkerTable()
    lanes: LanesTable = LanesTable()
    ceilings: CeilingsTable = CeilingsTable()
    retention: RetentionTable = RetentionTable()
    monitoring: MonitoringTable = MonitoringTable()
    webhooks: dict[Name, WebhookTable] = Field(default_factory=dict)
    providers: Annotated[dict[ProviderName, ProviderTable], BeforeValidator(with_presets)] = Field(default_factory=dict)
