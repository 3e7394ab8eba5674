"""What the operator has set, as attempts at jobs need it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from turnout.request import Lane, RoutingStrategy
from turnout_workers.providers.base import CloudProviderBase
from turnout_workers.routing import failover


@dataclass(frozen=True, slots=True)
class Policy:
    default_strategy: RoutingStrategy = RoutingStrategy.BALANCED
    ejection_s: float = 2.0
    max_attempts: int = failover.MAX_ATTEMPTS
    result_ttl_s: float = 86_400.0
    failed_ttl_s: float = 7 * 86_400.0
    reserved: Mapping[Lane, float] | None = None
    """Share of each rate limit that a lane leaves to the more urgent ones, while they have work."""
    hedge: bool = False
    """Whether a slow interactive call may be doubled."""
    webhooks: frozenset[str] = frozenset()
    """Names that jobs may tell when they end."""


@dataclass(slots=True)
class InForce:
    """The configuration that is followed now. Its parts are replaced when the operator changes it."""

    policy: Policy
    connectors: Mapping[str, CloudProviderBase] = field(default_factory=dict)
    """By endpoint id."""
