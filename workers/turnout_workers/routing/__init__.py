"""Routing: which endpoint a job goes to, and what follows from how its call went. Pure, but for `router`."""

from turnout.request import RoutingConstraints, RoutingStrategy
from turnout_workers.routing.decision import Action, Candidate, Decision, rank
from turnout_workers.routing.eligibility import NoEligibleEndpoint, refusal
from turnout_workers.routing.failover import Verdict, judge
from turnout_workers.routing.fleet import Endpoint, Fleet, ProviderMetrics, Snapshot
from turnout_workers.routing.profile import JobProfile
from turnout_workers.routing.record import replay

__all__ = [
    "Action",
    "Candidate",
    "Decision",
    "Endpoint",
    "Fleet",
    "JobProfile",
    "NoEligibleEndpoint",
    "ProviderMetrics",
    "RoutingConstraints",
    "RoutingStrategy",
    "Snapshot",
    "Verdict",
    "judge",
    "rank",
    "refusal",
    "replay",
]
