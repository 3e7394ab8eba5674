"""The parts of a worker that its jobs share."""

from __future__ import annotations

import random
from dataclasses import dataclass

from turnout.ledger import Coalescer, Ledger
from turnout_workers.attempts.ceilings import ConfiguredCeilings
from turnout_workers.attempts.parking import Parking
from turnout_workers.background.fleet_watch import CallWatch
from turnout_workers.background.heartbeat import Heartbeat
from turnout_workers.background.spool import Spool
from turnout_workers.config.current_config import CurrentConfig
from turnout_workers.monitoring.metrics import Metrics
from turnout_workers.state.snapshot import SnapshotPoller
from turnout_workers.state.store import WorkersStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    owner: str
    """The worker's name."""
    ledger: Ledger
    send: Coalescer
    store: WorkersStore
    fleet: SnapshotPoller
    heartbeat: Heartbeat
    watch: CallWatch
    parking: Parking
    ceilings: ConfiguredCeilings
    spool: Spool
    current: CurrentConfig
    metrics: Metrics
    rng: random.Random
