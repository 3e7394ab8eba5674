"""The configuration that a worker uses now, and the connectors made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from turnout.request import Lane
from turnout_workers.config import Settings
from turnout_workers.config.tables import Config
from turnout_workers.providers.base import CloudProviderBase


@dataclass(slots=True)
class CurrentConfig:
    """Both fields are replaced when the operator changes the configuration."""

    settings: Settings
    connectors: Mapping[str, CloudProviderBase] = field(default_factory=dict)
    """By endpoint id."""

    def connector(self, endpoint_id: str) -> CloudProviderBase | None:
        return self.connectors.get(endpoint_id)

    @property
    def config(self) -> Config:
        return self.settings.config

    @property
    def reserved(self) -> dict[Lane, float]:
        """Share of each rate limit that a lane leaves to more urgent lanes while they have work."""
        return {lane: getattr(self.config.lanes, lane).reserved_share for lane in Lane}
