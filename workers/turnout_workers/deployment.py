"""What commands and Flower start from, which look at a fleet from outside: configuration, Redis, ledger, endpoints."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from turnout.errors import TurnoutError
from turnout.ledger import Call, Keyring, Keys, Ledger, run
from turnout.redis_address import connect
from turnout_workers import config
from turnout_workers.config import Settings, discovery, fleet, toml_lines
from turnout_workers.routing.fleet import Fleet


@dataclass(frozen=True, slots=True)
class Deployment:
    settings: Settings
    client: redis.Redis
    ledger: Ledger
    _fleet: Fleet

    @property
    def fleet(self) -> Fleet:
        """Raises ConfigError if no provider is configured, which commands that deal with jobs alone can do without."""
        if not self._fleet.endpoints:
            raise config.ConfigError(config.UNCONFIGURED)
        return self._fleet

    def ask(self, *calls: Call[Any]) -> list[Any]:
        """Send calls in one round trip."""
        return run(self.client, calls)

    def endpoints(self, name: str) -> list[str]:
        """Ids of an endpoint, or of all endpoints of a provider. Raises TurnoutError."""
        found = [e.id for e in self.fleet.endpoints if name in (e.id, e.provider, e.account_id)]
        if not found:
            known = ", ".join(dict.fromkeys(e.provider for e in self.fleet.endpoints))
            raise TurnoutError(f"no provider or endpoint is called {name}; there are {known}")
        return found


def deployment(with_keys: bool = False) -> Deployment:
    """Of this environment. Raises ConfigError if the configuration can't be used.

    with_keys: for commands that call providers; the others do without.
    """
    settings = _settings(with_keys)
    ledger = Ledger(Keys(settings.file.namespace), keyring=Keyring.of(os.environ))
    return Deployment(settings, connect(settings.file.redis_url), ledger, fleet(settings))


def _settings(with_keys: bool) -> Settings:
    if config.find(os.environ, Path.cwd()) or discovery.from_environment(os.environ):
        return config.configured(os.environ, with_keys=with_keys)
    # Where nothing is configured, inference servers on this machine will do, as for `turnout run`.
    found = asyncio.run(discovery.from_local_servers())
    return config.settings(toml_lines.dumps(found), "servers on this machine", os.environ)
