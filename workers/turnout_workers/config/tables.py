"""What `turnout.toml` may hold: every table and field, its type, range, unit and default.

`turnout.example.toml` shows the same with words for the operator; a test holds the two together.
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
        return {ours: {"name": told} if isinstance(told, str) else told for ours, told in value.items()}
    raise ValueError("must be a list of names, or a table by name")


def _http(url: str) -> str:
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.port != 0 and (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is no number, a bracket left open, a label that no name has
        known = False
    if not known:
        raise ValueError("must be an http:// or https:// address")
    return url.rstrip("/")


def _extensible(url: str) -> str:
    if "?" in url or "#" in url:
        raise ValueError("must end before any ? or #, for the path of each call is put after it")
    return url


def _sendable(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[!-9;-~]+", name) or not re.fullmatch(r"[^\x00-\x08\n-\x1f\x7f]*", value):
            raise ValueError(f"{name!r} holds characters that no header can carry")
    return headers


def _ours(model: str) -> str:
    if "*" in model:
        raise ValueError("wildcards aren't known: list the models")
    mark, account = model.rpartition("#")[1:]
    if mark and "/" not in account:  # else it names a deployment at Fireworks
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
    """What the operator knows better than the catalogue, of one model at one provider."""

    name: str | None = None
    """The provider's own name; None: as the catalogue has it, else ours."""
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
        given = {name for name in self.model_fields_set if name.endswith("_usd_per_mtok")}
        if given and not given >= {"input_usd_per_mtok", "output_usd_per_mtok"}:
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
    """A preset of the wire format. Left out: that of the provider's name, if there is one, else the plain format."""
    base_url: Annotated[Url, AfterValidator(_extensible)] | None = None
    """None: the preset's."""
    api_key_env: Strings = ()
    """The key itself, or with `_FILE` after the variable's name the file that holds it. With no key named at all, the
    preset's own variables."""
    api_key_file: Strings = ()
    api_key: Strings = Field(default=(), repr=False)
    """Several keys, of whichever origin, are several accounts; each has the limits given here, for all its models."""
    models: Annotated[Mapping[ModelName, ModelTable], BeforeValidator(named_models)] = Field(default_factory=dict)
    priority: int = 100
    weight: Annotated[float, Field(gt=0)] = 1.0
    regions: frozenset[str] = frozenset()
    no_training: bool = False
    zero_retention: bool = False
    version: str | None = None
    """Of the provider's API, where it has one: Anthropic's date, Gemini's v1 or v1beta."""
    headers: Annotated[dict[str, str], AfterValidator(_sendable)] = Field(default_factory=dict, repr=False)
    service_tier: str | None = None
    """Asked for in every call, with the price list's price for it: flex, priority, … None: the provider's usual one."""
    proxy: Url | None = Field(default=None, repr=False)
    """Through which its calls go; None: none, whatever the environment says. May hold user and password."""
    traceparent: bool = False
    """Whether its calls carry W3C trace context: only a server of your own has a use for it."""
    simulated: bool = False
    """Its answers are made up; every result says so."""

    @property
    def preset(self) -> Dialect:
        return DIALECTS.get(self.dialect or "", GENERIC)


def with_presets(providers: object) -> object:
    """A provider that names no dialect has the preset of its own name, if there is one; a preset brings its kind."""

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
    """The first ejection of a failing endpoint; doubled by each further one in a row, up to 10 s."""
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
    """Of each rate limit, and of each worker's slots: what this lane leaves to the more urgent ones."""


class LanesTable(Value):
    """The defaults keep interactive jobs fast under three times the load that the limits allow (simulated)."""

    interactive: LaneTable = LaneTable()
    standard: LaneTable = LaneTable(reserved_share=RESERVED[Lane.STANDARD])
    batch: LaneTable = LaneTable(reserved_share=RESERVED[Lane.BATCH])


class CeilingTable(Value):
    per_day_usd: Usd | None = None
    per_month_usd: Usd | None = None


class CeilingsTable(Value):
    """Most that may be spent; days and months are UTC's."""

    total: CeilingTable = CeilingTable()
    tenants: dict[Name, CeilingTable] = Field(default_factory=dict)
    """By tenant; the name `*` stands for every tenant not named."""
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
    """Celery's events, which Flower shows; they cost a part of the throughput."""
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = None
    """Where each worker process serves its metrics; None: nowhere. 0: any free port, told in the log."""
    metrics_host: str = "127.0.0.1"


class WebhookTable(Value):
    """Called when a job that names this webhook has ended."""

    url: Url
    secret_env: str
    """Variable with the signing secret, or with `_FILE` after its name the file that holds it: `whsec_` and base64, as
    the Standard Webhooks libraries make it."""
    private: bool = False
    """Whether the address may be in your own network, and plain http."""


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
