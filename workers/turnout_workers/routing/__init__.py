"""Routing: which endpoint a job goes to, and what follows from how its call went. Pure, except `router`."""

from typing import TYPE_CHECKING, Any

from turnout.request import RoutingConstraints, RoutingStrategy
from turnout_workers.routing.eligibility import NoEligibleEndpoint
from turnout_workers.routing.fleet import Endpoint, ProviderMetrics

if TYPE_CHECKING:
    from turnout_workers.router import IntelligentRouter

__all__ = [
    "Endpoint",
    "IntelligentRouter",
    "NoEligibleEndpoint",
    "ProviderMetrics",
    "RoutingConstraints",
    "RoutingStrategy",
]

if not TYPE_CHECKING:  # a type checker would accept any name

    def __getattr__(name: str) -> Any:
        # The router imports the stores, and those the pure modules here, so it is imported only on demand.
        if name != "IntelligentRouter":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from turnout_workers.router import IntelligentRouter

        return IntelligentRouter
