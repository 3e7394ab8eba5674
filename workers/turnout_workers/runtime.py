"""One worker process: everything that its loop needs, built in order, and taken down in reverse."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from typing import Any
from uuid import uuid4

import redis.asyncio

from turnout.ledger import Ledger, NewJob
from turnout.ledger.keys import Keys
from turnout.ledger.script import Coalescer
from turnout.request import InferenceRequest
from turnout_workers.attempt import Attempts, Policy
from turnout_workers.config import Settings
from turnout_workers.heartbeat import Heartbeat
from turnout_workers.housekeeping import Housekeeping
from turnout_workers.providers import Fleet, open_fleet
from turnout_workers.spool import Spool
from turnout_workers.state.redis import RedisFleetStore
from turnout_workers.state.snapshot import SnapshotPoller

logger = logging.getLogger(__name__)

LEASE_TTL_S = 30.0
"""How long a job stays claimed without a heartbeat: a crash is noticed within this and a round's length."""
