"""From a checked configuration to what the fleet is made of: accounts, and their endpoints.

What is said of a model comes from the operator's table first, then the catalogue, then its name and the price list. A
price comes from the operator, else from the price list, else it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterator

from turnout.request import Capability
from turnout_workers.config import Settings
from turnout_workers.providers import catalogue
from turnout_workers.providers.dialects import DIALECTS, Dialect, dialect
from turnout_workers.providers.prices import list_context_tokens, list_price
from turnout_workers.providers.settings import ProviderConfig, Secret
from turnout_workers.routing.fleet import UNLIMITED, Endpoint, Fleet, Limits, Price
from turnout_workers.tables import LimitFields, ModelTable, ProviderTable


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
    preset_name = table.dialect or (name if name in DIALECTS else table.kind)
    preset = dialect(preset_name, table.kind)
    for number, key in enumerate(keys or (None,)):
        account = "" if number == 0 else str(number + 1)
        yield ProviderConfig(
            name=name,
            kind=table.kind,
            base_url=table.base_url or preset.base_url,
            endpoints=tuple(_endpoints(name, table, preset_name, preset, account)),
            dialect=preset_name,
            account=account,
            api_key=None if key is None else Secret(key),
            version=table.version or preset.version,
            headers=tuple(table.headers.items()),
            service_tier=table.service_tier,
            proxy=table.proxy,
            traceparent=table.traceparent,
        )


def _endpoints(name: str, table: ProviderTable, preset_name: str, preset: Dialect, account: str) -> Iterator[Endpoint]:
    models = table.models or {model.name: ModelTable() for model in catalogue.served_by(preset_name)}
    for ours, told in models.items():
        known = catalogue.find(ours) or (catalogue.find(told.name) if told.name else None)
        # A table's name for it, else the catalogue's for this vendor, else ours. What was written as the vendor's
        # own name is taken as it is.
        usual = known.names.get(preset_name, ours) if known and ours in (known.name, *known.aliases) else ours
        served = told.name or usual
        defaults = Endpoint(name, ours, served)
        aliases = frozenset(told.aliases) | (known.aliases | {known.name} if known else frozenset())
        yield Endpoint(
            provider=name,
            model=ours,
            served_model=served,
            account=account,
            priority=table.priority if told.priority is None else told.priority,
            weight=told.weight or table.weight,
            price=_price(told, preset, (served, ours), table.service_tier),
            limits=_limits(told, table),
            shared_limits=_limits(table) if len(models) > 1 else UNLIMITED,
            capabilities=_capabilities(known, preset, served) if told.capabilities is None else told.capabilities,
            context_tokens=told.context_tokens or _context_tokens(known, preset, served),
            max_output_tokens=told.max_output_tokens or (known.max_output_tokens if known else None),
            quality=told.quality or (known.quality if known else None),
            regions=table.regions,
            no_training=table.no_training,
            zero_retention=table.zero_retention,
            aliases=aliases - {ours},
            expected_ttft_s=told.expected_ttft_s or defaults.expected_ttft_s,
            expected_s_per_token=defaults.expected_s_per_token
            if told.expected_s_per_token is None
            else told.expected_s_per_token,
            simulated=table.simulated,
        )


def _price(told: ModelTable, preset: Dialect, names: tuple[str, ...], tier: str | None) -> Price | None:
    """names: the model's there and here. A deployment may have any name there, and its own one here."""
    if told.input_usd_per_mtok is not None and told.output_usd_per_mtok is not None:
        return Price(
            told.input_usd_per_mtok,
            told.output_usd_per_mtok,
            told.cache_read_usd_per_mtok,
            told.cache_write_usd_per_mtok,
        )
    if preset.price_id is None:
        return None
    return next(filter(None, (list_price(preset.price_id, name, tier=tier) for name in names)), None)


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
    """What all of them allow."""
    told = ([getattr(t, name) for t in tables if getattr(t, name) is not None] for name in LimitFields.model_fields)
    return Limits(*(min(each, default=None) for each in told))
