"""From a checked configuration to the accounts of the fleet and their endpoints.

Facts about a model come from the operator's table, then the catalogue, then its name and the price list. A price comes
from the operator, else from the price list; else it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

from turnout.request import Capability
from turnout_workers.config.loading import Settings
from turnout_workers.config.tables import LimitFields, ModelTable, ProviderTable
from turnout_workers.config.toml_lines import ConfigError
from turnout_workers.providers import catalogue
from turnout_workers.providers.account import ProviderConfig, Secret
from turnout_workers.providers.dialects import Dialect
from turnout_workers.providers.prices import list_context_tokens, price_of
from turnout_workers.routing.eligibility import EMBEDS_ONLY
from turnout_workers.routing.fleet import UNLIMITED, Endpoint, Fleet, Limits
from turnout_workers.routing.images import rule_of

UNCONFIGURED = (
    "no provider is configured: set an API key (OPENAI_API_KEY, GROQ_API_KEY, ANTHROPIC_API_KEY, "
    "GEMINI_API_KEY, …), or write a turnout.toml (see turnout.example.toml) and name it in TURNOUT_CONFIG"
)
PASSED_ON = {Capability.TOOLS: "tools", Capability.JSON_SCHEMA: "json_schema"}
"""Capabilities that also need the vendor to support a parameter."""


def accounts(settings: Settings) -> tuple[ProviderConfig, ...]:
    """One account for each key of each provider, in the order of the file. Raises ConfigError if there is none."""
    if not (tables := settings.config.providers):
        raise ConfigError(UNCONFIGURED)
    return tuple(account for name, table in tables.items() for account in _accounts(name, table, settings.keys[name]))


def fleet(settings: Settings) -> Fleet:
    """The endpoints of all accounts. Raises ConfigError if there is none."""
    return Fleet(endpoint for account in accounts(settings) for endpoint in account.endpoints)


def _accounts(name: str, table: ProviderTable, keys: tuple[str, ...]) -> Iterator[ProviderConfig]:
    models = table.models or {model.name: ModelTable() for model in catalogue.served_by(table.dialect)}
    shared = _limits(table) if len(models) > 1 else UNLIMITED
    for number, key in enumerate(keys or (None,), 1):
        account = "" if number == 1 else str(number)
        yield ProviderConfig(
            name=name,
            kind=table.kind,
            base_url=table.base_url or table.preset.base_url,
            endpoints=tuple(_endpoint(name, account, table, ours, model, shared) for ours, model in models.items()),
            dialect=table.dialect,
            api_key=None if key is None else Secret(key),
            version=table.version,
            headers=tuple(table.headers.items()),
            service_tier=table.service_tier,
            proxy=table.proxy,
            traceparent=table.traceparent,
        )


def _endpoint(
    provider: str, account: str, table: ProviderTable, ours: str, model: ModelTable, shared: Limits
) -> Endpoint:
    """ours: our name of the model."""
    named = model.name or ours
    known = catalogue.find(ours) or catalogue.find(named) or _unlisted(ours, named, table.preset)
    # The served name is that of the model's table, else the catalogue's for this vendor, else ours. A name that is the
    # vendor's own already stays as it is.
    usual = known.names.get(table.dialect or "", ours) if ours in (known.name, *known.aliases) else ours
    served = model.name or usual
    passed_on = known.capabilities - {able for able, name in PASSED_ON.items() if name not in table.preset.parameters}
    base_url = table.base_url or table.preset.base_url
    # Of embeddings none is asked for.
    tier = None if known.capabilities == EMBEDS_ONLY else table.service_tier
    return Endpoint(
        provider=provider,
        model=ours,
        served_model=served,
        account=account,
        priority=table.priority if model.priority is None else model.priority,
        weight=model.weight or table.weight,
        price=model.price or price_of(table.preset, base_url, served, ours, tier),
        limits=_limits(model, table),
        shared_limits=shared,
        capabilities=passed_on if model.capabilities is None else model.capabilities,
        context_tokens=model.context_tokens or known.context_tokens,
        max_output_tokens=model.max_output_tokens or known.max_output_tokens,
        image_types=table.preset.image_types,
        template_tokens=table.preset.template_tokens,
        image_rule=table.preset.image_rule or rule_of(*table.preset.names_by_trust(served, ours)),
        limits_count_cached=table.preset.limits_count_cached,
        limits_count_max_output=table.preset.limits_count_max_output,
        quality=model.quality or known.quality,
        regions=table.regions,
        no_training=table.no_training,
        zero_retention=table.zero_retention,
        aliases=known.aliases.union(model.aliases, {known.name}) - {ours},
        expected_ttft_s=model.expected_ttft_s,
        expected_s_per_token=model.expected_s_per_token,
        simulated=table.simulated,
    )


def _unlisted(ours: str, served: str, preset: Dialect) -> catalogue.Model:
    """A model that isn't in the catalogue, by its name and the price list."""
    names, listed_as = preset.names_by_trust(served, ours), preset.price_id
    able = next(filter(None, map(catalogue.likely_capabilities, names)), frozenset[Capability]())
    contexts = (list_context_tokens(listed_as, name) for name in names) if listed_as else ()
    return catalogue.Model(ours, next(filter(None, contexts), None), None, able, None, names={})


def _limits(*tables: LimitFields) -> Limits:
    """The strictest value of each limit in these tables."""
    limits: dict[str, int] = {}
    for table in tables:
        for name in LimitFields.model_fields:
            if (limit := getattr(table, name)) is not None:
                limits[name] = min(limit, limits.get(name, limit))
    return Limits(**limits)
