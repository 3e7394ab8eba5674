"""What commands and Flower need to look at a fleet from outside: configuration, Redis, ledger, endpoints."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import redis

from turnout.errors import TurnoutError
from turnout.ledger import Keyring, Keys, Ledger, Operation, run
from turnout.redis_address import connect
from turnout_workers.config import Settings, configured, fleet
from turnout_workers.routing.fleet import Fleet


@dataclass(frozen=True)
class Deployment:
    settings: Settings
    client: redis.Redis
    ledger: Ledger

    @cached_property
    def fleet(self) -> Fleet:
        """Raises ConfigError if no provider is configured. Commands that deal only with jobs don't need one."""
        return fleet(self.settings)

    def ask(self, *calls: Operation[Any]) -> list[Any]:
        """Send calls in one round trip."""
        return run(self.client, calls)

    def endpoints(self, name: str) -> list[str]:
        """Ids of an endpoint, or of all endpoints of a provider. Raises TurnoutError."""
        ids = [e.id for e in self.fleet.endpoints if name in (e.id, e.provider, e.account_id)]
        if not ids:
            providers = ", ".join(dict.fromkeys(e.provider for e in self.fleet.endpoints))
            raise TurnoutError(f"no provider or endpoint is called {name}; there are {providers}")
        return ids


def deployment(with_keys: bool = False) -> Deployment:
    """The deployment that this environment configures. Raises ConfigError if the configuration can't be used.

    with_keys: for commands that call providers.
    """
    settings = configured(os.environ, with_keys)
    ledger = Ledger(Keys(settings.config.namespace), keyring=Keyring.of(os.environ))
    return Deployment(settings, connect(settings.config.redis_url), ledger)
