"""From a checked configuration to what the fleet is made of: accounts, and their endpoints.

What is said of a model comes from the operator's table first, then the catalogue, then its name and the price list. A
price comes from the operator, else from the price list, else it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

from turnout.request import Capability
from turnout_workers.config.loading import Settings
from turnout_workers.config.providers import LimitFields, ModelTable, ProviderTable
from turnout_workers.providers import catalogue
from turnout_workers.providers.account import ProviderConfig, Secret
from turnout_workers.providers.dialects import Dialect
from turnout_workers.providers.prices import list_context_tokens, list_price
from turnout_workers.routing.fleet import UNLIMITED, Endpoint, Fleet, Limits, Price


def accounts(settings: Settings) -> tuple[ProviderConfig, ...]:
    """One for each key of each provider, in the order of the file."""
    return tuple(
        account
        for name, table in settings.file.providers.items()
        for account in _accounts(name, table, settings.keys.get(name, ()))
    )


def fleet(settings: Settings) -> Fleet:
    """The endpoints of them all."""
    return Fleet(endpoint for account in accounts(settings) for endpoint in account.endpoints)


def _accounts(name: str, table: ProviderTable, keys: tuple[str, ...]) -> Iterator[ProviderConfig]:
    models = table.models or {model.name: ModelTable() for model in catalogue.served_by(table.dialect)}
    for number, key in enumerate(keys or (None,), 1):
        account = "" if number == 1 else str(number)
        yield ProviderConfig(
            name=name,
            kind=table.kind,
            base_url=table.base_url or table.preset.base_url,
            endpoints=tuple(_endpoint(name, account, table, len(models), ours, told) for ours, told in models.items()),
            dialect=table.dialect,
            account=account,
            api_key=None if key is None else Secret(key),
            version=table.version or table.preset.version,
            headers=tuple(table.headers.items()),
            service_tier=table.service_tier,
            proxy=table.proxy,
            traceparent=table.traceparent,
        )


def _endpoint(provider: str, account: str, table: ProviderTable, models: int, ours: str, told: ModelTable) -> Endpoint:
    """models: how many of them share the limits of the provider's table."""
    known = catalogue.find(ours) or (catalogue.find(told.name) if told.name else None)
    # A table's name for it, else the catalogue's for this vendor, else ours. What was written as the vendor's
    # own name is taken as it is.
    usual = known.names.get(table.dialect or "", ours) if known and ours in (known.name, *known.aliases) else ours
    served = told.name or usual
    aliases = {*told.aliases, *(known.aliases | {known.name} if known else ())}
    return Endpoint(
        provider=provider,
        model=ours,
        served_model=served,
        account=account,
        priority=table.priority if told.priority is None else told.priority,
        weight=told.weight or table.weight,
        price=_price(told, table, served, ours),
        limits=_limits(told, table),
        shared_limits=_limits(table) if models > 1 else UNLIMITED,
        capabilities=_capabilities(known, table.preset, served) if told.capabilities is None else told.capabilities,
        context_tokens=told.context_tokens or _context_tokens(known, table.preset, served),
        max_output_tokens=told.max_output_tokens or (known.max_output_tokens if known else None),
        quality=told.quality or (known.quality if known else None),
        regions=table.regions,
        no_training=table.no_training,
        zero_retention=table.zero_retention,
        aliases=frozenset(aliases - {ours}),
        expected_ttft_s=told.expected_ttft_s,
        expected_s_per_token=told.expected_s_per_token,
        simulated=table.simulated,
    )


def _price(told: ModelTable, table: ProviderTable, *names: str) -> Price | None:
    """names: the model's there and here. A deployment may have any name there, and its own one here."""
    if (price := told.price) is not None or (provider := table.preset.price_id) is None:
        return price
    return next(filter(None, (list_price(provider, name, tier=table.service_tier) for name in names)), None)


def _capabilities(known: catalogue.Model | None, preset: Dialect, served: str) -> frozenset[Capability]:
    """What the model can do, without what this vendor doesn't pass on to it."""
    able = known.capabilities if known else catalogue.likely(served)
    asked = {Capability.TOOLS: "tools", Capability.JSON_SCHEMA: "json_schema"}
    return able - {capability for capability, parameter in asked.items() if parameter not in preset.parameters}


def _context_tokens(known: catalogue.Model | None, preset: Dialect, served: str) -> int | None:
    if known is not None:
        return known.context_tokens
    return list_context_tokens(preset.price_id, served) if preset.price_id else None


def _limits(*tables: LimitFields) -> Limits:
    """The strictest of each limit in these tables."""
    limits: dict[str, int] = {}
    for table in tables:
        for name in LimitFields.model_fields:
            if (limit := getattr(table, name)) is not None:
                limits[name] = min(limit, limits.get(name, limit))
    return Limits(**limits)
