"""Connectors to providers. `build` makes one from a configuration; other packages add kinds by entry point."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from turnout_workers.providers.account import ProviderConfig, Secret
from turnout_workers.providers.anthropic import AnthropicConnector
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.providers.connector import Connector
from turnout_workers.providers.errors import ProviderError
from turnout_workers.providers.gemini import GeminiConnector
from turnout_workers.providers.http import Http
from turnout_workers.providers.openai import OpenAIConnector

__all__ = ["CloudProviderBase", "Http", "ProviderConfig", "ProviderError", "Secret", "build"]

GROUP = "turnout.connectors"
"""Entry points of this group name classes that are called like `Connector`: with a ProviderConfig and an Http."""
KINDS: dict[str, type[Connector]] = {
    "openai": OpenAIConnector,
    "anthropic": AnthropicConnector,
    "gemini": GeminiConnector,
}


@cache
def kinds() -> frozenset[str]:
    """All kinds that can be built here. Cached, because it reads a file of every installed package, and a worker reads
    its configuration every two seconds."""
    return frozenset((*KINDS, *(entry.name for entry in entry_points(group=GROUP))))


def build(config: ProviderConfig, http: Http) -> CloudProviderBase:
    """The connector of a provider's kind. Raises LookupError if none is installed."""
    if (kind := KINDS.get(config.kind)) is not None:
        return kind(config, http)
    for entry in entry_points(group=GROUP, name=config.kind):
        connector: CloudProviderBase = entry.load()(config, http)
        return connector
    raise LookupError(f"no connector of kind {config.kind!r}; there are {', '.join(sorted(kinds()))}")
